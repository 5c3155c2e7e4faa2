"""Products of skinny matrices in registers: as in float64, at any size, with vectors of both widths."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba")
_tiles = pytest.importorskip("levada.ops._tiles", exc_type=ImportError)

# Tokens, rows of weights, width: a whole tile, none, and what is left over of one, with more than one span of columns.
SIZES = [*itertools.product((1, 5, 32), (4, 15, 24), (1, 17, 64, 100)), (6, 5, 2_200), (0, 4, 16)]


@pytest.fixture(scope="module", params=["of this processor", "narrow"])
def tiles(request, tmp_path_factory):
    if request.param != "narrow":
        return _tiles
    # A file of its own, as what is compiled is kept by the file.
    copy = tmp_path_factory.mktemp("tiles") / "narrow_tiles.py"
    copy.write_text(Path(_tiles.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("narrow_tiles", copy)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CPU_FEATURES", "")
        spec.loader.exec_module(module)
    assert not module._WIDE
    return module


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_those_of_float64(tiles, dtype):
    random = np.random.default_rng(0)
    bound = 4e-6 if dtype == np.float32 else 1e-14
    for tokens, rows, width in SIZES:
        streams, weights = (
            random.normal(size=(tokens, width)).astype(dtype),
            random.normal(size=(rows, width)).astype(dtype),
        )
        gradient = random.normal(size=(tokens, rows)).astype(dtype)
        found, by_streams = np.full((tokens, rows), np.nan, dtype), random.normal(size=(tokens, width)).astype(dtype)
        by_weights = random.normal(size=(rows, width)).astype(dtype)
        wide = [x.astype(np.float64) for x in (streams, weights, gradient, by_streams, by_weights)]
        expected = wide[0] @ wide[1].T, wide[3] + wide[2] @ wide[1], wide[4] + wide[2].T @ wide[0]
        tiles.write_dots(found, streams, weights)
        tiles.add_product(by_streams, gradient, weights)
        tiles.add_product_transposed(by_weights, gradient, streams)
        for got, truth in zip((found, by_streams, by_weights), expected, strict=True):
            assert got.size == 0 or np.abs(got - truth).max() <= bound * max(1, np.abs(truth).max())


def test_a_token_gets_the_same_in_a_tile_and_alone(tiles):
    """What threads and blocks make of it must not depend on where they begin."""
    random = np.random.default_rng(1)
    streams, weights = random.normal(size=(7, 150)).astype(np.float32), random.normal(size=(24, 150)).astype(np.float32)
    gradient = random.normal(size=(7, 24)).astype(np.float32)
    found, total = np.empty((7, 24), np.float32), np.zeros((7, 150), np.float32)
    tiles.write_dots(found, streams, weights)
    tiles.add_product(total, gradient, weights)
    for t in range(7):
        one, alone = np.empty((1, 24), np.float32), np.zeros((1, 150), np.float32)
        tiles.write_dots(one, streams[t : t + 1], weights)
        tiles.add_product(alone, gradient[t : t + 1], weights)
        assert (one[0] == found[t]).all()
        assert (alone[0] == total[t]).all()


def test_infinity_and_nan_stay_where_they_are(tiles):
    streams, weights = np.ones((5, 70), np.float32), np.ones((4, 70), np.float32)
    streams[1, 3], streams[4, 69] = np.inf, np.nan
    found = np.empty((5, 4), np.float32)
    tiles.write_dots(found, streams, weights)
    assert (found[[0, 2, 3]] == 70).all()
    assert np.isinf(found[1]).all()
    assert np.isnan(found[4]).all()


@pytest.mark.parametrize("told", ["none", "no AVX"])
def test_a_processor_that_llvm_cannot_ask_and_one_whose_vectors_are_forbidden_get_narrow_ones(monkeypatch, told):
    def ask():
        raise RuntimeError("not available")

    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    if told == "none":
        monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", ask)
    else:
        monkeypatch.setattr(numba.config, "ENABLE_AVX", False)
    assert not _tiles._has_wide_vectors()
