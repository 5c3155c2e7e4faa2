"""Changes of a model that a measurement gives a reason to try, where no rule has named a cause."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._seeding import reseed
from levada.diagnose.diagnostics.learning_rate import unlearned
from levada.diagnose.facts import Facts
from levada.diagnose.material import Material
from levada.diagnose.rehearsal import undone
from levada.diagnose.relations import COLLAPSED, WIDE, collapse
from levada.diagnose.trainable import trainable_depth
from levada.diagnose.trials import Change, Trainings, Trial
from levada.diagnose.update import Assumed
from levada.probe import Operation
from levada.probe.trace import Trace

__all__ = ["trials_of"]

# A layer is narrow if it has fewer units than an eighth of what it reads, and of what reads it.
NARROW = 8
# At one block the difference between inputs falls to less than this: no usual initialisation or activation does that.
LOST = 1 / 100
# So many steps at the end of all sequences are the same, and at least half of them all.
PADDED = 8
# Without normalisation the difference between inputs is this much less behind the last block than behind the first, in
# so many layers or more, and the model gains less than this share of what it gains with normalisation.
FADED, LAYERS, BEHIND = 0.5, 8, 0.7
# One batch alone is learned by heart sooner with normalisation, whatever the depth: the model then learns less than
# this share of it beyond what needs no inputs.
NOTHING = 0.1
# Fewer sigmoids lose little, and train at another rate.
SIGMOIDS = 3
_MEANS = frozenset({"mean", "sum", "logsumexp"})
_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A change, and what speaks for it."""

    change: Change
    changed: str
    sites: tuple[str, str]
    measured: dict[str, Any]
    code: str
    most: float = 1.0
    prior: float = math.inf


def trials_of(material: Material, trace: Trace, facts: Facts) -> dict[str, Trial]:
    """Try each change that there is a reason for; return the first that helps, by name, or nothing.

    Args:
        material: what was measured before.
        trace: the signals.
        facts: what is known.

    Cost:
        Without a reason one forward pass of a recurrent model, and of others none; else what `Trainings.compare` costs.
    """
    if material.loss is None or material.update is None:
        return {}
    trainings = Trainings(material.run, material.loss_of, material.factory)
    for name, propose in _REASONS.items():
        proposal = propose(material, trace, facts)
        pairs = trainings.compare(proposal.change, proposal.most, proposal.prior) if proposal is not None else ()
        if proposal is not None and pairs:
            return {name: Trial(proposal.changed, proposal.sites, proposal.measured, pairs, proposal.code)}
    return {}


def _operations(material: Material) -> Iterator[tuple[str, Operation]]:
    execution = material.execution
    return ((site.name, o) for site in execution.sites for o in execution.operations[site.name])


def _maps(material: Material) -> list[tuple[str, str]]:
    """Return site and name of the linear maps and convolutions that ran, in order, each once."""
    model = material.run.model
    found: dict[str, str] = {}
    for site, operation in _operations(material):
        if operation.parameters and isinstance(model.get_submodule(operation.module), nn.Linear | _CONVOLUTIONS):
            found.setdefault(operation.module, site)
    return [(site, name) for name, site in found.items()]


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str], hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    modules = [model.get_submodule(name) for name in names]
    handles = [m.register_forward_pre_hook(hook) if before else m.register_forward_hook(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _padding(material: Material, trace: Trace, facts: Facts) -> _Proposal | None:
    """Leave out the last steps of all sequences, where they are the same in every row and no memory reaches back."""
    model = material.run.model
    kinds = {name: m for name, m in model.named_modules() if isinstance(m, nn.RNNBase)}
    seen: dict[str, tuple[int, int]] = {}

    def see(module: nn.RNNBase, args: tuple[Any, ...]) -> None:
        name = next(name for name, other in kinds.items() if other is module)
        if name not in seen and args and isinstance(args[0], Tensor) and args[0].dim() == 3:
            seen[name] = _same_at_the_end(args[0].transpose(0, 1) if module.batch_first else args[0])

    if not kinds or not material.run.pace.allows("", 1):
        return None
    with torch.no_grad(), undone(model), _hooked(model, list(kinds), see, before=True):
        material.run()
    name, (steps, same) = next(iter(seen.items()), ("", (0, 0)))
    if same < max(PADDED, steps / 2) or _remembers(facts, name, same):
        return None

    def cut(module: nn.RNNBase, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].narrow(1 if module.batch_first else 0, 0, steps - same), *args[1:]

    site = next((s for s, o in _operations(material) if o.module == name), trace.names()[0])
    return _Proposal(
        lambda model, _: _hooked(model, [name], cut, before=True),
        "these left out",
        (site, site),
        {"module": name, "steps": steps, "same_at_the_end": same},
        f"inputs = inputs[{':, ' if kinds[name].batch_first else ''}:-{same}]  # or pack the sequences\n"
        "# if the silence is meant, the memory must reach over it",
    )


def _remembers(facts: Facts, name: str, steps: int) -> bool:
    """Whether a module's memory reaches back over so many steps: then they may be silence that is meant."""
    curves = facts.memory.by_module().get(name, ()) if facts.memory is not None else ()
    return any(curve.horizon.value >= steps for curve in curves)


def _same_at_the_end(x: Tensor) -> tuple[int, int]:
    """Return how many steps there are, and how many of the last are the same as the last one, in every row."""
    other = (x != x[-1:, :1]).flatten(1).any(1).nonzero()
    return len(x), len(x) - 1 - int(other.max()) if len(other) else 0


def _directions(material: Material, trace: Trace, facts: Facts) -> _Proposal | None:
    """Widen a narrow layer that passes one direction on, or draw the weights again behind which there is one."""
    names = [n for n in trace.names()[:-1] if n in facts.relations]
    start = facts.input_relation.rank if facts.input_relation is not None else math.nan
    if not start >= WIDE:
        return None
    maps, model = _maps(material), material.run.model
    for (site, down), (_, up) in itertools.pairwise(maps):
        first, second = model.get_submodule(down), model.get_submodule(up)
        if site not in names or not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
            continue
        width, wide = first.out_features, min(first.in_features, second.out_features)
        before, here = _rank_before(names, site, facts, start), facts.relations[site]
        narrow = width == second.in_features and NARROW * width <= wide and not _reconstructs(material)
        if narrow and here.high <= COLLAPSED and before >= WIDE:
            code = f"model.{down} = torch.nn.Linear({first.in_features}, {wide})\n"
            code += f"model.{up} = torch.nn.Linear({wide}, {second.out_features})"
            words = f"{wide} units in place of {width} between {down} and {up}"
            measured = {"rank": here.rank, "rank_before": before}
            return _Proposal(_widened(down, up, wide), words, (site, site), measured, code)
    found = collapse(names, facts.relations, start)
    if found is None or not found[1] >= WIDE:
        return None
    site = names[found[0]]
    weights = [p for s in trace.sites if s.name == site for p in s.parameters]
    drawn = [name for name in weights if model.get_parameter(name).dim() > 1]
    code = f"for name in {drawn!r}:\n    p = model.get_parameter(name)\n    torch.nn.init.normal_(p, 0.0, p.std())"
    measured = {"rank": facts.relations[site].rank, "rank_before": found[1]}
    return _Proposal(_drawn(drawn), "its weights drawn at random", (site, site), measured, code) if drawn else None


def _rank_before(names: Sequence[str], site: str, facts: Facts, start: float) -> float:
    """Return the rank at the last wide block before one, or of the inputs."""
    before = [facts.relations[n] for n in names[: names.index(site)]]
    return next((r.rank for r in reversed(before) if r.attainable >= WIDE), start)


def _reconstructs(material: Material) -> bool:
    """Whether the targets are of the size of the inputs: a narrow code between the two is what is wanted."""
    batch = material.run.batches[0]
    sizes = {t.numel() for t in batch.tensors()}
    return isinstance(batch.targets, Tensor) and batch.targets.is_floating_point() and batch.targets.numel() in sizes


def _widened(down: str, up: str, wide: int) -> Change:
    @contextmanager
    def change(model: nn.Module, draw: int) -> Iterator[None]:
        first, second = model.get_submodule(down), model.get_submodule(up)
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        reseed(draw)
        try:
            model.set_submodule(down, _like(first, first.in_features, wide))
            model.set_submodule(up, _like(second, wide, second.out_features))
            yield
        finally:
            model.set_submodule(down, first)
            model.set_submodule(up, second)

    return change


def _like(module: nn.Linear, before: int, after: int) -> nn.Linear:
    p = module.weight
    return nn.Linear(before, after, module.bias is not None, device=p.device, dtype=p.dtype)


def _drawn(names: Sequence[str]) -> Change:
    @contextmanager
    def change(model: nn.Module, draw: int) -> Iterator[None]:
        with undone(model):
            for name in names:
                p = model.get_parameter(name)
                generator = torch.Generator(p.device).manual_seed(draw)
                nn.init.normal_(p, 0.0, float(p.detach().std()), generator=generator)
            yield

    return change


def _lost(material: Material, trace: Trace, facts: Facts) -> _Proposal | None:
    """Multiply what one block returns, where the difference between inputs falls by orders there."""
    spread, names = trace["signal_spread"].nanmean(0).tolist(), trace.names()
    model = material.run.model
    known = dict(model.named_modules())
    entered = facts.inputs.rms if facts.inputs is not None else math.nan
    for index, name in enumerate(names[:-1]):
        before, here = spread[index - 1] if index else entered, spread[index]
        if not (0 < here < LOST * before) or name not in known or not math.isfinite(before / here):
            continue
        if any("pool" in o.name or o.name in _MEANS for o in material.execution.operations[name]):
            continue  # what averages many numbers that differ by chance makes them alike
        factor = before / here

        def larger(module: nn.Module, args: Any, out: Any, factor: float = factor) -> Any:
            return factor * out if isinstance(out, Tensor) else None

        return _Proposal(
            lambda model, _, name=name, hook=larger: _hooked(model, [name], hook),  # type: ignore[misc]
            f"what it returns multiplied by {factor:.3g}",
            (name, name),
            {"spread_before": before, "spread": here},
            f"model.{name}.register_forward_hook(lambda module, args, out: {factor:.3g} * out)",
        )
    return None


def _squashed(material: Material, trace: Trace, facts: Facts) -> _Proposal | None:
    """Put tanh in the place of sigmoids between layers, which pass on at most a quarter of a difference."""
    model = material.run.model
    found: dict[str, str] = {}
    readers: dict[int, list[Operation]] = {}
    for _, operation in _operations(material):
        for number in set(operation.inputs):
            readers.setdefault(number, []).append(operation)
    for site, operation in _operations(material):
        module = model.get_submodule(operation.module)
        reading = readers.get(operation.output, [])
        # What is multiplied by something else is a gate, and what nothing reads an output.
        if isinstance(module, nn.Sigmoid) and reading and all(len(set(o.inputs)) == 1 for o in reading):
            found.setdefault(operation.module, site)
    if len(found) < SIGMOIDS or trace.names()[-1] in found.values():
        return None
    sites = list(found.values())
    return _Proposal(
        lambda model, _: _hooked(model, list(found), lambda module, args, out: torch.tanh(args[0])),
        f"tanh in place of the {len(found)} sigmoids",
        (sites[0], sites[-1]),
        {"sigmoids": len(found), "slope": 0.25},
        "\n".join(f"model.{name} = torch.nn.Tanh()" for name in found),
    )


def _unnormalised(material: Material, trace: Trace, facts: Facts) -> _Proposal | None:
    """Normalise what every layer but the last returns, where nothing normalises and differences fade."""
    chosen = not (isinstance(material.factory, Assumed) and material.factory.lr is None)
    maps = _maps(material)
    # What has learned already was scaled by that, and learns otherwise if it is scaled again.
    if not unlearned(facts) or facts.normalised or not chosen or len(maps) < LAYERS:
        return None
    spread = trace["signal_spread"].nanmean(0).tolist()
    if not (0 < spread[-1] < FADED * spread[0]):
        return None
    names, measured = [name for _, name in maps[:-1]], {"spread_first": spread[0], "spread_last": spread[-1]}
    single, prior, depth = len(material.run.batches) < 2, math.inf, trainable_depth(trace)
    if single:
        if isinstance(depth, str) or not depth.high < depth.blocks:
            return None
        told = material.objective.of_prior if material.objective is not None else None
        prior, measured = math.inf if told is None else told, {**measured, "trainable_depth": depth.value}
    return _Proposal(
        lambda model, _: _hooked(model, names, _normalise),
        "normalisation behind each layer",
        (maps[0][0], trace.names()[-1]),
        {**measured, "layers": len(maps)},
        "# behind every layer but the last\ntorch.nn.LayerNorm(dim), or torch.nn.BatchNorm2d(channels)",
        NOTHING if single else BEHIND,
        prior,
    )


def _normalise(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    if isinstance(module, _CONVOLUTIONS):
        return functional.batch_norm(out, None, None, training=True)
    return functional.layer_norm(out, out.shape[-1:])


_REASONS: Mapping[str, Callable[[Material, Trace, Facts], _Proposal | None]] = {
    "padding": _padding,
    "directions": _directions,
    "lost": _lost,
    "squashed": _squashed,
    "unnormalised": _unnormalised,
}
