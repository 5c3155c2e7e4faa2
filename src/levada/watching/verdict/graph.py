"""Where autograd's graph of a layer loses the gradient of a weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

__all__ = ["STEP_FUNCTIONS", "lost_in"]

_FLAT: Final = frozenset({"Sign", "Sgn", "Round", "Floor", "Ceil", "Trunc", "Bernoulli"})  # a derivative of zero
STEP_FUNCTIONS: Final = frozenset({name.lower() for name in _FLAT} | {"div"})
"""What functions with a derivative of zero are called here; a division is one that rounds."""
_MOST: Final = 512  # nodes that are read; a layer whose graph is larger is not judged


def lost_in(begin: Iterable[Any], given: Collection[Any], p: Tensor, layer: nn.Module) -> list[tuple[Any, str]]:
    """Return the nodes of a layer's graph that the gradient of a weight may get to, and no further.

    Args:
        begin: the nodes of its outputs.
        given: those of its inputs, at which its graph ends.
        p: the weight.
        layer: it.

    Returns:
        Functions with a derivative of zero, or of classes of their own, and what they are called, if each way from
        there to the weight leads through one; or products with a constant of its shape, and "", if no way leads to it;
        or none.

    Example:
        >>> import torch
        >>> layer, x = nn.Linear(2, 2), torch.ones(1, 2)
        >>> y = nn.functional.linear(x, layer.weight.sign(), layer.bias)
        >>> [name for _, name in lost_in([y.grad_fn], (), layer.weight, layer)]
        ['sign']
        >>> lost_in([layer(x).grad_fn], (), layer.weight, layer)
        []
    """
    flat, constant = list[Any](), list[Any]()
    for node in _nodes(begin, given, stop=_what):
        if node is None or _is_of(node, p):
            return []  # too many, or a gradient gets there
        if _what(node):
            flat.append(node)
        elif _multiplies(node, p):
            constant.append(node)
    named = [(node, _what(node)) for node in _nodes(flat, given) if node is not None and _what(node)]
    through = [each for each in named if any(one is not None and _is_of(one, p) for one in _nodes(each[:1], given))]
    return through or ([] if _has_another(layer, p) else [(node, "") for node in constant])


def _nodes(begin: Iterable[Any], end: Collection[Any], *, stop: Any = None) -> Iterator[Any]:
    """Yield the nodes from some on, not past what stops, and None if they are too many."""
    pending, seen = [node for node in begin if node is not None], set[Any]()
    while pending:
        node = pending.pop()
        if node in seen or node in end:
            continue
        if len(seen) >= _MOST:
            yield None
            return
        seen.add(node)
        yield node
        if stop is None or not stop(node):
            pending += [one for one, _ in node.next_functions if one is not None]


def _is_of(node: Any, p: Tensor) -> bool:
    return getattr(node, "variable", None) is p


def _what(node: Any) -> str:
    """Return what a function is called whose derivative is zero, or that a class gives; "" if it is another."""
    name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
    if isinstance(node, BackwardCFunction):
        return "" if name in {"CompiledFunction", "CheckpointFunction"} else name
    if name in _FLAT:
        return name.lower()
    return "div" if name == "Div" and getattr(node, "_saved_rounding_mode", None) else ""


def _multiplies(node: Any, p: Tensor) -> bool:
    """Return whether it is a product with a constant of a weight's shape, or a convolution with a constant."""
    name, inputs = type(node).__name__, [one for one, _ in node.next_functions]
    if name == "ConvolutionBackward0":
        return p.dim() > 2 and inputs[1] is None
    if name not in ("AddmmBackward0", "MmBackward0") or inputs[-1] is not None or p.dim() != 2:
        return False
    return sorted(node._saved_mat2_sym_sizes) == sorted(p.shape)


def _has_another(layer: nn.Module, p: Tensor) -> bool:
    """Return whether a layer holds another constant of a weight's shape, which it may multiply by."""
    held = (*layer.parameters(), *layer.buffers())
    return any(one is not p and not one.requires_grad and sorted(one.shape) == sorted(p.shape) for one in held)
