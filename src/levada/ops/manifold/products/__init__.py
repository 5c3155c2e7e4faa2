"""Products of streams with weights, there and back: kernels for a GPU."""
