"""Cases of reading streams by weights that they decide: what mHC does before a branch.

The least bytes are those of one pass each way, with a token's streams on the chip. The kernels take two: for the
projection and for what is read of it, `(2 n + 1)` elements forward and `(4 n + 2)` backward.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from torch import Tensor

from benchmarks.ops import Case, compiled, read_inputs
from levada.ops.manifold import Form, read_streams, reference

__all__ = ["cases"]

_FORMS = {"read_streams": Form(), "read_streams, identity": Form(mixes=False)}


def _plain(form: Form, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """What one writes; the streams are handed on, so that a gradient arrives by them as well."""
    x, _, writes, mix = reference.read(state, projection, scale, bias, form)
    return [x, writes, *([] if mix is None else [mix]), state.view_as(state)]


def _ours(form: Form, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    x, _, writes, mix, new = read_streams(state, projection, scale, bias, form)
    return [x, writes, *([] if mix is None else [mix]), new]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for tokens, n, width in sizes:
        for name, form in _FORMS.items():
            plain = functools.partial(_plain, form)
            yield Case(
                operator=name,
                size={"tokens": tokens, "streams": n, "width": width},
                make=functools.partial(read_inputs, tokens, n, width, form.mixes),
                programs={
                    "reference": plain,
                    "compiled reference": compiled(plain),
                    "levada": functools.partial(_ours, form),
                },
                forward=(n + 1) * tokens * width,
                backward=(3 * n + 1) * tokens * width,
                tolerance=32.0,
                wide=frozenset({1, 2, 3}),
            )
