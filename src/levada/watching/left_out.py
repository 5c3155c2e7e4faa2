"""Batches that a loop leaves out before their backward pass, as something of them is not finite."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, final

import torch
from torch import Tensor

from levada.diagnose.finding import Finding
from levada.probe.recorder import tensors
from levada.watching.given import LOOK, Given, listed, unfit_inputs, unfit_targets
from levada.watching.ledger import Ledger
from levada.watching.reading import plain

__all__ = ["RULE", "LeftOut"]

RULE: Final = "nonfinite_batches"
# So many, and such a share of all passes, are data that is lost, and more than a batch that is odd.
MANY, SHARE = 8, 0.1


@final
class LeftOut:
    """Follows batches whose targets or outputs are not finite, and of which no backward pass came.

    A loop that goes on to the next batch where its loss is not finite keeps its weights, and nothing that is sampled
    tells of it: that the data, or the model on them, holds NaN would be known to nobody. A batch counts once the next
    update came of a finite loss: of two whose losses are added, the first has no backward pass of its own either.

    Attributes:
        targets: those that were noted since the last update; None without.

    Args:
        source: what is watched, with `steps` and `passed`, as a `Watch` has them.
        ledger: where it is told.

    Example:
        >>> from types import SimpleNamespace
        >>> source, ledger = SimpleNamespace(steps=0, passed=(0, 0, -1)), Ledger(3, print)
        >>> left = LeftOut(source, ledger)
        >>> left.noted(torch.tensor([torch.nan]))
        >>> source.passed = 1, 0, 0
        >>> left.noted(torch.ones(1))
        >>> source.passed = 2, 1, -1
        >>> _ = left.updated(0, torch.tensor(0.5))
        >>> ledger.findings[0].severity, ledger.findings[0].evidence["step"], ledger.findings[0].evidence["tensor"]
        ('info', 0, 'targets')
    """

    def __init__(self, source: Any, ledger: Ledger) -> None:
        self.targets: Any = None
        self._source, self._ledger = source, ledger
        self._noted = 0, 0  # the step, and passes before it
        self._early = True  # whether targets are noted before the pass that they belong to
        self._before = 0  # passes before the last update
        self._pending: dict[int, tuple[int, str, str]] = {}  # by pass: its step, what is not finite, and words
        self._first: tuple[int, str, str] | None = None  # of those that were left out
        self._last = self._count = self._told = 0

    @property
    def unfit(self) -> bool:
        """Whether the noted targets hold NaN or Inf."""
        return bool(_unfit(self.targets))

    @property
    def _passed(self) -> tuple[int, int, int]:
        passed: tuple[int, int, int] = getattr(self._source, "passed", (0, 0, 0))
        return passed

    @property
    def _step(self) -> int:
        return int(getattr(self._source, "steps", 0))

    def noted(self, targets: Any) -> None:
        """Take the targets of a batch; those before it were left out if a pass, and no backward pass, came of them.

        Args:
            targets: any nest.
        """
        if self.targets is None:
            self._early = self._passed[0] == self._before
        else:
            self._look()
        self.targets, self._noted = targets, (self._step, self._passed[0])

    def passed(
        self, output: Tensor | None, given: Given | None, words: Callable[[], tuple[str, str, str]], model: Any
    ) -> bool:
        """Hear that a pass begins behind one of which no backward pass came; return whether that was not finite.

        Args:
            output: what it gave; None if that is gone. On an accelerator it is not waited for.
            given: what the model was called with then, as far as it is at hand.
            words: gives what is not finite now, as its kind, its name if it has one, and a sentence.
            model: the model, whose forward names its arguments.
        """
        with suppress(Exception):  # what outputs and inputs are made of is the user's
            if output is None:
                cpu = all(one.device.type == "cpu" for one in tensors(given))
                bad = cpu and any(not one.meant for one in unfit_inputs(given or {}, model))
            else:
                bad = output.device.type == "cpu" and bool(torch.isnan(plain(output.detach())).any())
            if bad:
                kind, _, sentence = words()
                tensor = kind if kind in ("inputs", "weight", "buffer") else "signal"
                said = sentence if output is None else f"the output holds NaN. {sentence}"
                self._pending[self._passed[0]] = self._step, tensor, said
            return bad
        return False

    def updated(self, step: int, loss: Tensor | None) -> Any:
        """Hear of an update, and return the targets that were noted for it.

        Args:
            step: its number.
            loss: its loss; None if it was not seen. On an accelerator it is not waited for.
        """
        targets, self.targets = self.targets, None
        self._before, backward, _ = self._passed
        if not self._pending:
            return targets
        if not backward or (loss is not None and loss.device.type == "cpu" and not bool(loss.isfinite())):
            self._pending.clear()
        else:
            self._take()
            if self._count >= 2 * self._told:  # it is told again where there are twice as many
                self._tell(step)
        return targets

    def close(self) -> None:
        """Take what waits for another update, which does not come."""
        if self.targets is not None:
            self._look()
            self.targets = None
        if self._pending and self._passed[1]:
            self._take()
        if self._count > self._told:
            self._tell(self._step)

    def _look(self) -> None:
        step, passes = self._noted
        index = passes + self._early
        seen, _, beyond = self._passed
        if index > seen or beyond < (not self._early) or index in self._pending:
            return
        if found := _unfit(self.targets):
            self._pending[index] = step, "targets", f"{listed(found)}."

    def _take(self) -> None:
        those = list(self._pending.values())
        self._pending = {}
        self._first = self._first or those[0]
        self._last, self._count = those[-1][0], self._count + len(those)

    def _tell(self, told_at: int) -> None:
        assert self._first is not None  # there is one
        first, tensor, words = self._first
        self._told, passes, many = self._count, self._passed[0], self._count > 1
        words = words if tensor == "targets" or words.startswith("the output") else f"{words[:1].lower()}{words[1:]}"
        what = f"{self._count:,} of {passes:,} batches" if many else "a batch"
        when = f"the first at step {first} and the last at step {self._last}" if many else f"at step {first}"
        lost = self._count >= MANY and self._count >= SHARE * passes
        finding = Finding(
            rule=RULE,
            severity="warn" if lost else "info",
            status="fired",
            claim=f"The loop left out {what} before the backward pass, {when}: {'of the first ' * many}{words}",
            evidence={
                "step": first,
                "last": self._last,
                "told_at": told_at,
                "tensor": tensor,
                "number": self._count,
                "passes": passes,
                "explained_by": "place",
                "tests": {"values": "looked at exactly"},
            },
            consequence="The weights are not harmed; what these batches hold is not learned.",
            falsify="Print the loss of that batch: if it is finite, this is wrong.",
            remedies=(LOOK,) if tensor in ("inputs", "targets") else (),
            source="IEEE 754: a NaN stays one through every sum and product",
        )
        self._ledger.stand(finding, renew=True)


def _unfit(targets: Any) -> list[Any]:
    """Return the targets that hold NaN or Inf; -Inf may be meant."""
    with suppress(Exception):  # what they are made of is the user's
        return [one for one in unfit_targets(targets) if not one.meant]
    return []
