"""The picture of each finding's evidence: what its rule read, theory's word on it, and the blocks that it names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from levada.report.beside import line_figure
from levada.report.matrix import matrices
from levada.report.memory import memory_spec
from levada.report.palette import SIGNS
from levada.report.profile import column, gradient_key
from levada.report.series import Span
from levada.report.words import COTANGENT, number, phrase, short

__all__ = ["DRAWN", "PICTURES", "WORDS_ALONE", "evidence_picture"]

_Blocks: TypeAlias = Sequence[Mapping[str, Any]]
_Spec: TypeAlias = dict[str, Any]
_Drawn: TypeAlias = dict[str, Any] | None
# The smallest number that float16 holds.
FLOAT16_TINY: Final = 2.0**-24
# Evidence that is drawn and not told.
DRAWN: Final = frozenset({"matrices", "curves"})
BLOCK: Final = "block, input on the left, output on the right"


def evidence_picture(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    """Draw what a finding's rule read.

    Args:
        finding: one that fired.
        report: the JSON of `levada check` that holds it.
        blocks: its blocks in order.

    Returns:
        Title, caption and picture; None where there is no picture, or the report does not hold what it would show.
    """
    draw = PICTURES.get(str(finding.get("rule")))
    return draw(finding, report, blocks) if draw is not None else None


def _drawn(spec: _Spec) -> _Drawn:
    series = [one for part in spec.get("panels", [spec]) for one in part["series"]]
    if not any(value is not None for one in series for value in one["y"] if one["style"] != "reference"):
        return None
    return line_figure(spec, str(spec["title"]), str(spec["caption"]))


def _named(finding: Mapping[str, Any], blocks: _Blocks, label: str) -> list[Span]:
    """Mark the blocks that the finding names."""
    order = {str(block.get("site")): float(i) for i, block in enumerate(blocks)}
    where = finding.get("where") or {}
    ends = [order[site] for key in ("first", "last") if (site := str(where.get(key))) in order]
    return [Span(min(ends), max(ends), label, phrase(finding))] if ends else []


def _line(blocks: _Blocks, key: str, label: str, style: str = "measured", group: str = "") -> list[_Spec]:
    values = column(blocks, key)
    if all(value is None for value in values):
        return []
    names = [str(block.get("site", "")) for block in blocks]
    made = {"label": label, "style": style, "group": group or label, "names": names}
    return [{**made, "x": list(range(len(blocks))), "y": values}]


def _level(blocks: _Blocks, label: str, value: float) -> _Spec:
    return {"label": label, "style": "reference", "x": [0, len(blocks) - 1], "y": [value, value]}


def _depth(
    finding: Mapping[str, Any],
    blocks: _Blocks,
    words: tuple[str, str, str],
    series: Sequence[_Spec],
    scale: str = "log",
) -> _Drawn:
    """Draw signals over the blocks: `words` are title, caption and what the vertical axis counts."""
    if len(blocks) < 2:
        return None
    bars = any(one["style"] == "bar" for one in series)  # behind which words cannot be read
    return _drawn(
        {
            "title": words[0],
            "caption": f"{words[1]} The blocks that the finding names are shaded.".strip() if bars else words[1],
            "x": {"label": BLOCK},
            "y": {"label": words[2], "scale": scale},
            "series": list(series),
            "spans": _named(finding, blocks, "" if bars else "named here"),
        }
    )


def _gradient(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    key = gradient_key(blocks)
    series = [
        *_line(blocks, key, "gradient", group="gradient"),
        *_line(blocks, "gradient_predicted", "predicted by theory", "predicted", "gradient"),
    ]
    what = f"Of {COTANGENT}." if key == "cotangent_rms" else "Of the loss."
    caption = f"{what} {_fall(finding, 'gradient_decay_per_block')}"
    return _depth(finding, blocks, ("The gradient that the rule reads", caption, "gradient, per element"), series)


def _fall(finding: Mapping[str, Any], key: str) -> str:
    """Say what the line does between the marks."""
    decades = number((finding.get("evidence") or {}).get("decades"))
    told = (finding.get("evidence") or {}).get(key)
    rate = number(told.get("value")) if isinstance(told, Mapping) else None
    if decades is None or rate is None:
        return ""
    return f"Over the marked blocks it changes by {abs(decades):.1f} orders of magnitude, {short(rate)} per block."


def _spread(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    series = [
        *_line(blocks, "signal_spread", "spread between inputs", group="spread"),
        *_line(blocks, "spread_predicted", "spread, predicted", "predicted", "spread"),
        *_line(blocks, "signal_rms", "signal", group="signal"),
    ]
    caption = f"The signal may keep its size while inputs become the same. {_fall(finding, 'signal_decay_per_block')}"
    return _depth(finding, blocks, ("How far the inputs differ", caption, "root mean square, per element"), series)


def _size(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    series = [
        *_line(blocks, "signal_rms", "signal", group="signal"),
        *_line(blocks, "signal_predicted", "signal, predicted", "predicted", "signal"),
    ]
    caption = _fall(finding, "growth_per_block")
    return _depth(finding, blocks, ("How the signal grows", caption, "root mean square, per element"), series)


def _overflow(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    bad = any((value or 0.0) > 0 for value in column(blocks, "nonfinite"))
    if bad:
        series = [*_line(blocks, "nonfinite", "share that is NaN or infinite", "bar")]
        caption = "The first block that has any is named; what is behind it follows."
        return _depth(finding, blocks, ("Where numbers are no longer finite", caption, "share"), series, "linear")
    series = [
        *_line(blocks, "signal_rms", "signal", group="signal"),
        *_line(blocks, "gradient_rms", "gradient of the loss", group="gradient"),
    ]
    caption = "What is NaN or infinite stands above the axis."
    return _depth(finding, blocks, ("Signal and gradient", caption, "root mean square, per element"), series)


def _share(key: str, title: str, reference: tuple[str, float]) -> Callable[..., _Drawn]:
    def draw(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
        bars = _line(blocks, key, "share", "bar")
        series = [*bars, _level(blocks, "", reference[1])] if bars else []
        return _depth(finding, blocks, (title, f"The line stands at {reference[0]}.", "share"), series, "linear")

    return draw


def _weights(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    series = _line(blocks, "weight_gradient_rms", "gradient of the block's weights", "bar")
    caption = "No bar stands where no gradient arrives, or no weights are."
    return _depth(finding, blocks, ("Which weights get a gradient", caption, "gradient, per element"), series, "linear")


def _lost(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    if "flushed_fraction" in (finding.get("evidence") or {}):
        series = [
            *_line(blocks, "weight_gradient_rms", "gradient of the block's weights"),
            _level(blocks, "the smallest number of float16", FLOAT16_TINY),
        ]
        caption = "What is near the line or below it is rounded to zero, or to a few numbers."
        return _depth(finding, blocks, ("Gradients beside float16", caption, "gradient, per element"), series)
    title = "Elements that the step leaves as they are"
    return _share("lost_fraction", title, ("0.9, from where on the rule speaks", 0.9))(finding, report, blocks)


def _rank(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    evidence = finding.get("evidence") or {}
    if "difference_between_tokens" in evidence:
        series = _line(blocks, "token_difference", "difference between the tokens of one input")
        caption = "As a share of the signal's size."
        return _depth(finding, blocks, ("How far the tokens differ", caption, "share of the signal"), series)
    series = [
        *_line(blocks, "input_rank", "directions in which the inputs differ", group="rank"),
        *_line(blocks, "input_rank_attainable", "as many as batch and width allow", "bound", "allowed"),
    ]
    made = _depth(finding, blocks, ("In how many directions the inputs differ", "", "effective rank"), series)
    held = evidence.get("matrices")
    maps = matrices(held) if isinstance(held, Mapping) else ""
    if not maps:
        return made
    words = (
        "The squares are cosines between the differences of inputs from their mean, a row and a column for each of the "
        f"first inputs of the batch: full colour is 1, none 0. {SIGNS} Of a single direction there are but 1 and −1."
    )
    title = made["title"] if made is not None else "How the inputs lie to each other"
    return {"title": title, "caption": words, "svg": (made["svg"] if made is not None else "") + maps}


def _streams(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    series = [
        *_line(blocks, "stream_cosine", "cosine between streams, the smallest", group="cosine"),
        *_line(blocks, "read_share", "largest stream's share of what is read", group="read"),
        *_line(blocks, "write_share", "largest stream's share of what is written", group="written"),
    ]
    caption = "Streams of cosine 1 that are read and written alike are one stream."
    return _depth(finding, blocks, ("How alike the streams are", caption, "cosine, or share"), series, "linear")


def _mixing(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    series = [
        *_line(blocks, "composite_forward_gain", "signal, from the first layer to here", group="forward"),
        *_line(blocks, "composite_backward_gain", "gradient, from the last layer to here", group="backward"),
        *_line(blocks, "composite_column_norm", "what is left to one stream's gradient", group="left"),
        _level(blocks, "mixing whose rows and columns sum to 1", 1.0),
    ]
    return _depth(finding, blocks, ("What the mixing alone multiplies by", "", "factor"), series)


def _courses(title: str, caption: str, courses: Sequence[tuple[str, Any]]) -> _Drawn:
    """Draw losses by step; courses of one label are drawn thin, and their median thick."""
    return _drawn({"title": title, "caption": caption, **_by_step(courses)})


def _by_step(courses: Sequence[tuple[str, Any]]) -> _Spec:
    series: list[_Spec] = []
    finite: list[float] = []
    for label, losses in courses:
        values = [number(value) for value in losses] if isinstance(losses, Sequence) else []
        finite += [value for value in values if value is not None and math.isfinite(value)]
        if values:
            made = {"label": label, "style": "measured", "group": label}
            series.append({**made, "x": list(range(len(values))), "y": values})
    wide = bool(finite) and min(finite) > 0 and max(finite) > 20 * min(finite)
    y = {"label": "loss", "scale": "log" if wide else "linear"}
    return {"x": {"label": "step, on one batch"}, "y": y, "series": series}


def _rates(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    evidence = finding.get("evidence") or {}
    other = evidence.get("loss_at_lower_rate") or evidence.get("loss_at_higher_rate") or {}
    held = [(f"at lr {short(report.get('lr'))}", evidence.get("loss_at_lr"))]
    held.append((f"at lr {short(other.get('lr'))}", other.get("losses")))
    held.append(("with a smaller eps", evidence.get("loss_with_smaller_eps")))
    return _courses("What the steps do to the loss", "The same model, batch and random numbers each time.", held)


def _standardised(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    tests = (finding.get("evidence") or {}).get("tests") or {}
    told = tests.get("steps_on_standardised_inputs")
    if not isinstance(told, Mapping):
        return None
    held = [("as the inputs are", told.get("loss")), ("each feature standardised", told.get("loss_standardised"))]
    return _courses("What the same steps do to the loss", "From the same weights, on the same rows.", held)


def _drawn_again(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    evidence = finding.get("evidence") or {}
    tests, again = evidence.get("tests") or {}, (evidence.get("curves") or {}).get("drawn_again") or ()
    held = [("as it is", tests.get("loss_as_it_is")), *(("drawn again", losses) for losses in again)]
    caption = "The same steps, from weights that differ in what was drawn again: a thin line for each draw."
    return _courses("What drawing the weights again does to the loss", caption, held)


def _decay(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    evidence = finding.get("evidence") or {}
    held = [("with decay", evidence.get("loss_with_decay")), ("without", evidence.get("loss_without_decay"))]
    return _courses("What decay does to the loss", "The same model, batch and learning rate.", held)


def _attention(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    """Draw the entropy of attention over the blocks, and beside it the test of queries and keys, if it was made."""
    line = _line(blocks, "attention_entropy", "entropy of attention / its largest value", group="entropy")
    spans = _named(finding, blocks, "") if line else []
    y = {"label": "share", "scale": "linear"}
    level = [_level(blocks, "collapsed below", 0.1), _level(blocks, "all keys alike", 1.0)] if line else []
    entropy = {
        "title": "Entropy of attention",
        "x": {"label": BLOCK},
        "y": y,
        "series": [*line, *level],
        "spans": spans,
    }
    tested = ((finding.get("evidence") or {}).get("tests") or {}).get("steps_of_queries_and_keys")
    told = tested if isinstance(tested, Mapping) else {}
    steps = _by_step([("as they are", told.get("loss")), ("at logits of deviation 1", told.get("loss_scaled"))])
    steps["title"] = "Ten steps of queries and keys alone"
    caption = "The blocks that the finding names are shaded." if line else ""
    panels = [panel for panel in (entropy, steps) if panel["series"]]
    return _drawn({"title": "What attention attends to, and learns", "caption": caption, "panels": panels})


def _numbers(title: str, caption: str, label: str, bars: Sequence[tuple[str, Any]]) -> _Drawn:
    """Draw some numbers beside each other, with their intervals."""
    rows = []
    for name, value in bars:
        told = value if isinstance(value, Mapping) else {"value": value}
        amount = number(told.get("value"))
        if amount is not None and math.isfinite(amount):
            rows.append((name, amount, number(told.get("low")), number(told.get("high"))))
    if not rows:
        return None
    names, y, low, high = (list(values) for values in zip(*rows, strict=True))
    series = [{"label": "", "style": "bar", "x": names, "y": y, "low": low, "high": high}]
    return _drawn({"title": title, "caption": caption, "x": {"label": ""}, "y": {"label": label}, "series": series})


def _softmax(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    evidence = finding.get("evidence") or {}
    floor, tests = evidence.get("floor_of_the_loss") or {}, evidence.get("tests") or {}
    bars = [
        ("now", report.get("loss_value")),
        ("the best there is", floor.get("value")),
        ("predicted best", floor.get("predicted")),
        ("best, by logits", tests.get("loss_of_large_logits")),
    ]
    return _numbers("How low the loss can get", "Right and certain probabilities, and right logits.", "loss", bars)


def _shattered(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    evidence = finding.get("evidence") or {}
    cosine, signal = evidence.get("gradient_cosine") or {}, evidence.get("signal_cosine") or {}
    bars = [
        ("signals, first", signal.get("first")),
        ("signals, last", signal.get("last")),
        ("gradients", cosine),
        ("predicted", cosine.get("predicted")),
        ("gain shared", (evidence.get("tests") or {}).get("gain_of_neighbours")),
    ]
    caption = "Cosines between inputs and what lies a tenth beside them, and how much of a gain they share."
    return _numbers("What neighbours have in common", caption, "cosine, or share", bars)


def _remembered(finding: Mapping[str, Any], report: Mapping[str, Any], blocks: _Blocks) -> _Drawn:
    return _drawn(memory_spec(finding))


PICTURES: Final[Mapping[str, Callable[..., _Drawn]]] = {
    "numerical_overflow": _overflow,
    "double_softmax": _softmax,
    "unscaled_input": _standardised,
    "misscaled_weights": _drawn_again,
    "frozen_layers": _weights,
    "dead_units": _share(
        "dead_fraction", "Units that are flat for every input", ("0.5, which deep healthy networks reach", 0.5)
    ),
    "saturated_activation": _share(
        "saturated_fraction", "Elements at their ends", ("0.5, from where on the rule speaks", 0.5)
    ),
    "stream_collapse": _streams,
    "unstable_mixing": _mixing,
    "exploding_signal": _size,
    "vanishing_signal": _spread,
    "rank_collapse": _rank,
    "vanishing_gradient": _gradient,
    "exploding_gradient": _gradient,
    "shattered_gradient": _shattered,
    "attention_collapse": _attention,
    "short_memory": _remembered,
    "exploding_memory": _remembered,
    "excessive_decay": _decay,
    "lost_update": _lost,
    "learning_rate_too_high": _rates,
    "learning_rate_too_low": _rates,
    "no_progress": _rates,
}
"""Rule -> what draws its evidence."""

WORDS_ALONE: Final[Mapping[str, str]] = {
    "wrong_loss": "A loss that does not fit is told by its answers to outputs put in by hand: a few words and numbers.",
    "train_mode": "A mode is on or off, and what it changes is one number.",
    "unoptimised_parameters": "Parameters that the optimizer does not hold are counted, and named.",
    "undamped_momentum": "One setting of the optimizer is read: a number.",
    "accumulated_gradients": "Steps with old gradients are counted: two numbers.",
    "mixed_rows": "Rows reach each other or do not: three numbers, of the module, of the model, and of its repair.",
    "noisy_forward": "Noise has a share of the outputs' variance: one number, and the one that theory has for it.",
    "blind_attention": "A mask that leaves one key leaves nothing to draw.",
    "mispaired_targets": "Of targets that follow from nothing a few chances are told, and each is one number.",
}
"""Rule -> why a picture would tell nothing."""
