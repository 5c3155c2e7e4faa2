"""Remedies that change how blocks are connected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from levada._errors import UsageError
from levada.diagnose.remedies.remedy import Call, Patch, Subject
from levada.inputs import read_batches

__all__ = ["gate", "rezero", "scale"]

# Fewer blocks have no depth to be carried over.
LEAST_BLOCKS = 3


def scale(subject: Subject) -> Patch | None:
    """Multiply what each residual branch adds by 1 / sqrt(depth), as a learned number."""
    return _converted(subject, 'levada.SkipInit, preserve=False, init="depth"')


def gate(subject: Subject) -> Patch | None:
    """Multiply what each residual branch adds by a learned number that starts at zero."""
    return _converted(subject, "levada.ReZero, preserve=False")


def _converted(subject: Subject, how: str) -> Patch | None:
    if subject.facts.chain:
        return None  # nothing is added to anything
    try:
        read_batches(subject.model, None)
        batch = ""
    except UsageError:
        if subject.inputs is None:
            return None
        batch = ", batch=(inputs, None)"
    return Patch(f"import levada\nmodel = levada.convert(model, {how}{batch})")


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive children of a Sequential that form blocks of one shape."""

    name: str
    cuts: tuple[int, ...]  # where blocks start, and where the last one ends
    dim: int


def rezero(subject: Subject) -> Patch | None:
    """Add to the stream what each block of a chain computes, times a learned number that starts at zero."""
    if not subject.facts.chain:
        return None
    longest = max(_runs(subject), key=lambda run: len(run.cuts), default=None)
    if longest is None or len(longest.cuts) <= LEAST_BLOCKS:
        return None
    cuts, name = longest.cuts, longest.name
    steps = {b - a for a, b in pairwise(cuts)}
    told = f"range({cuts[0]}, {cuts[-1] + 1}, {steps.pop()})" if len(steps) == 1 else repr(list(cuts))
    net = f"nn.Sequential(*parts[:{cuts[0]}], stack, *parts[{cuts[-1]}:])"
    lines = [
        "from itertools import pairwise",
        "from torch import nn",
        "from levada import ReZero, Stack",
        f"parts = list({f'model.get_submodule({name!r})' if name else 'model'})",
        f"blocks = [nn.Sequential(*parts[i:j]) for i, j in pairwise({told})]",
        f"stack = Stack(blocks, ReZero, dim={longest.dim}).to(next(model.parameters()))",
        f"model.set_submodule({name!r}, {net})" if name else f"model = {net}",
    ]
    return Patch("\n".join(lines))


def _runs(subject: Subject) -> Iterator[_Run]:
    called = {call.name: call for call in subject.calls}
    for name, module in subject.model.named_modules():
        # A subclass may have a forward of its own, which a new Sequential would lose.
        if type(module) is nn.Sequential:
            children = [called.get(f"{name}.{i}".removeprefix(".")) for i in range(len(module))]
            if all(child is not None for child in children):
                yield from _in_one(name, [child for child in children if child is not None])


def _in_one(name: str, children: Sequence[Call]) -> Iterator[_Run]:
    anchors = [i for i, child in enumerate(children) if _starts_block(child.module)]
    ends = [*anchors[1:], len(children)]
    cuts: list[int] = []
    shape: tuple[int, ...] = ()
    for start, end in zip(anchors, ends, strict=True):
        given, made = children[start].given, children[end - 1].shape
        fits = given == made and len(given) > 1 and not children[end - 1].ends
        if fits and (not cuts or given == shape):
            cuts, shape = [*(cuts or [start]), end], given
        else:
            if cuts:
                yield _Run(name, tuple(cuts), shape[-1] if len(shape) < 4 else shape[1])
            cuts, shape = ([start, end], given) if fits else ([], ())
    if cuts:
        yield _Run(name, tuple(cuts), shape[-1] if len(shape) < 4 else shape[1])


def _starts_block(module: nn.Module) -> bool:
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    return any(True for _ in module.parameters()) and not isinstance(module, norms)
