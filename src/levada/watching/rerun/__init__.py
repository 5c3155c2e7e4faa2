"""A kept step, run again."""
