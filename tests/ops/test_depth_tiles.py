"""Loops over rows at addresses: as in float64, whatever a tile leaves over, with vectors of both widths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from levada.ops import attend_depth, sum_depth
from levada.ops.depth import autograd, reference

pytest.importorskip("numba")
_tiles = pytest.importorskip("levada.ops._tiles", exc_type=ImportError)

# Tokens, sources, queries, width: whole tiles of sources and sums, none, and what is left over of one.
SIZES = [(5, 13, 3, 300), (3, 8, 1, 256), (20, 6, 2, 100), (2, 3, 1, 17), (2, 5, 2, 3)]


def arguments(tokens, sources, queries, width, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, width), *[(tokens, width)] * (sources + queries)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return drawn[0] / width**0.5, drawn[1 : 1 + sources], drawn[1 + sources :]


def derivatives(function, first, sources, by):
    leaves = [x.detach().requires_grad_() for x in (first, *sources)]
    found = function(leaves[0], leaves[1:])
    return [*(y.detach() for y in found), *torch.autograd.grad(found, leaves, by)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_at_addresses_give_what_they_give_in_float64(size, dtype):
    assert not (_tiles._WIDE and os.environ.get("NUMBA_CPU_NAME") == "generic")
    bound = 2e-6 if dtype == torch.float32 else 1e-14
    query, sources, by = arguments(*size, dtype)
    weights = torch.linspace(-1, 1, size[2] * size[1], dtype=dtype).view(size[2], size[1])
    each = weights * torch.linspace(1, 2, size[0], dtype=dtype).view(-1, 1, 1)
    pairs = [
        (lambda q, v: attend_depth(q, v, factor=2.0), lambda q, v: reference.attend(q, v, 1e-6, 2.0, False)[0], query),
        (
            lambda q, v: attend_depth(q, v, normalise=True),
            lambda q, v: reference.attend(q, v, 1e-6, 1.0, True)[0],
            query,
        ),
        (sum_depth, reference.mix, weights),
        (sum_depth, reference.mix, each),
    ]
    for function, plain, first in pairs:
        got = derivatives(function, first, sources, by)
        wide = [x.double() for x in sources], [x.double() for x in by]
        expected = derivatives(lambda q, v, plain=plain: plain(q, v).unbind(), first.double(), *wide)
        for a, b in zip(got, expected, strict=True):
            assert (a.double() - b).norm() <= bound * b.norm()


def test_so_they_do_with_narrow_vectors(tmp_path):
    if not _tiles._WIDE:
        pytest.skip("the vectors of this processor are narrow")
    told = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    call = [sys.executable, "-m", "pytest", str(Path(__file__)), "-q", "-p", "no:cacheprovider", "-k", "addresses"]
    found = subprocess.run(call, env=told, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_token_gets_the_same_alone_and_nothing_from_its_neighbours():
    query, sources, by = arguments(5, 7, 2, 50, torch.float32)
    sources[3][2, 49], sources[5][4, 0] = torch.nan, torch.inf
    whole = derivatives(attend_depth, query, sources, by)
    for t in range(5):
        alone = derivatives(attend_depth, query, [x[t : t + 1] for x in sources], [x[t : t + 1] for x in by])
        for a, b in zip([*whole[:2], *whole[3:]], [*alone[:2], *alone[3:]], strict=True):
            assert torch.equal(a[t], b[0]) if t not in {2, 4} else not a[t].isfinite().all()


@pytest.mark.parametrize("function", [attend_depth, sum_depth])
def test_gradients_are_the_same_by_the_dispatcher_in_a_checkpoint_and_of_one_result_alone(function):
    first, sources, by = arguments(6, 5, 2, 20, torch.float64)
    first = first if function is attend_depth else first[:, :5].contiguous()
    leaves = [x.requires_grad_() for x in (first, *sources)]
    expected = torch.autograd.grad(function(leaves[0], leaves[1:]), leaves, by)

    def checkpointed(*given):
        return function(given[0], given[1:])

    found = checkpoint(checkpointed, *leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, by), expected, rtol=0, atol=0)
    found = function(leaves[0], leaves[1:])
    with FlopCounterMode(display=False):  # which looks at operations
        got = torch.autograd.grad(found, leaves, by, retain_graph=True)
    torch.testing.assert_close(got, expected)
    second = torch.autograd.grad(found[1], leaves, by[1], retain_graph=True)
    zeros = torch.autograd.grad(found, leaves, (torch.zeros_like(by[0]), by[1]), retain_graph=True)
    torch.testing.assert_close(second, zeros, rtol=0, atol=0)
    again = torch.autograd.grad(found, leaves, by, create_graph=True)
    torch.testing.assert_close(again, expected)
    with FlopCounterMode(display=False):
        found = function(leaves[0], leaves[1:])
    assert not any(x._is_view() for x in found)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, by), expected)


def test_kernels_are_called_without_the_dispatcher_where_nobody_looks(monkeypatch):
    first, sources, by = arguments(6, 5, 2, 20, torch.float64)
    for name in ("_ATTEND", "_ATTEND_BACKWARD", "_MIX", "_MIX_BACKWARD"):
        monkeypatch.setattr(autograd, name, lambda *given: pytest.fail("by the dispatcher"))
    derivatives(attend_depth, first, sources, by)
    derivatives(sum_depth, first[:, :5].contiguous(), sources, by)


@pytest.mark.parametrize("function", [attend_depth, sum_depth])
def test_long_rows_in_many_blocks_are_right(function):
    """Of sums whose weights are the same for all tokens, rows of some are one."""
    first, sources, by = arguments(70, 3, 2, 200, torch.float32)
    first = first if function is attend_depth else first[:, :3].contiguous()
    plain = (lambda q, v: reference.attend(q, v, 1e-6, 1.0, False)[0].unbind()) if function is attend_depth else None
    plain = plain or (lambda w, v: reference.mix(w, v).unbind())
    got = derivatives(function, first, sources, by)
    expected = derivatives(plain, first.double(), [x.double() for x in sources], [x.double() for x in by])
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).norm() <= 1e-6 * b.norm()
