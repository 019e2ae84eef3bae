"""Numerical methods that stages share."""
