"""Operations: pure functions with a plain reference, whose kernels PyTorch's dispatcher chooses by device."""

from levada.ops.scan import linear_scan as linear_scan

__all__ = ["linear_scan"]
