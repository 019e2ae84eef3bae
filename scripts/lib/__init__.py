"""Code that the stages share, without stage logic."""
