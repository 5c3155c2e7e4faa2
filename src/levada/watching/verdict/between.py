"""What is looked at before updates beside the loss: parameters that nothing trains, and whether blocks learn."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, final

from torch import nn

from levada.watching.loop.telling import warn
from levada.watching.steps.silence import BY_CHANCE, Silence
from levada.watching.steps.unoptimised import RULE, Unoptimised
from levada.watching.verdict.frozen import RULE as FROZEN
from levada.watching.verdict.frozen import Frozen
from levada.watching.verdict.glances import Glances
from levada.watching.verdict.idle import Idle
from levada.watching.verdict.ledger import Ledger
from levada.watching.verdict.resting import Resting
from levada.watching.verdict.severed import Severed
from levada.watching.verdict.view import Blocks

__all__ = ["Between"]

NEW: Final = 7  # samples of what begins to be trained: so many come of those that are asked for
_LOOKS: Final = "what looks at gradients between samples"
_SEVERED: Final = "what looks for weights that their layer's gradient never gets to"


@final
class Between:
    """Looks between samples; an error in one look ends it alone, as what a parameter is made of is the user's.

    Args:
        ledger: where what is found is told.
        every: smallest distance between samples.

    Attributes:
        ended: rule -> why it is judged no more.
        idle: what stands still from the start.
        spent: told the seconds that hooks take, between what is looked at before updates.
    """

    def __init__(self, ledger: Ledger, every: int) -> None:
        self.ended: dict[str, str] = {}
        self._ledger = ledger
        self._unoptimised: Unoptimised | None = Unoptimised()
        self._frozen: Frozen | None = Frozen()
        self.idle = Idle()
        self._glances: Glances | None = Glances(every, ledger.confirm)
        self.spent: Callable[[float], None] = lambda seconds: None
        self._severed: Severed | None = Severed(lambda seconds: self.spent(seconds))
        self._resting = Resting()
        self._thawed = 0  # samples that are still wanted of what was thawed
        self._model: weakref.ref[nn.Module] | None = None
        self._optimizers: Sequence[Any] = ()

    @property
    def unheld(self) -> int | None:
        """Updates over which parameters that no optimizer holds were followed; None where there are none of them."""
        return None if self._unoptimised is None else self._unoptimised.followed

    @property
    def asks(self) -> bool:
        """Whether the present step asks for samples: a block has had no gradient for long, or begins to be trained."""
        shown = self._severed is not None and self._severed.shown
        return shown or self._thawed == NEW or (self._glances is not None and self._glances.asks)

    @property
    def waits(self) -> bool:
        """Whether samples are still of use to tell why a block has no gradient, or how one learns that was frozen."""
        return self._thawed > 0 or (self._glances is not None and self._glances.waits)

    @property
    def severed(self) -> dict[str, str]:
        """The weights that never had a gradient, though their layer has shown that they should; what it is lost in."""
        return {} if self._severed is None else self._severed.names

    @property
    def seeks(self) -> bool:
        """Whether a weight that never had a gradient is yet to be looked at."""
        return self._severed is not None and self._severed.waits

    @property
    def reached(self) -> int | None:
        """The last step between samples at which every trained block was seen to get a gradient; None without one."""
        return None if self._glances is None else self._glances.reached

    @property
    def stopped(self) -> str:
        """Which optimizer steps no more, though what it holds gets gradients; "" if none does."""
        for i, step in self._resting.since.items() if self._unoptimised is not None else ():
            each = self._optimizers[i]
            if self._unoptimised is not None and self._unoptimised.gets(_parameters(each)):
                name = f"optimizer {i + 1} of {len(self._optimizers)} ({type(each).__name__})"
                gets = "what it holds gets gradients and stands still, and whether that is meant is not known"
                return f"{name} has made no step since step {step}, for longer than it ever rested before: {gets}"
        return ""

    def before_update(
        self,
        step: int,
        model: nn.Module | None,
        optimizers: Sequence[Any],
        blocks: Blocks | None,
        silence: Silence,
        weights: Any = None,
    ) -> None:
        """Look before an update, while gradients are there.

        Args:
            step: its number.
            model: the model; None if it is not at hand.
            optimizers: those that are known.
            blocks: what is known of the blocks; None before the first sample.
            silence: of the gradients of their weights.
            weights: says by `steps_of` how often an optimizer stepped; None where that is not known.
        """
        self._model = None if model is None else weakref.ref(model)
        glances = self._glances
        sites = blocks.sites if blocks is not None else ()
        if self._unoptimised is not None:
            starved = partial(self._starved, blocks, silence)
            self._look(RULE, self._unoptimised, step, model, self._stepping(step, optimizers, weights), sites, starved)
        if self._frozen is not None:
            self._look(FROZEN, self._frozen, step, model, optimizers, sites)
            thawed = self._frozen is not None and self._frozen.thawed
            self._thawed = NEW if thawed else min(self._thawed, NEW - 1)
        self.idle.before_update(model)
        if self._severed is not None:
            self._try(_SEVERED, self._severed.before_update, model, optimizers)
        if glances is not None:
            self._try(_LOOKS, glances.before_update, step, model, blocks, silence)

    def _stepping(self, step: int, optimizers: Sequence[Any], weights: Any) -> Sequence[Any]:
        """Return the optimizers that have stepped so far, and still do; before the first step all."""
        self._optimizers = optimizers
        if weights is None:
            return optimizers
        self._resting.before_update(step, optimizers, weights.steps_of)
        still = [each for i, each in enumerate(optimizers) if weights.steps_of(each) and i not in self._resting.since]
        return still or optimizers

    def _look(self, rule: str, looking: Unoptimised | Frozen, step: int, *of: Any) -> None:
        """Tell what one that looks at parameters finds, or that it is over."""
        if not self._try(rule, looking.before_update, step, *of):
            return
        if looking.found is None:
            self._ledger.over(rule, step)
        else:
            told = replace(looking.found, evidence={**looking.found.evidence, "told_at": step})
            self._ledger.stand(told, renew=True)

    def _starved(self, blocks: Blocks | None, silence: Silence) -> list[str]:
        """Return the blocks that are trained, and whose gradient was exactly zero always, longer than by chance."""
        if blocks is None or len(silence.run) != len(blocks.sites):
            return []
        never = (silence.run >= self._ledger.confirm) & (silence.chance < BY_CHANCE) & ~silence.ever
        hit = blocks.trainable & never
        return [blocks.names[i] for i in hit.nonzero().flatten().tolist()]

    def sampled(self, step: int, blocks: Blocks, silence: Silence) -> None:
        """Hear of a sample.

        Args:
            step: its number.
            blocks: what is known of the blocks.
            silence: as in `before_update`.
        """
        self._thawed = max(self._thawed - 1, 0)
        if self._glances is not None:
            self._glances.sampled(step, blocks, silence)

    def let_go(self) -> None:
        """Take off what hangs on the model; what was found stays."""
        if self._severed is not None:
            self._severed.close()

    def close(self, blocks: Blocks | None, silence: Silence) -> None:
        """Take what is still on its way from a device.

        Args:
            blocks: what is known of the blocks.
            silence: as in `before_update`.
        """
        glances = self._glances
        if glances is not None and blocks is not None:
            self._try(_LOOKS, partial(glances.read, wait=True), blocks, silence)

    def _try(self, name: str, look: Callable[..., bool | None], *of: Any) -> bool:
        try:
            return bool(look(*of))
        except Exception as error:
            what, model = f"{type(error).__name__}: {error}", None if self._model is None else self._model()
            if name in (RULE, FROZEN):
                self._unoptimised = None if name == RULE else self._unoptimised
                self._frozen = None if name == FROZEN else self._frozen
                self.ended[name] = f"an error ended it, {what}"
                warn(f"watch: {name} raised {what}. It is judged no more; all else is.", of=model)
            else:
                self._glances = None if name == _LOOKS else self._glances
                if name == _SEVERED:
                    self.let_go()
                    self._severed = None
                warn(f"watch: {name} raised {what}. It looks no more; all else goes on.", of=model)
            return False


def _parameters(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]
