"""Batches that a loop leaves out before their backward pass, as something of them is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from levada.diagnose.finding import Finding
from levada.probe.recorder import tensors
from levada.watching.loop.arrivals import Arrival, hear_gradient
from levada.watching.measure.given import LOOK, listed, unfit_targets
from levada.watching.measure.reading import plain
from levada.watching.verdict.ledger import Ledger

__all__ = ["RULE", "LeftOut"]

RULE: Final = "nonfinite_batches"
# So many, and such a share of all passes, are data that is lost, and more than a batch that is odd.
MANY, SHARE = 8, 0.1


@dataclass(slots=True, eq=False)
class _Followed:
    """A forward pass of training, whose output tells whether a backward pass came to it."""

    step: int
    nan: bool  # whether its output holds NaN
    learned: bool = False
    behind: bool = False  # whether another pass began before its backward pass
    left: str = ""  # what was not finite of it, if it was held to be left out


@dataclass(slots=True)
class _Several:
    """Some that were left out: of the first what is to be said, of the others their number."""

    first: int  # its step
    tensor: str
    words: str
    last: int
    number: int = 1


@final
class LeftOut:
    """Follows batches whose targets or outputs are not finite, and of which no backward pass came.

    A loop that goes on to the next batch where its loss is not finite keeps its weights, and nothing that is sampled
    tells of it: that the data, or the model on them, holds NaN would be known to nobody. Whether a backward pass came
    is heard at the output of each pass, so that losses which are added, and let go, are none that was left out. A batch
    counts once the next update came of a finite loss. Where one was learned from whose targets, or whose output, held
    NaN, these are meant, as labels that are missing are: they count no more, and what was told is taken back.

    Attributes:
        targets: those that were noted since the last update; None without.

    Args:
        source: what is watched, with `steps` and `passed`, as a `Watch` has them.
        ledger: where it is told.
        words: gives what is not finite now of weights and inputs, as its kind, its name if any, and a sentence.

    Example:
        >>> from types import SimpleNamespace
        >>> source, ledger = SimpleNamespace(steps=0, passed=0), Ledger(3, print)
        >>> left, weight = LeftOut(source, ledger, tuple), torch.ones(1, requires_grad=True)
        >>> for target in (torch.nan, 1.0):
        ...     left.noted(torch.tensor([target]))
        ...     left.begins()
        ...     output = 2 * weight
        ...     left.returned(output)
        ...     source.passed += 1
        >>> output.sum().backward()
        >>> _ = left.updated(0, torch.tensor(0.5))
        >>> ledger.findings[0].severity, ledger.findings[0].evidence["step"], ledger.findings[0].evidence["tensor"]
        ('info', 0, 'targets')
    """

    def __init__(self, source: Any, ledger: Ledger, words: Callable[[], tuple[str, str, str]]) -> None:
        self.targets: Any = None
        self._source, self._ledger, self._words = source, ledger, words
        self._before = 0  # passes before the last update
        self._first: int | None = None  # step of the first update that was heard
        self._updates = 0  # that were heard
        self._early = True  # whether targets are noted before the pass that they belong to
        self._coming: Any = None  # targets of the next pass
        self._theirs: Any = None  # and of the last one
        self._pass: _Followed | None = None  # the last one; None if its output tells nothing
        self._open = False  # whether that was not looked at yet
        self._reached = 0  # passes that a backward pass came to since the last update
        self._odd = False  # whether one of these gave NaN
        self._stands = False  # whether it was told that no update comes any more
        self._late = False  # whether one ever came to a pass behind which another had begun
        self._wrong: set[str] = set()  # held to be left out for these, and it was not
        self._meant: set[str] = set()  # of targets and signal, what holds NaN and is learned from
        self._pending: _Several | None = None  # until the next update
        self._told_of: _Several | None = None  # those that were left out
        self._told = 0

    @property
    def unfit(self) -> bool:
        """Whether the noted targets hold NaN or Inf, and are not meant to."""
        return "targets" not in self._meant and bool(_unfit(self.targets))

    @property
    def _passed(self) -> int:
        return int(getattr(self._source, "passed", 0))

    @property
    def _step(self) -> int:
        return int(getattr(self._source, "steps", 0))

    def noted(self, targets: Any) -> None:
        """Take the targets of a batch.

        Args:
            targets: any nest.
        """
        if self.targets is None:
            self._early = self._passed == self._before
        self.targets = targets
        if self._early:
            self._coming = targets
        else:
            self._theirs = targets

    def begins(self) -> None:
        """Hear that a pass begins: the last one was left out so far, if no backward pass came to it."""
        one, behind, self._open = self._pass, self._open, False
        if one is None or one.learned or not behind or self._stands:
            return
        one.behind = True
        if one.nan and "signal" not in self._meant:
            self._keep(one, "signal", "")
        elif "targets" in self._meant or (self._late and _away(self._theirs)):
            return
        elif found := _unfit(self._theirs):
            self._keep(one, "targets", f"{listed(found)}.")

    def returned(self, output: Tensor | None) -> None:
        """Hear what a pass of training gave, and listen there for its backward pass.

        Args:
            output: its output; None if it has none. On an accelerator it is not looked at.
        """
        self._theirs, self._coming = self._coming, None
        self._pass, self._open = None, False
        if output is None or not output.requires_grad or output.is_leaf:
            return
        with suppress(Exception):  # what an output is made of is the user's
            value = plain(output.detach())
            one = _Followed(self._step, value.device.type == "cpu" and value.numel() > 0 and _holds_nan(value))
            hear_gradient(output, Arrival(self._learned, one))
            self._pass, self._open = one, True

    def _learned(self, one: _Followed, gradient: Tensor | None) -> None:
        one.learned = True
        self._reached += 1
        self._late |= one.behind
        self._odd |= one.nan
        if one.left:  # it was not left out, its backward pass came later
            self._wrong.add(one.left)

    def _take_back(self, wrong: set[str]) -> None:
        """Hear that what is not finite of these is meant."""
        self._meant |= wrong
        self._pending = self._told_of = None
        self._told = 0
        self._ledger.over(RULE, self._step)

    def stands(self, still: bool) -> None:
        """Hear that it was told that training stands still, which tells of all these batches, or goes on.

        Args:
            still: whether it stands still.
        """
        self._stands, self._pending = still, None

    def updated(self, step: int, loss: Tensor | None) -> Any:
        """Hear of an update, and return the targets that were noted for it.

        Args:
            step: its number.
            loss: its loss; None if it was not seen. On an accelerator it is not waited for.
        """
        targets, self.targets = self.targets, None
        self._first, self._updates = step if self._first is None else self._first, self._updates + 1
        self._before = self._passed
        reached, odd, self._reached, self._odd = self._reached, self._odd, 0, False
        if self._wrong - self._meant:
            self._take_back(self._wrong)
        if loss is not None and loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._pending = None
            return targets
        if not reached:
            return targets
        if odd and "signal" not in self._meant:
            self._take_back({"signal"})
        learned = targets is not None and self._pass is not None and self._pass.learned
        waits = self._pending is not None or self._told_of is not None
        if learned and "targets" not in self._meant and (waits or not _away(targets)) and _unfit(targets):
            self._take_back({"targets"})
        self._take()
        if self._told_of is not None and self._told_of.number >= max(1, 2 * self._told):
            self._tell(step)  # it is told again where there are twice as many
        return targets

    def close(self) -> None:
        """Take what waits for another update, which does not come."""
        self.targets = None
        if self._wrong - self._meant:
            self._take_back(self._wrong)
        if self._before:
            self._take()
        if self._told_of is not None and self._told_of.number > self._told:
            self._tell(self._step)

    def _keep(self, one: _Followed, tensor: str, words: str) -> None:
        one.left = tensor
        if self._pending is not None:
            self._pending.number += 1
            self._pending.last = one.step
            return
        kind = tensor
        if not words and self._told_of is None:
            with suppress(Exception):  # what weights and inputs are made of is the user's
                found, _, sentence = self._words()
                kind = found if found in ("inputs", "weight", "buffer") else tensor
                words = f"the output holds NaN. {sentence}"
        self._pending = _Several(one.step, kind, words or "the output holds NaN.", one.step)

    def _take(self) -> None:
        those, self._pending = self._pending, None
        if those is None:
            return
        if self._told_of is None:
            self._told_of = those
        else:
            self._told_of.number += those.number
            self._told_of.last = those.last

    def _tell(self, told_at: int) -> None:
        assert self._told_of is not None  # there is one
        those, passes = self._told_of, self._passed
        self._told, many = those.number, those.number > 1
        heard = self._first is None or self._step - self._first <= self._updates
        of = f"{passes:,} batches{'' if heard else ' that were heard'}"
        what = f"{those.number:,} of {of}" if many else "a batch"
        when = (
            f"the first at step {those.first} and the last at step {those.last}" if many else f"at step {those.first}"
        )
        lost = those.number >= MANY and those.number >= SHARE * passes
        finding = Finding(
            rule=RULE,
            severity="warn" if lost else "info",
            status="fired",
            claim=f"The loop left out {what} before the backward pass, {when}: {'of the first ' * many}{those.words}",
            evidence={
                "step": those.first,
                "last": those.last,
                "told_at": told_at,
                "tensor": those.tensor,
                "number": those.number,
                "passes": passes,
                "explained_by": "place",
                "tests": {"values": "looked at exactly"},
            },
            consequence="The weights are not harmed; what these batches hold is not learned.",
            falsify="Print the loss of that batch: if it is finite, this is wrong.",
            remedies=(LOOK,) if those.tensor in ("inputs", "targets") else (),
            source="IEEE 754: a NaN stays one through every sum and product",
        )
        self._ledger.stand(finding, renew=True)


def _unfit(targets: Any) -> list[Any]:
    """Return the targets that hold NaN or Inf; -Inf may be meant."""
    with suppress(Exception):  # what they are made of is the user's
        return [one for one in unfit_targets(targets) if not one.meant]
    return []


def _away(targets: Any) -> bool:
    """Return whether some are on a device that would have to be waited for."""
    with suppress(Exception):
        return any(one.device.type != "cpu" for one in tensors(targets))
    return True


def _holds_nan(value: Tensor) -> bool:
    if value.is_complex():
        return bool(torch.isnan(value).any())
    return math.isnan(value.amax().item())  # NaN is the largest
