"""Looks, between samples that are far apart, at whether a gradient still reaches the weights of every block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from levada._errors import require_at_least
from levada.stacking import parameters_of
from levada.watching.loop.places import original, plain_name
from levada.watching.measure.transfer import OnItsWay
from levada.watching.steps.silence import BY_CHANCE, Silence
from levada.watching.verdict.view import Blocks

__all__ = ["UNUSUAL", "Glances", "missed", "sums_of_sizes"]

UNUSUAL: Final = 0.005
"""How likely so many zeros in a row may be by a block's own habit, below which a sample is worth its cost."""

# The same of a block that never had a gradient: nine times in a row, so that the seven samples which are then asked for
# are all that it takes until no chance explains them and three samples in a row confirm it.
_NEVER: Final = 0.0025
_PART: Final = 16  # of the steps so far, one lies between two looks
_LATE: Final = 8  # steps that a sample may take to arrive


def missed(blocks: Blocks, silence: Silence, confirm: int) -> Tensor:
    """Return, per trained block, whether it has had no gradient for longer than is usual, and no rule could judge that.

    Rules have judged it once `confirm` samples in a row found zeros that chance does not explain.

    Args:
        blocks: what is known of the blocks.
        silence: of the gradients of their weights.
        confirm: samples in a row on which a finding must hold.
    """
    unusual = silence.chance < torch.where(silence.ever, UNUSUAL, _NEVER)
    return blocks.trainable & (silence.run > 0) & unusual & (silence.sure < confirm)


@final
class Glances:
    r"""Asks for samples where a block has had no gradient for longer than is usual for it.

    A sample costs as much as some steps, so that a training of a second has eleven in its first half and hardly one
    behind. A look costs a few hundredths of a step: $\sum |g|$ of each weight with two or more dimensions, in one fused
    call before the update, whatever the loop does with its gradients later. Looks are `every` steps apart, and later a
    sixteenth of the steps so far; where samples are as close there are none. They tell zero from not zero, and nothing
    else. So no rule judges them: they count in a block's `Silence` beside the samples, and where the zeros in a row
    are less likely than `UNUSUAL` by its own habit, samples are asked for, on which the rules judge as on all others:
    once for each run of zeros, also where it began on the last samples before they came to be far apart, and again when
    chance explains it no longer, until samples have judged that.

    A block that is not trained is left out. Nothing is known of sharded parameters, of which a process sees a part.

    Args:
        every: smallest distance between samples.
        confirm: samples in a row on which a finding must hold.

    Attributes:
        reached: the last look at which the weights of every trained block got a gradient, the sum of whose sizes is
            finite; None without one.
        asks: whether the step that was heard of last asks for samples.

    Raises:
        UsageError: if `every` is below 1.

    Example:
        >>> from levada.probe.trace import Site
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> names = [("0", ("0.weight",)), ("1", ("1.weight",))]
        >>> blocks = Blocks.of([Site(name, i, "Linear", (1, 2), held) for i, (name, held) in enumerate(names)], model)
        >>> looking, silence = Glances(every=20), Silence(2)
        >>> for step in range(0, 220, 20):
        ...     silence.add(torch.ones(2))
        ...     looking.sampled(step, blocks, silence)
        >>> for step in range(201, 400):
        ...     model.zero_grad()
        ...     hidden = model[0](torch.ones(1, 2))
        ...     model[1](hidden if step < 250 else hidden.detach()).sum().backward()
        ...     looking.before_update(step, model, blocks, silence)
        ...     if looking.asks:
        ...         print(step, silence.run.tolist())
        ...         break
        308 [3, 0]
        >>> looking.reached
        248
    """

    def __init__(self, every: int, confirm: int = 3) -> None:
        require_at_least("Glances", "every", every, 1)
        self.reached: int | None = None
        self.asks = False
        self._every, self._confirm = every, confirm
        self._first: int | None = None
        self._last = 0
        self._missed: Tensor | None = None
        self._asked: Tensor | None = None  # blocks for which samples were asked since they had a gradient
        self._of: Blocks | None = None
        self._held: list[tuple[nn.Parameter, ...]] | None = None
        self._sent: tuple[int, OnItsWay, Tensor, Tensor] | None = None

    @property
    def waits(self) -> bool:
        """Whether a block has had no gradient for longer than is usual for it."""
        return self._missed is not None and bool(self._missed.any())

    def sampled(self, step: int, blocks: Blocks, silence: Silence) -> None:
        """Hear of a sample.

        Args:
            step: its number.
            blocks: what is known of the blocks.
            silence: of the gradients of their weights, this sample's included.
        """
        self._first = step if self._first is None else self._first
        self._last = max(self._last, step + _LATE)
        self._missed = missed(blocks, silence, self._confirm)

    def before_update(self, step: int, model: nn.Module | None, blocks: Blocks | None, silence: Silence) -> None:
        """Look before an update, if it is time to, while gradients are there.

        Args:
            step: its number.
            model: the model; None if it is not at hand.
            blocks: what is known of the blocks; None before the first sample.
            silence: of the gradients of their weights, to which the look is added.
        """
        self.asks = False
        if self._first is None or model is None or blocks is None:
            return
        if step - self._last >= max(self._every, (step - self._first) // _PART):
            self._look(step, model, blocks)
            self._last = step
        self.read(blocks, silence)

    def read(self, blocks: Blocks, silence: Silence, *, wait: bool = False) -> None:
        """Take what was looked at, once it has arrived.

        Args:
            blocks: what is known of the blocks.
            silence: as in `before_update`.
            wait: wait for it.
        """
        if self._sent is None or not (wait or self._sent[1].ready()):
            return
        (step, way, at, measured), self._sent = self._sent, None
        if len(measured) != len(blocks.sites):  # they are others by now
            return
        looked = measured & blocks.trainable
        values = torch.zeros(len(measured), dtype=torch.float64).index_add_(0, at, way.host())
        silence.add(torch.where(looked, values, math.nan), look=True)
        asking = measured if blocks.known else looked  # also of what was thawed since the last sample
        if bool(looked.any()) and bool(((values > 0) & values.isfinite())[asking].all()):
            self.reached = step
        self._missed = missed(blocks, silence, self._confirm)
        asked = torch.zeros_like(self._missed) if self._asked is None else self._asked & (silence.run > 0)
        self.asks = bool((self._missed & (~asked | (silence.chance < BY_CHANCE))).any())
        self._asked = asked | self._missed

    def _look(self, step: int, model: nn.Module, blocks: Blocks) -> None:
        """Send the sums of sizes of the blocks' gradients to the host."""
        if self._of is not blocks:
            self._of, self._held = blocks, _weights_of(model, blocks)
        elif any(p.grad is None for held in self._held or () for p in held):  # they may have been exchanged
            self._held = _weights_of(model, blocks)
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[int]]] = {}
        measured = torch.zeros(len(blocks.sites), dtype=torch.bool)
        unknown: list[int] = []
        for site, held in enumerate(self._held or ()):
            for parameter in held:
                gradient = parameter.grad
                measured[site] |= parameter.requires_grad
                if gradient is None or not parameter.requires_grad or not gradient.numel():
                    continue
                if type(gradient) is not Tensor or gradient.layout is not torch.strided or gradient.is_complex():
                    unknown.append(site)
                    continue
                gradients, sites = groups.setdefault((gradient.device, gradient.dtype), ([], []))
                gradients.append(gradient)
                sites.append(site)
        measured[unknown] = False
        if bool(measured.any()):
            sums, at = sums_of_sizes(groups)
            self._sent = step, OnItsWay(sums), at, measured


def sums_of_sizes(
    groups: Mapping[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[int]]],
) -> tuple[Tensor, Tensor]:
    """Return the sum of sizes of each gradient, on one device, and the sites that they belong to.

    Args:
        groups: gradients and their sites, by device and type of number.
    """
    if not groups:
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    device = next(iter(groups))[0]
    wide = torch.float32 if device.type == "mps" else torch.float64
    sums = []
    for (_, kind), (gradients, _) in groups.items():
        norms = torch._foreach_norm(gradients, 1, dtype=torch.float32 if kind.itemsize < 4 else kind)
        sums.append(torch.stack(norms).to(device, wide, non_blocking=True))
    return torch.cat(sums), torch.tensor([site for _, sites in groups.values() for site in sites])


def _weights_of(model: nn.Module, blocks: Blocks) -> list[tuple[nn.Parameter, ...]] | None:
    """Return the weights of each block; None if some are sharded, or not found."""
    named = {plain_name(name): parameter for name, parameter in parameters_of(original(model))}
    if any(hasattr(parameter, "placements") for parameter in named.values()):
        return None
    if any(name not in named for site in blocks.sites for name in site.parameters):
        return None
    every = [[named[name] for name in site.parameters] for site in blocks.sites]
    return [tuple(p for p in held if not is_lazy(p) and p.dim() >= 2) for held in every]
