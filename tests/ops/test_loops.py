"""Loops over tokens on a CPU: whose memory they have, other threads, other processes."""

import contextlib
import gc
import importlib
import importlib.util
import os
import threading
import weakref

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")
_numba = pytest.importorskip("levada.ops._numba", exc_type=ImportError)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_memory_is_kept_until_the_last_loop_ends_whoever_is_interrupted(two_threads):
    tensors, go = [torch.zeros(2, 2**16)], threading.Event()
    kept = weakref.ref(tensors[0])

    def loop(addresses, first, end):
        if first == 0:
            raise KeyboardInterrupt
        go.wait(300)

    with contextlib.suppress(KeyboardInterrupt):
        _numba.over_addresses(loop, tensors)
    del tensors
    gc.collect()
    assert kept() is not None
    go.set()
    _numba._pool(1).submit(int).result()
    assert kept() is None


def test_memory_of_another_layout_is_refused():
    with pytest.raises(ValueError, match="must be contiguous"):
        _numba.over_addresses(print, [torch.zeros(3, 2), torch.zeros(2, 3).t()])


def test_where_nothing_can_be_kept_loops_are_compiled_all_the_same(monkeypatch):
    caching = importlib.import_module("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert _numba.compiled(lambda x: x + 1)(2) == 3


def test_what_is_kept_on_disk_goes_with_the_functions_that_are_called(tmp_path, monkeypatch):
    """Numba looks at a function's own file alone: after an update it would go on with what others were before."""
    path = tmp_path / "calls_others.py"
    path.write_text("from levada.ops._numba import compiled\n\n\n@compiled\ndef add(x):\n    return x + 1\n")

    def hits():
        spec = importlib.util.spec_from_file_location("calls_others", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.add(2) == 3
        return sum(module.add.stats.cache_hits.values())

    assert [hits(), hits()] == [0, 1]
    monkeypatch.setattr(_numba, "_SOURCES", "of another version")
    assert [hits(), hits()] == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_has_threads_of_its_own():
    _numba._pool(1).submit(int).result()
    child = os.fork()
    if not child:
        status = 1
        try:
            status = _numba._pool(1).submit(int).result(timeout=120)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_hyperbolic_tangent_is_that_of_c(dtype):
    tanh = _numba.tanh

    @numba.njit
    def of_each(x):
        y = np.empty_like(x)
        for i in range(len(x)):
            y[i] = tanh(x[i])
        return y

    sizes = np.geomspace(1e-42, 200, 200_001)
    x = np.concatenate([sizes, -sizes, [0.0, -0.0, np.inf, -np.inf, np.nan], np.linspace(-1, 1, 99_999)]).astype(dtype)
    got, expected = of_each(x), np.tanh(x.astype(np.float64))
    assert np.isnan(got[np.isnan(x)]).all()
    real = ~np.isnan(x)
    bound = np.maximum(2 * np.finfo(dtype).eps * np.abs(expected[real]), np.finfo(dtype).smallest_subnormal)
    assert (np.abs(got[real] - expected[real]) <= bound).all()


@pytest.mark.parametrize("scale", [1e20, 1e30])
@pytest.mark.parametrize(("n", "dim"), [(2, 6), (3, 5), (4, 64), (8, 33)])
def test_streams_whose_squares_overflow_are_read_as_by_plain_operations(n, dim, scale):
    """One over the root of infinity is 0: an estimate of it, which a compiler may take, is NaN."""
    g = torch.Generator().manual_seed(0)
    state = scale * torch.randn(9, n, dim, generator=g)
    project, of_sparse = torch.randn(n + 2, dim, generator=g), torch.randn(n + 2, n * dim, generator=g)
    parameters = torch.zeros(n), torch.eye(n), torch.ones(n), project, torch.ones(1), torch.ones(1), torch.ones(dim)
    for module, given in (
        ("hyper", (*parameters, None)),
        ("hyper", (*parameters, torch.ones(dim))),
        ("sparse", (of_sparse, torch.ones(1), torch.zeros(n))),
    ):
        cpu, reference = (importlib.import_module(f"levada.ops.{module}.{name}") for name in ("cpu", "reference"))
        found, expected = cpu.read(state, *given, 1e-6), reference.read_and_keep(state, *given, 1e-6)
        for got, truth in zip(found, expected, strict=True):
            assert torch.isfinite(truth).all()
            torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
