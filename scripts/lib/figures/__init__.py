"""The look of figures and tables."""
