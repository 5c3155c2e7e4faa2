"""Mutation operators: each breaks a healthy setup in one way, and says which rules name the cause."""

from benchmarks.diagnosis.operators import data, layers, loop, weights
from benchmarks.diagnosis.operators.operator import OPERATORS, At, Operator

__all__ = ["OPERATORS", "At", "Operator", "data", "layers", "loop", "weights"]
