"""Layers that are alike, with their parameters held as one tensor of each kind: `[depth, ...]`."""

from levada.stacking.by_layer import after_loading as after_loading
from levada.stacking.by_layer import as_layers as as_layers
from levada.stacking.by_layer import before_loading as before_loading
from levada.stacking.by_layer import require_by_layer as require_by_layer
from levada.stacking.parameters import LayerParameters as LayerParameters
from levada.stacking.parameters import StackedParameters as StackedParameters
from levada.stacking.running import run_recorded as run_recorded
from levada.stacking.slices import LayerSlice as LayerSlice
from levada.stacking.slices import parameters_of as parameters_of
from levada.stacking.slices import whole_of as whole_of

__all__ = [
    "LayerParameters",
    "LayerSlice",
    "StackedParameters",
    "after_loading",
    "as_layers",
    "before_loading",
    "parameters_of",
    "require_by_layer",
    "run_recorded",
    "whole_of",
]
