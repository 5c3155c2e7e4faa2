"""Networks that read a sequence of tokens with a fixed state or through a window, and how they and attention train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.study.recall import IGNORED, RecallBatch

__all__ = ["ConvolutionReader", "RecurrentReader", "Stage", "matched_width", "recall_accuracy", "train_recall"]


@final
class RecurrentReader(nn.Module):
    """Embedded tokens, one recurrent layer of torch.nn, a linear map to scores: all that is known is in its state.

    Args:
        vocabulary: number of tokens.
        dim: width of the embedding.
        units: units of the recurrent layer. Its state is `units` numbers in a GRU and twice as many in an LSTM.
        kind: "GRU" or "LSTM".

    Shape:
        `(batch, length)` of indices -> `(batch, length, vocabulary)`.

    Raises:
        UsageError: if `kind` is not known or a number is below 1.

    Example:
        >>> RecurrentReader(9, 8, 16, "GRU")(torch.zeros(3, 5, dtype=torch.int64)).shape
        torch.Size([3, 5, 9])
    """

    def __init__(self, vocabulary: int, dim: int, units: int, kind: Literal["GRU", "LSTM"]) -> None:
        super().__init__()
        if kind not in ("GRU", "LSTM"):
            raise UsageError(f"RecurrentReader: kind must be GRU or LSTM, got {kind!r}.")
        for name, value in (("vocabulary", vocabulary), ("dim", dim), ("units", units)):
            require_at_least("RecurrentReader", name, value, 1)
        self.state = units * (1 if kind == "GRU" else 2)
        self.token = nn.Embedding(vocabulary, dim)
        self.recurrence: nn.RNNBase = (nn.GRU if kind == "GRU" else nn.LSTM)(dim, units)
        self.head = nn.Linear(units, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores at every place."""
        read, _ = self.recurrence(self.token(tokens).transpose(0, 1))
        return self.head(read).transpose(0, 1)  # type: ignore[no-any-return]


@final
class ConvolutionReader(nn.Module):
    """Embedded tokens, residual causal convolutions of size 3 with dilations 1, 2, 4, ..., a linear map to scores.

    `h = h + relu(conv(h))`. A place sees itself and the `2 (2^depth - 1)` before it.

    Args:
        vocabulary: number of tokens.
        channels: width.
        depth: number of convolutions.

    Shape:
        `(batch, length)` of indices -> `(batch, length, vocabulary)`.

    Raises:
        UsageError: if a number is below 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> reader, tokens = ConvolutionReader(9, 64, 2), torch.arange(8)[None]
        >>> changed = torch.cat([tokens[:, 1:2], tokens[:, 1:]], 1)  # another first token: the seventh place sees it
        >>> (reader(tokens) != reader(changed)).any(-1)[0].tolist()
        [True, True, True, True, True, True, True, False]

    Source: the dilated causal convolutions of Bai, Kolter and Koltun 2018, arXiv 1803.01271.
    """

    def __init__(self, vocabulary: int, channels: int, depth: int) -> None:
        super().__init__()
        for name, value in (("vocabulary", vocabulary), ("channels", channels), ("depth", depth)):
            require_at_least("ConvolutionReader", name, value, 1)
        self.token = nn.Embedding(vocabulary, channels)
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, 3, dilation=2**i) for i in range(depth))
        self.head = nn.Linear(channels, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores at every place."""
        x = self.token(tokens).transpose(1, 2)
        for i, convolution in enumerate(self.convolutions):
            x = x + convolution(functional.pad(x, (2 * 2**i, 0))).relu()
        return self.head(x.transpose(1, 2))  # type: ignore[no-any-return]


def matched_width(build: Callable[[int], nn.Module], target: int, multiple: int = 1) -> int:
    """Return the width at which a network has nearest to `target` parameters.

    Args:
        build: width -> the network; its parameters grow with the width.
        target: the number of parameters.
        multiple: what divides the width.

    Raises:
        UsageError: if the narrowest network has twice the target, or more.

    Example:
        >>> matched_width(lambda width: nn.Linear(width, width, bias=False), 1000)
        32
    """

    def excess(width: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(width).parameters()) - target

    width = multiple
    if excess(width) >= target:
        raise UsageError(f"matched_width: the narrowest network has {excess(width) + target} parameters, not {target}.")
    while excess(width + multiple) <= 0:
        width += multiple
    return min(width, width + multiple, key=lambda w: abs(excess(w)))


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a training.

    Attributes:
        draw: generator -> a batch.
        steps: number of steps.

    Raises:
        UsageError: if `steps` is below 1.
    """

    draw: Callable[[torch.Generator], RecallBatch]
    steps: int

    def __post_init__(self) -> None:
        require_at_least("Stage", "steps", self.steps, 1)


def _answers(model: nn.Module, batch: RecallBatch) -> tuple[Tensor, Tensor]:
    asked = batch.targets != IGNORED
    return model(batch.tokens)[asked], batch.targets[asked]


def train_recall(
    model: nn.Module, stages: Sequence[Stage], lr: float, seed: int, observe: Callable[[int], None] | None = None
) -> list[dict[str, list[float]]]:
    """Train a network to answer, stage by stage, on sequences that are drawn anew for every step.

    AdamW with betas .9 and .98 and decay .01, 50 steps of warm-up, gradients clipped to a norm of 1. In the last fifth
    of each stage the rate falls linearly to a tenth; the next stage begins with the whole rate again.

    Args:
        model: `(batch, length)` of indices -> scores at every place.
        stages: what to train on, in order.
        lr: the learning rate.
        seed: of the sequences: networks of one seed are asked the same.
        observe: called after each stage with its index.

    Returns:
        For each stage "steps", "accuracy" and "loss" in nats: at most 50 points, each the mean of the steps since the
        last one, on each batch before its step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
    curves, done = [], 0
    for index, stage in enumerate(stages):
        losses, shares = [], []
        for step in range(stage.steps):
            ending = min(1.0, 0.1 + 4.5 * (1 - step / stage.steps))
            for group in optimizer.param_groups:
                group["lr"] = lr * min(ending, (done + 1) / 50)
            scores, wanted = _answers(model, stage.draw(generator))
            loss = functional.cross_entropy(scores, wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
            shares.append((scores.argmax(-1) == wanted).float().mean())
            done += 1
        curves.append(_curve(losses, shares))
        if observe is not None:
            observe(index)
    return curves


def _curve(losses: Sequence[Tensor], shares: Sequence[Tensor]) -> dict[str, list[float]]:
    window = math.ceil(len(losses) / 50)
    ends = [min(start + window, len(losses)) for start in range(0, len(losses), window)]
    means = [[float(part.mean()) for part in torch.split(torch.stack(list(v)), window)] for v in (losses, shares)]
    return {"steps": [float(end) for end in ends], "loss": means[0], "accuracy": means[1]}


@torch.no_grad()
def recall_accuracy(model: nn.Module, batch: RecallBatch) -> float:
    """Return the share of the questions of a batch that a network answers rightly.

    Args:
        model: `(batch, length)` of indices -> scores at every place.
        batch: the questions.
    """
    scores, wanted = _answers(model, batch)
    return float((scores.argmax(-1) == wanted).double().mean())
