"""Attention over sources that registers hold: kernels for a GPU."""
