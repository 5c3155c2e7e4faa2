"""Find the recurrences of a model by running it: recurrent modules of torch, and cells that a loop calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from levada.probe.fused import FusedCall, unrolled
from levada.probe.recorder import first_floating
from levada.probe.recurrence import Recurrence, called_again, cells, replaced_in, runs_sequences, watching

__all__ = ["ROWS", "input_gradients", "recurrences"]

# Rows of a batch that recurrent modules are run on again: each brings a cotangent of its own.
ROWS = 16


def recurrences(model: nn.Module, run: Callable[[], Any]) -> tuple[list[Recurrence], dict[str, str]]:
    """Return a model's recurrences as they ran, and why other recurrent modules could not be followed.

    Found are `nn.RNN`, `nn.LSTM` and `nn.GRU`, each layer and direction by itself, run again from their weights and
    compared with what they returned; and every module with parameters that is called at least four times with what it
    returned before and with something new: a cell in a loop, be it torch's or one's own; and modules that say how they
    are followed, as the layers of `levada.cells.Recurrent`. Modules that run a sequence are followed on 16 rows, cells
    in a loop on all.

    Args:
        model: the model.
        run: calls it, e.g. `lambda: model(x)`; up to two times, without gradients.

    Example:
        >>> model = nn.GRU(3, 5, num_layers=2, bidirectional=True)
        >>> found, missing = recurrences(model, lambda: model(torch.randn(7, 2, 3)))
        >>> [one.site for one in found][:2], found[0].steps, missing
        (['[layer 0, forward]', '[layer 0, backward]'], 7, {})
    """
    modules = dict(model.named_modules())
    fused = [name for name, m in modules.items() if runs_sequences(m)]
    within = tuple(f"{name}." if name else "" for name in fused)
    loops = [name for name in called_again(model, run) if not f"{name}.".startswith(within)]
    if not fused and not loops:
        return [], {}
    chains: dict[str, list[FusedCall]] = {}
    calls: dict[str, list[tuple[Any, ...]]] = {}

    def see(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(module, nn.RNNBase):
            calls.setdefault(name, []).append((args, kwargs, output))
            return
        given = args[0] if args else kwargs["input"]
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        held = chains.setdefault(name, [])
        if not held or not held[-1].continues(state):
            held.append(FusedCall(module, ROWS))
        held[-1].add(given, state, output)

    with watching(model, [*fused, *loops], see), torch.no_grad():
        run()
    found: list[Recurrence] = []
    missing: dict[str, str] = {}
    for name in fused:
        own: Any = modules[name]
        if name in chains:
            told = unrolled(name, max(chains[name], key=lambda call: call.length))
        elif name in calls:
            told = own.recurrences_of_calls(name, calls.pop(name), ROWS)
        else:
            continue
        if isinstance(told, str):
            missing[name] = told
        else:
            found.extend(told)
    loose = cells(modules, calls)
    found.extend(loose)
    for name in set(calls) - {one.module for one in loose}:
        if isinstance(modules[name], nn.RNNCellBase):
            missing[name] = "what it returns is changed before it is given back, or differs from call to call"
    return found, missing


def input_gradients(model: nn.Module, objective: Callable[[], Tensor], found: list[Recurrence]) -> dict[str, Tensor]:
    r"""Return how much of a scalar's gradient arrives at each step's input of each recurrent module.

    $g_t = \sqrt{\operatorname{mean}\,(\partial L / \partial x_t)^2}$, over rows and features.

    Args:
        model: the model.
        objective: calls it and returns a scalar, e.g. its loss.
        found: what `recurrences` found in it.

    Returns:
        Name of a module -> float64 tensor of shape `(steps,)`, the first step first; modules that the scalar does not
        depend on, or that read no floating input, are left out.

    Example:
        >>> model = nn.RNN(3, 5)
        >>> x = torch.randn(7, 2, 3)
        >>> found, _ = recurrences(model, lambda: model(x))
        >>> gradient = input_gradients(model, lambda: model(x)[0][-1].square().sum(), found)[""]
        >>> gradient.shape, bool(gradient[0] < gradient[-1])
        (torch.Size([7]), True)
    """
    names = list(dict.fromkeys(one.module for one in found))
    modules = dict(model.named_modules())
    seen: dict[str, list[tuple[Tensor, Any]]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., Any]:
        def followed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs.get("input", kwargs)
            x = given.data if isinstance(given, PackedSequence) else _read(module, given, args, kwargs)
            if x is None:
                return None
            live = x if x.requires_grad else x.detach().requires_grad_()
            seen[name].append((live, given))
            if isinstance(given, PackedSequence):
                packed = given._replace(data=live)
                return ((packed, *args[1:]), kwargs) if args else (args, {**kwargs, "input": packed})
            return replaced_in(args, {id(x): live}), replaced_in(kwargs, {id(x): live})

        return followed

    handles = [modules[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        with torch.enable_grad():
            value = objective()
            wanted = [live for entries in seen.values() for live, _ in entries]
            if not wanted or not value.requires_grad:
                return {}
            gradients = iter(torch.autograd.grad(value, wanted, allow_unused=True))
    finally:
        for handle in handles:
            handle.remove()
    profiles = {}
    for name, entries in seen.items():
        arrived = [(next(gradients), given) for _, given in entries]
        steps = [s for g, given in arrived for s in _by_step(modules[name], g, given)]
        if steps and any(g is not None for g, _ in arrived):
            profiles[name] = torch.tensor(steps, dtype=torch.float64)
    return profiles


def _read(module: nn.Module, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return what a module reads at a step: its first floating argument."""
    del module
    return given if isinstance(given, Tensor) and given.is_floating_point() else first_floating((args, kwargs))


def _by_step(module: nn.Module, gradient: Tensor | None, given: Any) -> list[float]:
    """Return the root mean square of a gradient at each step of one call."""
    parts: Sequence[Tensor | None]
    if isinstance(given, PackedSequence):
        sizes = [int(n) for n in given.batch_sizes]
        parts = [None] * len(sizes) if gradient is None else list(torch.split(gradient, sizes))
    elif runs_sequences(module):
        time = 1 if getattr(module, "batch_first", False) and given.dim() == 3 else 0
        parts = [None] * given.shape[time] if gradient is None else list(gradient.unbind(time))
    else:
        parts = [gradient]
    return [0.0 if part is None else float(part.detach().double().square().mean().sqrt()) for part in parts]
