"""Verdicts and numbers in plain words: the same on the page, in the terminal and in SARIF."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from levada._numbers import NONFINITE

__all__ = [
    "COTANGENT",
    "SIGNS",
    "cell",
    "count",
    "evidence_name",
    "evidence_rows",
    "fired",
    "headline",
    "human",
    "interval",
    "number",
    "phrase",
    "place",
    "plain",
    "precise",
    "sampled",
    "short",
]

_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# What happened, and the words that lead to the place.
_PHRASES: Final[Mapping[str, tuple[str, str]]] = {
    "vanishing_gradient": ("The learning signal dies on its way back", "through"),
    "exploding_gradient": ("The gradient explodes on its way back", "through"),
    "vanishing_signal": ("The signal dies out", "in"),
    "exploding_signal": ("The signal explodes", "in"),
    "saturated_activation": ("The activations saturate", "at"),
    "dead_units": ("Units are dead", "at"),
    "rank_collapse": ("All inputs come to look the same", "at"),
    "attention_collapse": ("Every token attends to one", "at"),
    "shattered_gradient": ("The gradient turns into noise", "at"),
    "degradation": ("Depth makes the training worse", "from"),
    "frozen_layers": ("No gradient arrives", "at"),
    "lost_update": ("Updates are lost in rounding", "at"),
    "learning_rate_too_high": ("The learning rate is too high", "for"),
    "learning_rate_too_low": ("The learning rate is too low", "for"),
    "short_memory": ("The memory is too short", "at"),
    "exploding_memory": ("The memory explodes", "at"),
    "numerical_overflow": ("The numbers overflow", "at"),
    "accumulated_gradients": ("Gradients pile up from step to step", "at"),
    "double_softmax": ("The softmax is applied twice", "at"),
    "wrong_loss": ("The loss does not fit the outputs", "of"),
    "unscaled_input": ("The inputs are not scaled", "at"),
    "misscaled_weights": ("The weights are drawn at the wrong scale", "at"),
    "train_mode": ("A module is in the wrong mode", "at"),
    "stream_collapse": ("The streams have become one", "at"),
    "unstable_mixing": ("The mixing of the streams is unstable", "at"),
}
COTANGENT: Final = "a cotangent: a random vector of size 1, sent backwards from the output"
SIGNS: Final = {"error": "✕", "warn": "!", "info": "i", "healthy": "✓", "unknown": "?"}
_RANK: Final = {"error": 0, "warn": 1, "info": 2}

# What the keys of evidence mean, and the unit: a share is written in per cent.
_EVIDENCE: Final[Mapping[str, tuple[str, str]]] = {
    "gradient_decay_per_block": ("gradient, factor per block", ""),
    "signal_decay_per_block": ("difference between inputs, factor per block", ""),
    "growth_per_block": ("signal, factor per block", ""),
    "gain_per_block": ("gain per block", ""),
    "predicted_share": ("blocks that theory covers", "%"),
    "decades": ("over the blocks named", "orders of magnitude"),
    "decades_over_all_blocks_measured": ("over all blocks that could be measured", "orders of magnitude"),
    "starved": ("first and last of the layers that it hardly reaches", ""),
    "explained_by": ("explained by", ""),
    "output_spread": ("difference between outputs / size of the output", ""),
    "output_spread_after_step": ("the same after the optimizer's first step", ""),
    "output_rms": ("size of the output, root mean square", ""),
    "output_depends_on_input": ("whether the output depends on the input", ""),
    "dead_fraction": ("share of units that are dead", "%"),
    "saturated_fraction": ("share of elements that are saturated", "%"),
    "gradient_before": ("gradient before the dead units", ""),
    "spread_behind": ("difference between inputs behind them", ""),
    "reference": ("for comparison", ""),
    "input_rms": ("size of the input, root mean square", ""),
    "weight_rms": ("size of the weights, root mean square", ""),
    "lr": ("learning rate", ""),
    "update_ratio": ("optimizer's first step / weights", ""),
    "lost_fraction": ("share of that step lost in rounding", "%"),
    "first_update_ratio": ("first of these layers, optimizer's first step / weights", ""),
    "last_update_ratio": ("last of the other layers, optimizer's first step / weights", ""),
    "first_lost_fraction": ("first of these layers, share of that step lost in rounding", "%"),
    "first_gradient_over_eps": ("first of these layers, gradient / the optimizer's epsilon", ""),
    "standing_still": ("layers that the optimizer's first step leaves as they are", ""),
    "first_step_beside_weights": ("optimizer's first step / weights", ""),
    "optimizer_first_step": ("test of the optimizer's first step", ""),
    "loss_after_first_step": ("test of the loss after the first step", ""),
    "loss_before": ("loss before the optimizer's first step (nats)", ""),
    "loss_after": ("loss after it (nats)", ""),
    "loss_beside_that_of_zeros": ("test of the loss beside that of an output of zeros", ""),
    "loss_of_zeros": ("loss of an output of zeros", ""),
    "freeze_training": ("training test with these layers frozen", ""),
    "training": ("longer training test", ""),
    "longer_training": ("longer training test", ""),
    "parameters_without_gradient": ("parameters without a gradient", ""),
    "share": ("share of values that are NaN or infinite", "%"),
    "blocks_after": ("blocks behind it", ""),
    "composite_forward_gain": ("what the mixing multiplies equal streams by", ""),
    "composite_backward_gain": ("what the mixing multiplies a gradient by that is equal in all streams", ""),
    "composite_column_norm": ("what the mixing leaves to one stream of a gradient that points anywhere", ""),
    "composite_log_column_sum": ("the logarithm of that, growing or shrinking", "nat"),
    "growth_beside_the_mixing": ("test of what was measured beside the mixing", ""),
    "decades_of_the_mixing": ("the mixing alone", "orders of magnitude"),
    "decades_measured_at_least": ("measured, at least", "orders of magnitude"),
    "stream_cosine": ("cosine between the streams, the smallest", ""),
    "difference_of_gradients_between_streams": ("difference of gradients between streams / their size", ""),
    "least_share": ("smallest such share", "%"),
    "effective_rank": ("directions in which the inputs differ, effective rank", ""),
    "attainable_rank": ("as many as batch and width allow", ""),
    "rank_before": ("directions before the block", ""),
    "rank_after_first_step": ("directions after the optimizer's first step", ""),
    "correlation": ("mean cosine between inputs", ""),
    "attention_entropy": ("entropy of attention / its largest value", ""),
    "attention_slope": ("slope of the softmax", ""),
    "attention_logit_max": ("largest logit", ""),
    "steps_of_queries_and_keys": ("ten steps of queries and keys alone", ""),
    "gradient_cosine": ("cosine between the gradients of neighbours", ""),
    "gain_of_neighbours": ("what steps for the inputs gain their neighbours, as a share", "%"),
    "gain_of_exact_step": ("what the step gains without rounding", ""),
    "gain_of_rounded_step": ("what it gains with rounding", ""),
    "flushed_fraction": ("share of the gradient's elements that float16 loses", "%"),
    "loss_at_lr": ("losses at this rate", ""),
    "floor_of_the_loss": ("least loss that there is", ""),
    "memory_horizon": ("steps after which 1/1000 of the memory is left", ""),
    "horizon_predicted": ("the same by its gates, or the size of its weights, alone", ""),
    "gradient_in_first_half": ("gradient in the first half of the sequence / the largest", ""),
    "growth_per_step": ("gradient, factor per step back in time", ""),
    "lyapunov_exponent": ("largest Lyapunov exponent, per step", ""),
    "repaired_copy": ("trial of a repaired copy", ""),
    "loss_when_1_is_added": ("change of the loss when 1 is added to all outputs", ""),
}
_GROUPS: Final = ("tests", "optimizer_first_step", "loss_after_first_step", "loss_beside_that_of_zeros")
_REASONS: Final = {"place": "its place: it happens at one block"}


def number(value: Any) -> float | None:
    """Read a number of a report: floats, and the names of the three that JSON lacks; None for what is no number.

    Example:
        >>> number("-inf"), number(2), number("layers.0"), number(None)
        (-inf, 2.0, None, None)
    """
    if isinstance(value, str):
        return NONFINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def superscript(exponent: int) -> str:
    """Write a power of ten.

    Example:
        >>> superscript(-12)
        '10⁻¹²'
    """
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def _form(value: Any, power: str, digits: int = 3) -> str:
    amount = number(value)
    if amount is None:
        return "—" if value is None else str(value)
    if not math.isfinite(amount):
        return "NaN" if math.isnan(amount) else ("−" if amount < 0 else "") + "∞"
    sign, size = ("−" if amount < 0 else ""), abs(amount)
    if size < 1e6 and size == int(size):
        return f"{sign}{int(size):,}"
    if 1e-3 <= size < 1e5:
        return sign + (f"{size:,.0f}" if size >= 1000 else f"{size:.{digits}g}")
    mantissa, exponent = f"{size:.{digits - 2}e}".split("e")
    tens = str(int(exponent))
    return f"{sign}{mantissa}{power}{tens.translate(_SUPERSCRIPTS) if '×' in power else tens}"


def short(value: Any) -> str:
    """Write a number with three digits that matter.

    Example:
        >>> short(0.40812), short(4.13e-19), short(12345678.0), short("nan"), short(None)
        ('0.408', '4.1×10⁻¹⁹', '1.2×10⁷', 'NaN', '—')
    """
    return _form(value, "×10")


def precise(value: Any) -> str:
    """As `short`, with one digit more: for evidence, where two numbers are compared.

    Example:
        >>> precise(2.3021), precise(4.134e-19)
        ('2.302', '4.13×10⁻¹⁹')
    """
    return _form(value, "×10", 4)


def cell(value: Any, power: str = "×10") -> str:
    """As `short`, with its zeros, for columns.

    Example:
        >>> cell(0.53), cell(24.0), cell(0.0), cell(2e-9, "e")
        ('0.530', '24', '0', '2.0e-9')
    """
    amount = number(value)
    if amount is None or not 1e-3 <= abs(amount) < 1000 or amount == int(amount):
        return _form(value, power)
    return f"{amount:#.3g}".rstrip(".").replace("-", "−")


def plain(value: Any, digits: int = 3) -> str:
    """As `short`, in the letters of a terminal.

    Example:
        >>> plain(4.13e-19)
        '4.1e-19'
    """
    return _form(value, "e", digits)


def interval(value: Any, write: Any = short) -> str:
    """Write a number, or a mapping of value, low and high.

    Example:
        >>> interval({"value": 0.41, "low": 0.4, "high": 0.42, "predicted": 0.408})
        '0.41 [0.40, 0.42]'
    """
    if not isinstance(value, Mapping):
        return str(write(value))
    texts = [str(write(value.get(key))) for key in ("value", "low", "high")]
    if value.get("low") is None or value.get("high") is None:
        return texts[0]
    if texts[1] == texts[2] and value["low"] != value["high"] and write in (short, plain):
        return interval(value, precise if write is short else partial(plain, digits=4))
    if all(re.fullmatch(r"[-−]?[\d,]+(\.\d+)?", text) for text in texts):
        # As many digits behind the point for all three, so that they can be compared.
        most = max(len(text.partition(".")[2]) for text in texts)
        numbers = (number(value.get(key)) or 0.0 for key in ("value", "low", "high"))
        texts = [f"{amount:,.{most}f}".replace("-", "−") for amount in numbers]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def sampled(count: int, most: int) -> list[int]:
    """Give at most `most` of `count` indices, evenly, with the first and the last.

    Example:
        >>> sampled(100, 4)
        [0, 33, 66, 99]
    """
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def human(name: str) -> str:
    """Turn a key into words.

    Example:
        >>> human("gradient_rms"), human("saturated_fraction")
        ('gradient rms', 'saturated fraction')
    """
    return name.replace("_", " ")


def evidence_name(key: str) -> str:
    """Say what a key of evidence means, in words.

    Example:
        >>> evidence_name("dead_fraction"), evidence_name("loss after 100 steps")
        ('share of units that are dead', 'loss after 100 steps')
    """
    return _EVIDENCE.get(key, (human(key), ""))[0]


def count(amount: int, noun: str) -> str:
    """Write a count with its noun.

    Example:
        >>> count(1, "block"), count(1200, "block")
        ('1 block', '1,200 blocks')
    """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def place(where: Mapping[str, Any] | None) -> str:
    """Say the span of a finding.

    Example:
        >>> place({"first": "layers.0", "last": "layers.30"}), place({"first": "8"}), place({"first": "stem"})
        ('layers.0 to layers.30', 'module 8', 'module stem')
    """
    first, last = (str((where or {}).get(key) or "") for key in ("first", "last"))
    several = bool(first and last and first != last)
    name = f"{first} to {last}" if several else first or last
    # The modules of a Sequential are called "0", "1", ..., others "first": alone, they would read as common words.
    bare = any(one and (one[0].isdigit() or "." not in one) for one in (first, last))
    return f"module{'s' if several else ''} {name}" if bare else name


def fired(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give the findings that speak, the gravest first, in their order."""
    found = [finding for finding in report.get("findings") or () if finding.get("status", "fired") == "fired"]
    return sorted(found, key=lambda finding: _RANK.get(finding.get("severity", "info"), 3))


def phrase(finding: Mapping[str, Any]) -> str:
    """Say a finding's rule and place as a sentence."""
    rule = str(finding.get("rule", "finding"))
    what, link = _PHRASES.get(rule, (human(rule).capitalize(), "at"))
    where = place(finding.get("where"))
    return f"{what} {link} {where}" if where else what


def headline(report: Mapping[str, Any]) -> str:
    """Say the verdict as one sentence.

    Example:
        >>> headline({"verdict": "healthy", "findings": []})
        'The learning signal reaches every block'
    """
    verdict = report.get("verdict")
    found = fired(report)
    if verdict in ("error", "warn") and found:
        return phrase(found[0])
    if verdict == "healthy":
        return "The learning signal reaches every block"
    return "The check could not decide" if verdict == "unknown" else f"The verdict is: {verdict}"


def evidence_rows(
    evidence: Mapping[str, Any], write: Any = precise, path: str = "", unit: str = ""
) -> Iterator[tuple[str, str]]:
    """Give evidence as rows of two: what, in words and with its unit, and its value; what is empty has no row.

    Example:
        >>> list(evidence_rows({"decay": {"value": 0.41, "low": 0.4, "high": 0.42, "predicted": 0.408}, "blocks": 31}))
        [('decay', '0.41 [0.40, 0.42]; predicted 0.408'), ('blocks', '31')]
        >>> list(evidence_rows({"tests": {"standing_still": 41, "of": 43, "first_gradient_over_eps": None}}))
        [("layers that the optimizer's first step leaves as they are", '41 of 43')]
    """
    for key, value in evidence.items():
        if _is_empty(value) or (key == "of" and "standing_still" in evidence):
            continue
        words, own = _EVIDENCE.get(str(key), (human(str(key)), unit))
        label = f"{path}, {words}" if path else words
        if key == "standing_still" and "of" in evidence:
            yield label, f"{_written(value, write, own)} of {_written(evidence['of'], write, own)}"
        elif not isinstance(value, Mapping):
            yield label, _written(value, write, own)
        elif key in _GROUPS:
            yield from evidence_rows(value, write, path)
        else:
            yield from _mapping_rows(label, value, write, own)


def _mapping_rows(label: str, value: Mapping[str, Any], write: Any, unit: str) -> Iterator[tuple[str, str]]:
    told = [interval(value, write)] if "value" in value else []
    rest = {k: v for k, v in value.items() if not told or k not in ("value", "low", "high")}
    flat = {k: v for k, v in rest.items() if not isinstance(v, Mapping) and not _is_sentence(v) and not _is_empty(v)}
    for k, v in flat.items():
        words, own = _EVIDENCE.get(str(k), ("", unit))
        if str(k) == "draws":  # a signal needs no cotangent
            words = "random cotangents drawn" if label.startswith("gradient") else "measurements"
        told.append(f"{words or human(str(k))}{':' * bool(words or isinstance(v, str))} {_written(v, write, own)}")
    if told:
        yield label, "; ".join(told)
    yield from evidence_rows({k: v for k, v in rest.items() if k not in flat}, write, label, unit)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, Sequence, Mapping)) and not value)


def _is_sentence(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 24


def _written(value: Any, write: Any, unit: str = "") -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(str(write(item)) for item in value[:12])
        return f"[{shown}{', …' if len(value) > 12 else ''}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    amount = number(value)
    if not unit or amount is None:
        return str(_REASONS.get(value, write(value)) if isinstance(value, str) else write(value))
    return f"{write(100 * amount)} %" if unit == "%" else f"{write(value)} {unit}"
