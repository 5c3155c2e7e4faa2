"""How large parameters are beside what their fan-in, or the signal that they are added to, asks for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from levada.probe.functions import canonical_name

__all__ = ["EPS_CODE", "Suspect", "suspects"]

# sqrt(fan) * rms of what is drawn: PyTorch's default has 0.58, He 1.4, normal of deviation 0.02 at width 64 0.16, and
# with GPT-2's factor for 12 layers and width 32 0.024, a SIREN 0.05, deviation 0.02 at width 12288 2.2.
LOW, HIGH = 0.02, 3.0
# Embeddings are drawn with deviation 1 or 0.02, by 1 / number of rows, and uniformly up to 1e-4 (RWKV).
LOW_ROWS, HIGH_ROWS = 2e-5, 10.0
# Norms multiply by one; zero, as for a branch that starts closed, is nobody's mistake.
LOW_GAIN, HIGH_GAIN = 0.03, 10.0
# A bias this many times the signal that it is added to leaves the next layer a constant.
BIAS = 3.0
# One constant from here to 0 is how gates start closed (Srivastava et al. 2015: -1 to -10); dead rectifiers tell of
# themselves.
CLOSED = -10.0
# sigmoid(-3) = 0.05: a forget gate keeps 5 % a step. Others are drawn up to log(longest lag) for long memories.
FORGETS, STUCK = -3.0, 4.5
# Rows, or columns, that differ by less than this part of their size are the same.
SAME = 1e-3
# What is this small opens with its first step, as zero does, unless most of the model is small.
ZERO = 1e-4
# Normalisations add 1e-3 at most to the variance; ten times the variance itself leaves a third of the signal.
LARGE_EPS, EPS = 1e-2, 10.0
# Smaller matrices have too few elements to tell.
FEW = 4
# Maps between fewer, as between heads, are drawn with deviation 0.02 like all others.
MANY = 8
EPS_CODE = "p.eps"
FAN, GAIN = "sqrt(fan) * rms", "rms of a norm's weight"
_MAPS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_KNOWN = (*_MAPS, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_GATES: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.LSTM: ("input", "forget", "cell", "output"),
    nn.LSTMCell: ("input", "forget", "cell", "output"),
    nn.GRU: ("reset", "update", "new"),
    nn.GRUCell: ("reset", "update", "new"),
}


@dataclass(frozen=True, slots=True)
class Suspect:
    """A parameter that lies far off what its place asks for.

    Attributes:
        name: its qualified name; of a normalisation's eps, that of the module with ".eps".
        quantity: what was measured, in words.
        value: that.
        low: the least that is in use.
        high: the most that is in use.
        code: draws it again: a statement in `p`, the parameter or the normalisation, and `generator`.
    """

    name: str
    quantity: str
    value: float
    low: float
    high: float
    code: str

    @property
    def near(self) -> str:
        """The name of a parameter at its place."""
        return f"{self.name[:-3]}weight" if self.of_eps else self.name

    @property
    def of_eps(self) -> bool:
        """Whether it is a normalisation's eps, and no parameter."""
        return self.code.startswith(EPS_CODE)


def suspects(
    model: nn.Module, run: Callable[[], Any], head: Iterable[str] = (), *, chain: bool = False
) -> tuple[Suspect, ...]:
    """Return the learning parameters that no published initialisation would draw like that.

    Of matrices and convolutions sqrt(fan) * rms is asked for: below the range with the larger of fan-in and fan-
    out, or above it with the smaller. What is all zero is passed over: branches, heads, gates and low-rank
    corrections start so, and open with their first step; so are what the model multiplies by a number that makes up
    for the scale, as a SIREN does, and a bias that is one constant between -10 and 0 or goes into a sigmoid, as
    gates start closed; so are depthwise kernels that are equal, as one that blurs; so are a small last layer and
    what is next to zero, unless most of the model is small, and a norm's small weight, as a branch ends with,
    unless all are. In a chain nothing goes around what is zero or small, and it is suspected but for the last
    layer. Of normalisations eps is compared with the variance that it is added to. Judged are the modules of
    `torch.nn` that hold matrices, norms, and the linear map that GPT-2 is written with in transformers: what other
    modules hold has a meaning that is not known.

    Args:
        model: the model.
        run: runs it once, from a known random state; called if a bias or an eps could be large beside its signal, or
            if a map's scale is unusual.
        head: names of the last layer's parameters.
        chain: whether every operation reads one signal: no skip, gate or attention.

    Cost:
        A pass over the parameters, and a forward pass if a bias or an eps could be large, or a map's scale is unusual.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        >>> nn.init.normal_(net[2].weight, 0.0, 1e-3) is net[2].weight
        True
        >>> [(s.name, s.quantity) for s in suspects(net, lambda: net(torch.ones(4, 16)))]
        [('2.weight', 'sqrt(fan) * rms')]
    """
    last = frozenset(head)
    modules = {name: module for name, module in model.named_modules() if module._parameters}
    found: dict[str, Suspect] = {}
    large: dict[str, nn.Module] = {}
    with torch.no_grad():
        for path, module in modules.items():
            found |= {suspect.name: suspect for suspect in _of_module(path, module, chain)}
            if _could_be_large(module):
                large[path] = module
        small = [s for s in found.values() if s.quantity == FAN and s.value < s.low]
        if len(small) <= sum(p.dim() > 1 for p in model.parameters()) / 2:
            for suspect in small:
                if (suspect.value < ZERO and not chain) or suspect.name in last:
                    del found[suspect.name]
        gains = {n for n, s in found.items() if s.quantity == GAIN and s.value < s.low}
        if not chain and len(gains) < sum(_is_norm(module) for module in modules.values()):
            for name in gains:
                del found[name]  # one that a branch ends with may have started at zero
        damped = {path: m for path, m in model.named_modules() if _eps(m) > LARGE_EPS}
        maps = {n: n.rpartition(".")[0] for n, s in found.items() if s.quantity == FAN}
        if large or damped or maps:
            readers = _Readers()
            watched = {path: modules[path] for path in (*large, *maps.values()) if isinstance(modules[path], _MAPS)}
            beside = _beside_signals(large, damped, readers.around(run, watched))
            for name, path in maps.items():
                if LOW <= found[name].value * abs(readers.factors.get(path, 0.0)) <= HIGH:
                    del found[name]
            found |= {s.name: s for s in beside if s.name.rpartition(".")[0] not in readers.gates}
        return tuple(_at_peers_scale(suspect, modules, found) for suspect in found.values())


def _of_module(path: str, module: nn.Module, chain: bool) -> Iterator[Suspect]:
    yield from _gates(path, module)
    for key, p in module.named_parameters(recurse=False):
        name = f"{path}.{key}" if path else key
        if not p.requires_grad or not p.is_floating_point() or p.numel() < FEW:
            continue
        if not bool(p.any()) and not (chain and isinstance(module, _MAPS) and p.dim() > 1):
            continue
        rms = _rms(p)
        if not math.isfinite(rms):
            continue
        if p.dim() < 2:
            if _is_norm(module) and key == "weight" and not LOW_GAIN <= rms <= HIGH_GAIN:
                yield Suspect(name, GAIN, rms, LOW_GAIN, HIGH_GAIN, "nn.init.ones_(p)")
            if _is_norm(module) and key == "bias" and rms > BIAS * (own := _own(module)) > 0:
                yield Suspect(name, "a norm's bias over its weight", rms / own, 0.0, BIAS, "nn.init.zeros_(p)")
        elif not _is_known(module):
            continue
        elif rms > 0 and not _depthwise(module) and _same(p):
            yield Suspect(name, "difference between rows or columns", 0.0, SAME, math.inf, _code(module, key, p))
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            if not LOW_ROWS <= rms <= HIGH_ROWS:
                yield Suspect(name, "rms of an embedding", rms, LOW_ROWS, HIGH_ROWS, _code(module, key, p))
        else:
            small, big = (math.sqrt(fan) * rms for fan in sorted(_fans(p)))
            if (big < LOW and max(_fans(p)) >= MANY) or small > HIGH:
                value = big if big < LOW else small
                yield Suspect(name, FAN, value, LOW, HIGH, _code(module, key, p))


def _gates(path: str, module: nn.Module) -> Iterator[Suspect]:
    """Judge the gates of a cell by the mean of their two biases, which are added."""
    gates = next((names for kind, names in _GATES.items() if isinstance(module, kind)), ())
    for key, p in module.named_parameters(recurse=False):
        if not gates or not key.startswith("bias_ih") or not p.requires_grad:
            continue
        other = module._parameters.get(key.replace("_ih", "_hh"))
        if other is None:
            continue
        means = dict(zip(gates, ((p + other).reshape(len(gates), -1).mean(1)).tolist(), strict=True))
        for gate, mean in means.items():
            # Input gates are drawn as closed as forget gates are open, for long memories.
            paired = gate == "input" and -mean <= means["forget"] + 1
            low, high = (FORGETS, math.inf) if gate == "forget" else (-STUCK, STUCK)
            if not paired and not low <= mean <= high:
                code = f"nn.init.uniform_(p, -{_bound(module):.4g}, {_bound(module):.4g}, generator=generator)"
                for part in (key, key.replace("_ih", "_hh")):
                    name = f"{path}.{part}" if path else part
                    yield Suspect(name, f"mean bias of the {gate} gate", mean, low, high, code)
                break


class _Readers(TorchFunctionMode):
    """Sees which maps' outputs go into a sigmoid, as gates, and by which number others are multiplied, as a SIREN's."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: set[str] = set()
        self.factors: dict[str, float] = {}
        self._made: dict[int, tuple[str, Tensor]] = {}  # held, so that their ids stay theirs

    def around(self, run: Callable[[], Any], watched: Mapping[str, nn.Module]) -> Callable[[], Any]:
        """Return `run` with an eye on these modules."""

        def see(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                self._made[id(out)] = path, out

            return hook

        def seen() -> Any:
            handles = [module.register_forward_hook(see(path)) for path, module in watched.items()]
            try:
                with self:
                    return run()
            finally:
                self._made.clear()
                for handle in handles:
                    handle.remove()

        return seen

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        for place, value in enumerate(args[:2]):
            if id(value) in self._made:
                path, name = self._made[id(value)][0], canonical_name(func)
                other = args[1 - place] if len(args) > 1 else None
                if name in ("sigmoid", "hardsigmoid"):
                    self.gates.add(path)
                elif name == "mul" and isinstance(other, int | float):
                    self.factors.setdefault(path, float(other))
        return func(*args, **(kwargs or {}))


def _could_be_large(module: nn.Module) -> bool:
    bias = module._parameters.get("bias")
    if not isinstance(module, _MAPS) or bias is None or not bias.requires_grad:
        return False
    weight: Tensor = module.weight  # of a normed, parametrised or pruned layer no parameter
    if bias.numel() < FEW or not bool(weight.any()):
        return False
    if CLOSED <= float(bias.min()) == float(bias.max()) <= 0:
        return False
    return _rms(bias) > max(1.0, math.sqrt(min(_fans(weight))) * _rms(weight))


def _beside_signals(
    biased: Mapping[str, nn.Module], damped: Mapping[str, nn.Module], run: Callable[[], Any]
) -> list[Suspect]:
    """Measure the signal that each bias, and the variance that each eps, is added to."""
    sizes: dict[str, float] = {}
    variances: dict[str, float] = {}

    def see(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            bias: Any = module.bias
            weight: Any = module.weight
            behind = 0 if isinstance(module, nn.Linear | nn.Bilinear) else weight.dim() - 2  # axes after the channels
            sizes.setdefault(path, _rms(out - bias.view(-1, *[1] * behind)))

        return hook

    def feel(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            variances.setdefault(path, _variance(module, args[0].detach().double()))

        return hook

    handles = [module.register_forward_hook(see(path)) for path, module in biased.items()]
    handles += [module.register_forward_pre_hook(feel(path)) for path, module in damped.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for path, size in sizes.items():
        value = _rms(biased[path].get_parameter("bias")) / size if size > 0 else math.inf
        if value > BIAS:
            name = f"{path}.bias" if path else "bias"
            found.append(Suspect(name, "rms of the bias over its signal's", value, 0.0, BIAS, "nn.init.zeros_(p)"))
    for path, variance in variances.items():
        if (eps := _eps(damped[path])) > EPS * variance > 0:
            name = f"{path}.eps" if path else "eps"
            found.append(Suspect(name, "eps over the variance", eps / variance, 0.0, EPS, f"{EPS_CODE} = 1e-5"))
    return found


def _variance(module: nn.Module, x: Tensor) -> float:
    """Return the median of what a normalisation adds eps to."""
    if isinstance(module, nn.LayerNorm):
        found = x.flatten(x.dim() - len(module.normalized_shape)).var(-1, correction=0)
    elif isinstance(module, nn.GroupNorm):
        found = x.reshape(len(x), module.num_groups, -1).var(-1, correction=0)
    else:
        found = x.transpose(0, 1).flatten(1).var(-1, correction=0)
    return float(found.median())


def _eps(module: nn.Module) -> float:
    """Return the eps of a normalisation that uses the inputs' own variance; 0 of anything else."""
    own = isinstance(module, nn.LayerNorm | nn.GroupNorm) or (
        isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_var is None)
    )
    eps: Any = module.eps if own else 0.0
    return float(eps)


def _at_peers_scale(suspect: Suspect, modules: Mapping[str, nn.Module], found: Mapping[str, Suspect]) -> Suspect:
    """Let it be drawn as what is alike in the model is, if anything is and is not suspected."""
    path, _, key = suspect.name.rpartition(".")
    if "normal_" not in suspect.code:
        return suspect
    module = modules[path]
    p = module.get_parameter(key)
    if p.dim() < 2:
        return suspect
    peers = [
        math.sqrt(math.prod(q.shape[1:])) * _rms(q)
        for name, other in modules.items()
        if type(other) is type(module)
        for part, q in other.named_parameters(recurse=False)
        if part.rstrip("0123456789") == key.rstrip("0123456789")
        and q.dim() == p.dim()
        and q.any()
        and (f"{name}.{part}" if name else part) not in found
    ]
    if not peers:
        return suspect
    std = statistics.median(peers) / math.sqrt(math.prod(p.shape[1:]))
    return Suspect(suspect.name, suspect.quantity, suspect.value, suspect.low, suspect.high, _normal(std))


def _code(module: nn.Module, key: str, p: Tensor) -> str:
    """Return how the module's class draws it by default, up to the shape of the distribution."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _normal(1.0)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _normal(_bound(module) / math.sqrt(3))
    if isinstance(module, nn.MultiheadAttention):
        return _normal(math.sqrt(2 / (p.shape[0] + p.shape[1])))
    return _normal(1 / math.sqrt(3 * math.prod(p.shape[1:])))


def _normal(std: float) -> str:
    return f"nn.init.normal_(p, 0.0, {std:.4g}, generator=generator)"


def _bound(module: nn.Module) -> float:
    size: Any = module.hidden_size
    return 1 / math.sqrt(size)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), Tensor)


def _own(module: nn.Module) -> float:
    weight: Any = module.weight
    return _rms(weight)


def _depthwise(module: nn.Module) -> bool:
    """Whether each channel has a kernel of its own, which may be the same for all, as one that blurs."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, (*_KNOWN, nn.Embedding, nn.EmbeddingBag)) or type(module).__name__ == "Conv1D"


def _fans(p: Tensor) -> tuple[int, int]:
    rest = math.prod(p.shape[2:])
    return p.shape[1] * rest, p.shape[0] * rest


def _rms(p: Tensor) -> float:
    return float(torch.linalg.vector_norm(p, dtype=torch.float64)) / math.sqrt(p.numel())


def _same(p: Tensor) -> bool:
    """Whether all rows, or all columns, are the same, and there are several."""
    flat = p.flatten(1)
    if min(flat.shape) < FEW:
        return False
    size = SAME * float(flat.abs().max())
    return any(bool(((m - m[:1]).abs() <= size).all()) for m in (flat, flat.T))
