"""A Numba whose inner names are other ones, or that cannot compile: plain operations go on, and one warning says so."""

import importlib
import os
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import torch

from levada.ops import _loading, write_streams
from levada.ops.manifold import Form, read_streams
from levada.ops.manifold import reference as manifold
from levada.ops.streams import reference as streams

numba = pytest.importorskip("numba")
FORM = Form(True, 20, 0.0, 0.0, 0.0, 1e-6, False)
SAID = r"loops for a CPU cannot be made with Numba .*: the references run, by plain operations"


@pytest.fixture
def forgetful(monkeypatch):
    """Forget afterwards what was given up."""
    monkeypatch.setattr(_loading, "_given_up", set())
    _loading.import_kernels.cache_clear()
    yield
    _loading.import_kernels.cache_clear()


def arguments():
    g = torch.Generator().manual_seed(0)
    shapes = (5, 4, 6), (24, 24), (3,), (24,)
    return [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]


def run(function):
    tensors = arguments()
    x, _, writes, mix, _ = (*function(*tensors, FORM), None)[:5]
    return [x, writes, mix, *torch.autograd.grad(x.sum() + (writes * mix[..., 0]).sum(), tensors)]


@pytest.mark.parametrize("name", ["get_host_cpu_features", "numba"])
def test_where_a_name_is_missing_plain_operations_go_on(monkeypatch, forgetful, name):
    for module in ("levada.ops.manifold.loops", "levada.ops._tiles"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    if name == "numba":  # as where NumPy is too new for it
        monkeypatch.delitem(sys.modules, "levada.ops._numba", raising=False)
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    else:
        monkeypatch.delattr(f"numba.core.codegen.{name}")
    with pytest.warns(RuntimeWarning, match=SAID) as said:
        first = run(read_streams)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = run(read_streams)
    expected = run(manifold.read)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_where_loops_do_not_compile_plain_operations_go_on(monkeypatch, forgetful):
    loops = importlib.import_module("levada.ops.streams.loops")

    @numba.njit
    def cannot(*given):
        return given.nothing

    monkeypatch.setattr(loops, "write_backward_at", cannot)
    state, _, _, _ = arguments()
    out, weights, mix = torch.randn(5, 6), torch.randn(5, 4), torch.randn(5, 4, 4)
    new = write_streams(state, out, weights, mix)  # by loops, which compile
    with pytest.warns(RuntimeWarning, match=SAID) as said:
        found = torch.autograd.grad(new.square().sum(), state)
    assert len(said) == 1
    assert _loading.is_given_up()
    torch.testing.assert_close(new, streams.write(state, out, weights, mix))
    expected = torch.autograd.grad(streams.write(state, out, weights, mix).square().sum(), state)
    torch.testing.assert_close(found, expected)


def test_an_error_that_is_no_compilers_is_raised(forgetful):
    @_loading.or_reference
    def kernel(x):
        raise ValueError(x)

    with pytest.raises(ValueError, match="3"):
        kernel(3)
    assert not _loading.is_given_up()


WITHOUT_A_NAME = """
import sys, warnings
from numba.core import cgutils
del cgutils.for_range
import torch, levada
torch.manual_seed(0)
stack = levada.Stack(lambda dim: torch.nn.Linear(dim, dim), levada.ManifoldHyperConnection, dim=8, depth=3)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        stack(torch.randn(5, 8)).square().sum().backward()
found = [str(one.message) for one in said if one.category is RuntimeWarning]
assert len(found) == 1, found
assert "cannot be made with Numba" in found[0], found
assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())
"""


def test_a_network_trains_where_a_compilers_name_is_missing(tmp_path):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}  # else what was compiled before is taken
    run = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_A_NAME],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
