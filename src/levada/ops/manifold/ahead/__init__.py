"""Writing to streams and projecting them for the layer that comes: a kernel for a GPU."""
