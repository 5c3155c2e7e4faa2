"""Activations that theory knows by name, and how any other becomes one: a function, and where its slope jumps."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError

__all__ = ["Activation", "ActivationLike", "as_activation", "leaky_relu"]

ClosedForm: TypeAlias = Callable[[float, float], float]


@final
@dataclass(frozen=True, eq=False)
class Activation:
    r"""An elementwise function $\phi$ with its slopes $\phi'$ and $\phi''$, which come from autograd.

    Attributes:
        name: what messages call it.
        function: maps a float64 tensor to one of the same shape, elementwise.
        kinks: where $\phi'$ jumps; quadrature is split there. Zero is always split.
        pair: closed form of $E[\phi(u_1)\phi(u_2)]$ as a function of (variance, correlation), if there is one.
        slope_pair: closed form of $E[\phi'(u_1)\phi'(u_2)]$, likewise.

    Example:
        >>> hard = Activation("hard_tanh", torch.nn.functional.hardtanh, kinks=(-1.0, 1.0))
        >>> hard.slope(torch.tensor([0.5, 2.0], dtype=torch.float64)).tolist()
        [1.0, 0.0]
    """

    name: str
    function: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...] = ()
    pair: ClosedForm | None = None
    slope_pair: ClosedForm | None = None

    def value(self, u: Tensor) -> Tensor:
        r"""$\phi(u)$.

        Args:
            u: float64 tensor of any shape.

        Returns:
            A tensor of the same shape.

        Raises:
            UsageError: if the function does not keep shape and dtype.
        """
        with torch.inference_mode(False), torch.no_grad():
            return self._checked(u.clone())

    def slope(self, u: Tensor) -> Tensor:
        r"""$\phi'(u)$, by autograd.

        Args:
            u: float64 tensor of any shape.

        Returns:
            A tensor of the same shape.
        """
        return self._derivative(u, order=1)

    def curvature(self, u: Tensor) -> Tensor:
        r"""$\phi''(u)$ away from kinks, by autograd applied twice.

        Args:
            u: float64 tensor of any shape.

        Returns:
            A tensor of the same shape.
        """
        return self._derivative(u, order=2)

    def _checked(self, u: Tensor) -> Tensor:
        value = self.function(u)
        if not isinstance(value, Tensor) or value.shape != u.shape or value.dtype != u.dtype:
            came = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"activation {self.name!r} must map a float64 tensor to a float64 tensor of the same shape, "
                f"elementwise; for {tuple(u.shape)} it gave {came}."
            )
        return value

    def _derivative(self, u: Tensor, order: int) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = u.clone().requires_grad_()
            value = self._checked(leaf)
            for remaining in reversed(range(order)):
                if not value.requires_grad:  # a linear piece: its slope no longer depends on u
                    return torch.zeros_like(u)
                (value,) = torch.autograd.grad(value.sum(), leaf, create_graph=remaining > 0, materialize_grads=True)
            return value.detach()


ActivationLike: TypeAlias = str | Activation | Callable[[Tensor], Tensor]


def _arc_cosine(q: float, c: float) -> float:
    """E[relu(u1) relu(u2)], with the angle to the opposite direction, which keeps its digits near c = -1."""
    angle = math.acos(-c)
    if angle < 0.05:
        return q / (2 * math.pi) * angle**3 * (1 / 3 - angle**2 / 30 + angle**4 / 840)
    return q / (2 * math.pi) * (math.sin(angle) - angle * math.cos(angle))


def _both_positive(c: float) -> float:
    return math.acos(-c) / (2 * math.pi)


def leaky_relu(slope: float = 0.01) -> Activation:
    r"""$\phi(u) = \max(u, 0) + s \min(u, 0)$.

    Args:
        slope: $s$, the slope for negative arguments; 0 gives ReLU, 1 the identity.

    Returns:
        The activation, with closed forms for its correlated moments.

    Example:
        >>> from levada.theory import second_moment
        >>> round(second_moment(leaky_relu(0.2), q=1.0), 12)   # (1 + 0.2^2) / 2
        0.52

    Source: Cho and Saul 2009 (arc-cosine kernels), extended to a slope on the negative side.
    """

    def pair(q: float, c: float) -> float:
        return (1 + slope**2) * _arc_cosine(q, c) - 2 * slope * _arc_cosine(q, -c)

    def slope_pair(q: float, c: float) -> float:
        return (1 + slope**2) * _both_positive(c) + 2 * slope * _both_positive(-c)

    return Activation(
        f"leaky_relu({slope:g})", lambda u: functional.leaky_relu(u, slope), (0.0,), pair=pair, slope_pair=slope_pair
    )


_KNOWN = {
    known.name: known
    for known in (
        Activation("linear", torch.clone, pair=lambda q, c: q * c, slope_pair=lambda q, c: 1.0),
        Activation("relu", torch.relu, (0.0,), pair=_arc_cosine, slope_pair=lambda q, c: _both_positive(c)),
        Activation("tanh", torch.tanh),
        Activation("sigmoid", torch.sigmoid),
        Activation(
            "erf",
            torch.erf,
            pair=lambda q, c: 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)),
            slope_pair=lambda q, c: 4 / math.pi / math.sqrt((1 + 2 * q * (1 - c)) * (1 + 2 * q * (1 + c))),
        ),
        Activation("gelu", functional.gelu),
        Activation("silu", functional.silu),
        Activation("softplus", functional.softplus, kinks=(20.0,)),  # PyTorch's threshold: linear above 20
        Activation("elu", functional.elu),
        Activation("selu", functional.selu, (0.0,)),
        Activation("mish", functional.mish),
        Activation("hardtanh", functional.hardtanh, (-1.0, 1.0)),
    )
} | {"leaky_relu": leaky_relu()}

# Where the slopes of what PyTorch offers jump, other than at zero: functions as they are called without options.
_FUNCTIONS: dict[Callable[..., Tensor], tuple[float, ...]] = {
    functional.hardtanh: (-1.0, 1.0),
    functional.relu6: (0.0, 6.0),
    functional.hardsigmoid: (-3.0, 3.0),
    functional.hardswish: (-3.0, 3.0),
    functional.hardshrink: (-0.5, 0.5),
    functional.softshrink: (-0.5, 0.5),
    functional.softplus: (20.0,),
}
_MODULES: dict[type[nn.Module], Callable[[Any], tuple[float, ...]]] = {
    nn.Hardtanh: lambda module: (module.min_val, module.max_val),  # nn.ReLU6 too
    nn.Hardsigmoid: lambda module: (-3.0, 3.0),
    nn.Hardswish: lambda module: (-3.0, 3.0),
    nn.Hardshrink: lambda module: (-module.lambd, module.lambd),
    nn.Softshrink: lambda module: (-module.lambd, module.lambd),
    nn.Softplus: lambda module: (module.threshold / module.beta,),
    nn.Threshold: lambda module: (module.threshold,),
}


def _kinks(function: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    if isinstance(function, nn.Module):
        return next((kinks(function) for kind, kinks in _MODULES.items() if isinstance(function, kind)), ())
    return _FUNCTIONS.get(function, ()) if isinstance(function, Hashable) else ()


def as_activation(activation: ActivationLike) -> Activation:
    """The activation that a name or a callable stands for.

    Args:
        activation: a known name, an `Activation`, or any elementwise callable (an `nn.Module` too). Say where the
            slope of a callable of your own jumps, other than at zero, by `Activation(name, function, kinks)` instead;
            of PyTorch's it is known.

    Returns:
        The `Activation`.

    Raises:
        UsageError: if the name is not known, or the argument is no callable.

    Example:
        >>> as_activation("tanh").name
        'tanh'
        >>> as_activation("sine")
        Traceback (most recent call last):
        levada._errors.UsageError: activation 'sine' is not known. Known: elu, erf, gelu, hardtanh, leaky_relu, \
linear, mish, relu, selu, sigmoid, silu, softplus, tanh. Or give a callable, such as torch.sin.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in _KNOWN:
            raise UsageError(
                f"activation {activation!r} is not known. Known: {', '.join(sorted(_KNOWN))}. "
                "Or give a callable, such as torch.sin."
            )
        return _KNOWN[activation]
    if callable(activation):
        name = getattr(activation, "__name__", type(activation).__name__)
        return Activation(name, activation, _kinks(activation))
    raise UsageError(f"activation must be a name or a callable, got {type(activation).__name__}.")
