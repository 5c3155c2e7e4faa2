"""A small language model of characters, behind any connection: built, trained, and measured, deterministic by seed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.blocks import Attention, FeedForward
from levada.connection import Connection
from levada.grouping import parameter_groups
from levada.probe.mixing import mixing_signals
from levada.probe.streams import Mixing, on_host
from levada.stack import Stack
from levada.study.training import cosine

__all__ = [
    "LanguageModel",
    "LanguageRecipe",
    "Shape",
    "branch_gradients",
    "language_loss",
    "matched_hidden",
    "measure_mixing",
    "random_windows",
    "train_language",
]


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a language model, but for the width inside of its feed-forward branches.

    Attributes:
        vocabulary: number of tokens.
        depth: number of branches, even: attention and feed-forward in turn.
        dim: width of the stream.
        heads: number of heads of every attention.
        context: number of tokens that are seen at once.

    Raises:
        UsageError: if `depth` is odd, or a number is below 1.
    """

    vocabulary: int
    depth: int
    dim: int
    heads: int
    context: int

    def __post_init__(self) -> None:
        for name in ("vocabulary", "depth", "dim", "heads", "context"):
            require_at_least("Shape", name, getattr(self, name), 1)
        if self.depth % 2:
            raise UsageError(f"Shape: depth must be even, attention and feed-forward in turn, got {self.depth}.")


@final
class LanguageModel(nn.Module):
    """Embedded tokens and positions, a stack of attention and feed-forward, a norm and a linear map to scores.

    Embeddings are drawn from N(0, 1 / dim), the last map from N(0, 0.02^2), so that the first loss is near
    `ln(vocabulary)`; the branches as PyTorch draws them.

    Args:
        shape: the size.
        connection: how the branches read and write, a class as `Stack` takes it.
        hidden: width inside of each feed-forward branch, `depth / 2` numbers.
        norm: whether each branch begins with a normalisation; not, where the connection normalises what it reads.
        residual_start: whether the connections are started as the residual one where they would not start so.
        options: of the connection.

    Shape:
        `(batch, tokens)` of indices -> `(batch, tokens, vocabulary)`.

    Raises:
        UsageError: if there are not as many `hidden` as feed-forward branches, or an option does not fit.

    Example:
        >>> from levada.connections import Residual
        >>> model = LanguageModel(Shape(10, 4, 8, 2, 16), Residual, [32, 32])
        >>> model(torch.zeros(3, 5, dtype=torch.int64)).shape
        torch.Size([3, 5, 10])

    Source: Vaswani et al., 2017, arXiv 1706.03762.
    """

    def __init__(
        self,
        shape: Shape,
        connection: Callable[..., Connection],
        hidden: Sequence[int],
        *,
        norm: bool = True,
        residual_start: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        dim, normalise = shape.dim, nn.LayerNorm if norm else None
        if len(hidden) != shape.depth // 2:
            raise UsageError(f"LanguageModel: hidden must hold {shape.depth // 2} widths, got {len(hidden)}.")
        self.token = nn.Embedding(shape.vocabulary, dim)
        self.position = nn.Embedding(shape.context, dim)
        branches: list[nn.Module] = []
        for width in hidden:
            branches.append(Attention(dim, heads=shape.heads, causal=True, norm=normalise))
            branches.append(FeedForward(dim, width, norm=normalise))
        self.stack = Stack(branches, connection, dim=dim, **options)
        for layer in self.stack if residual_start else ():
            layer.connection.start_as_residual()
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, shape.vocabulary, bias=False)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=dim**-0.5)
        nn.init.normal_(self.head.weight, std=0.02)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return what the stack is given, `(batch, tokens, dim)`."""
        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.token(tokens) + self.position(positions)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores of the next token at every place."""
        return self.head(self.norm(self.stack(self.embed(tokens))))  # type: ignore[no-any-return]


def matched_hidden(shape: Shape, build: Callable[[Sequence[int]], nn.Module], target: int) -> list[int]:
    """Return the widths inside of the feed-forward branches at which a model has `target` parameters, nearly.

    One unit has `2 dim + 1` parameters, so that the model misses the target by half of that at most. The first branches
    get one unit more than the last ones where the number of branches does not divide that of the units.

    Args:
        shape: the model's size.
        build: widths -> the model; called once, for its number of parameters.
        target: the number of parameters.

    Returns:
        The widths.

    Raises:
        UsageError: if the rest of the model has more parameters already.

    Example:
        >>> from levada.connections import Residual
        >>> shape = Shape(10, 4, 8, 2, 16)
        >>> matched_hidden(shape, lambda hidden: LanguageModel(shape, Residual, hidden), 2400)
        [43, 42]
    """
    num_branches, unit = shape.depth // 2, 2 * shape.dim + 1
    with torch.device("meta"):
        rest = sum(p.numel() for p in build([1] * num_branches).parameters()) - num_branches * unit
    units = round((target - rest) / unit)
    if units < num_branches:
        raise UsageError(
            f"matched_hidden: {target} parameters in all leave no unit for each of {num_branches} feed-forward "
            f"branches: at dim={shape.dim} the rest has {rest}. Use a larger dim."
        )
    width, more = divmod(units, num_branches)
    return [width + (branch < more) for branch in range(num_branches)]


@final
@dataclass(frozen=True, slots=True)
class LanguageRecipe:
    """How to train: AdamW, a tenth of the steps of linear warm-up, then half a cosine to zero.

    Attributes:
        steps: number of steps.
        batch_size: windows in a step.
        lr: the learning rate.
        clip: largest norm of the gradient as a whole; None for no clipping.
        weight_decay: of what decays, by `levada.grouping.parameter_groups`.

    Raises:
        UsageError: if `steps` or `batch_size` is below 1, or `lr` is negative.
    """

    steps: int
    batch_size: int
    lr: float
    clip: float | None = 1.0
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        require_at_least("LanguageRecipe", "steps", self.steps, 1)
        require_at_least("LanguageRecipe", "batch_size", self.batch_size, 1)
        require_at_least("LanguageRecipe", "lr", self.lr, 0.0)

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by at a step, counted from 0."""
        warm = math.ceil(self.steps / 10)
        return (step + 1) / warm if step < warm else cosine((step - warm) / (self.steps - warm))


def random_windows(text: Tensor, length: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Return windows of a text that begin anywhere.

    Args:
        text: `(num,)`.
        length: number of tokens in a window.
        batch_size: number of windows.
        generator: draws where they begin.

    Shape:
        Returns `(batch_size, length)`.

    Raises:
        UsageError: if the text is shorter than a window, or has fewer windows than were asked for.
    """
    require_at_least("random_windows", "the length of the text", len(text), length)
    windows = len(text) - length + 1
    require_at_least("random_windows", "the number of windows in the text", windows, batch_size, "Use a smaller batch.")
    starts = torch.randint(windows, (batch_size, 1), generator=generator)
    return text[starts + torch.arange(length)]


def _next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    return functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def train_language(
    model: LanguageModel,
    text: Tensor,
    recipe: LanguageRecipe,
    seed: int,
    observe: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Train a language model on random windows of a text, the same ones for every model of a seed.

    Args:
        model: the model, on the device where it is to be trained.
        text: tokens, `(num,)`.
        recipe: how.
        seed: of the windows.
        observe: called after the start and after each tenth of the steps, with the number of steps done.

    Returns:
        "loss", in nats, on each batch before its step, and "gradient_norm", before clipping. Both end where the loss is
        not finite.
    """
    generator, device = torch.Generator().manual_seed(seed), model.head.weight.device
    context = model.position.num_embeddings
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay=recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.95), foreach=True
    )
    limit = math.inf if recipe.clip is None else recipe.clip
    found: dict[str, list[float]] = {"loss": [], "gradient_norm": []}
    every = max(recipe.steps // 10, 1)
    for step in range(recipe.steps):
        if observe is not None and step % every == 0:
            observe(step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.factor(step)
        loss = _next_token_loss(model, random_windows(text, context + 1, recipe.batch_size, generator).to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        found["loss"].append(float(loss.detach()))
        found["gradient_norm"].append(float(norm.detach()))
        if not math.isfinite(found["loss"][-1]):
            break
        optimizer.step()
    if observe is not None:
        observe(recipe.steps)
    return found


@torch.no_grad()
def language_loss(model: LanguageModel, text: Tensor, num_windows: int, chunk: int = 32) -> float:
    """Return the mean cross-entropy in nats per token, on windows that lie evenly over a text.

    Args:
        model: the model.
        text: tokens, `(num,)`.
        num_windows: number of windows.
        chunk: windows in a batch.
    """
    length = model.position.num_embeddings + 1
    require_at_least("language_loss", "the length of the text", len(text), length)
    starts = torch.linspace(0, len(text) - length, num_windows, dtype=torch.float64).long()
    windows = text[starts[:, None] + torch.arange(length)].to(model.head.weight.device)
    losses = [float(_next_token_loss(model, part)) * len(part) for part in torch.split(windows, chunk)]
    return sum(losses) / num_windows


def branch_gradients(model: LanguageModel, windows: Tensor) -> list[float]:
    """Return the norm of the loss's gradient by the parameters of each branch, in float64.

    Args:
        model: the model, which is left as it is.
        windows: `(batch, context + 1)`.
    """
    twin = copy.deepcopy(model).double()
    twin.zero_grad()
    _next_token_loss(twin, windows.to(model.head.weight.device)).backward()  # type: ignore[no-untyped-call]
    norms = [[p.grad.norm() for p in layer.branch.parameters() if p.grad is not None] for layer in twin.stack]
    return [float(torch.stack(found).norm()) for found in norms]


@torch.no_grad()
def measure_mixing(model: LanguageModel, window: Tensor) -> Mapping[str, list[float]]:
    """Return what the mixing of streams does, by layer: the signals of `levada.probe.mixing` on one window.

    Args:
        model: the model.
        window: `(context,)`.

    Returns:
        By the signal's name one number for each layer; nothing for a connection without streams.
    """
    taps = Mixing(model)
    taps.attach()
    try:
        taps.begin(0)
        model(window[None].to(model.head.weight.device))
        samples = on_host([sample for _, sample in taps.samples])()
    finally:
        taps.detach()
    rows = mixing_signals(samples)
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
