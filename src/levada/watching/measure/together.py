"""From the sums that processes measured to the numbers of a sample, which are those of one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor, nn

from levada._ranks import process_rank
from levada.probe.trace import Site
from levada.watching.loop.overhead import Cadence
from levada.watching.measure.coefficients import Taken
from levada.watching.measure.parameters import SITE_COLUMNS, Packed
from levada.watching.measure.reading import TABLE, by_block
from levada.watching.measure.reduce import Message, Peers, Reduced, Reduction, find_peers
from levada.watching.measure.sample import Sample
from levada.watching.measure.structure import Structure
from levada.watching.measure.transfer import Sent

__all__ = ["Measured", "Together", "measured"]

_RANKS: Final = "nonfinite_rank", "gradient_nonfinite_rank"


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """A sampled step of this process, on the host.

    Attributes:
        step: its number.
        time: when it ended.
        table: sums by site, `(sites, len(TABLE))`.
        scale: what the gradients in the table are multiplied by: the loss's scale times the number of micro-batches
            whose losses are averaged only afterwards.
        packed: the parameters, if they were read.
        where: rows of parameters and their sites.
        losses: steps and losses.
        scalars: what else is known.
        distance: to the next sample, as this process wants it.
        tanh: numbers of the blocks whose output a tanh has made.
        taken: the coefficients of layers.
        asks: whether this process asks for samples.
    """

    step: int
    time: float
    table: Tensor
    scale: float
    packed: Packed | None
    where: tuple[Tensor, Tensor]
    losses: tuple[tuple[int, float], ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    distance: int = 1
    tanh: frozenset[int] = frozenset()
    taken: Taken | None = None
    asks: bool = False


def measured(sent: Sent, structure: Structure, cadence: Cadence) -> Measured:
    """Return what was sent, on the host; this waits if it has not arrived.

    Args:
        sent: the numbers.
        structure: the blocks.
        cadence: of the samples.
    """
    table, packed, losses, named, taken = sent.host(len(structure.places))
    scalars = {**sent.scalars, **named}
    if not math.isnan(overhead := cadence.overhead):
        scalars["overhead"] = overhead
    return Measured(
        sent.step,
        sent.time,
        table[structure.order],
        scalars.get("loss_scale", 1.0) * sent.micro_batches,
        packed,
        structure.where if sent.where is None else sent.where,
        tuple(losses),
        scalars,
        cadence.wanted(),
        sent.tanh,
        taken,
        cadence.wish(),
    )


@final
class Together:
    r"""The processes that train one model, and the samples that they make together.

    Sums over activations are added; sums over parameters so that each element counts once. Training averages the
    gradients of $n$ processes, so what counts for the model is the mean of their losses, and the gradient that a
    process sees is that of its own loss: it is $n$ times the one that a single process would see with the whole batch.
    Losses are averaged, as are scalars nowhere.

    Args:
        model: as the loop calls it, wrapped or sharded.
        structure: its blocks.
        cadence: of the samples.
        sampled: hears of each sample.

    Attributes:
        sent: steps whose numbers are on their way to the host.
    """

    def __init__(
        self, model: nn.Module, structure: Structure, cadence: Cadence, sampled: Callable[[Sample], None]
    ) -> None:
        self.rank = process_rank()
        self.sent: list[Sent] = []
        self._structure, self._cadence, self._sampled = structure, cadence, sampled
        self.distance: int | None = None
        self._model = model
        self._asked = False
        self._own: Measured | None = None

    @cached_property
    def _peers(self) -> Peers | None:
        return find_peers(self._model)  # asked for by the first step, as a loop may wrap what it watches already

    @cached_property
    def _reduction(self) -> Reduction:
        return Reduction(self._peers, marks=len(_RANKS) + 1)

    @property
    def several(self) -> bool:
        """Whether this process has others."""
        return self._peers is not None

    def deliver(self, *, wait: bool, leaving: bool = False) -> None:
        """Hand on the samples that are there.

        Args:
            wait: wait for all.
            leaving: but not long.
        """
        while True:
            if self._own is not None:
                sample = self.receive(wait=wait, leaving=leaving)
                if sample is None:
                    return
                self._sampled(sample)
            elif self.sent and (wait or self.sent[0].ready()):
                own = measured(self.sent.pop(0), self._structure, self._cadence)
                self.send(own, self._structure.sites)
            else:
                return

    def send(self, own: Measured, sites: tuple[Site, ...]) -> None:
        """Begin to add up a sampled step, after the sample before it was received.

        Args:
            own: what this process measured.
            sites: the blocks.
        """
        table = own.table.clone()
        table[:, 2] /= (own.scale * self._reduction.width) ** 2
        count, processes = len(sites), self._reduction.processes
        parameters = torch.zeros(count, len(SITE_COLUMNS), dtype=torch.float64)
        extra = torch.zeros(2, dtype=torch.float64)
        if own.packed is not None:
            parameters = own.packed.by_site(own.where, count, processes=processes).double()
            extra = torch.tensor([own.packed.gradient_square(processes=processes), 1.0], dtype=torch.float64)
        bad = ~torch.isfinite(own.table)
        # The first site where something is not finite, counted as the pass runs, from 1.
        marks = tuple(float(1 + flags.nonzero()[0]) if flags.any() else 0.0 for flags in (bad[:, 0], bad[:, 2].flip(0)))
        sums = torch.cat([table.flatten(), parameters.flatten(), extra])
        marks = (*marks, float(own.asks))
        self._own = own
        form = ", ".join(site.name for site in sites)
        self._reduction.send(Message(own.step, sums, own.distance, own.losses, marks), form)

    def receive(self, *, wait: bool, leaving: bool = False) -> Sample | None:
        """Return the sample of the step that was sent, or None if others have still to answer.

        Args:
            wait: wait for them.
            leaving: but not long.
        """
        own, seconds = self._own, 30.0 if wait else 0.0
        if own is None:
            return None
        reduced = self._reduction.collect(min(seconds, 5.0) if leaving else seconds)
        if reduced is None:
            return None
        self._own = None
        self.distance = reduced.distance if self.several else None
        self._asked |= any(row[-1] > 0 for row in reduced.marks)
        return self._sample(own, reduced)

    def meet(self, step: int, *, sampled: bool) -> None:
        """Take what all processes said with the last sample, at a step that is the same in all; alone, plan alone.

        Args:
            step: the present one.
            sampled: whether this step is sampled, so that the next one is to be planned.
        """
        if self.several:
            self.deliver(wait=True)
            if self._asked:
                self._cadence.ask(step, by_all=True)
                self._asked = False
        if sampled:
            self._cadence.plan(step, self.distance or self._cadence.every if self.several else None)

    def close(self, *, failed: bool = False) -> None:
        """Tell the others that this process watches no more.

        Args:
            failed: whether it alone has a reason.
        """
        if "_reduction" in self.__dict__:
            self._reduction.close(patient=not failed)

    def _sample(self, own: Measured, reduced: Reduced) -> Sample:
        sites = len(own.table)
        table, parameters, extra = torch.split(reduced.sums, [sites * len(TABLE), sites * len(SITE_COLUMNS), 2])
        values = by_block(table.view(sites, -1), 1.0)
        weight, count, gradient, gradient_count, update, update_weight = parameters.view(sites, -1).unbind(1)
        values["weight_rms"] = (weight / count).sqrt()
        values["weight_gradient_rms"] = (gradient / gradient_count).sqrt()
        # A weight of zero has no relative update.
        values["update_ratio"] = torch.where(update_weight == 0, math.nan, update / update_weight).sqrt()
        scalars = dict(own.scalars)
        if extra[1] > 0 and reduced.complete:
            scalars["gradient_norm"] = math.sqrt(float(extra[0]))
        if reduced.losses and reduced.losses[-1][0] == own.step:
            scalars["loss"] = reduced.losses[-1][1]
        ranks = self._peers.ranks if self._peers is not None and len(reduced.marks) > 1 else ()
        for name, marks in zip(_RANKS, zip(*reduced.marks, strict=True), strict=False):
            found = [(mark, rank) for mark, rank in zip(marks, ranks, strict=False) if mark > 0]
            if found:
                scalars[name] = float(min(found)[1])
        return Sample(own.step, own.time, values, scalars, reduced.losses, self.rank, own.tanh, own.taken)
