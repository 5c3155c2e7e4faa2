"""The weights of tokens, made of what was projected, and the way back: kernels for a GPU."""
