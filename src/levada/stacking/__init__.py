"""Layers that are alike, with their parameters held as one tensor of each kind: `[depth, ...]`."""

from levada.stacking.parameters import LayerParameters as LayerParameters
from levada.stacking.parameters import StackedParameters as StackedParameters
from levada.stacking.parameters import as_layers as as_layers
from levada.stacking.parameters import parameters_of as parameters_of
from levada.stacking.running import run_recorded as run_recorded

__all__ = ["LayerParameters", "StackedParameters", "as_layers", "parameters_of", "run_recorded"]
