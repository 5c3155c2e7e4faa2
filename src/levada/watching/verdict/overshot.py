"""Whether steps that are too long broke a run: how far they moved the weights, and how the loss rose before the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import nn

from levada.diagnose.finding import Finding, Proposal
from levada.watching.loop.places import original, plain_name
from levada.watching.measure.reading import plain
from levada.watching.measure.sample import Sample
from levada.watching.verdict.rise import made_it_rise
from levada.watching.verdict.view import Blocks, values_of

__all__ = ["Before", "blamed", "lower_rate", "rate_proposal"]

# Steps as large as a tenth of the weights do not follow a gradient that is local; those as large as the weights leave
# nothing of them.
LARGE, WHOLE = 0.1, 1.0
# Steps beside the weights, as rates in use make them.
USUAL: Final = 1e-3
# Steps that overshoot raise a loss further with each; one that comes up so many times at once, long after the last
# sample, may owe it to anything.
LEAP, LATELY = 100.0, 64
# The loss has risen at so many steps in a row, so many times: as where each step overshoots further than the last.
CLIMB, STEEP = 4, 8.0
# Updates after a step as large as the weights at which a NaN comes of it, if the loss was not seen to rise.
NEXT: Final = 2
HIGH: Final = "learning_rate_too_high"
SIGN: Final = "maximised_loss"


@final
@dataclass(frozen=True, slots=True)
class Before:
    """What is known of a run when its first number that is not finite is seen.

    Attributes:
        rows: the last samples.
        blocks: the blocks; None if no step was sampled.
        losses: steps and finite losses before it, the last ones, in order.
        rate: the learning rate; NaN if it is not known.
        learned: whether the loss had come below its start.
        jump: from and to where the loss jumped, as `Spikes.before` returns it.
        rise: of the learning rate, as `raised` returns it.
        negated: whether the loss is known to be a negative multiple of a cross entropy or a mean square.
        whose: of which of several optimizers the rate is, in words behind a space; "" where theirs are the same.
    """

    rows: Sequence[Sample]
    blocks: Blocks | None
    losses: Sequence[tuple[int, float]]
    rate: float
    learned: bool
    jump: Mapping[str, Any] | None = None
    rise: Mapping[str, Any] | None = None
    negated: bool = False
    whose: str = ""


def lower_rate(rate: float, moved: float) -> float:
    """Return a rate whose steps are of a usual size, and a tenth of the present one at most.

    Args:
        rate: the present one.
        moved: size of its steps beside the weights; NaN if it is not known.

    Example:
        >>> lower_rate(2.0, 0.1), lower_rate(2.0, math.nan)
        (0.02, 0.2)
    """
    return rate * min(0.1, USUAL / moved if moved > 0 else 0.1)


def blamed(finding: Finding, before: Before, model: nn.Module | None, told: Finding | None = None) -> Finding:
    """Return a finding of numbers that are not finite with what shows that the steps were too long, or as it was.

    A lower rate is that from before a rise, where the loss rose within 20 steps of it (64 where none was sampled
    since), else one of which steps are of a usual size. Where the loss came up in one step, and steps were short
    before, a batch may be why, which is said.

    The steps are blamed if one moved the weights of the median block by a tenth of themselves or more and the loss had
    risen, or by all of themselves just before; if the weights grew so fast while the loss rose; or if the loss rose at
    four steps in a row or more, eightfold. Data, or one block's weights, that are not finite have another cause. They
    are not blamed either where the loss came up a hundredfold in one step, at a rate that had not risen, and the last
    sample is 64 steps older or more and shows short steps: what happened between is not known, which is said.

    Where the loss is a negative multiple of what is never negative, and fell to twice its size at first or more, it is
    its sign that is blamed: what is maximised has no end but this.

    Args:
        finding: of `Nonfinite`.
        before: what is known of the run.
        model: with the weights of now; None if it is not at hand.
        told: what was said of the same before the update, which has moved the weights since; None if nothing was.
    """
    step, tensor = finding.evidence["step"], finding.evidence["tensor"]
    if told is not None and told.evidence["step"] == step and HIGH in told.evidence:
        return _with_blame(finding, told.evidence[HIGH])
    if before.negated and (fell := _fell([loss for at, loss in before.losses if at < step])):
        return _reversed(finding, *fell)
    if not 0 < before.rate < math.inf or tensor in ("inputs", "targets") or (tensor == "weight" and finding.where):
        return finding
    rows = [row for row in before.rows if row.step < step]
    moved = [(row.step, _moved(row, before.blocks)) for row in rows] if before.blocks is not None else []
    moved = [(at, size) for at, size in moved if size > 0]
    climb = _climb([(at, loss) for at, loss in before.losses if at < step])
    rose = before.jump is not None or climb is not None
    shown: dict[str, Any] = {"lr": before.rate}
    words = []
    at, size = max(moved, key=lambda one: one[1], default=(-1, 0.0))
    if (size >= LARGE and rose) or (size >= WHOLE and step - at <= NEXT):
        shown |= {"update_ratio": size, "sampled_at": at}
        words.append(f"step {at} moved the weights of the median block by {size:.3g} of themselves")
    jumped = (before.jump or {}).get("step", step)
    sound = next((row for row in reversed(rows) if row.step < jumped), rows[-1] if rows else None)
    grown = _grown(sound, before.blocks, model) if sound is not None and rose else math.nan
    since = max(sound.step if sound is not None else 0, (before.jump or {}).get("step", 0) - 1, 0)
    if sound is not None and grown >= 2 and grown ** (1 / max(step - since, 1)) - 1 >= LARGE:
        shown |= {"weights_grew": grown, "since": sound.step}
        words.append(f"the median block's weights are {grown:.3g} times those of step {sound.step}")
    if climb is not None:
        shown |= climb
        words.append(
            f"the loss rose at each of the last {climb['rises']} steps, from {climb['from']:.4g} to {climb['to']:.4g}"
        )
    if not words:
        return finding
    usual = min((size for _, size in moved), default=math.nan)
    lower = lower_rate(before.rate, usual)
    onset = (before.jump or climb or {}).get("step", step)
    raised = before.rise if made_it_rise(before.rise, before.rate, onset, seen=sound.step if sound else None) else None
    if raised is None and (unknown := _unseen(before, sound, moved)):
        return replace(finding, claim=f"{finding.claim} {unknown}")
    if raised is not None and not usual >= LARGE:  # else the rate before the rise, as in a warm-up, is no better
        lower = raised["from"]
    # A loss that came up in one step, at steps that were short before it, may be that of one batch.
    odd = climb is None and raised is None and (before.learned or (before.jump is not None and not usual >= LARGE))
    also = " A batch that stands out can have made it so: a replay of the step's bundle shows it." if odd else ""
    rate = f"{before.rate:.3g}{before.whose}"
    claim = f"Steps that were too long came before it, at a learning rate of {rate}: {'; '.join(words)}."
    return _with_blame(finding, {**shown, "lower": lower, "claim": f"{claim}{also}"})


def _fell(losses: Sequence[float]) -> tuple[float, float] | None:
    """Return from and to where a negative loss fell, if it is twice as large as at first, or was positive then."""
    first, last = (losses[0], losses[-1]) if losses else (0.0, 0.0)
    return (first, last) if last < min(2 * first, 0.0) else None


def _reversed(finding: Finding, first: float, last: float) -> Finding:
    """Return the same with the sign of the loss as its reason."""
    claim = (
        f"The loss is a negative multiple of a cross entropy or a mean square, and fell from {first:.4g} to {last:.4g} "
        "before it. So the error is maximised, which nothing bounds but the largest number: its sign is reversed, or "
        "that of the step, unless that is meant."
    )
    evidence = {**finding.evidence, SIGN: {"from": first, "to": last}, "explained_by": "sign"}
    return replace(finding, claim=f"{finding.claim} {claim}", evidence=evidence)


def _unseen(before: Before, sound: Sample | None, moved: Sequence[tuple[int, float]]) -> str:
    """Say that what made the loss leap was not seen, and which block's weights changed; "" where more is known."""
    onset = (before.jump or {}).get("step")
    if onset is None or sound is None or onset - sound.step < LATELY:
        return ""
    losses = dict(before.losses)
    before_it = max((at for at in losses if at < onset), default=-1)
    last = abs(losses.get(before_it, math.nan))
    leap = losses.get(onset, math.nan) / last if last > 0 else math.nan
    sizes = [size for at, size in moved if at < onset]
    if not (leap >= LEAP and sizes and max(sizes) < LARGE):
        return ""
    return (
        f"The loss came up {leap:.3g}-fold {_within(before_it, onset)}, and the last sample before is of step "
        f"{sound.step}, where steps were short ({sizes[-1]:.2g} of the median block's weights): what happened between "
        f"was not seen, and the rate is not known to be why.{_alone(before, sound, onset)}"
    )


def _within(before: int, onset: int) -> str:
    """Say in how many steps a loss came up."""
    return "in one step" if onset - before == 1 else f"between the steps {before} and {onset}"


def _alone(before: Before, sound: Sample, onset: int) -> str:
    """Say which block's weights alone were others on the next sample; "" if none's, or more than one's."""
    after = next((row for row in before.rows if row.step >= onset), None)
    if after is None or before.blocks is None:
        return ""
    count = len(before.blocks.sites)
    times = values_of(after, "weight_rms", count) / values_of(sound, "weight_rms", count)
    changed = ((times > 2) | (times < 0.5)).nonzero().flatten().tolist()
    if len(changed) != 1:
        return ""
    name = before.blocks.sites[changed[0]].name
    return (
        f" The weights of {name}, and of no other block, changed by a factor of {float(times[changed[0]]):.3g} between "
        f"step {sound.step} and step {after.step}."
    )


def _with_blame(finding: Finding, shown: Mapping[str, Any]) -> Finding:
    explained = finding.evidence["explained_by"] or "steps"
    return replace(
        finding,
        claim=f"{finding.claim} {shown['claim']}",
        evidence={**finding.evidence, HIGH: shown, "explained_by": explained},
        remedies=(*finding.remedies, rate_proposal(shown["lr"], shown["lower"])),
    )


def rate_proposal(rate: float, lower: float) -> Proposal:
    """Return a lower rate as a change that a person can make: one factor for all groups, which keep their ratios.

    Args:
        rate: the present one, of one group.
        lower: the one to try there.

    Example:
        >>> print(rate_proposal(2.0, 0.02).patch)
        for group in optimizer.param_groups:  # from weights of before, 2 to 0.02 in the group whose rate is told
            group['lr'] *= 0.01
    """
    where = f"from weights of before, {rate:.3g} to {lower:.2g} in the group whose rate is told"
    code = f"for group in optimizer.param_groups:  # {where}\n    group['lr'] *= {lower / rate:.2g}"
    return Proposal("learning rate", code, {"lr": rate}, {"lr": lower})


def _moved(row: Sample, blocks: Blocks | None) -> float:
    """Return the median block's step beside its weights; weights that were zero have no size to be compared with."""
    ratio = values_of(row, "update_ratio", len(blocks.sites) if blocks is not None else 0)
    ratio = ratio[ratio.isfinite()]
    return float(ratio.median()) if len(ratio) else math.nan


def _climb(losses: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """Return how the loss rose at each of the last steps, if it did so at enough of them and far enough."""
    values = [loss for _, loss in losses]
    rises = 0
    for (at, last), (before, loss) in pairwise(reversed(losses)):
        if at - before != 1 or not last > loss:  # of a step that was not heard nothing is known
            break
        rises += 1
    if rises < CLIMB or not values[-1] >= STEEP * abs(values[-1 - rises]):
        return None
    return {"rises": rises, "from": values[-1 - rises], "to": values[-1], "step": losses[-rises][0]}


def _grown(row: Sample, blocks: Blocks | None, model: nn.Module | None) -> float:
    """Return how many times as large the median block's weights are now as in a sample; NaN where it is not known."""
    if model is None or blocks is None:
        return math.nan
    named = {plain_name(name): p for name, p in original(model).named_parameters()}
    then = values_of(row, "weight_rms", len(blocks.sites)).tolist()
    times = []
    for site, size in zip(blocks.sites, then, strict=True):
        held = [plain(named[n].detach()) for n in site.parameters if n in named and named[n].dim() > 1]
        count = sum(t.numel() for t in held)
        if count and size > 0 and math.isfinite(size):
            times.append(math.sqrt(math.fsum(float(t.double().square().sum()) for t in held) / count) / size)
    found = torch.tensor([one for one in times if math.isfinite(one)], dtype=torch.float64)
    return float(found.median()) if len(found) else math.nan
