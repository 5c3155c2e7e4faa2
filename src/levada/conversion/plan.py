"""Residual chains: which additions carry the stream of a model, found by what is added to what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError
from levada.conversion.recording import ADDITIONS, FORMAL, Recording

__all__ = ["Chain", "Entry", "Plan", "Site", "plan"]

# What acts on each element alone, so that it can act on each stream: the activation after an addition.
_ELEMENTWISE: frozenset[Any] = frozenset(
    {functional.relu, torch.relu, Tensor.relu, Tensor.relu_, functional.gelu, functional.silu, functional.leaky_relu}
    | {functional.elu, functional.hardswish, functional.mish, functional.relu6, functional.tanh, torch.tanh}
    | {functional.softplus, functional.dropout, torch.dropout}
    | FORMAL
)
# What acts on the last axis alone: the normalisation after an addition, where channels come last.
_LAST_AXIS: frozenset[Any] = frozenset({functional.layer_norm, functional.rms_norm})
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SPATIAL: frozenset[Any] = frozenset(
    {
        functional.conv1d,
        functional.conv2d,
        functional.conv3d,
        functional.batch_norm,
        functional.group_norm,
        functional.instance_norm,
    }
)


@final
@dataclass(slots=True)
class Site:
    """One residual addition.

    Attributes:
        skip: the value that is passed on.
        branch: the value that was computed from it, with parameters.
        result: their sum.
        block: qualified name of the innermost module that adds.
        calls: module calls that were running.
        after: functions between this sum and the next site's skip, which act on each stream.
    """

    skip: int
    branch: int
    result: int
    block: str
    calls: tuple[int, ...]
    after: tuple[Any, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor becomes the stream: an argument of a module, or what a module returns.

    Attributes:
        module: the module.
        name: its qualified name.
        place: `("args", index)` or `("kwargs", name)`; None for what the module returns.
    """

    module: nn.Module
    name: str
    place: tuple[str, int | str] | None


@final
@dataclass(slots=True)
class Chain:
    """Sites one after the other on one stream.

    Attributes:
        sites: in order.
        owners: for each site the module that will hold its connection, and that module's name.
        entry: where the stream begins.
        dim: width of the stream.
        axis: axis of its channels, -1 or 1.
    """

    sites: list[Site]
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    entry: Entry | None = None
    dim: int = 0
    axis: int = -1


@final
@dataclass(slots=True)
class Plan:
    """The chains of a model, and what was left out.

    Attributes:
        chains: in order of execution.
        left_out: a sentence for each addition that looks like a residual one and stays as it is.
    """

    chains: list[Chain]
    left_out: list[str]


def plan(recording: Recording, apart: frozenset[nn.Module] = frozenset()) -> Plan:
    """Find the residual chains.

    An addition is a residual one if one operand was computed from the other, by something with parameters. Such
    additions form a chain where what one returns is the skip of the next, directly or through an activation or
    normalisation. Chains inside of another's branch, and skips around whole chains, are left out. Modules that run
    several times are converted once.

    Args:
        recording: of one forward pass.
        apart: modules whose inside is somebody else's business.

    Raises:
        UsageError: if a chain cannot be followed; the message names the block.
    """
    sites = [s for s in _sites(recording) if not any(recording.calls[c].module in apart for c in s.calls)]
    parallel = _parallel(recording, sites)
    left_out = list(parallel.values())
    left_out += _changed_skips(recording, {site.result for site in sites} | set(parallel), apart)
    breaks: list[str] = []
    chains = _separate(recording, _chains(recording, sites, breaks), left_out)
    if len(chains) > 1 and all(len(chain.sites) == 1 for chain in chains):
        why = [next(iter(parallel.values()))] if parallel else [*breaks, *left_out]
        raise UsageError(f"convert: no two residual additions follow each other. {' '.join(why)}")
    for chain in chains:
        _require_one_way(recording, chain)
        chain.owners = _owners(recording, chain)
        chain.axis = _axis(recording, chain.sites[0])
        chain.dim = recording.nodes[chain.sites[0].skip].shape[chain.axis]
        chain.entry = _entry(recording, chain)
    return Plan(_once(chains), left_out)


def _once(chains: list[Chain]) -> list[Chain]:
    """Take chains of the same modules, which run several times, as one."""
    found: dict[Any, Chain] = {}
    for chain in chains:
        assert chain.entry is not None
        entry = chain.entry.module, chain.entry.place
        rival = found.setdefault(entry, chain)
        same = [owner for owner, _ in rival.owners] == [owner for owner, _ in chain.owners]
        if not same or [s.after for s in rival.sites] != [s.after for s in chain.sites]:
            raise UsageError(
                f"convert: {chain.entry.name or 'the model'} must run the same additions each time that it is called, "
                f"and it runs {len(rival.sites)}, then {len(chain.sites)}. Convert the part of it that stays the same."
            )
    return list(found.values())


def _parallel(recording: Recording, sites: list[Site]) -> dict[int, str]:
    """Return a sentence for each sum that adds to a site's another branch of the same input, as in parallel blocks."""
    skips = {site.result: site.skip for site in sites}
    found: dict[int, str] = {}
    for node in recording.nodes:
        if node.function not in ADDITIONS or node.index in skips or len(node.inputs) != 2:
            continue
        for total, other in (node.inputs, node.inputs[::-1]):
            if total not in skips or recording.between(total, other):
                continue
            if any(recording.nodes[i].learned for i in recording.between(skips[total], other)[1:]):
                skips[node.index] = skips[total]
                name = (recording.calls[node.calls[-1]].name if node.calls else "") or "the model"
                found[node.index] = (
                    f"{name} adds a second branch of the same input to the sum of its first: x + a(x) + b(x) is one "
                    "residual addition in two steps. Write x + (a(x) + b(x))."
                )
    return found


def _changed_skips(recording: Recording, sums: set[int], apart: frozenset[nn.Module]) -> list[str]:
    """Return a sentence for each block that adds its branch to something that it made of what it was given."""
    found: dict[str, None] = {}
    for node in recording.nodes:
        if node.function not in ADDITIONS or node.index in sums or len(node.inputs) != 2 or not node.calls:
            continue
        call = recording.calls[node.calls[-1]]
        if node.index not in call.outputs or any(recording.calls[c].module in apart for c in node.calls):
            continue
        ways = [(i, [w for w in (recording.between(a, i) for a in call.inputs.values()) if w]) for i in node.inputs]
        if all(way for _, way in ways) and any(
            recording.nodes[i].learned for _, way in ways for w in way for i in w[1:]
        ):
            made, name = recording.nodes[min(node.inputs)].name, call.name or "the model"
            found[f"The addition of {name} stays: what it adds to is made from the stream, by {made}."] = None
    return list(found)


def _sites(recording: Recording) -> list[Site]:
    found = []
    for node in recording.nodes:
        if node.function not in ADDITIONS or node.alpha or len(node.inputs) != 2:
            continue
        if any(recording.nodes[i].shape != node.shape for i in node.inputs) or len(node.shape) < 2:
            continue
        skip, branch = sorted(node.inputs)
        way = recording.between(skip, branch)
        while not way and recording.nodes[skip].function in FORMAL:  # a residual that was cast beside the branch
            skip = recording.nodes[skip].inputs[0]
            way = recording.between(skip, branch)
        if any(recording.nodes[i].learned for i in way[1:]):
            block = recording.calls[node.calls[-1]].name if node.calls else ""
            found.append(Site(skip, branch, node.index, block, node.calls))
    return found


def _chains(recording: Recording, sites: list[Site], breaks: list[str]) -> list[Chain]:
    chains: dict[int, Chain] = {}  # by the result of its last site
    ended: list[Chain] = []
    for site in sites:
        origin, after = _origin(recording, site.skip, {s.result for s in sites})
        chain = chains.pop(origin, None) if origin is not None else None
        if chain is None:
            chain = Chain([])
            ended.append(chain)
            if site.skip != origin and sites[0] is not site:
                breaks.append(_break(recording, site))
        else:
            chain.sites[-1].after = after
        chain.sites.append(site)
        chains[site.result] = chain
    return ended


def _break(recording: Recording, site: Site) -> str:
    node = recording.nodes[site.skip]
    return f"A new stream begins at {site.block or 'the model'}: its skip comes from {node.name} {node.shape}."


def _origin(recording: Recording, skip: int, results: set[int]) -> tuple[int | None, tuple[Any, ...]]:
    """Walk back from a skip to the sum it comes from, over functions that can act on each stream."""
    after: list[Any] = []
    index = skip
    while index not in results:
        node = recording.nodes[index]
        known = node.function in _ELEMENTWISE or (
            node.function in _LAST_AXIS and _axis_of(recording, index, index) == -1
        )
        alone = len(node.inputs) == 1 or node.function is Tensor.type_as  # whose other input gives its type alone
        if not known or not alone or recording.nodes[node.inputs[0]].shape != node.shape:
            return None, ()
        after.append(node.function)
        index = node.inputs[0]
    return index, tuple(reversed(after))


def _separate(recording: Recording, chains: list[Chain], left_out: list[str]) -> list[Chain]:
    """Keep the longest of chains that lie inside of each other; a chain's branches may hold none of another's sites."""
    kept: list[Chain] = []
    for chain in sorted(chains, key=lambda c: -len(c.sites)):
        names = ", ".join(dict.fromkeys(site.block or "the model" for site in chain.sites))
        for rival in kept:
            where = "around" if _inside(recording, rival, chain) else "inside of"
            if where == "around" or _inside(recording, chain, rival):
                left_out.append(f"The additions of {names} lie {where} the chain of {rival.sites[0].block} and stay.")
                break
        else:
            kept.append(chain)
    return sorted(kept, key=lambda c: c.sites[0].skip)


def _inside(recording: Recording, chain: Chain, other: Chain) -> bool:
    """Whether a sum of a chain is computed in a branch of another one."""
    sums = {site.result for site in chain.sites}
    return any(sums & set(recording.between(site.skip, site.branch)[1:]) for site in other.sites)


def _require_one_way(recording: Recording, chain: Chain) -> None:
    """Raise if a stream is added to anything but its own branch: at run time both look the same."""
    sums = {site.result for site in chain.sites}
    carried = {chain.sites[0].skip} | {site.skip for site in chain.sites} | {s.result for s in chain.sites[:-1]}
    first = chain.sites[0].calls
    for node in recording.nodes:
        if node.index in sums or node.function not in ADDITIONS or node.index < chain.sites[0].skip:
            continue
        if any(i in carried for i in node.inputs) and node.calls[: len(first) - 1] == first[:-1]:
            shapes = {recording.nodes[i].shape for i in node.inputs}
            if len(shapes) == 1 and len(node.inputs) == 2:
                where = recording.calls[node.calls[-1]].name or "the model"
                raise UsageError(
                    f"convert: the stream must be added to the output of its branch alone, and in {where} it is also "
                    f"added to {recording.nodes[max(node.inputs)].name}. Convert the model before that is put in."
                )


def _owners(recording: Recording, chain: Chain) -> list[tuple[nn.Module, str]]:
    """Give each site's connection to the block, seen from the module that holds all blocks of the chain."""
    common = 0
    calls = [site.calls for site in chain.sites]
    while all(len(c) > common and c[common] == calls[0][common] for c in calls):
        common += 1
    owners = []
    for site in chain.sites:
        inner = [recording.calls[number] for number in site.calls[min(common, len(site.calls) - 1) :]]
        # A container runs all that it holds, one after the other: it can hold nothing else.
        call = next((call for call in inner if not isinstance(call.module, _CONTAINERS)), inner[-1])
        owners.append((call.module, call.name))
    return owners


def _axis_of(recording: Recording, first: int, last: int) -> int:
    """Return the axis of the channels: what the first function with parameters takes as such, found by its size."""
    way = recording.between(first, last)[1:] if first != last else [first]
    learned = [recording.nodes[i] for i in way if recording.nodes[i].learned]
    shape = recording.nodes[first].shape
    if not learned or len(shape) < 3:
        return -1
    given = recording.nodes[learned[0].inputs[0]].shape if learned[0].inputs else shape
    channels = given[1 if learned[0].function in _SPATIAL and len(given) > 2 else -1] if given else 0
    if (shape[1] == channels) != (shape[-1] == channels):
        return 1 if shape[1] == channels else -1
    return 1 if any(node.function in _SPATIAL and len(node.shape) > 2 for node in learned) else -1


def _axis(recording: Recording, site: Site) -> int:
    return _axis_of(recording, site.skip, site.branch)


def _entry(recording: Recording, chain: Chain) -> Entry:
    skip = chain.sites[0].skip
    for number in chain.sites[0].calls:
        call = recording.calls[number]
        if call.module is chain.owners[0][0] or number == chain.sites[0].calls[-1]:
            place = next((place for place, node in call.inputs.items() if node == skip), None)
            if place is not None:
                return Entry(call.module, call.name, place)
    makers = [call for call in recording.calls if skip in call.outputs]
    if makers:
        maker = makers[-1]
        if sum(call.module is maker.module for call in recording.calls) == 1 and len(maker.outputs) == 1:
            return Entry(maker.module, maker.name, None)
    site, node = chain.sites[0], recording.nodes[skip]
    raise UsageError(
        f"convert: the stream must enter {site.block or 'the model'} as an argument, or come out of a module that is "
        f"called once, and it is made by {node.name} in between. Put what makes it, or the blocks, into a module."
    )


def describe(chains: Sequence[Chain]) -> str:
    """Return one line for each chain.

    Args:
        chains: as planned.
    """
    lines = []
    for chain in chains:
        blocks = list(dict.fromkeys(name or "the model" for _, name in chain.owners))
        ends = blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
        number = "1 addition" if len(chain.sites) == 1 else f"{len(chain.sites)} additions"
        lines.append(f"{number} in {ends}, width {chain.dim}")
    return "\n".join(lines)
