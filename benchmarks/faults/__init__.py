"""What becomes of a run when its process is killed, its files are changed, its disk is full, its volume large."""
