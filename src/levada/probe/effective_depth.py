"""Effective depth: over how many residual branches the gradient of a model really travels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError, require_at_least
from levada._numbers import student_quantile
from levada.connection import Layer
from levada.probe.cotangent import Value
from levada.probe.jacobian import cotangent_for, pull_back
from levada.probe.linearisation import Linearisation
from levada.probe.recorder import Frame
from levada.theory import PathLengths, path_lengths

__all__ = ["SampledPathLengths", "estimated_path_lengths", "residual_calls", "sampled_path_lengths"]

_LENGTHS = 65  # lengths that are tried; between them the logarithm of a path's weight is interpolated
_TOGETHER = 1 << 23  # elements of gradients that go back through a block in one call


@final
@dataclass(frozen=True, slots=True, eq=False)
class SampledPathLengths:
    """What sampling of paths found.

    Attributes:
        lengths: the distribution; its mean is the effective depth, in blocks.
        low: lower end of the 95 % interval of the mean, over draws of subsets.
        high: its upper end.
        blocks: the residual blocks, by name.
    """

    lengths: PathLengths
    low: float
    high: float
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of the stream: a residual block, or what lies between two."""

    name: str
    source: Value
    target: Value
    residual: bool


def sampled_path_lengths(
    at: Linearisation,
    blocks: Sequence[str] | None = None,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    draws: int = 8,
    squared: bool = True,
    seed: int = 0,
) -> SampledPathLengths:
    r"""Share of the gradient at the first block's input by the number of branches that it passed.

    For each length $k$ the gradient goes back through the branches alone of $k$ random blocks, and through the skips
    alone of all others. With $g_k$ the gradient that arrives, the share of length $k$ is proportional to
    $\binom{L}{k}\,E\,\|g_k\|^2$: squared norms of independent paths add. The blocks are not drawn evenly but by the
    gains of `estimated_path_lengths`, and each draw is weighed by the inverse of its probability: the expectation is
    the same, and a few blocks that bring most of the gradient are not missed.

    A block is a module that keeps the shape of its first input; its branch is what it adds, `block(x) - x`. What lies
    between two blocks, such as a layer that halves the image, is passed as it is and not counted.

    Args:
        at: of `linearise`; the forward pass is the ordinary one.
        blocks: names of modules; left out, each `Layer` of a `Stack`, or else the repeated modules of lists that keep
            the shape of what they are given.
        loss: of the model's output, whose gradient it is; a random cotangent at the output if left out.
        draws: subsets for each length.
        squared: weigh by squared norms; False weighs by norms, as the source's figure does, which favours long paths.
        seed: of the subsets and of the cotangent.

    Returns:
        The distribution, with an interval of its mean.

    Raises:
        UsageError: if a name is unknown, a block changes the shape, or `draws` is below 2.
        MeasurementError: if no blocks are found, or the gradient also goes around them.

    Example:
        >>> import levada
        >>> from levada.probe import linearise
        >>> branches = [nn.utils.parametrizations.orthogonal(nn.Linear(8, 8, bias=False)) for _ in range(54)]
        >>> found = sampled_path_lengths(linearise(levada.Stack(branches, levada.Residual, dim=8), torch.ones(2, 8)))
        >>> round(found.lengths.mean, 3), f"{found.lengths.share(5, 17):.4%}"
        (27.0, '0.4537%')

    Source: Veit, Wilber, Belongie 2016, arXiv 1605.06431.
    """
    require_at_least("sampled_path_lengths", "draws", draws, 2, "One draw has no interval.")
    parts = _stream(at, blocks, "sampled_path_lengths")
    power = 2 if squared else 1
    cotangent = _cotangent(at, loss, seed)
    start, gains = _walk(at, parts, cotangent)
    log_odds = power * _log_gains(gains)
    depth = len(log_odds)
    last = min(depth, _LENGTHS - 1)
    tried = [round(i * depth / last) for i in range(last + 1)]
    paths = _log_sums(log_odds)
    passes = _subsets(log_odds, paths, tried, draws, seed)
    sizes = power * math.log(10) * _sizes(parts, start, passes)
    # What a subset brings, over its probability among those of its length.
    weights = (sizes - passes.double() @ log_odds).view(len(tried), draws)
    if not bool(weights.amax().isfinite()):
        raise MeasurementError("sampled_path_lengths: no gradient arrives at the first block, or it is not finite.")
    lengths = _distribution(weights, tried, paths[0])
    without = [_distribution(weights[:, torch.arange(draws) != i], tried, paths[0]).mean for i in range(draws)]
    spread = torch.tensor(without, dtype=torch.float64).var(correction=0) * (draws - 1)  # jackknife
    half = student_quantile(draws - 1) * math.sqrt(float(spread))
    names = tuple(part.name for part in parts if part.residual)
    return SampledPathLengths(lengths, lengths.mean - half, lengths.mean + half, names)


def estimated_path_lengths(
    at: Linearisation,
    blocks: Sequence[str] | None = None,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> PathLengths:
    r"""Estimate of `sampled_path_lengths` from one backward pass, as if all branches were independent.

    With $g$ the gradient at a block's output and $g + f'^T g$ that at its input, the branch has the gain
    $a = \|f'^T g\|/\|g\|$ and is passed with probability $a^2/(1 + a^2)$. On 15 networks its mean was off by 1.8 % in
    the median, by 10 % for ReLU branches without a normalisation and by 12.5 % for a ResNet-56 before training.

    Args:
        at: of `linearise`.
        blocks: as for `sampled_path_lengths`.
        loss: as for `sampled_path_lengths`.
        seed: of the cotangent.

    Returns:
        The distribution.

    Raises:
        UsageError: if a name is unknown, or a block changes the shape.
        MeasurementError: if no blocks are found, or the gradient also goes around them.

    Example:
        >>> import levada
        >>> from levada.probe import linearise
        >>> stack = levada.Stack([nn.Linear(8, 8) for _ in range(4)], levada.Residual, dim=8)
        >>> for layer in stack:
        ...     _ = layer.branch.weight.data.copy_(0.5 * torch.eye(8).roll(1, 0))
        >>> round(estimated_path_lengths(linearise(stack, torch.ones(2, 8))).mean, 6)
        0.8

    Source: Veit, Wilber, Belongie 2016, arXiv 1605.06431 (the distribution).
    """
    parts = _stream(at, blocks, "estimated_path_lengths")
    _, gains = _walk(at, parts, _cotangent(at, loss, seed))
    return path_lengths(gains)


def residual_calls(root: Frame) -> list[Frame]:
    """Return the calls of the model's residual blocks: layers of a stack, or else repeated composites of lists.

    Args:
        root: the recorded call of the model.
    """
    layers = list(_outermost(root, lambda frame: isinstance(frame.module, Layer)))
    if layers:
        return layers
    lists = {
        id(child): id(outer)
        for outer in root.module.modules()
        if isinstance(outer, nn.ModuleList | nn.Sequential)
        for child in outer.children()
    }
    repeated = Counter((type(frame.module), lists.get(id(frame.module))) for frame in _frames(root))
    return list(
        _outermost(
            root,
            lambda frame: (
                bool(frame.frames())
                and not isinstance(frame.module, nn.Sequential)
                and id(frame.module) in lists
                and repeated[type(frame.module), lists[id(frame.module)]] > 1
                and any(True for _ in frame.module.parameters())
            ),
        )
    )


def _frames(frame: Frame) -> Iterator[Frame]:
    yield frame
    for inner in frame.frames():
        yield from _frames(inner)


def _outermost(frame: Frame, wanted: Callable[[Frame], bool]) -> Iterator[Frame]:
    if wanted(frame):
        yield frame
    else:
        for inner in frame.frames():
            yield from _outermost(inner, wanted)


def _stream(at: Linearisation, blocks: Sequence[str] | None, owner: str) -> list[_Part]:
    """Return the parts from the first block's input to the output, in order of execution."""
    if blocks is None:
        calls = residual_calls(at.root)
    else:
        called = {frame.name: frame for frame in reversed(list(_frames(at.root)))}
        unknown = next((name for name in blocks if name not in called), None)
        if unknown is not None:
            raise UsageError(f"{owner}: there is no module {unknown!r} that the forward pass called.")
        calls = [called[name] for name in blocks]
    parts: list[_Part] = []
    for frame in calls:
        source = next((v for v in map(at.value, frame.inputs) if v is not None), None)
        target = None if frame.output is None else at.value(frame.output)
        if source is None or target is None or source.shape != target.shape or source.edge == target.edge:
            if blocks is not None:
                shapes = [None if v is None else v.shape for v in (source, target)]
                raise UsageError(
                    f"{owner}: a residual block must keep the shape of its first input and be differentiable; "
                    f"{frame.name} has {shapes[0]} -> {shapes[1]} (None: no graph). Leave it out."
                )
            continue
        if parts and parts[-1].target.edge != source.edge:
            parts.append(_Part(f"what lies before {frame.name}", parts[-1].target, source, False))
        parts.append(_Part(frame.name, source, target, True))
    if not parts:
        raise MeasurementError(
            f"{owner}: no residual blocks were found: no Stack of layers, and no list of modules of one class that "
            "keep the shape of their input. Name them: blocks=['layers.0', ...]."
        )
    return parts


def _cotangent(at: Linearisation, loss: Callable[[Tensor], Tensor] | None, seed: int) -> Tensor:
    if loss is None:
        return cotangent_for(Value.of(at.output), None, seed)
    output = at.output.detach().requires_grad_(True)
    with torch.enable_grad():
        value = loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise UsageError("effective depth: loss must turn the model's output into one number with a graph.")
        return torch.autograd.grad(value.sum(), output)[0]


def _walk(at: Linearisation, parts: Sequence[_Part], cotangent: Tensor) -> tuple[Tensor, list[float]]:
    """Return the gradient behind the last block, and of each block that through the branch over that through the skip.

    All of the gradient must go through the blocks: the product over the parts is compared with one backward pass.
    """
    target, last = Value.of(at.output), parts[-1].target
    start = cotangent[None]
    if last.edge != target.edge:
        start = pull_back("the output with respect to the last block", last, target, start)
    gains: list[float] = []
    after, log = _scaled(start)
    for part in reversed(parts):
        before = pull_back(part.name, part.source, part.target, after)
        if part.residual:
            gains.append(float((before - after).double().norm() / after.double().norm()))
        after, size = _scaled(before)
        log += size
    for scale in (1.0, 1e-30, 1e30):  # the product over all blocks may leave the range of float32
        name = "the output with respect to the first block"
        whole, size = _scaled(pull_back(name, parts[0].source, target, cotangent[None] * scale))
        if math.isfinite(size):
            log += math.log10(scale)
            break
    difference = float((after - whole).double().norm() / whole.double().norm())
    if not (difference <= 1e-3 and abs(size - log) <= 1e-3 and all(map(math.isfinite, gains))):
        raise MeasurementError(
            "effective depth: the gradient reaches the first block by ways that do not go through all of the blocks "
            f"({parts[0].name} to {parts[-1].name}), or it is zero or not finite. Name blocks that follow one another."
        )
    return start, gains[::-1]


def _scaled(gradient: Tensor) -> tuple[Tensor, float]:
    """Return a gradient divided by its largest element, and log10 of that."""
    size = float(gradient.abs().amax())
    return (gradient / size, math.log10(size)) if size > 0 else (gradient, -math.inf)


def _log_gains(gains: Sequence[float]) -> Tensor:
    """Return the logarithms of the gains, none so small that its block would never be drawn."""
    found = torch.tensor(gains, dtype=torch.float64)
    least = 0.05 * float(found.square().mean().sqrt())
    return found.clamp_min(least if least > 0 else 1.0).log()


def _log_sums(log_odds: Tensor) -> Tensor:
    """Return log of the elementary symmetric sums of the odds: row `l`, column `k` over `k` of the blocks from `l` on.

    Args:
        log_odds: shape `(depth,)`.
    """
    depth = len(log_odds)
    rows = torch.full((depth + 1, depth + 1), -math.inf, dtype=torch.float64)
    rows[:, 0] = 0
    for block in range(depth - 1, -1, -1):
        rows[block, 1:] = torch.logaddexp(rows[block + 1, 1:], rows[block + 1, :-1] + log_odds[block])
    return rows


def _subsets(log_odds: Tensor, paths: Tensor, tried: Sequence[int], draws: int, seed: int) -> Tensor:
    """Return which blocks are passed through their branch, drawn by their odds, `(lengths * draws, depth)`."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.tensor(tried).repeat_interleave(draws)
    rows = torch.zeros(len(left), len(log_odds), dtype=torch.bool)
    for block, log_odd in enumerate(log_odds):
        chance = (log_odd + paths[block + 1, (left - 1).clamp_min(0)] - paths[block, left]).exp()
        rows[:, block] = (torch.rand(len(left), generator=generator, dtype=torch.float64) < chance) & (left > 0)
        left = left - rows[:, block].long()
    return rows


def _sizes(parts: Sequence[_Part], start: Tensor, passes: Tensor) -> Tensor:
    """Return log10 of the gradient's norm that arrives for each subset."""
    count = max(1, _TOGETHER // start.numel())
    return torch.cat([_arriving(parts, start, rows) for rows in torch.split(passes, count)])


def _arriving(parts: Sequence[_Part], start: Tensor, passes: Tensor) -> Tensor:
    gradients = start.expand(len(passes), *start.shape[1:]).clone()
    logs = torch.zeros(len(passes), dtype=torch.float64)
    block = passes.shape[1]
    for part in reversed(parts):
        if not part.residual:
            gradients = pull_back(part.name, part.source, part.target, gradients)
        else:
            block -= 1
            through = passes[:, block].nonzero()[:, 0].to(gradients.device)
            if len(through):
                given = gradients[through]
                gradients[through] = pull_back(part.name, part.source, part.target, given) - given
        # Norms grow or vanish with depth: their logarithms are kept apart.
        sizes = gradients.flatten(1).abs().amax(1)
        gradients = gradients / sizes.clamp_min(torch.finfo(sizes.dtype).tiny).view(-1, *[1] * (gradients.dim() - 1))
        logs += sizes.double().log10().cpu()
    norms: Tensor = gradients.flatten(1).double().norm(dim=1)
    return logs + norms.log10().cpu()


def _distribution(weights: Tensor, tried: Sequence[int], paths: Tensor) -> PathLengths:
    """Weigh the log sums over all paths of each length by the mean weight of those tried, interpolated between."""
    logs = weights.logsumexp(1) - math.log(weights.shape[1])
    every, at = torch.arange(len(paths)), torch.tensor(tried)
    right = torch.searchsorted(at, every).clamp_max(len(tried) - 1)
    left = (right - 1).clamp_min(0)
    share = ((every - at[left]) / (at[right] - at[left]).clamp_min(1)).double()
    between = torch.where(
        share == 1, logs[right], torch.where(share == 0, logs[left], logs[left].lerp(logs[right], share))
    )
    return PathLengths(torch.softmax(between + paths, 0))
