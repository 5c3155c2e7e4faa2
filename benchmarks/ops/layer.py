"""Cases of one layer whose branch takes no time: all that a connection moves, beside what others offer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.ops import Case, Operator, compiled, hyper_inputs, read_inputs
from levada.ops import write_streams
from levada.ops.hyper import Parameters, read_hyper
from levada.ops.hyper import reference as hyper_reference
from levada.ops.manifold import Form, read_streams, reference
from levada.ops.streams import reference as streams

__all__ = ["cases"]

_FORM, _IDENTITY = Form(), Form(mixes=False)


def _added(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    return [torch.randn(tokens, width).requires_grad_() for _ in range(2)]


def _plain(form: Form, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    x, _, writes, mix = reference.read(state, projection, scale, bias, form)
    return [streams.write(state, x, writes, mix)]


def _ours(form: Form, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    x, _, writes, mix, state = read_streams(state, projection, scale, bias, form)
    return [write_streams(state, x, writes, mix)]


def _liger(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    from liger_kernel.transformers import functional as liger

    phi = projection.t().to(state.dtype).contiguous()  # as it recommends
    reads, writes, mix = liger.liger_mhc_coeffs(
        state, phi, bias, *scale.unbind(), allow_fp32=state.dtype == torch.float32, sinkhorn_eps=0.0
    )
    x = liger.liger_mhc_pre(state, reads)
    return [liger.liger_mhc_post_res(state, x, writes, mix).to(state.dtype)]


def _tile_kernels(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """Of version 1, as later ones have no gradients; its matrix multiplies streams from the other side."""
    from tile_kernels.modeling.mhc.functional import mhc_pre
    from tile_kernels.modeling.mhc.ops import mhc_post

    n = state.shape[1]
    turned = torch.arange(n * n, device=state.device).view(n, n).t().flatten() + 2 * n
    order = torch.cat([torch.arange(2 * n, device=state.device), turned])
    x, coefficients = mhc_pre(
        state.unsqueeze(0), projection[order], scale, bias[order], mhc_mult=n, post_mult_value=2.0, pre_eps=0.0,
        sinkhorn_eps=0.0, sinkhorn_repeat=_FORM.iterations, norm_eps=_FORM.norm_epsilon,
    )  # fmt: skip
    return [mhc_post(x, state.unsqueeze(0), *coefficients).squeeze(0)]


@functools.cache
def _package_layer(
    kind: str, n: int, width: int, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    import hyper_connections

    layer: nn.Module = getattr(hyper_connections, kind)(n, dim=width, layer_index=1, branch=nn.Identity())
    return layer.to(device, dtype)


def _package(kind: str, state: Tensor) -> Sequence[Tensor]:
    n, _, width = state.shape
    return [_package_layer(kind, n, width, state.device, state.dtype)(state)]


def _package_inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    return [torch.randn(n, tokens, width).requires_grad_()]


def _hyper_inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    return [*hyper_inputs(tokens, n, width), torch.randn(tokens, width).requires_grad_()]


def _plain_hyper(state: Tensor, *others: Tensor) -> Sequence[Tensor]:
    *own, out = others
    x, _, mix, writes = hyper_reference.read(state, Parameters(*own), 1e-5)
    return [streams.write(state, out, writes, mix), x]


def _our_hyper(state: Tensor, *others: Tensor) -> Sequence[Tensor]:
    *own, out = others
    x, _, mix, writes, state = read_hyper(state, Parameters(*own), 1e-5)
    return [write_streams(state, out, writes, mix), x]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for tokens, n, width in sizes:
        size = {"tokens": tokens, "streams": n, "width": width}
        area = tokens * width
        yield Case(
            operator="residual addition",
            size=size,
            make=functools.partial(_added, tokens, n, width),
            programs={"reference": lambda x, f: [x + f]},
            forward=3 * area,
            backward=0,
        )
        for name, form in (("mHC layer", _FORM), ("identity layer", _IDENTITY)):
            plain = functools.partial(_plain, form)
            programs: dict[str, Operator] = {
                "reference": plain,
                "compiled reference": compiled(plain),
                "levada": functools.partial(_ours, form),
            }
            if form.mixes:
                programs |= {"liger-kernel": _liger, "tile-kernels": _tile_kernels}
            yield Case(
                operator=name,
                size=size,
                make=functools.partial(read_inputs, tokens, n, width, form.mixes),
                programs=programs,
                forward=(3 * n + 2) * area,
                backward=(6 * n + 3 if form.mixes else 4 * n + 3) * area,
                tolerance=32.0,
                wide=frozenset({1, 2, 3}),
            )
        yield Case(
            operator="HC layer",
            size=size,
            make=functools.partial(_hyper_inputs, tokens, n, width),
            programs={
                "reference": _plain_hyper,
                "compiled reference": compiled(_plain_hyper),
                "levada": _our_hyper,
            },
            forward=(3 * n + 2) * area,
            backward=(6 * n + 3) * area,
            tolerance=256.0,  # plain sums over all tokens take half of it
            wide=frozenset(range(1, 9)),
        )
        for kind, named in (("mHC", "mHC"), ("HyperConnections", "HC")):
            yield Case(
                operator=f"{named} layer of hyper-connections",
                size=size,
                make=functools.partial(_package_inputs, tokens, n, width),
                programs={"reference": functools.partial(_package, kind)},
                forward=(3 * n + 2) * area,
                backward=(6 * n + 3) * area,
                tolerance=math.inf,  # of its own parameters: there is nothing to compare with
            )
