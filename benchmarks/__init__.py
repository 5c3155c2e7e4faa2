"""Benchmarks: `python -m benchmarks.<name> [--quick]`; every number is a ratio, measured beside its divisor."""
