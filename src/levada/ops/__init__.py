"""Operations: pure functions with a plain reference, whose kernels PyTorch's dispatcher chooses by device."""

import importlib
import sys

from levada.ops.depth import attend_depth as attend_depth
from levada.ops.depth import sum_depth as sum_depth
from levada.ops.scan import linear_scan as linear_scan
from levada.ops.sinkhorn import sinkhorn as sinkhorn
from levada.ops.statistics import tensor_statistics as tensor_statistics
from levada.ops.streams import write_streams as write_streams

__all__ = [
    "attend_depth",
    "linear_scan",
    "sinkhorn",
    "sum_depth",
    "tensor_statistics",
    "write_streams",
]

if "torch.utils.flop_counter" in sys.modules:
    importlib.import_module("levada.ops.flops")
