r"""Whether targets follow from inputs: a test of independence by permutation, without a model, then with this one.

With $K$ and $L$ the doubly centred similarities of inputs and of targets, $\sum_{ij} K_{ij} L_{ij}$ is their distance
covariance. Of $B$ permutations of the targets, $b$ of which give as much, the chance is $(1 + b) / (1 + B)$: exact for
rows that are drawn independently. That nothing is found says little by itself: what would have been found, had targets
followed from inputs, is tried on the same rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from levada._errors import MeasurementError, UsageError
from levada.diagnose.loss import Loss
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import rehearse
from levada.diagnose.relations import effective_rank
from levada.diagnose.trials import STEPS
from levada.diagnose.update import Factory
from levada.inputs import Batch

__all__ = ["CHANCE", "PAIRING", "Pairing", "chance", "pairing_of", "similarity"]

# Rows of all batches and numbers of a row that are compared: more cost time.
ROWS, NUMBERS = 256, 1 << 12
# Fewer rows show nothing, and no lack of anything.
FEW, ENOUGH = 16, 48
# Permutations by which a relation is seen at once, those that look again, and those of a loss.
QUICK, MANY, LOSSES = 99, 999, 199
# A relation is there at this chance at the most, and none was found above it; standard deviations of another order's.
CHANCE, APART = 0.05, 6.0
# Inputs of one row tell of another's where so few orders give as much of a relation.
CONSECUTIVE = 0.01
# Of this share of the rows the targets are made to follow from the inputs, by each of so many directions.
PLANTED, DIRECTIONS = 0.5, 3
# Inputs that differ in more than this share of the directions they could are alike to a test by distances.
STRUCTURED = 1 / 3
# Rows are another's if so much of what they hold is the other's.
EQUAL = 0.95
PAIRING = "trainings on batches whose targets seem not to follow from the inputs"


@dataclass(frozen=True, slots=True)
class Pairing:
    """What was found of inputs and targets that show no relation.

    Attributes:
        rows: number of rows.
        chance: smallest chance of a relation as strong as that of the rows as they are.
        order: the order in which targets fit the inputs, in words; "" if none was found.
        fits: the chance in that order.
        planted: chances where half of the targets are made to follow from the inputs.
        held: chances on batches that were held out, after steps on the others.
        control: the same where the targets are put in order, or made to follow from the inputs.
        doubt: why it is not known.
    """

    rows: int
    chance: float
    order: str = ""
    fits: float = math.nan
    planted: tuple[float, ...] = ()
    held: tuple[float, ...] = ()
    control: tuple[float, ...] = ()
    doubt: str = ""

    @property
    def learned(self) -> bool:
        """Whether the model learns nothing from the targets as they are, and what it should with others."""
        tested = bool(self.held) and bool(self.control)
        return tested and min(self.held) > CHANCE and max(self.control) <= CHANCE


def similarity(rows: Tensor) -> Tensor:
    """Return the doubly centred similarity of rows: minus their distance, or the share of equal numbers of integers.

    Args:
        rows: `(rows, ...)`.

    Example:
        >>> [round(value, 3) for value in similarity(torch.tensor([0, 0, 1])).tolist()[0]]
        [0.222, 0.222, -0.444]
    """
    flat = rows.reshape(len(rows), -1)
    flat = flat[:, :: -(-flat.shape[1] // NUMBERS)]
    if flat.is_floating_point():
        found = -torch.cdist(flat.double(), flat.double())
    else:
        found = (flat[:, None] == flat[None]).double().mean(2)
    return found - found.mean(0) - found.mean(1, keepdim=True) + found.mean()


def chance(inputs: Tensor, targets: Tensor, permutations: int, seed: int = 0) -> tuple[float, float]:
    """Return the chance of a relation as strong among permuted targets, and its standard deviations from their mean.

    Args:
        inputs: similarity of inputs.
        targets: similarity of targets.
        permutations: how many.
        seed: of them.

    Example:
        >>> x = similarity(torch.linspace(0, 1, 32))
        >>> chance(x, x, 99)[0]
        0.01
    """
    generator = torch.Generator().manual_seed(seed)
    here = float((inputs * targets).sum())
    drawn = []
    for _ in range(permutations):
        order = torch.randperm(len(targets), generator=generator)
        drawn.append(float((inputs * targets[order][:, order]).sum()))
    values = torch.tensor(drawn, dtype=torch.float64)
    apart = (here - float(values.mean())) / max(float(values.std()), 1e-300)
    return (1 + int((values >= here).sum())) / (1 + permutations), apart


@dataclass(slots=True)
class _Rows:
    """Rows of all batches one after another, and similarities between them."""

    inputs: list[Tensor]
    targets: Tensor
    sizes: list[int]
    seed: int

    @classmethod
    def of(cls, batches: Sequence[Batch], seed: int) -> _Rows | None:
        """Gather rows; None where inputs and targets have no rows in common, or the targets say nothing."""
        if not all(isinstance(b.targets, Tensor) and b.targets.dim() and not b.targets.is_complex() for b in batches):
            return None
        most = max(1, ROWS // len(batches))
        targets = [b.targets[:most].detach().cpu() for b in batches]
        count = len(batches[0].targets)
        shown = [[t for t in b.tensors() if t.dim() and len(t) == len(b.targets)] for b in batches]
        first = [t.shape[1:] for t in shown[0]]
        if not first or any([t.shape[1:] for t in other] != first for other in shown):
            return None
        alike = all(t.shape[1:] == targets[0].shape[1:] and t.dtype == targets[0].dtype for t in targets)
        # Targets that are the same in every batch count rows, as those of contrasts do.
        if not alike or (len(targets) > 1 and all(torch.equal(t, targets[0]) for t in targets)):
            return None
        inputs = [torch.cat([t[:most].detach().cpu() for t in column]) for column in zip(*shown, strict=True)]
        rows = cls(inputs, torch.cat(targets), [len(t) for t in targets], seed)
        finite = all(bool(torch.isfinite(t).all()) for t in (*inputs, rows.targets) if t.is_floating_point())
        return rows if count > 1 and finite and not any(t.is_complex() for t in inputs) else None

    def similarities(self) -> Iterator[Tensor]:
        """Yield similarities of the inputs, as they are and with each number of a row of one size."""
        for rows in self.inputs:
            yield similarity(rows)
            if rows.is_floating_point():
                flat = rows.reshape(len(rows), -1).double()
                spread = flat.std(0)
                if bool((spread > 0).any()):
                    yield similarity((flat - flat.mean(0))[:, spread > 0] / spread[spread > 0])

    def orders(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield orders in which rows are mixed up: in words, rows of inputs, and the targets that are theirs."""
        ends = list(itertools.accumulate(self.sizes))
        parts = [torch.arange(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        if len(parts) > 1 and len(set(self.sizes)) == 1:
            early, late = torch.cat(parts[:-1]), torch.cat(parts[1:])
            yield "the batch after", late, early
            yield "the batch before", early, late
        yield "the row after", torch.cat([p[1:] for p in parts]), torch.cat([p[:-1] for p in parts])
        yield "the row before", torch.cat([p[:-1] for p in parts]), torch.cat([p[1:] for p in parts])
        yield "the row at the other end of the batch", torch.cat(parts), torch.cat([p.flip(0) for p in parts])
        found = self._copies(parts)
        if found is not None:
            yield "another row of the batch", *found

    def follow(self, similar: Sequence[Tensor], mine: Tensor, theirs: Tensor) -> bool:
        """Whether rows follow on each other, so that their order says nothing of where the targets belong.

        Their inputs tell of each other, as steps of a series do, or hold the targets, as the next window holds the next
        value. Targets as wide as the inputs are copies of them, which an autoencoder has of its own row.
        """
        if bool((mine != theirs).all()):
            told = (chance(one[mine][:, mine], one[theirs][:, theirs], MANY, self.seed)[0] for one in similar)
            if min(told) <= CONSECUTIVE:
                return True
        asked = self.targets[theirs]
        forms = [asked.reshape(len(asked), -1).double()]
        if not asked.is_floating_point() and asked.dim() == 1:
            forms.append(functional.one_hot(torch.unique(asked, return_inverse=True)[1]).double())
        flat = _standardised(torch.cat([rows[mine].reshape(len(mine), -1).double() for rows in self.inputs], 1))
        for form in forms:
            alike = (flat.T @ _standardised(form) / len(form)).abs()
            if form.shape[1] < flat.shape[1] and bool((alike.amax(0) >= EQUAL).all()):
                return True
        return False

    def _copies(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return rows of inputs and of targets that hold the same, one step on or at once; None if they do not."""
        for rows in self.inputs:
            if rows.shape != self.targets.shape or rows.is_floating_point() or rows.dim() < 2:
                continue
            steps = rows.shape[1]
            for lag in (0, 1, -1):
                mine = rows[:, max(lag, 0) : steps + min(lag, 0)]
                theirs = self.targets[:, max(-lag, 0) : steps + min(-lag, 0)]
                same = [(mine[p][:, None] == theirs[p][None]).double().flatten(2).mean(2) for p in parts]
                best = torch.cat([s.max(1).values for s in same])
                if float(best.median()) >= EQUAL:
                    return torch.cat(list(parts)), torch.cat([p[s.argmax(1)] for p, s in zip(parts, same, strict=True)])
        return None

    def planted(self, similar: Tensor, share: float) -> Iterator[Tensor]:
        """Yield orders of the targets in which those of a share of the rows follow from the inputs.

        Targets in order, by class or along the direction in which they differ most, are dealt to rows in order along
        each of the directions in which the inputs differ most.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if self.targets.dim() == 1:
            ordered = self.targets.argsort()
        else:
            ordered = torch.linalg.eigh(similarity(self.targets)).eigenvectors[:, -1].argsort()
        axes = torch.linalg.eigh(similar).eigenvectors[:, -DIRECTIONS:].flip(1)
        count = len(self.targets)
        for axis in axes.T:
            dealt = torch.empty_like(ordered)
            dealt[axis.argsort()] = ordered
            mixed = torch.randperm(count, generator=generator)[: round((1 - share) * count)]
            dealt[mixed] = dealt[mixed[torch.randperm(len(mixed), generator=generator)]]
            yield dealt


def _standardised(columns: Tensor) -> Tensor:
    return (columns - columns.mean(0)) / columns.std(0, correction=0).clamp_min(1e-300)


def pairing_of(run: Run, loss: Loss | None, factory: Factory) -> Pairing | None:
    """Test whether targets follow from inputs; None where they do, or where it cannot be seen that they should.

    Args:
        run: the model, which comes back as it was, on its batches.
        loss: the loss; without one nothing is tested.
        factory: builds the optimizer.

    Cost:
        Similarities of at most 256 rows. Where no relation is found, up to four trainings of `STEPS` steps.
    """
    rows = _Rows.of(run.batches, run.seed) if loss is not None else None
    if rows is None or loss is None or len(rows.targets) < FEW:
        return None
    theirs, similar = similarity(rows.targets), list(rows.similarities())
    if not float(theirs.square().sum()) > 0:
        return None
    if any(chance(one, theirs, QUICK, run.seed)[0] <= 1 / (1 + QUICK) for one in similar):
        return None
    least = min(chance(one, theirs, MANY, run.seed)[0] for one in similar)
    if least <= CHANCE:
        return None
    test = _Test(run, loss, factory, rows)
    for words, mine, other in rows.orders():
        for one in similar:
            fits, apart = chance(one[mine][:, mine], theirs[other][:, other], MANY, run.seed)
            if fits <= 1 / (1 + MANY) and apart >= APART and not rows.follow(similar, mine, other):
                found = Pairing(len(rows.targets), least, words, fits)
                return replace(found, held=test.held(None, 1), control=test.held((mine, other), 1))
    return _without_order(test, similar[0], theirs, least)


def _without_order(test: _Test, similar: Tensor, theirs: Tensor, least: float) -> Pairing | None:
    """Say that targets follow from nothing, where it would have been found that half of them do."""
    rows, seed = test.rows, test.run.seed
    count = len(rows.targets)
    repeated = rows.targets.is_floating_point() or 4 * len(torch.unique(rows.targets, dim=0)) <= count
    if count < ENOUGH or not repeated or not all(t.is_floating_point() for t in rows.inputs):
        return None
    flat = rows.inputs[0].reshape(count, -1).double()
    if not effective_rank(flat) <= STRUCTURED * min(count - 1, flat.shape[1]):
        return None
    planted = tuple(chance(similar, theirs[o][:, o], QUICK, seed)[0] for o in rows.planted(similar, PLANTED))
    if max(planted) > CHANCE:
        return None
    found = Pairing(count, least, planted=planted)
    if len(rows.sizes) < 2:
        return replace(
            found, doubt="only one batch is known, and in its rows no relation of inputs to targets was found"
        )
    whole = next(rows.planted(similar, 1.0))
    found = replace(found, held=test.held(None, 2))
    if not found.held or min(found.held) <= CHANCE:
        return None
    return replace(found, control=test.held((torch.arange(count), whole), 2))


@dataclass(frozen=True, slots=True)
class _Test:
    """Steps on some batches, and what of others follows then."""

    run: Run
    loss: Loss
    factory: Factory
    rows: _Rows

    def held(self, order: tuple[Tensor, Tensor] | None, folds: int) -> tuple[float, ...]:
        """Return chances on the last batch and, of two folds, the first; nothing where that cannot be tested.

        Args:
            order: rows of inputs and the rows of targets that are put to them; None for the batches as they are.
            folds: how many.
        """
        batches = list(self.run.batches) if order is None else self._ordered(*order)
        found: list[float] = []
        for fold in range(folds if len(batches) > 1 else 0):
            aside = batches[-1 - fold * (len(batches) - 1)]
            others = [b for b in batches if b is not aside]
            value = self._chance(others, aside)
            if value is None:
                return ()
            found.append(value)
        return tuple(found)

    def _ordered(self, mine: Tensor, theirs: Tensor) -> list[Batch]:
        """Put the targets of some rows to others; rows beyond those that were compared are left out."""
        ends = list(itertools.accumulate(self.rows.sizes))
        made = []
        for batch, end, size in zip(self.run.batches, ends, self.rows.sizes, strict=True):
            at = ((mine >= end - size) & (mine < end)).nonzero()[:, 0]
            if not len(at):
                continue
            keep, count = mine[at] - (end - size), len(batch.targets)
            args = tuple(_rows(a, keep, count) for a in batch.args)
            kwargs = {key: _rows(a, keep, count) for key, a in batch.kwargs.items()}
            targets = self.rows.targets[theirs[at]].to(batch.targets.device)
            made.append(replace(batch, args=args, kwargs=kwargs, targets=targets))
        return made

    def _chance(self, batches: Sequence[Batch], aside: Batch) -> float | None:
        run, outputs = self.run, []
        turns = itertools.cycle(batches)
        if not run.pace.allows(PAIRING, STEPS + 3, STEPS + 1):
            return None

        def objective() -> Tensor:
            batch = next(turns)
            return self.loss(run(batch=batch), batch)

        def judged() -> Tensor:
            outputs.append(run(batch=aside))
            return self.loss(outputs[-1], aside)

        made = rehearse(run.model, objective, self.factory, run.pace.deadline, aside=judged, steps=STEPS)
        if made is None or not made.complete or len(outputs) < 2 or not math.isfinite(made.end):
            return None
        generator = torch.Generator().manual_seed(run.seed)
        here, lower = made.aside[1], 0
        try:
            for _ in range(LOSSES):
                order = torch.randperm(len(aside.targets), generator=generator).to(aside.targets.device)
                with torch.no_grad():
                    other = self.loss(outputs[-1], replace(aside, targets=aside.targets[order]))
                lower += float(other) <= here
        except (UsageError, MeasurementError):
            return None
        return (1 + lower) / (1 + LOSSES)


def _rows(value: Any, keep: Tensor, count: int) -> Any:
    """Return some rows of what has them."""
    if isinstance(value, Tensor):
        return value[keep.to(value.device)] if value.dim() and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: _rows(item, keep, count) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_rows(item, keep, count) for item in value)
    return value
