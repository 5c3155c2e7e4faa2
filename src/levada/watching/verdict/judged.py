"""Which rules have judged a run so far, and why others have not: what a verdict rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

from levada.diagnose.finding import Finding
from levada.runs.standing import Standing
from levada.watching.loop.uncleared import MOST
from levada.watching.steps.silence import BY_CHANCE
from levada.watching.steps.skipped import RULE as SKIPPED
from levada.watching.steps.unoptimised import RULE as UNOPTIMISED
from levada.watching.steps.unoptimised import UPDATES
from levada.watching.verdict.glances import missed
from levada.watching.verdict.judge import Judge
from levada.watching.verdict.restarts import FIFTIETH, GIVEN_BACK, TENFOLD
from levada.watching.verdict.rules.steps import AT_ONCE, stays_up
from levada.watching.verdict.view import MANY, values_of

__all__ = ["PART", "standing_of"]

MIXED: Final = "optimizers that take turns have losses of their own, of which jumps alone are judged, each by its own"
PART: Final = "only some blocks of a pipeline are seen here"

_GRADIENT: Final = ("vanishing_gradient", "exploding_gradient")
_SIGNAL: Final = ("vanishing_signal", "exploding_signal")
_SUFFERS: Final = ("exploding_gradient", *_SIGNAL, "saturated_activation")  # rules that speak where the loss shows harm
_LEAST_BLOCKS: Final = 3  # of two, the median is one of them
_RATES: Final = ("learning_rate_too_high", "learning_rate_too_low")
_BASED: Final = (*_GRADIENT, *_SIGNAL, "dead_units", "frozen_layers")  # rules that compare with what came before
_CLEAR: Final = math.ceil(-math.log2(BY_CHANCE))  # zeros in a row of what never was other, that are no chance

Count: TypeAlias = tuple[Literal["samples", "losses", "updates"], int, int]  # how many are needed, and are there
# A rule, why its silence says nothing, whether it waits for more, and what is counted.
Reason: TypeAlias = tuple[str, str, bool, Count | None]


def standing_of(
    judge: Judge,
    *,
    steps: int | None = None,
    first: int = 0,
    over: str = "",
    findings: Iterable[Finding] | None = None,
) -> Standing:
    """Return which rules have judged a run, and with which verdict.

    A rule has judged if it would have spoken by now, had there been something: also after the samples that confirm it.

    Args:
        judge: what has judged it.
        steps: steps that were made; those up to the last sample if left out.
        first: the first step that was watched.
        over: why nothing is judged any more; "" while it is.
        findings: all of the run, as others than the judge may tell some; its own if left out.

    Example:
        >>> standing = standing_of(Judge(lambda: ()))
        >>> standing.verdict, standing.judged
        ('unknown', ('skipped_steps',))
    """
    every = ("numerical_overflow", "loss_spike", SKIPPED, UNOPTIMISED, *judge.rules)
    # Has judged, whatever it lacks; but a spike that is no alarm does not say that the loss is sound, nor one that
    # something stands still that all is trained.
    facts = ("loss_spike", UNOPTIMISED)
    fired = {one.rule for one in judge.fired if one.rule not in facts or one.severity != "info"}
    reasons = [(rule, over, True, None) for rule in every] if over else [*_ended(judge), *_reasons(judge)]
    early = not over and judge.compared < judge.confirm
    if (broken := _broken(judge)) and not over:  # what is sampled or seen of the loss then counts for none of them
        cause = judge.compared == 0  # of all that is missing: it was so from the first sample on
        reasons = [
            (rule, broken if waits and (n or (cause and rule not in judge.ended)) else why, waits, None if waits else n)
            for rule, why, waits, n in reasons
        ]
        early = False
    why: dict[str, str] = {}
    few: dict[str, str] = {}
    waiting: set[str] = set()
    lacking: dict[str, int] = {}
    for rule, text, waits, count in reasons:
        if rule not in every or rule in fired:
            continue
        if rule not in why:  # the first reason is told
            why[rule] = text if count is None else f"{text}, and {_are(count)}"
            waiting |= {rule} if waits else set()
            if count is not None or (waits and early and rule not in judge.ended):
                few[rule] = text
        if count is not None and rule in waiting:  # also what is not told
            lacking[count[0]] = max(lacking.get(count[0], 0), count[1] - count[2])
    sampled = judge.rows[-1].step if judge.rows else None
    found = judge.findings if findings is None else findings
    return Standing(
        severities=tuple(finding.severity for finding in found if finding.status == "fired"),
        judged=tuple(rule for rule in every if rule not in why),
        unjudged=why,
        waiting=frozenset(waiting),
        sampled=sampled,
        steps=(0 if sampled is None else sampled + 1) if steps is None else steps,
        few=few,
        lacking=lacking,
        first=first,
        adaptive=judge.blocks is None or judge.blocks.adaptive,
        reached=judge.between.reached,
    )


def _ended(judge: Judge) -> Iterator[Reason]:
    """Yield rules that an error ended."""
    yield from ((rule, why, True, None) for rule, why in judge.ended.items())


def _broken(judge: Judge) -> str:
    """Say that the numbers are not finite any more; "" if they are."""
    found = next((one for one in judge.fired if one.rule == "numerical_overflow" and one.severity == "error"), None)
    return "" if found is None else f"the numbers are not finite from step {found.evidence['step']} on"


def _reasons(judge: Judge) -> Iterator[Reason]:
    why, failed = judge.unheard
    if why:
        yield "numerical_overflow", why, failed, None
    if why := judge.between.stopped:
        yield UNOPTIMISED, why, True, None
    updates = judge.between.unheld
    if updates is not None and updates < UPDATES:  # it only informs: no verdict waits for it
        yield UNOPTIMISED, f"it takes {UPDATES} updates", False, ("updates", UPDATES, updates)
    if not judge.rows or judge.blocks is None:
        yield from (
            (rule, "no step was sampled", True, None) for rule in ("numerical_overflow", "loss_spike", *judge.rules)
        )
        return
    yield from _risen(judge)
    yield from _given_back(judge)
    yield from _absent(judge)
    yield from _early(judge)


def _risen(judge: Judge) -> Iterator[Reason]:
    """Yield the rule of a loss that the first updates raised: whatever else is known of the steps, it is not sound."""
    loss = judge.loss
    if not loss.ready:  # a few losses scatter
        return
    if loss.steps < MANY and loss.thrown(AT_ONCE):  # it is judged where it did not come back
        why = f"the loss rose with the first updates; whether it comes back takes {MANY} losses"
        yield "learning_rate_too_high", why, True, ("losses", MANY, loss.steps)
    elif loss.steps >= MANY and stays_up(loss):
        why = (
            "the loss rose with the first updates and has not come back to where it began, as of steps that are too "
            "long or of a task that grew harder, and what is measured does not tell which"
        )
        yield "learning_rate_too_high", why, True, None
    if loss.no_better:
        lost = loss.best < 0.9 * loss.constant
        learned = (
            "lost again what it had learned of its inputs"
            if lost
            else "learned nothing of its inputs so far, or whose outputs are too small to show it"
        )
        why = (
            f"the loss is not clearly below that of a constant prediction, {loss.constant:.4g}: the last "
            f"{len(loss.latest)} losses have a median of {loss.recent:.4g}, as of a model that has {learned}"
        )
        if loss.steps < MANY:
            why = f"{why}; it takes {MANY} losses"
            yield "learning_rate_too_high", why, True, ("losses", MANY, loss.steps)
        else:
            yield "learning_rate_too_high", why, True, None
    elif math.isnan(loss.constant) and loss.flat:
        why = (
            f"the loss has not fallen since its first steps, and whether the median of the last {loss.kept}, "
            f"{loss.median:.4g}, is more than a constant prediction gives is not known"
        )
        yield "learning_rate_too_high", why, True, None


def _given_back(judge: Judge) -> Iterator[Reason]:
    """Yield the rule of a loss that is up again, or has no bottom, and for which no rule may have a reason."""
    loss = judge.loss
    if not loss.ready or not loss.scale:
        return
    rise = loss.lasting_rise
    share, level = rise / loss.scale, max(loss.now, loss.recent)
    worse = rise > 0 and level > loss.start  # whatever was learned below a first loss that was far higher
    up = share >= GIVEN_BACK or (share >= FIFTIETH and level >= TENFOLD * loss.best > 0)
    if worse or (up and not judge.restarts.explain(loss)):
        last = loss.few if level == loss.now else len(loss.latest)
        why = (
            f"the loss is {level:.4g} and was {loss.best:.4g} at its best, medians of the last {last} losses and of "
            f"the lowest {loss.few} in a row, and what is measured does not tell why"
        )
        yield "loss_spike", why, True, None
    if loss.falling.unbounded:
        why = f"the loss is {loss.recent:.4g} and falls without a bound so far, and nothing tells if its sign is meant"
        yield "loss_spike", why, True, None


def _absent(judge: Judge) -> Iterator[Reason]:
    """Yield rules that lack something; after a few samples, no more of them are expected to bring it.

    Without a gradient, and without loss or signal, hardly anything of the training was seen: the rules then wait on.
    """
    sites, rows, seen = len(judge.blocks.sites) if judge.blocks is not None else 0, judge.rows, judge.habits.seen
    mixed = judge.losses.mixed
    no_loss = "" if judge.loss.steps else MIXED if mixed else "no loss was seen"
    signal, gradient = ("signal_rms" in seen or "nonfinite" in seen), "gradient_rms" in seen
    blind = not gradient and (bool(no_loss) or not signal)
    waits = judge.compared < judge.confirm or blind
    if blind and not signal and no_loss and not mixed:
        yield "numerical_overflow", "no signal, no gradient and no loss was measured", waits, None
    if no_loss:
        if not mixed:
            yield "loss_spike", no_loss, waits, None
        far = judge.far and not mixed
        why = f"{no_loss}, and signal or gradient spans three decades" if far else no_loss
        yield from ((rule, why, waits or far, None) for rule in _SUFFERS)
    if "signal_rms" not in seen:
        yield from ((rule, "no signal was measured", waits, None) for rule in _SIGNAL)
    if not gradient:
        yield from ((rule, "no gradient was measured at a block", waits, None) for rule in _GRADIENT)
    elif sites < _LEAST_BLOCKS:
        there = "there is 1 block" if sites == 1 else f"there are {sites} blocks"
        yield "vanishing_gradient", f"{there}, and it takes {_LEAST_BLOCKS} to compare one with the others", waits, None
    if "zero_fraction" not in seen:
        yield "dead_units", "no block was seen to have activations with exact zeros", waits, None
    if "tanh" not in seen:
        yield "saturated_activation", "no block before the last was seen to end with a tanh", waits, None
    if "weight_gradient_rms" not in seen:
        yield "frozen_layers", "no gradient of a weight was measured", waits, None
    if not judge.habits.rows.known:
        why = "no batch was seen whose rows, two or more along its first dimension, can be told to be its inputs"
        yield "constant_inputs", why, waits, None
    many = judge.blocks is not None and judge.blocks.optimizers > MOST
    too_many = f"gradients are compared from step to step of {MOST} optimizers at most" if many else ""
    if why := too_many if mixed else no_loss or too_many:
        yield "accumulated_gradients", why, waits and not many, None
    if rows[-1].scalars.get("uncleared_of") == 0:
        why = "the gradients that are compared are zeros, or no optimizer's: if they are cleared is not known"
        yield "accumulated_gradients", why, False, None
    rate = "" if math.isfinite(float(rows[-1].scalars.get("lr", math.nan))) else "the learning rate is not known"
    update = "" if "update_ratio" in seen else "no update was measured"
    typed = judge.blocks is not None and bool(judge.blocks.resolution.isfinite().any())
    still = judge.blocks is not None and judge.blocks.known and not typed
    none = "no optimizer moves the weights of a block" if still else "the type of the weights' numbers is not known"
    if why := update or ("" if typed else none) or rate:
        yield "lost_update", why, waits and not still, None
    for rule in _RATES:
        if why := update or no_loss or (rate if rule.endswith("low") else ""):
            yield rule, why, waits, None


def _early(judge: Judge) -> Iterator[Reason]:
    """Yield rules that need more samples or steps than there are."""
    samples, confirm, loss = judge.compared, judge.confirm, judge.loss
    based = judge.warm_up + confirm
    if samples < based:
        why = f"{based} samples are needed, {judge.warm_up} for a baseline and {confirm} that confirm"
        yield from ((rule, why, True, ("samples", based, samples)) for rule in _BASED)
    yield from _silent(judge)
    if samples >= based and (block := _dark(judge)):
        why = (
            f"{block} gave nothing but zeros and got no gradient on the last {len(judge.rows)} samples, as if it rested"
        )
        yield "dead_units", why, True, None
    if judge.losses.mixed and judge.losses.most < loss.warm_up:
        least, most = loss.warm_up, judge.losses.most
        yield "loss_spike", f"{least} losses of an optimizer are needed", True, ("losses", least, most)
    for rule, least in (
        ()
        if judge.losses.mixed
        else (
            ("loss_spike", loss.warm_up),
            ("learning_rate_too_high", loss.warm_up),
            ("learning_rate_too_low", 2 * loss.warm_up),
            *((rule, 2 * loss.warm_up) for rule in _SUFFERS),  # as they speak, too, where nothing was learned
        )
    ):
        if loss.steps < least:
            yield rule, f"the losses of {least} steps are needed", True, ("losses", least, loss.steps)
    if samples < confirm:
        why = f"{confirm} samples in a row are needed"
        yield from ((rule, why, True, ("samples", confirm, samples)) for rule in judge.rules)


def _silent(judge: Judge) -> Iterator[Reason]:
    """Yield the rule of blocks without a gradient, where there is one that no rule could judge yet."""
    blocks, silence, confirm = judge.blocks, judge.habits.silence, judge.confirm
    if blocks is None:
        return
    if judge.between.seeks:
        yield "frozen_layers", "a weight never had a gradient, and the next updates tell if it should", True, None
    trained = blocks.trainable & (silence.run > 0)
    lacking = confirm - silence.sure + (_CLEAR - 1 - silence.run).clamp(min=0) * (silence.sure == 0)
    never = lacking[trained & ~silence.ever & (silence.sure < confirm)]
    if never.numel():
        rest = _CLEAR + confirm - 1
        why = f"a block never had a gradient, which takes {rest} samples or looks between them to tell from a rest"
        yield "frozen_layers", why, True, ("samples", rest, rest - int(never.amax()))
    ran = ~values_of(judge.rows[-1], "signal_rms", len(blocks.names)).isnan()
    for i in (missed(blocks, silence, confirm) & silence.ever & ran).nonzero().flatten().tolist()[:1]:
        why = f"{blocks.names[i]} has had no gradient for longer than its habit explains, and more samples tell why"
        yield "frozen_layers", why, True, None


def _dark(judge: Judge) -> str:
    """Name the first block that was wholly off on all of the last samples; "" if there is none.

    Its habit may explain that, so that no rule speaks yet; but nothing of it was seen to be sound.
    """
    if judge.blocks is None or len(judge.rows) < (judge.rows.maxlen or 0):
        return ""
    names = judge.blocks.names
    dark = judge.blocks.trainable.clone()
    for row in judge.rows:
        dark &= values_of(row, "zero_fraction", len(names)) == 1
        dark &= values_of(row, "weight_gradient_rms", len(names)) == 0
    return names[int(dark.nonzero()[0])] if bool(dark.any()) else ""


def _are(count: Count) -> str:
    what, _, there = count
    return f"{'1 is' if there == 1 else f'{there} are'} {'there' if what == 'samples' else 'known'}"
