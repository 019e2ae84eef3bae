"""Write, stream and name counts and artifacts on disk."""
