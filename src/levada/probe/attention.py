r"""What attention attends to: entropy, largest logit and slope of the softmax, wherever a model computes one.

The weights of `nn.MultiheadAttention` and of `scaled_dot_product_attention` are never in memory as a model runs; they
are computed again from queries and keys, for some rows and queries. A softmax of products of two activations, as
attention is written out by hand, is taken as it comes.
"""

from __future__ import annotations

import inspect
import math
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from levada.probe.functions import canonical_name
from levada.probe.hook import Hook
from levada.probe.operation import Execution
from levada.probe.recorder import tensors

__all__ = [
    "ATTENTION",
    "Attention",
    "AttentionMode",
    "attention",
    "attention_by_site",
    "sees_itself_alone",
    "token_similarity",
]

ATTENTION = frozenset({"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"})
# Rows of a batch and queries of a row that are looked at: more would cost time and tell nothing new.
MOST_ROWS, MOST_QUERIES = 4, 64
_Most: TypeAlias = tuple[int, int]
# Below the largest logit of a row by this much, a key is masked and not merely unlikely.
MASKED = 8e3
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
# What leaves logits logits: masks, scales, casts and other shapes.
_ELEMENTWISE = frozenset({"mul", "div", "add", "sub", "masked_fill", "where", "clamp", "tanh"})
_CASTS = frozenset({"to", "type", "type_as", "float", "half", "bfloat16", "double", "clone", "contiguous"})
_SHAPES = frozenset({"view", "reshape", "expand", "unsqueeze", "squeeze", "getitem", "transpose", "permute"})
_KEEPS = _ELEMENTWISE | _CASTS | _SHAPES


@dataclass(frozen=True, slots=True)
class Attention:
    """One call of an attention, averaged over rows, heads and queries that see at least two keys.

    Attributes:
        module: qualified name of the innermost module in whose forward it ran.
        entropy: entropy of the weights over its largest value, ln n for n visible keys: 1 if all are equal, 0 for one.
        lowest: the same of the head where it is lowest.
        slope: 1 minus the sum of squared weights, the trace of the softmax's Jacobian: what of a gradient reaches
            queries and keys. 1 - 1/n if all are equal, 0 for one.
        logit_max: largest absolute logit.
        logit_std: root mean square over queries of the logits' standard deviation over keys.
        keys: mean number of visible keys.
    """

    module: str
    entropy: float
    lowest: float
    slope: float
    logit_max: float
    logit_std: float
    keys: float

    @property
    def slope_predicted(self) -> float | None:
        r"""Theory's slope for n independent normal logits of this deviation, $\sqrt{2 \ln n} / \sigma$; None below 1.

        From $\sigma = \sqrt{2 \ln n}$ on few weights hold the whole sum, as in the frozen phase of the random energy
        model, and the mean of the sum of squared weights is $1 - \sqrt{2 \ln n}/\sigma$ for large n; from
        64 keys on draws agree within a third.

        Source: Derrida 1981, Physical Review B 24, 2613; Gross and Mezard 1984, Nuclear Physics B 240, 431.
        """
        critical = math.sqrt(2 * math.log(max(self.keys, 2.0)))
        return critical / self.logit_std if self.logit_std > critical else None


def attention(logits: Tensor, module: str = "") -> Attention | None:
    r"""Return what a softmax over the last dimension makes of logits; None if no query sees two keys.

    Args:
        logits: what is masked is at -inf, or far below the largest.
        module: the name to tell.

    Shape:
        `(batch, heads, queries, keys)`.

    Example:
        >>> even = attention(torch.zeros(1, 1, 2, 4))
        >>> even.entropy, even.slope, even.keys
        (1.0, 0.75, 4.0)
        >>> round(attention(torch.eye(4)[None, None] * 100.0).entropy, 9)
        0.0
    """
    logits = logits.detach().float()
    visible = logits > logits.amax(-1, keepdim=True) - MASKED
    count = visible.sum(-1)
    seen = count > 1
    if not bool(seen.any()) or bool(logits.isnan().any()):
        return None
    logits = logits.masked_fill(~visible, -math.inf)
    logs = logits.log_softmax(-1).masked_fill(~visible, 0.0)
    weights = logs.exp().masked_fill(~visible, 0.0)
    entropy = (-(weights * logs).sum(-1) / count.clamp_min(2).log()).masked_fill(~seen, 0.0)
    of_heads = entropy.sum((0, 2)) / seen.sum((0, 2)).clamp_min(1)
    known = seen.sum((0, 2)) > 0
    held = logits.masked_fill(~visible, 0.0)
    apart = (held - held.sum(-1, keepdim=True) / count.clamp_min(1)[..., None]).masked_fill(~visible, 0.0)
    variance = apart.square().sum(-1) / count.clamp_min(1)
    mean_slope = float((1 - weights.square().sum(-1))[seen].mean())
    return Attention(
        module=module,
        entropy=float(entropy[seen].mean()),
        lowest=float(of_heads[known].min()),
        slope=mean_slope,
        logit_max=float(held.abs().amax()),
        logit_std=float(variance[seen].mean().sqrt()),
        keys=float(count[seen].float().mean()),
    )


def sees_itself_alone(logits: Tensor) -> bool:
    """Return whether a mask leaves every query one key, and each later query a later one: the token itself.

    Where there is one query or one key, or all queries see the same key, as of a padded sequence of one token, it is
    not so.

    Args:
        logits: what is masked is at -inf, or far below the largest.

    Shape:
        `(batch, heads, queries, keys)`.

    Example:
        >>> masked = torch.full((4, 4), -torch.inf)
        >>> [sees_itself_alone(m[None, None]) for m in (masked.fill_diagonal_(0.0), masked.triu(1), masked[:1])]
        [True, False, False]
    """
    logits = logits.detach().float()
    visible = logits > logits.amax(-1, keepdim=True) - MASKED
    if logits.shape[-2] < 2 or bool(logits.isnan().any()) or not bool((visible.sum(-1) == 1).all()):
        return False
    bounded = bool((logits.masked_fill(~visible, 0.0).abs() < MASKED).all())  # else the logits hide, and no mask
    return bounded and bool((visible.float().argmax(-1).diff(dim=-1) > 0).all())


def token_similarity(signal: Tensor) -> float:
    r"""Return the mean cosine between two tokens of one sequence; NaN without tokens.

    $$ \frac{1}{T (T-1)} \sum_{s \ne t} \frac{x_s \cdot x_t}{\|x_s\| \|x_t\|}
       = \frac{\|\sum_t u_t\|^2 - T}{T (T-1)}, \qquad u_t = x_t / \|x_t\|. $$

    Args:
        signal: floating.

    Shape:
        `(batch, tokens, dim)`.

    Example:
        >>> token_similarity(torch.ones(2, 3, 4)), token_similarity(torch.eye(3)[None])
        (1.0, 0.0)
    """
    if signal.dim() != 3 or signal.shape[1] < 2:
        return math.nan
    values = signal.detach()[: 16 * MOST_ROWS].double()
    units = values / torch.linalg.vector_norm(values, dim=-1, keepdim=True)  # a token of zeros has no direction: NaN
    count = units.shape[1]
    return float(((units.sum(1).square().sum(-1) - count) / (count * (count - 1))).nanmean())


@final
class AttentionMode(TorchFunctionMode):
    """Sees the logits of every softmax of attention while a model runs.

    Args:
        model: the model.
        see: is given the name of the innermost module and the logits of some rows and queries, with their graph.
        whole: give the logits of all rows and queries.
    """

    def __init__(self, model: nn.Module, see: Callable[[str, Tensor], None], *, whole: bool = False) -> None:
        super().__init__()
        self._model, self._see = model, see
        self._most = (sys.maxsize, sys.maxsize) if whole else (MOST_ROWS, MOST_QUERIES)
        self._names: list[str] = []
        self._logits: dict[int, weakref.ref[Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> AttentionMode:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(Hook(self._opener(name))))
            self._handles.append(module.register_forward_hook(Hook(self._closer), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._logits.clear()

    def _opener(self, name: str) -> Callable[..., None]:
        return lambda *_: self._names.append(name)

    def _closer(self, *_: Any) -> None:
        if self._names:
            self._names.pop()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and look at what it is given if it is attention."""
        kwargs = kwargs or {}
        name = canonical_name(function)
        module = self._names[-1] if self._names else ""
        if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            given = inspect.signature(_SIGNATURES[name]).bind(*args, **kwargs)
            given.apply_defaults()
            self._look(module, _of_products if name[0] == "s" else _of_heads, given.arguments)
        elif name == "softmax" and args and self._is_logits(args[0]):
            self._look(module, _as_given, {"logits": args[0], "args": args, "kwargs": kwargs})
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point() and self._makes_logits(name, args):
            self._logits[id(result)] = weakref.ref(result)
        return result

    def _look(self, module: str, logits_of: Callable[[Mapping[str, Any], _Most], Tensor | None], told: Any) -> None:
        try:
            logits = logits_of(told, self._most)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return  # a layout or a mask that is not known: nothing is told of it
        if logits is not None:
            self._see(module, logits)

    def _is_logits(self, value: Any) -> bool:
        held = self._logits.get(id(value))
        return held is not None and held() is value

    def _makes_logits(self, name: str, args: tuple[Any, ...]) -> bool:
        if name in _PRODUCTS:
            factors = [t for t in tensors(args) if t.dim() > 1][-2:]
            return len(factors) == 2 and not any(isinstance(f, nn.Parameter) or _of_parameter(f) for f in factors)
        return name in _KEEPS and any(self._is_logits(t) for t in args)


def _of_parameter(value: Tensor) -> bool:
    return isinstance(value._base, nn.Parameter)


def _sdpa(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
) -> None:
    """Have the signature of a function that torch builds in and shows none of."""


_SIGNATURES: Mapping[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": _sdpa,
    "multi_head_attention_forward": functional.multi_head_attention_forward,
}


def _as_given(told: Mapping[str, Any], most: _Most) -> Tensor | None:
    logits = told["logits"]
    dim = told["kwargs"].get("dim", told["args"][1] if len(told["args"]) > 1 else -1)
    if logits.dim() < 3 or dim not in (-1, logits.dim() - 1):
        return None
    shaped = logits.reshape(-1, 1, *logits.shape[-2:]) if logits.dim() == 3 else logits.flatten(0, -4)
    few: Tensor = shaped[: most[0], :, :: max(1, shaped.shape[2] // most[1])]
    return few


def _of_products(told: Mapping[str, Any], most: _Most) -> Tensor | None:
    query, key = told["query"], told["key"]
    if query.dim() < 3:
        return None
    if query.dim() == 3:
        query, key = query[:, None], key[:, None]
    query, key = query.flatten(0, -4), key.flatten(0, -4)
    rows, heads, length = query.shape[:3]
    chosen = torch.arange(0, length, max(1, length // most[1]), device=query.device)
    few = query[: most[0], :, chosen].float()
    key = key[: most[0]].float()
    if key.shape[1] != heads:
        key = key.repeat_interleave(heads // key.shape[1], 1)
    scale = told["scale"] if told["scale"] is not None else query.shape[-1] ** -0.5
    logits: Tensor = few @ key.transpose(-1, -2) * scale
    if told["is_causal"]:
        ahead = torch.arange(key.shape[2], device=query.device)[None] > chosen[:, None]
        logits = logits.masked_fill(ahead, -math.inf)
    mask = told["attn_mask"]
    if mask is not None:
        if mask.dim() == 3 and told["query"].dim() == 3:
            mask = mask[:, None]
        part = mask.detach().expand(rows, heads, length, key.shape[2])[: most[0], :, chosen]
        logits = logits.masked_fill(~part, -math.inf) if part.dtype == torch.bool else logits + part
    return logits


def _of_heads(told: Mapping[str, Any], most: _Most) -> Tensor | None:
    """Return the logits of `multi_head_attention_forward`, from its own weights."""
    if told["bias_k"] is not None or told["add_zero_attn"] or told["static_k"] is not None:
        return None
    query, key, heads = told["query"], told["key"], told["num_heads"]
    if query.dim() == 2:
        query, key = query[:, None], key[:, None]
    bias = told["in_proj_bias"]
    b_q, b_k = (bias.chunk(3)[:2]) if bias is not None else (None, None)
    w_q, w_k = told["q_proj_weight"], told["k_proj_weight"]
    if not told["use_separate_proj_weight"]:
        w_q, w_k, _ = told["in_proj_weight"].chunk(3)
    query, key = functional.linear(query, w_q, b_q), functional.linear(key, w_k, b_k)
    (length, rows, dim), keys = query.shape, key.shape[0]
    query = query.reshape(length, rows, heads, dim // heads).permute(1, 2, 0, 3)
    key = key.reshape(keys, rows, heads, dim // heads).permute(1, 2, 0, 3)
    mask, padding = told["attn_mask"], told["key_padding_mask"]
    hidden = torch.zeros(rows, heads, length, keys, device=query.device)
    if mask is not None:
        mask = mask.detach().reshape(-1, heads, *mask.shape[-2:]) if mask.dim() == 3 else mask.detach()
        hidden = hidden.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else hidden + mask
    if padding is not None:
        padding = padding.detach().reshape(rows, 1, 1, keys)
        hidden = hidden.masked_fill(padding, -math.inf) if padding.dtype == torch.bool else hidden + padding
    return _of_products(
        {"query": query, "key": key, "attn_mask": hidden, "is_causal": False, "scale": None, "enable_gqa": False},
        most,
    )


def attention_by_site(found: list[Attention], execution: Execution) -> dict[str, Attention]:
    """Return the attention of each block, of several the one with the lowest entropy.

    Args:
        found: in order of execution.
        execution: the blocks; calls of one module are told apart by their order.
    """
    sites: dict[str, list[str]] = {}
    for site in execution.sites:
        for operation in execution.operations[site.name]:
            if operation.name in ATTENTION:
                sites.setdefault(operation.module, []).append(site.name)
    calls: dict[str, int] = {}
    told: dict[str, Attention] = {}
    for one in found:
        call = calls[one.module] = calls.get(one.module, 0) + 1
        places = sites.get(one.module, ())
        if not places:
            continue
        place = places[min(call, len(places)) - 1]
        if place not in told or one.entropy < told[place].entropy:
            told[place] = one
    return told
