"""Tables of addresses: kernels for a GPU."""
