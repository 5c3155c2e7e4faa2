"""Each leg of an error is needed: with all of them a rule says error, without any single one it does not."""

from __future__ import annotations

import math

import pytest
import torch

from levada.diagnose.diagnostics.exploding_gradient import exploding_gradient
from levada.diagnose.diagnostics.exploding_signal import exploding_signal
from levada.diagnose.diagnostics.numerical_overflow import numerical_overflow
from levada.diagnose.diagnostics.saturated_activation import saturated_activation
from levada.diagnose.diagnostics.vanishing_gradient import vanishing_gradient
from levada.diagnose.diagnostics.vanishing_signal import vanishing_signal
from levada.diagnose.facts import Facts
from levada.diagnose.prediction import Prediction
from levada.probe.trace import Site, Trace

DEPTH, EPS = 20, 2.0**-23
EASY = [0.02 * (-1) ** i for i in range(DEPTH - 1)]  # scatter of the steps, in decades


def trace(values, *, shared=False, **facts):
    """Hold columns of one number per site, over two equal draws; the last site is the head."""
    sites = tuple(
        Site(str(i), i, "Linear", (4, 8), ("w" if shared else f"{i}.w",) if i < DEPTH or not shared else ("head",))
        for i in range(DEPTH + 1)
    )
    told = {name: torch.tensor([column, column], dtype=torch.float64) for name, column in values.items()}
    return Trace(sites, (0, 0), told, {"facts": Facts(**{"optimizer": "SGD", "lr": 0.1, **facts})})


def theory(gain):
    return tuple(Prediction(str(i), gain, gain**i, gain**i) for i in range(DEPTH + 1))


def along(step, scatter=EASY, sign=1):
    """Return sizes at the boundaries for a log10 factor per block, towards the output (1) or the input (-1)."""
    logs = [0.0]
    for error in scatter:
        logs.append(logs[-1] + step + error)
    column = [10.0**value for value in logs] if sign > 0 else [10.0**value for value in reversed(logs)]
    return [*column, column[-1]]


def severity(rule, *given, **facts):
    found = [f.severity for f in rule(trace(*given, **facts)) if f.status == "fired"]
    return found[0] if found else None


ROUGH = [2.0 * (-1) ** i for i in range(DEPTH - 1)]
AFTER = DEPTH + 1


def gradient_case(**change):
    values = {
        "cotangent_rms": along(-0.5, change.pop("scatter", EASY), -1),
        "update_ratio": [1e-12] * 8 + [1e-3] * 13,
        "lost_fraction": [1.0] * 8 + [0.0] * 13,
    }
    facts = {"predictions": theory(10**-0.5)}
    for key, value in change.items():
        (values if key in values else facts)[key] = value
    return values, facts


GRADIENT_LEGS = {
    "theory disagrees by 0.1 decades per block": ({"predictions": theory(10**-0.6)}, "warn"),
    "theory is silent": ({"predictions": ()}, "warn"),
    "the interval includes criticality": ({"scatter": ROUGH}, "warn"),
    "the first blocks move": ({"update_ratio": [1e-3] * AFTER, "lost_fraction": [0.0] * AFTER}, "warn"),
    "the last blocks do not move either": ({"update_ratio": [1e-12] * AFTER, "lost_fraction": [1.0] * AFTER}, "warn"),
    "half of the first blocks' elements move": (
        {"update_ratio": [1e-6] * 8 + [1e-3] * 13, "lost_fraction": [0.5] * 8 + [0.0] * 13},
        "warn",
    ),
    "no update was measured": ({"update_ratio": [math.nan] * AFTER}, "warn"),
    "the parameters are one and the same": ({"shared": True}, "warn"),
    "less than three decades are lost": ({"cotangent_rms": along(-0.14, sign=-1)}, None),
}


def test_vanishing_gradient_with_all_legs_is_an_error():
    values, facts = gradient_case()
    assert severity(vanishing_gradient, values, **facts) == "error"


@pytest.mark.parametrize("leg", GRADIENT_LEGS)
def test_vanishing_gradient_needs_each_leg(leg):
    change, expected = GRADIENT_LEGS[leg]
    values, facts = gradient_case(**change)
    assert severity(vanishing_gradient, values, **facts) == expected


def test_a_gradient_flushed_to_zero_stands_still():
    values, facts = gradient_case(
        update_ratio=[0.0] * 8 + [2e-3] * 13, lost_fraction=[math.nan] * 8 + [0.7] * 13, resolution=2.0**-7
    )
    assert severity(vanishing_gradient, values, **facts) == "error"  # in bfloat16 0.3 of the elements move, and none


def test_in_half_precision_a_share_that_is_not_clearly_larger_is_no_motion():
    values, facts = gradient_case(
        update_ratio=[1e-3] * 8 + [2e-3] * 13, lost_fraction=[0.92] * 8 + [0.88] * 13, resolution=2.0**-7
    )
    assert severity(vanishing_gradient, values, **facts) == "warn"


def signal_case(**change):
    values = {"signal_spread": along(-0.5, change.pop("scatter", EASY)), "signal_rms": [1e-12] * AFTER}
    facts = {
        "predictions": theory(10**-0.5),
        "output_spread": EPS / 1000,
        "output_spread_exact": True,
        "output_spread_after": 0.0,
    }
    for key, value in change.items():
        (values if key in values else facts)[key] = value
    return values, facts


SIGNAL_LEGS = {
    "theory disagrees by 0.1 decades per block": ({"predictions": theory(10**-0.6)}, "warn"),
    "the interval includes criticality": ({"scatter": ROUGH}, "warn"),
    "the output differs by a tenth of the resolution": ({"output_spread": EPS / 10}, "warn"),
    "the spread was not measured exactly": ({"output_spread_exact": False}, "warn"),
    "the first step opens it": ({"output_spread_after": 1e-3}, "warn"),
    "less than three decades are lost": ({"signal_spread": along(-0.14)}, None),
}


def test_vanishing_signal_with_all_legs_is_an_error():
    values, facts = signal_case()
    assert severity(vanishing_signal, values, **facts) == "error"


@pytest.mark.parametrize("leg", SIGNAL_LEGS)
def test_vanishing_signal_needs_each_leg(leg):
    change, expected = SIGNAL_LEGS[leg]
    values, facts = signal_case(**change)
    assert severity(vanishing_signal, values, **facts) == expected


BAD = {"loss_value": 1e20, "loss_constant": 1.0, "loss_after": math.inf}
GROWTH_LEGS = {
    "theory disagrees by 0.1 decades per block": ({"predictions": theory(10**0.6)}, EASY, "warn"),
    "the interval includes criticality": ({}, ROUGH, "warn"),
    "the loss stays finite, though large": ({"loss_after": 1e30}, EASY, "warn"),
    "there was no step": ({"loss_after": None}, EASY, "warn"),
}


@pytest.mark.parametrize(
    ("rule", "column", "sign"), [(exploding_signal, "signal_rms", 1), (exploding_gradient, "cotangent_rms", -1)]
)
def test_growth_is_an_error_with_all_legs_alone(rule, column, sign):
    facts = {"predictions": theory(10**0.5), **BAD}
    assert severity(rule, {column: along(0.5, sign=sign)}, **facts) == "error"
    assert severity(rule, {column: along(0.14, sign=sign)}, **facts) is None
    for change, scatter, expected in GROWTH_LEGS.values():
        assert severity(rule, {column: along(0.5, scatter, sign)}, **{**facts, **change}) == expected


def test_growth_that_batch_normalisation_explains_is_a_warning():
    facts = {"predictions": theory(10**0.5), **BAD, "batch_normalised": frozenset(str(i) for i in range(DEPTH))}
    assert severity(exploding_gradient, {"cotangent_rms": along(0.5, sign=-1)}, **facts) == "warn"


def saturated(share=1.0, still=1.0, moving=1e-3):
    column = [share] + [0.0] * DEPTH
    ratio = [1e-3 * (1 - still)] + [moving] * DEPTH
    lost = [still] + [0.0] * DEPTH
    return {"saturated_fraction": column, "update_ratio": ratio, "lost_fraction": lost}


def test_saturation_is_an_error_with_all_legs_alone():
    assert severity(saturated_activation, saturated()) == "error"
    assert severity(saturated_activation, saturated(share=0.98)) == "warn"
    assert severity(saturated_activation, saturated(still=0.0)) == "warn"
    assert severity(saturated_activation, saturated(moving=0.0)) == "warn"
    assert severity(saturated_activation, saturated(share=0.5)) is None


def test_an_overflow_is_an_error_where_it_reaches_the_output_or_comes_from_a_parameter():
    inside, outside = [0.0, 0.5, *[0.0] * (DEPTH - 1)], [0.0, 0.5, *[0.5] * (DEPTH - 1)]
    assert severity(numerical_overflow, {"nonfinite": outside}) == "error"
    assert severity(numerical_overflow, {"nonfinite": inside}) == "warn"  # as in a mask
    assert severity(numerical_overflow, {"nonfinite": inside}, nonfinite_parameters=("1.w",)) == "error"
    assert severity(numerical_overflow, {"nonfinite": inside}, loss_value=math.nan) == "error"
    assert severity(numerical_overflow, {"nonfinite": [0.0] * AFTER}) is None
