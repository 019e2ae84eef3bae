"""Highly variable genes: one module for each flavour or family of flavours, and what they share."""
