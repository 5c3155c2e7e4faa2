"""Statistics of many tensors against their definition: values, range, types, layouts, threads, the dispatcher."""

import importlib.util
import math

import pytest
import torch

from levada._errors import UsageError
from levada.ops import tensor_statistics
from levada.ops.statistics import COLUMNS, cpu, reference

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def samples(dtype=torch.float32, sizes=((), (0,), (3,), (5, 7), (2, 3, 1024), (1025,), (64, 65))):
    """Return tensors of many sizes, with zeros, NaN and infinities in some of them."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(size, generator=generator).relu().to(dtype) for size in sizes]
    whole = torch.randn(4, 1100, generator=generator)
    whole[1, 7], whole[1, 1090], whole[2, 3] = torch.nan, -torch.inf, torch.inf
    whole[3] = torch.nan
    return [*found, *whole.to(dtype)]


def by_hand(tensor):
    numbers = tensor.flatten().double().tolist()
    real = [abs(x) for x in numbers if not math.isnan(x)]
    return [
        math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers),
        math.fsum(x * x for x in numbers) if all(map(math.isfinite, numbers)) else sum(x * x for x in numbers),
        max(real, default=0.0),
        sum(x == 0 for x in numbers),
        sum(math.isnan(x) for x in numbers),
        sum(math.isinf(x) for x in numbers),
    ]


def require_rows(got, tensors, rtol=1e-6):
    expected = torch.tensor([by_hand(x) for x in tensors], dtype=torch.float64)
    assert torch.equal(got[:, 2:], expected[:, 2:])
    scale = torch.stack([x.double().abs().sum().nan_to_num(0, 0) for x in tensors])
    torch.testing.assert_close(got[:, 1], expected[:, 1], rtol=rtol, atol=0.0, equal_nan=True)
    wrong = (got[:, 0] - expected[:, 0]).abs() > rtol * scale
    assert torch.equal(got[:, 0].isfinite(), expected[:, 0].isfinite())
    assert not wrong.any()
    assert torch.equal(got[:, 0].isnan(), expected[:, 0].isnan())


@pytest.fixture(params=["loops", "reference"])
def kernel(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(cpu, "import_kernels", lambda module, package: None)
    elif not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    return request.param


@pytest.mark.parametrize("dtype", TYPES)
def test_every_column_is_its_definition(kernel, dtype):
    tensors = samples(dtype)
    got = tensor_statistics(tensors)
    assert got.shape == (len(tensors), len(COLUMNS))
    assert got.dtype == torch.float64
    require_rows(got, tensors)


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e-14, 1e14, 1e25, 1e38])
def test_no_square_of_a_float32_is_lost(kernel, size):
    tensor = torch.full((1500,), size)
    tensor[::2] *= -1
    got = tensor_statistics([tensor])[0]
    exact = tensor.double()
    assert got[1] == pytest.approx(float(exact.square().sum()), rel=1e-12)
    assert got[0] == pytest.approx(0.0, abs=1e-12 * size)
    assert got[2] == exact[0].abs()


def test_narrow_types_have_their_smallest_and_largest_numbers(kernel):
    for dtype in (torch.bfloat16, torch.float16):
        limits = torch.finfo(dtype)
        numbers = torch.tensor([limits.max, limits.tiny, limits.tiny * limits.eps, -limits.max, -0.0], dtype=dtype)
        require_rows(tensor_statistics(list(numbers[:, None])), list(numbers[:, None]))


def test_types_may_differ(kernel):
    tensors = [x for group in zip(*(samples(dtype) for dtype in TYPES), strict=True) for x in group]
    require_rows(tensor_statistics(tensors), tensors)


def test_memory_may_be_in_any_order_and_have_gaps(kernel):
    x = torch.randn(6, 4, 8, 8)
    whole = x.clone()
    views = [x.to(memory_format=torch.channels_last), x.mT, x[:, 1:3], x[0, 0, 0, 0].expand(7, 5), x[::2, :, 3], x[1:]]
    require_rows(tensor_statistics(views), views)
    assert torch.equal(x, whole)
    assert cpu.in_any_order(views[0]).data_ptr() == views[0].data_ptr()


@pytest.mark.parametrize("dtype", TYPES)
def test_large_tensors_are_cut_and_threads_change_no_bit(dtype, monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setattr(cpu, "_PIECE", 2048)
    tensors = [*samples(dtype), torch.randn(70_001).to(dtype), torch.randn(33, 1024).to(dtype)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(tensor_statistics(tensors))
    finally:
        torch.set_num_threads(before)
    require_rows(found[0], tensors)
    assert all(torch.equal(other.nan_to_num(), found[0].nan_to_num()) for other in found[1:])


def test_nothing_is_differentiated():
    layer = torch.nn.Linear(3, 2)
    got = tensor_statistics([*layer.parameters(), layer(torch.ones(4, 3))])
    assert not got.requires_grad
    assert got.shape == (3, 6)


def test_no_tensors_have_no_rows(kernel):
    assert tensor_statistics([]).shape == (0, 6)


def test_the_dispatcher_knows_it():
    torch.library.opcheck(torch.ops.levada.tensor_statistics.default, (samples()[:5],))


def test_it_compiles_whole():
    tensors = samples()
    compiled = torch.compile(tensor_statistics, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tensors), tensor_statistics(tensors), equal_nan=True)


def test_under_vmap_a_row_is_of_one_member_of_the_batch():
    x, y = torch.randn(5, 7), torch.randn(3, 5)
    got = torch.vmap(lambda a, b: tensor_statistics([a, b, x]), in_dims=(0, 1))(x, y)
    for i in range(5):
        torch.testing.assert_close(got[i], tensor_statistics([x[i], y[:, i], x]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wrong", [torch.ones(3).long(), torch.ones(3).to_sparse(), torch.ones(3, device="meta")], ids=str
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(UsageError, match="tensors must be dense, of real floating types and on one device"):
        tensor_statistics([torch.ones(2), wrong])


def test_the_reference_is_the_definition():
    require_rows(reference.statistics(samples()), samples())
