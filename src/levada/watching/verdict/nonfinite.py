"""The first NaN or Inf of a run: in which block, in which tensor, at which step, on which rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, final

from torch import Tensor, nn

from levada._ranks import is_one_of_several
from levada.diagnose.finding import Finding
from levada.watching.measure.broken import broken_buffers, broken_gradients, broken_parameters
from levada.watching.measure.given import LOOK, Given, listed, named, unfit_inputs, unfit_targets
from levada.watching.verdict.view import View

__all__ = ["RULE", "Nonfinite"]

RULE = "numerical_overflow"
# A scaler looks for its scale by overflowing: it skips these steps. So many in a row are no search.
SKIPPED = 3
Kind: TypeAlias = Literal["weight", "inputs", "targets", "buffer", "signal", "gradient", "loss"]
_CONSEQUENCE: Final = "Every parameter becomes NaN with an update from this loss; nothing is learned afterwards."


@dataclass(frozen=True, slots=True)
class _Place:
    kind: Kind
    block: str  # "" where it is not known
    words: str


@final
class Nonfinite:
    """Follows the losses of all steps and the counts of sampled ones, and says where the first NaN or Inf is.

    A loss that is seen before the update, while weights are still good, tells the tensor exactly if a weight or an
    input is not finite. Otherwise a sampled step tells the block: of the forward pass the first in order of execution,
    of the backward pass the last. Once an update has made all weights NaN, the first place can no longer be seen, and
    the finding says so. Under a scaler, steps that overflow are how it looks for its scale; only weights that are not
    finite, or several such steps in a row, count.
    """

    def __init__(self) -> None:
        self.finite_step: int | None = None  # the last step whose loss was finite
        self.bad_step: int | None = None  # the first whose loss was not
        self.finite_sample: int | None = None
        self._losses = 0  # bad ones in a row
        self._samples = 0
        self._masked = True  # in every sample so far
        self._open, self._passed = set[str](), set[str]()  # blocks with what did no harm: now, and gone again before

    def see_loss(self, step: int, loss: float) -> None:
        """Take the loss of a step.

        Args:
            step: its number; one that was seen already counts once.
            loss: its loss.
        """
        if math.isfinite(loss):
            if self.finite_step is None or step > self.finite_step:
                self.finite_step, self.bad_step, self._losses = step, None, 0
        elif self.bad_step is None or step >= self.bad_step + self._losses:
            self._losses += 1
            self.bad_step = step if self.bad_step is None else self.bad_step

    def before_update(
        self, step: int, rank: int, model: nn.Module | None, given: Given | None, targets: Any = None, *, scaled: bool
    ) -> Finding | None:
        """Return a finding if the loss of this step, which was seen before the update, is not finite.

        Args:
            step: its number.
            rank: of this process.
            model: the model, with weights that this step has not yet moved; None if it is not at hand.
            given: what the model was last called with; None if it is not at hand.
            targets: those that were noted; None if none were.
            scaled: whether a scaler skips steps that overflow.
        """
        if self.bad_step is None or (scaled and self._losses < SKIPPED):
            return None
        unseen = [] if targets is not None else ["the targets, which were not noted"]
        first = step == self.bad_step and self.finite_step in (None, step - 1)  # no step unseen is before it
        place = self._seen_now(model, given, targets, unseen, first=first)
        finding = self._finding(place, step, rank, exact=True)
        if model is None or not _sound(model):
            return finding
        told = "The gradients are finite all the same, so that this update does not spread it: it is in the loss alone."
        return replace(finding, consequence=told)

    def left(
        self, step: int, rank: int, model: nn.Module, given: Given | None, targets: Any = None, *, learned: bool
    ) -> Finding | None:
        """Return the finding of a step that is left before its update, whose loss is finite or was not seen.

        Args:
            step: its number.
            rank: of this process.
            model: the model.
            given: what it was last called with; None if it is not at hand.
            targets: those that were noted; None if none were.
            learned: whether it has gradients; else its outputs hold NaN, or its targets are not finite.
        """
        if not learned:
            place = self._seen_now(model, given, targets)
            if place.kind == "loss" and (words := _gradients(model)):
                return self._finding(_Place("gradient", "", f"{words}; the loss was not heard"), step, rank, exact=True)
            output = "" if place.kind == "targets" else ", whose output holds NaN"
            words = f"no backward pass came of the last pass{output}; {place.words}"
            return self._finding(_Place(place.kind, place.block, words), step, rank, exact=True)
        words = _gradients(model)
        place = _Place("gradient", "", f"{words}; the loss is finite")
        return self._finding(place, step, rank, exact=True) if words else None

    def ended(self, step: int, view: View, *, scaled: bool) -> Finding | None:
        """Return a finding if the last losses, which no sample brings, or the weights that are left are not finite.

        Of weights those count that are trained and were finite when their block was sampled last.

        Args:
            step: the last one.
            view: the last sampled step.
            scaled: whether a scaler skips steps that overflow.
        """
        rank = view.sample.rank
        found = self.before_update(step, rank, view.model, None, scaled=scaled)
        if found is not None or view.model is None:
            return found
        sound = (view.blocks.trainable & view["weight_rms"].isfinite()).nonzero().flatten().tolist()
        trained = {name for i in sound for name in view.blocks.sites[i].parameters}
        broken = {name: kind for name, kind in broken_parameters(view.model).items() if name in trained}
        return (
            self._finding(_weights(broken, self.finite_step, by=step + 1), step, rank, exact=True) if broken else None
        )

    def words(self, model: nn.Module | None, given: Given | None) -> tuple[Kind, str, str]:
        """Return what is not finite of weights and inputs as they are now: its kind, a parameter or "", and a sentence.

        Args:
            model: the model; None if it is not at hand.
            given: what it was last called with; None if it is not at hand.

        Example:
            >>> model = nn.Linear(2, 1)
            >>> _ = model.bias.data.fill_(math.nan)
            >>> Nonfinite().words(model, None)
            ('weight', 'bias', 'The parameter bias holds NaN.')
        """
        place = self._seen_now(model, given)
        return place.kind, place.block, f"{place.words[:1].upper()}{place.words[1:]}."

    def _seen_now(
        self,
        model: nn.Module | None,
        given: Given | None,
        targets: Any = None,
        unseen: Sequence[str] = (),
        *,
        first: bool = False,
    ) -> _Place:
        broken = broken_parameters(model) if model is not None else {}
        if broken:
            return _weights(broken, self.finite_step, by=self.bad_step, first=first)
        finite = "its weights are finite" if model is not None else "its weights are not at hand"
        inputs = unfit_inputs(given, model) if given else []
        if found := [one for one in inputs if not one.meant]:
            return _Place("inputs", "", f"the batch that the model was given is not finite: {listed(found)}; {finite}")
        those, beside = named(given) if given else ("", ["the inputs, which were not seen"])
        if found := unfit_targets(targets):
            also = f", and so are {those}" if those and not inputs else ""
            return _Place("targets", "", f"{listed(found)}; {finite}{also}")
        if model is None:
            return _Place("loss", "", "where it arises is not known, as the weights are not at hand")
        known = [
            "the weights",
            *([those] if those else []),
            *(["the noted targets"] if targets is not None else []),
        ]
        masks = f" ({listed(inputs)}, which a mask may mean)" if inputs else ""
        told = f"{' and '.join([', '.join(known[:-1]), known[-1]] if len(known) > 1 else known)} are finite{masks}"
        if buffers := broken_buffers(model):
            name, kind = next(iter(buffers.items()))
            more = f", as {len(buffers) - 1} more do" if len(buffers) > 1 else ""
            words = (
                f"the buffer {name} holds {kind}{more}; {told}, so that it comes from there, unless this forward pass"
            )
            return _Place("buffer", "", f"{words} wrote it")
        unseen = [*beside, *unseen]
        or_with = f", or comes with {', or with '.join(unseen)}" if unseen else ""
        return _Place("loss", "", f"{told}, so that it arises in the forward pass or in the loss{or_with}")

    def see_sample(self, view: View, model: nn.Module | None) -> Finding | None:
        """Return a finding if something in this sample is not finite.

        Args:
            view: the sampled step.
            model: the model, after its update; None if it is not at hand.
        """
        forward = [int(i) for i in (view["nonfinite"] > 0).nonzero()]
        backward = [int(i) for i in (view["gradient_nonfinite"] > 0).nonzero()]
        weights = _turned(view)
        if not (forward or backward or weights or self.bad_step is not None):
            self.finite_sample, self._samples, self._masked = view.step, 0, False
            self._passed |= self._open
            self._open = set()
            return None
        self._samples += 1
        scaled = view.sample.scalars.get("loss_scale", 1.0) != 1.0
        broken = broken_parameters(model) if model is not None else {}
        if scaled and not broken and not weights and self._samples < SKIPPED:
            return None
        exact = self.bad_step == view.step or (self.bad_step is None and self.finite_step == view.step)
        place = self._place(view, forward, backward, [*broken] or weights, exact=exact)
        masked = bool(forward) and not broken and self.bad_step is None and not backward and not weights
        those = {view.blocks.names[i] for i in forward}
        again = masked and not self._masked and those <= self._passed
        self._open = self._open | those if masked else set()
        always = self._masked or again
        finding = self._finding(place, view.step, view.sample.rank, exact=exact, harmless=masked, always=always)
        if not again:
            return finding
        told = (
            "None seen: it was there before and was gone again, and the loss and the gradients were finite each time."
        )
        return replace(finding, consequence=told)

    def _place(
        self, view: View, forward: Sequence[int], backward: Sequence[int], broken: Sequence[str], *, exact: bool
    ) -> _Place:
        names = view.blocks.names
        if forward:
            first = forward[0]
            if first == 0 and len({name.rpartition(".")[0] for name in broken}) > 1 and self.finite_step is not None:
                return _Place("signal", "", "it is in the first block already and in the weights of several")
            # A block before it that could have been broken by an update, and gives finite numbers, shows it was not.
            if exact or bool(view.blocks.trainable[:first].any()):
                held = [name for name in broken if name in view.blocks.sites[first].parameters]
                if held and len(forward) < view.sites and not exact:
                    return _Place("weight", held[0], f"the parameter {held[0]} of {names[first]} holds NaN or Inf")
                words = f"it is in the output of {names[first]}, the first block to have any"
                if first and bool(view["nonfinite"][first - 1] == 0):
                    words += (
                        f"; that of {names[first - 1]} is finite, so that it arose in {names[first]} or between the two"
                    )
                return _Place("signal", names[first], words)
            return _Place("signal", "", "by then it was in every block, so that the first one is not known")
        lost = exact and self.bad_step == view.step  # gradients and weights then follow from the loss
        if backward and not lost:
            last = backward[-1]
            words = (
                f"it is in the gradient at the output of {names[last]}, the first on its way back; signals are finite"
            )
            return _Place("gradient", names[last], words)
        if len(broken) == 1 and not lost:
            return _Place("weight", broken[0], f"{broken[0]} holds NaN or Inf; signals and gradients were finite")
        if broken and not lost:
            words = f"{len(broken)} weights hold NaN or Inf since an update; signals and gradients were finite"
            return _Place("weight", "", words)
        words = (
            "every block's output is finite, so that it arises behind the last one, in the model or in the loss, or "
            "comes with the targets"
        )
        return _Place("loss", names[-1], words)

    def _finding(
        self, place: _Place, step: int, rank: int, *, exact: bool, harmless: bool = False, always: bool = False
    ) -> Finding:
        after, by = self._between(step)
        if exact and self.bad_step is not None:
            when = f"The loss of step {self.bad_step} is the first that is not finite"
            if after is not None and after < self.bad_step - 1:
                when = f"The loss of step {self.bad_step} is not finite, and that of step {after}, heard before it, was"
        elif exact or after == by:
            when = f"NaN or Inf at step {by}"
        elif after is None:
            when = f"NaN or Inf, first seen at the sampled step {step}; it entered by step {by}"
        else:
            when = f"NaN or Inf, first seen at the sampled step {step}; it entered after step {after} and by step {by}"
        block, data = place.block, place.kind in ("inputs", "targets")
        who = f", on rank {rank}" if rank or is_one_of_several() else ""
        return Finding(
            rule=RULE,
            severity="error" if not harmless else "info" if always else "warn",
            status="fired",
            claim=f"{when}{who}: {place.words}." + (" The loss is finite." if harmless else ""),
            where={"first": block, "last": block} if block else {},
            evidence={
                "tensor": place.kind,
                "step": by,
                "entered_after": after,
                "seen_at": step,
                "rank": rank,
                "explained_by": "place" if block else None,
                "tests": {"values": "counted exactly"},
            },
            consequence=(
                "None seen yet: the loss and the gradients are finite, as with a mask." if harmless else _CONSEQUENCE
            ),
            falsify=(
                "Look at these values before the model is given them: if they are finite, this is wrong."
                if data
                else "Re-run the step from its bundle: levada replay names the first operation that is not finite."
            ),
            remedies=(LOOK,) if data else (),
            source="IEEE 754: a NaN stays one through every sum and product",
        )

    def _between(self, step: int) -> tuple[int | None, int]:
        """Return the last step that is known to be finite, and the first that is not."""
        known = [s for s in (self.finite_step, self.finite_sample) if s is not None and s < step]
        by = step if self.bad_step is None else min(step, self.bad_step)
        known = [s for s in known if s < by]
        return (max(known) if known else None), by


def _weights(
    broken: Mapping[str, str], finite_step: int | None, *, by: int | None = None, first: bool = False
) -> _Place:
    """Name the parameter, if one block holds all that is broken; an update breaks those of many at once."""
    name = next(iter(broken))
    if len({each.rpartition(".")[0] for each in broken}) == 1:
        wrote = f"; the loss of step {finite_step} was finite, so that its update wrote it, or what came after that"
        since = wrote if first and finite_step is not None else ""
        return _Place("weight", name, f"the parameter {name} holds {broken[name]}{since}")
    words = f"{len(broken)} parameters of several blocks hold NaN or Inf since "
    if finite_step is not None and by is not None and by - finite_step > 1:  # steps between were not heard
        words += f"an update behind step {finite_step}"
    elif finite_step is not None:
        words += f"the update of step {finite_step}"
    else:  # no step was seen before it
        words += (
            "before the first step that was watched, as they were loaded or drawn" if first else "an earlier update"
        )
    return _Place("weight", "", f"{words}; where it arose is not known")


def _gradients(model: nn.Module) -> str:
    """Say which gradients are not finite; "" if all are."""
    gradients = broken_gradients(model)
    if not gradients:
        return ""
    of, first = sum(p.grad is not None for p in model.parameters()), next(iter(gradients))
    those = f"the gradients of {len(gradients)} of {of} parameters are not finite"
    return f"{those}, as that of {first}, which holds {gradients[first]}"


def _sound(model: nn.Module) -> bool:
    """Return whether there are gradients, and all of them are finite."""
    return any(p.grad is not None for p in model.parameters()) and not broken_gradients(model)


def _turned(view: View) -> list[str]:
    """Return the blocks whose weights were finite in the sample before, and are not in this one."""
    if len(view.rows) < 2:
        return []
    before, now = (sample.values.get("weight_rms") for sample in view.rows[-2:])
    if before is None or now is None:
        return []
    # NaN alone may be a block that was not measured; its update then was not either, or is not finite as well.
    turned = before.isfinite() & (now.isinf() | (now.isnan() & ~view["update_ratio"].isfinite() & _fed(view)))
    return [view.blocks.names[int(i)] for i in turned.nonzero()]


def _fed(view: View) -> Tensor:
    """Return whether a block's gradient or signal is not finite, which tells a broken weight from an unmeasured one."""
    return (view["gradient_nonfinite"] > 0) | (view["nonfinite"] > 0)
