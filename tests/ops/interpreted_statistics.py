"""The Triton kernels of statistics, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from tests.ops.test_statistics import TYPES, require_rows, samples

from levada.ops.statistics import triton as kernels

SIZES = ((), (0,), (5, 7), (128,))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    for name, value in {"BLOCK": 16, "LEAST": 64, "MOST": 64, "_ROWS": 4}.items():
        monkeypatch.setattr(kernels, name, value)


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_are_those_of_the_definition(dtype):
    tensors = [x[:70] if x.dim() else x for x in samples(dtype, SIZES)][:7]
    require_rows(kernels.statistics(tensors), tensors)


def test_types_and_layouts_may_differ(monkeypatch):
    x = torch.randn(4, 9)
    tensors = [x.mT, x.bfloat16()[:, 1:3], x.double(), x[0, 0].expand(5), x.to(torch.float8_e5m2)]
    require_rows(kernels.statistics(tensors), tensors)


def test_what_is_beside_a_tensor_is_not_read():
    around = torch.full((128,), math.nan)
    inside = around[33:96].copy_(torch.randn(63))
    require_rows(kernels.statistics([inside]), [inside])


def test_no_tensors_have_no_rows():
    assert kernels.statistics([]).shape == (0, 6)


def test_pieces_are_no_larger_than_what_a_lane_can_count(monkeypatch):
    monkeypatch.setattr(kernels, "MOST", 2**17)
    for block in (16, 512):
        monkeypatch.setattr(kernels, "BLOCK", block)
        assert kernels.piece_of([2**40]) // block < 255
