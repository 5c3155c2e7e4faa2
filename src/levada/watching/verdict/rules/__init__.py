"""The rules that read a running trace, causes before what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from levada.diagnose.finding import Finding
from levada.runs.standing import PLACED
from levada.watching.verdict.rules.depth import (
    exploding_gradient,
    exploding_signal,
    vanishing_gradient,
    vanishing_signal,
)
from levada.watching.verdict.rules.inputs import constant_inputs
from levada.watching.verdict.rules.steps import (
    accumulated_gradients,
    learning_rate_too_high,
    learning_rate_too_low,
    lost_update,
)
from levada.watching.verdict.rules.units import dead_units, saturated_activation
from levada.watching.verdict.rules.unreached import frozen_layers
from levada.watching.verdict.view import View

__all__ = ["EXPLAINS", "PLACED", "RULES", "Rule"]

Rule: TypeAlias = Callable[[View], Iterable[Finding]]

RULES: Final[Mapping[str, Rule]] = {
    "constant_inputs": constant_inputs,
    "accumulated_gradients": accumulated_gradients,
    "learning_rate_too_high": learning_rate_too_high,
    "dead_units": dead_units,
    "frozen_layers": frozen_layers,
    "saturated_activation": saturated_activation,
    "exploding_signal": exploding_signal,
    "vanishing_signal": vanishing_signal,
    "vanishing_gradient": vanishing_gradient,
    "exploding_gradient": exploding_gradient,
    "lost_update": lost_update,
    "learning_rate_too_low": learning_rate_too_low,
}
"""Name -> rule, without the two that follow every step's loss: `numerical_overflow` and `loss_spike`."""

EXPLAINS: Final[Mapping[str, frozenset[str]]] = {
    "constant_inputs": frozenset(
        {
            "learning_rate_too_high",
            "learning_rate_too_low",
            "dead_units",
            "frozen_layers",
            "saturated_activation",
            "vanishing_signal",
            "vanishing_gradient",
        }
    ),
    "accumulated_gradients": frozenset(
        {
            "learning_rate_too_high",
            "dead_units",
            "saturated_activation",
            "exploding_signal",
            "exploding_gradient",
            "loss_spike",
        }
    ),
    "learning_rate_too_high": frozenset(
        {"dead_units", "frozen_layers", "saturated_activation", "exploding_signal", "exploding_gradient"}
    ),
    "saturated_activation": frozenset({"vanishing_gradient", "exploding_gradient", "learning_rate_too_low"}),
    "dead_units": frozenset({"vanishing_signal", "vanishing_gradient", "learning_rate_too_low"}),
    "frozen_layers": frozenset({"vanishing_gradient", "learning_rate_too_low"}),
    "exploding_signal": frozenset({"exploding_gradient"}),
    "vanishing_signal": frozenset({"lost_update", "learning_rate_too_low"}),
    "vanishing_gradient": frozenset({"lost_update", "learning_rate_too_low"}),
    "exploding_gradient": frozenset({"learning_rate_too_low"}),
    "lost_update": frozenset({"learning_rate_too_low"}),
}
"""What a rule that speaks accounts for, so that the other is not told."""
