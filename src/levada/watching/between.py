"""What is looked at before updates beside the loss: parameters that nothing trains, and whether blocks learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, final

from torch import nn

from levada.watching.frozen import RULE as FROZEN
from levada.watching.frozen import Frozen
from levada.watching.glances import Glances
from levada.watching.idle import Idle
from levada.watching.ledger import Ledger
from levada.watching.silence import BY_CHANCE, Silence
from levada.watching.telling import warn
from levada.watching.unoptimised import RULE, Unoptimised
from levada.watching.view import Blocks

__all__ = ["Between"]

_LOOKS: Final = "what looks at gradients between samples"


@final
class Between:
    """Looks between samples; an error in one look ends it alone, as what a parameter is made of is the user's.

    Args:
        ledger: where what is found is told.
        every: smallest distance between samples.

    Attributes:
        ended: rule -> why it is judged no more.
        idle: what stands still from the start.
    """

    def __init__(self, ledger: Ledger, every: int) -> None:
        self.ended: dict[str, str] = {}
        self._ledger = ledger
        self._unoptimised: Unoptimised | None = Unoptimised()
        self._frozen: Frozen | None = Frozen()
        self.idle = Idle()
        self._glances: Glances | None = Glances(every, ledger.confirm)

    @property
    def unheld(self) -> int | None:
        """Updates over which parameters that no optimizer holds were followed; None where there are none of them."""
        return None if self._unoptimised is None else self._unoptimised.followed

    @property
    def asks(self) -> bool:
        """Whether the present step asks for samples, as a block has no gradient for longer than is usual for it."""
        return self._glances is not None and self._glances.asks

    @property
    def waits(self) -> bool:
        """Whether samples are still of use to tell why a block has no gradient."""
        return self._glances is not None and self._glances.waits

    @property
    def reached(self) -> int | None:
        """The last step between samples at which every trained block was seen to get a gradient; None without one."""
        return None if self._glances is None else self._glances.reached

    def before_update(
        self, step: int, model: nn.Module | None, optimizers: Sequence[Any], blocks: Blocks | None, silence: Silence
    ) -> None:
        """Look before an update, while gradients are there.

        Args:
            step: its number.
            model: the model; None if it is not at hand.
            optimizers: those that are known.
            blocks: what is known of the blocks; None before the first sample.
            silence: of the gradients of their weights.
        """
        glances = self._glances
        sites = blocks.sites if blocks is not None else ()
        starved = partial(self._starved, blocks, silence)
        self._look(RULE, self._unoptimised, step, model, optimizers, sites, starved)
        self._look(FROZEN, self._frozen, step, model, optimizers, sites)
        self.idle.before_update(model)
        if glances is not None:
            self._try(_LOOKS, lambda: glances.before_update(step, model, blocks, silence))

    def _look(self, rule: str, looking: Unoptimised | Frozen | None, step: int, *of: Any) -> None:
        """Tell what one that looks at parameters finds, or that it is over."""
        if looking is None or not self._try(rule, lambda: looking.before_update(step, *of)):
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
        if self._glances is not None:
            self._glances.sampled(step, blocks, silence)

    def close(self, blocks: Blocks | None, silence: Silence) -> None:
        """Take what is still on its way from a device.

        Args:
            blocks: what is known of the blocks.
            silence: as in `before_update`.
        """
        glances = self._glances
        if glances is not None and blocks is not None:
            self._try(_LOOKS, lambda: glances.read(blocks, silence, wait=True))

    def _try(self, name: str, look: Callable[[], bool | None]) -> bool:
        try:
            return bool(look())
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            if name in (RULE, FROZEN):
                self._unoptimised = None if name == RULE else self._unoptimised
                self._frozen = None if name == FROZEN else self._frozen
                self.ended[name] = f"an error ended it, {what}"
                warn(f"watch: {name} raised {what}. It is judged no more; all else is.")
            else:
                self._glances = None
                warn(f"watch: {name} raised {what}. It looks no more; all else goes on.")
            return False
