"""Counts and artifacts on disk: how they are written, streamed and named."""
