"""How figures and tables for people look."""
