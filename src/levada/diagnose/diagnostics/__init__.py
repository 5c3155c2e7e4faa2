"""The rules, causes before what follows: numbers, loss and data, graph, activation, depth, gradient, step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from levada.diagnose.calibration import calibration_of
from levada.diagnose.costs import cost_of
from levada.diagnose.diagnostics.accumulated_gradients import accumulated_gradients
from levada.diagnose.diagnostics.attention_collapse import attention_collapse
from levada.diagnose.diagnostics.blind_attention import blind_attention
from levada.diagnose.diagnostics.dead_units import dead_units
from levada.diagnose.diagnostics.double_softmax import double_softmax
from levada.diagnose.diagnostics.exploding_gradient import exploding_gradient
from levada.diagnose.diagnostics.exploding_memory import exploding_memory
from levada.diagnose.diagnostics.exploding_signal import exploding_signal
from levada.diagnose.diagnostics.frozen_layers import frozen_layers
from levada.diagnose.diagnostics.learning_rate import learning_rate_too_high, learning_rate_too_low
from levada.diagnose.diagnostics.lost_update import lost_update
from levada.diagnose.diagnostics.mispaired_targets import mispaired_targets
from levada.diagnose.diagnostics.misscaled_weights import misscaled_weights, one_cause
from levada.diagnose.diagnostics.mixed_rows import mixed_rows
from levada.diagnose.diagnostics.no_progress import no_progress
from levada.diagnose.diagnostics.noisy_forward import noisy_forward
from levada.diagnose.diagnostics.numerical_overflow import numerical_overflow
from levada.diagnose.diagnostics.rank_collapse import rank_collapse
from levada.diagnose.diagnostics.recipe import excessive_decay, undamped_momentum, unoptimised_parameters
from levada.diagnose.diagnostics.saturated_activation import saturated_activation
from levada.diagnose.diagnostics.shattered_gradient import shattered_gradient
from levada.diagnose.diagnostics.short_memory import short_memory
from levada.diagnose.diagnostics.stream_collapse import stream_collapse
from levada.diagnose.diagnostics.train_mode import train_mode
from levada.diagnose.diagnostics.unscaled_input import unscaled_input
from levada.diagnose.diagnostics.unstable_mixing import unstable_mixing
from levada.diagnose.diagnostics.vanishing_gradient import vanishing_gradient
from levada.diagnose.diagnostics.vanishing_signal import vanishing_signal
from levada.diagnose.diagnostics.wrong_loss import wrong_loss
from levada.diagnose.exclusion import ruled_out
from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Diagnostic, Finding
from levada.diagnose.pace import Pace
from levada.probe.trace import Trace

__all__ = ["DIAGNOSTICS", "diagnose"]

DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "numerical_overflow": numerical_overflow,
    "wrong_loss": wrong_loss,
    "double_softmax": double_softmax,
    "unscaled_input": unscaled_input,
    "mispaired_targets": mispaired_targets,
    "train_mode": train_mode,
    "accumulated_gradients": accumulated_gradients,
    "mixed_rows": mixed_rows,
    "noisy_forward": noisy_forward,
    "blind_attention": blind_attention,
    "frozen_layers": frozen_layers,
    "misscaled_weights": misscaled_weights,
    "exploding_memory": exploding_memory,
    "short_memory": short_memory,
    "dead_units": dead_units,
    "saturated_activation": saturated_activation,
    "attention_collapse": attention_collapse,
    "stream_collapse": stream_collapse,
    "unstable_mixing": unstable_mixing,
    "exploding_signal": exploding_signal,
    "vanishing_signal": vanishing_signal,
    "rank_collapse": rank_collapse,
    "vanishing_gradient": vanishing_gradient,
    "exploding_gradient": exploding_gradient,
    "shattered_gradient": shattered_gradient,
    "unoptimised_parameters": unoptimised_parameters,
    "undamped_momentum": undamped_momentum,
    "excessive_decay": excessive_decay,
    "lost_update": lost_update,
    "learning_rate_too_high": learning_rate_too_high,
    "learning_rate_too_low": learning_rate_too_low,
    "no_progress": no_progress,
}

# What says nothing, not even that it is not known, of models without streams.
_STREAMS = frozenset({"stream_collapse", "unstable_mixing"})

# What a fired cause accounts for, at its own place or directly after it.
_FOLLOWS: Mapping[str, frozenset[str]] = {
    "dead_units": frozenset({"vanishing_signal", "vanishing_gradient"}),
    "saturated_activation": frozenset({"vanishing_gradient"}),
}
_RATES = frozenset({"learning_rate_too_high", "learning_rate_too_low", "no_progress"})
_SIGNAL = frozenset({"dead_units", "saturated_activation", "exploding_signal", "vanishing_signal", "rank_collapse"})
_BACKWARD = frozenset({"vanishing_gradient", "exploding_gradient", "shattered_gradient", "lost_update"})
# What a fired warning or error accounts for wherever it is: steps that do nothing, or too much, because of it.
_CAUSES: Mapping[str, frozenset[str]] = {
    "numerical_overflow": _RATES,
    "wrong_loss": _RATES | {"frozen_layers", "vanishing_gradient", "double_softmax", "lost_update"},
    "unscaled_input": _RATES | _SIGNAL | {"exploding_gradient", "shattered_gradient"},
    "mispaired_targets": _RATES | {"short_memory"},
    "accumulated_gradients": _RATES,
    "mixed_rows": _RATES | _SIGNAL | _BACKWARD | {"short_memory", "exploding_memory", "attention_collapse"},
    "noisy_forward": _RATES | _SIGNAL | _BACKWARD,
    "frozen_layers": _RATES,
    "exploding_memory": _RATES | _SIGNAL | {"exploding_gradient", "shattered_gradient"},
    "short_memory": _RATES | {"vanishing_gradient", "lost_update"},
    "dead_units": _RATES | {"rank_collapse"},
    "saturated_activation": _RATES | {"rank_collapse"},
    "attention_collapse": _RATES,
    "exploding_signal": _RATES | {"shattered_gradient"},
    "vanishing_signal": _RATES | {"rank_collapse", "lost_update"},
    "rank_collapse": _RATES,
    "stream_collapse": frozenset({"rank_collapse"}),
    "vanishing_gradient": _RATES | {"lost_update"},
    "exploding_gradient": _RATES,
    "shattered_gradient": _RATES,
    "unoptimised_parameters": _RATES,
    "undamped_momentum": _RATES,
    "excessive_decay": _RATES,
    "lost_update": _RATES,
    "learning_rate_too_high": frozenset({"no_progress"}),
    "learning_rate_too_low": frozenset({"no_progress"}),
}


# What the rules below need of the inputs, by what the inputs lack; a network is not to blame for its data.
_NEEDED: Mapping[str, frozenset[str]] = {
    "": frozenset(),
    "spread": frozenset({"dead_units", "vanishing_signal"}),
    "size": frozenset(
        {
            "dead_units",
            "saturated_activation",
            "exploding_signal",
            "vanishing_signal",
            "vanishing_gradient",
            "exploding_gradient",
        }
    ),
}
# What has nothing to say, not even that it is not known, of inputs without a spread or a size.
_SILENT = frozenset(
    {"rank_collapse", "misscaled_weights", "shattered_gradient", "unscaled_input", "attention_collapse", *_RATES}
)
_LACK: Mapping[str, str] = {
    "spread": "all rows of the batch are the same, so that no difference between inputs can be followed",
    "size": "all inputs are zero, so that what a model does with inputs is not seen",
}


def diagnose(trace: Trace) -> tuple[Finding, ...]:
    """Run every rule on a trace, and leave out what follows from another finding.

    Args:
        trace: of one check, or of a run.
    """
    overflow = tuple(numerical_overflow(trace))
    if any(f.severity == "error" and f.evidence.get("explained_by") != "step" for f in overflow):
        return _completed(overflow, trace)  # what is NaN cannot be measured, and need not be explained
    found = list(overflow)
    flat, untested = facts_of(trace).flat, facts_of(trace).untested
    mixes = bool(trace.context.get("mixing"))
    for name, rule in DIAGNOSTICS.items():
        if (name in _STREAMS and not mixes) or (name in _SILENT and flat):
            continue
        if name in _NEEDED[flat]:
            found.append(Finding(name, "info", "unknown", f"{name} is not known: {_LACK[flat]}."))
        elif name != "numerical_overflow":
            told = list(rule(trace))
            if name in untested and all(finding.severity == "info" for finding in told):
                told = [*told, Finding(name, "info", "unknown", f"{name} is not known: {untested[name]}.")]
            found.extend(finding for finding in told if not _explained(finding, found, trace.names()))
    found = one_cause(found)
    if any(finding.severity == "error" for finding in found):
        found = [finding for finding in found if finding.status != "unknown"]  # an error says why it is not known
    return _completed(found, trace)


def _completed(findings: Sequence[Finding], trace: Trace) -> tuple[Finding, ...]:
    """Add what holds for any rule: how often it is wrong, what was excluded, what it cost."""
    pace = trace.context.get("pace")
    seconds = pace.seconds if isinstance(pace, Pace) else {}
    return tuple(
        replace(
            finding,
            calibration=calibration_of(finding.rule, finding.severity),
            ruled_out=finding.ruled_out or ruled_out(finding, trace),
            cost_ms=cost_of(finding.rule, seconds),
        )
        if finding.status == "fired"
        else finding
        for finding in findings
    )


def _explained(finding: Finding, causes: Sequence[Finding], names: Sequence[str]) -> bool:
    """Whether a cause accounts for a finding, wherever it is, or for one at its own place."""
    if finding.status != "fired":
        return False
    fired = [cause for cause in causes if cause.status == "fired" and cause.where]
    if any(finding.rule in _CAUSES.get(cause.rule, ()) and cause.severity != "info" for cause in fired):
        return True
    if finding.evidence.get("explained_by") != "place":
        return False
    place = finding.where.get("first", "")
    return any(
        finding.rule in _FOLLOWS.get(cause.rule, ())
        and names.index(cause.where["first"]) <= names.index(place) <= names.index(cause.where["last"]) + 1
        for cause in fired
    )
