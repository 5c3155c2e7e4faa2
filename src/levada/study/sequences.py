"""Tasks on sequences that need a memory of known length, and networks trained on them, one for each seed, together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from levada._errors import require_at_least

__all__ = ["IGNORED", "Draw", "Replicas", "accuracy", "copy_memory", "lagged_recall", "train_sequences"]

IGNORED = -100  # a target that asks for nothing, as `cross_entropy` knows it
SYMBOLS = 8

# A generator -> inputs and targets of one replica's batch: `(batch, steps, features)` and `(batch, steps)`.
Draw: TypeAlias = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def lagged_recall(
    batch: int, steps: int, lag: int, generator: torch.Generator, symbols: int = SYMBOLS
) -> tuple[Tensor, Tensor]:
    """Random symbols; at every step from `lag` on, name the symbol of `lag` steps before: at step `lag`, the first.

    What lies within `lag` steps says nothing of the answer: whoever sees no further is right with the probability
    `1 / symbols` at each step, independently of all later steps, so that the number of right answers is binomial.

    Args:
        batch: number of sequences.
        steps: their length.
        lag: in steps.
        generator: of the symbols.
        symbols: how many there are.

    Shape:
        Returns inputs `(batch, steps, symbols)`, one-hot, and targets `(batch, steps)`.

    Raises:
        UsageError: if there is no sequence, no answer in it, or one symbol alone.

    Example:
        >>> inputs, targets = lagged_recall(2, 9, 4, torch.Generator().manual_seed(0))
        >>> bool((targets[:, 4:] == inputs.argmax(-1)[:, :-4]).all()), int((targets == IGNORED).sum())
        (True, 8)

    Source: Hochreiter and Schmidhuber 1997, section 5.2 (a symbol to be recalled after a lag).
    """
    require_at_least("lagged_recall", "batch", batch, 1)
    require_at_least("lagged_recall", "lag", lag, 0)
    require_at_least("lagged_recall", "steps", steps, lag + 1, "Without a step after the lag nothing is asked.")
    require_at_least("lagged_recall", "symbols", symbols, 2)
    tokens = torch.randint(symbols, (batch, steps), generator=generator)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, lag:] = tokens[:, : steps - lag]
    return functional.one_hot(tokens, symbols).float(), targets


def copy_memory(
    batch: int, delay: int, generator: torch.Generator, *, length: int = 10, symbols: int = SYMBOLS
) -> tuple[Tensor, Tensor]:
    r"""Symbols, blanks, then a sign at which the symbols are to be given back in order; blanks are asked before it.

    `length` symbols, `delay - 1` blanks, the sign, `length` more signs: each symbol is asked `delay + length` steps
    after it came. Who knows when the symbols are asked, but not which, has the loss $\ln(\text{symbols})
    \,\text{length} / (\text{delay} + 2\,\text{length})$ and is right at one of `symbols` of the last `length` steps.

    Args:
        batch: number of sequences.
        delay: T of the paper.
        generator: of the symbols.
        length: number of symbols to be kept.
        symbols: how many there are, blank and sign not counted.

    Shape:
        Returns inputs `(batch, delay + 2 * length, symbols + 2)`, one-hot: blank first, sign last; and targets
        `(batch, delay + 2 * length)`.

    Raises:
        UsageError: if a number is below 1.

    Example:
        >>> inputs, targets = copy_memory(1, 3, torch.Generator().manual_seed(0), length=2)
        >>> inputs.argmax(-1)[0].tolist(), targets[0].tolist()
        ([5, 8, 0, 0, 9, 9, 9], [0, 0, 0, 0, 0, 5, 8])

    Source: Hochreiter and Schmidhuber 1997; Arjovsky, Shah and Bengio 2016, arXiv 1511.06464; as in Bai, Kolter and
        Koltun 2018, arXiv 1803.01271.
    """
    for name, value in (("batch", batch), ("delay", delay), ("length", length), ("symbols", symbols)):
        require_at_least("copy_memory", name, value, 1)
    kept = torch.randint(1, symbols + 1, (batch, length), generator=generator)
    tokens = torch.zeros(batch, delay + 2 * length, dtype=torch.int64)
    tokens[:, :length] = kept
    tokens[:, -length - 1 :] = symbols + 1
    targets = torch.zeros_like(tokens)
    targets[:, -length:] = kept
    return functional.one_hot(tokens, symbols + 2).float(), targets


@final
class Replicas(nn.Module):
    """Networks of one shape, each on its own batch: side by side where `torch.func.vmap` knows all they do.

    Optimizers that work by element, as Adam does, train each as if it were alone.

    Args:
        networks: one for each seed.
        together: run as one; False for what has no batching rule, as torch's recurrent modules.

    Shape:
        `(replicas, batch, ...)` -> `(replicas, batch, ...)`.

    Example:
        >>> both = Replicas([nn.Linear(2, 3), nn.Linear(2, 3)])
        >>> both(torch.ones(2, 5, 2)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, networks: Sequence[nn.Module], *, together: bool = True) -> None:
        super().__init__()
        self.networks = nn.ModuleList() if together else nn.ModuleList(networks)
        self._template = (networks[0],)  # in a tuple: its parameters are not this module's
        self._names: list[str] = []
        self.stacked = nn.ParameterList()
        if together:
            stacked, buffers = stack_module_state(list(networks))
            assert not buffers  # networks on sequences have none: no batch normalisation
            self._names = list(stacked)
            self.stacked = nn.ParameterList(nn.Parameter(value.detach()) for value in stacked.values())

    def forward(self, x: Tensor) -> Tensor:
        """Run every network on its own batch."""
        if len(self.networks):
            return torch.stack([network(own) for network, own in zip(self.networks, x, strict=True)])
        (template,) = self._template

        def one(values: tuple[Tensor, ...], own: Tensor) -> Tensor:
            return functional_call(template, dict(zip(self._names, values, strict=True)), (own,))  # type: ignore[no-any-return]

        return vmap(one, randomness="different")(tuple(self.stacked), x)


def train_sequences(model: Replicas, draw: Draw, *, steps: int, lr: float, seeds: Sequence[int]) -> Tensor:
    """Train by Adam on fresh batches, each replica on those of its own seed.

    Args:
        model: the networks.
        draw: makes one replica's batch.
        steps: number of steps.
        lr: the learning rate, constant.
        seeds: one for each replica, of its batches.

    Returns:
        Cross-entropy in nats on each batch before its step, `(steps, replicas)`.

    Raises:
        UsageError: if `steps` is below 1.
    """
    require_at_least("train_sequences", "steps", steps, 1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, foreach=True)
    losses = []
    for _ in range(steps):
        inputs, targets = _drawn(draw, generators)
        logits = model(inputs)
        asked = (targets != IGNORED).flatten(1).sum(1)
        loss = functional.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        loss = loss.view(len(seeds), -1).sum(1) / asked
        optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@torch.no_grad()
def accuracy(model: Replicas, draw: Draw, seeds: Sequence[int], last: int | None = None) -> tuple[list[int], list[int]]:
    """Count right answers on a fresh batch for each replica.

    Args:
        model: the networks.
        draw: makes one replica's batch.
        seeds: one for each replica, of its batch; others than those of training.
        last: count the last so many steps alone.

    Returns:
        How many answers are right, and how many were asked for, for each replica.
    """
    model.eval()
    inputs, targets = _drawn(draw, [torch.Generator().manual_seed(seed) for seed in seeds])
    right, asked = model(inputs).argmax(-1) == targets, targets != IGNORED
    part = slice(None) if last is None else slice(-last, None)
    return right[..., part].flatten(1).sum(1).tolist(), asked[..., part].flatten(1).sum(1).tolist()


def _drawn(draw: Draw, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*(draw(generator) for generator in generators), strict=True)
    return torch.stack(inputs), torch.stack(targets)
