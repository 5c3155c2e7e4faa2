"""The kernel of statistics on a GPU, against the reference."""

import math

import pytest
import torch

from levada.ops import tensor_statistics
from levada.ops.statistics import reference
from levada.ops.statistics import triton as kernels

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),  # torch's own, of its compiler
]

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def on_gpu(dtype, sizes):
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(size, generator=generator, device="cuda").relu_().to(dtype) for size in sizes]


def require_rows(got, tensors):
    expected = reference.statistics(tensors)
    assert torch.equal(got[:, 2:], expected[:, 2:])
    scale = torch.stack([x.double().abs().sum() for x in tensors])
    torch.testing.assert_close(got[:, 1], expected[:, 1], rtol=1e-12, atol=0.0, equal_nan=True)
    torch.testing.assert_close(got[:, 0] / scale, expected[:, 0] / scale, rtol=0.0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 64)] * 300 + [(64,)] * 300,
        [(), (1,), (0,), (4096, 4 * 2560), (7, 1001), (3,), (2**25 + 5,)],
        [(4096 * 4 * 2560 * 2,)],
    ],
    ids=["many", "mixed", "one"],
)
def test_rows_are_the_references(dtype, sizes):
    tensors = on_gpu(dtype, sizes)
    got = tensor_statistics(tensors)
    require_rows(got, tensors)
    assert torch.equal(tensor_statistics(tensors), got)  # bit by bit


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_number_is_counted(dtype):
    tensors = on_gpu(dtype, [(1000, 1001), (70_001,), (5,)])
    tensors[0][3, 4], tensors[0][999, 1000], tensors[1][-1] = math.nan, -math.inf, math.inf
    tensors[2].fill_(math.nan)
    got = tensor_statistics(tensors)
    assert got[:, 4:].tolist() == [[1, 1], [0, 1], [5, 0]]
    assert got[:, 2].tolist() == [math.inf, math.inf, 0.0]
    assert got[:, 1].isnan().tolist() == [True, False, True]


def test_no_square_is_lost():
    for size in (1e-38, 1e-25, 1e25, 1e38):
        x = torch.full((100_000,), size, device="cuda")
        exact = 100_000 * float(x[0].double()) ** 2
        assert float(tensor_statistics([x])[0, 1]) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("dtype", TYPES)
def test_addresses_layouts_and_types_may_be_any(dtype):
    (x,) = on_gpu(dtype, [(4, 32, 65, 65)])
    flat = x.flatten()
    views = [flat[1:], flat[3:100_000], x.mT, x[:, ::2], x.to(memory_format=torch.channels_last), flat[:1].expand(9)]
    require_rows(tensor_statistics(views), views)
    mixed = [*views, x.float(), x.double()[0], x.to(torch.float8_e5m2)]
    require_rows(tensor_statistics(mixed), mixed)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_beside_a_tensor_is_not_read(dtype):
    for count in (1, 100, 2048, 5000, 100_001):
        around = torch.full((count + 8192,), math.nan, device="cuda", dtype=dtype)
        inside = around[4096:-4096]
        inside.copy_(torch.randn(count))
        require_rows(tensor_statistics([inside]), [inside])


def test_it_compiles_whole():
    tensors = on_gpu(torch.bfloat16, [(64, 64), (100_001,)])
    compiled = torch.compile(lambda *given: tensor_statistics([x * 2 for x in given]), fullgraph=True)
    require_rows(compiled(*tensors), [x * 2 for x in tensors])


def test_memory_may_be_used_again_at_once():
    """The table of addresses is sent without waiting: it must not change on its way."""
    tensors = on_gpu(torch.float32, [(4096,)] * 64)
    expected = tensor_statistics(tensors)
    torch.cuda._sleep(10**7)
    found = [tensor_statistics(tensors[i % 7 :]) for i in range(70)]
    for i, got in enumerate(found):
        assert torch.equal(got, expected[i % 7 :])


def test_pieces_may_be_of_any_size(monkeypatch):
    tensors = on_gpu(torch.float32, [(123_457,), (10,)])
    for block, least in ((512, 1024), (1024, 2**16), (4096, 4096)):
        monkeypatch.setattr(kernels, "BLOCK", block)
        monkeypatch.setattr(kernels, "LEAST", least)
        require_rows(tensor_statistics(tensors), tensors)
