"""Cases of reading streams by weights that they decide: what mHC does before a branch.

The least bytes are those of one pass each way, with a token's streams on the chip. The kernels take two: for the
projection and for what is read of it, `(2 n + 1)` elements forward and `(4 n + 2)` backward.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from torch import Tensor

from benchmarks.ops import Case, read_inputs, reading
from levada.ops.manifold import Form, read_streams, reference

__all__ = ["cases"]

_FORMS = {"read_streams": Form(), "read_streams, identity": Form(mixes=False)}


def _plain(form: Form, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """What one writes."""
    x, _, writes, mix = reference.read(state, projection, scale, bias, form)
    return [x, writes, *([] if mix is None else [mix]), state.view_as(state)]


def _ours(form: Form, state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    x, _, writes, mix, new = read_streams(state, projection, scale, bias, form)
    return [x, writes, *([] if mix is None else [mix]), new]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for size in sizes:
        for name, form in _FORMS.items():
            make = functools.partial(read_inputs, mixes=form.mixes)
            programs = functools.partial(_plain, form), functools.partial(_ours, form)
            yield reading(name, size, make, *programs, parameters=3)
