"""Attention over depth and weighted sums on a GPU against the reference in float64."""

import math

import pytest
import torch

from levada.ops import attend_depth, sum_depth
from levada.ops.depth import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FORMS = [(1e-6, 1.0, False), (1e-6, 3.0, True)]
SIZES = [
    (1, 1, 1, 1),
    (5, 3, 1, 37),
    (3, 2, 3, 65),
    (130, 6, 2, 520),
    (64, 40, 1, 1000),
    (33, 3, 4, 2560),
    (7, 2, 2, 9000),
]
"""Tokens, sources, queries and channels."""
LARGE = [(4096, 13, 1, 2560), (4096, 9, 1, 4096), (2048, 13, 3, 2560), (4096, 13, 1, 512), (512, 5, 1, 12288)]
TYPES = [(size, torch.bfloat16) for size in SIZES] + [(size, torch.float32) for size in SIZES[1::2]]
TYPES += [(size, torch.float16) for size in SIZES[3:5]]
CASES = [(*case, FORMS[i % 2]) for i, case in enumerate(TYPES)]
"""A kernel is compiled for each width, number of queries, type and form: not all of their combinations."""


def arguments(tokens, sources, queries, dim, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"generator": generator, "device": "cuda"}
    query = torch.randn(queries, dim, **options) / math.sqrt(dim)
    tensors = [(1 + i % 3) * torch.randn(tokens, dim, **options).to(dtype) for i in range(sources)]
    by = torch.randn(queries, tokens, dim, **options).to(dtype)
    return query, tensors, by


def require_close(got, expected, dtype, times=1):
    """Within rounding to the type, of the largest element: what is near zero is a difference of what is not."""
    for found, truth in zip(got, expected, strict=True):
        assert found.shape == truth.shape
        kind = found.dtype
        bound = 8 * max(torch.finfo(kind).eps, times * torch.finfo(torch.float32).eps)
        error = (found.double() - truth).abs().max().item() if truth.numel() else 0.0
        assert error <= bound * max(truth.abs().max().item(), 1e-3), (kind, error, truth.abs().max().item())


def attended(query, sources, form, by):
    epsilon, factor, normal = form
    tensors = [x.detach().requires_grad_() for x in (query, *sources)]
    means = attend_depth(tensors[0], tensors[1:], epsilon=epsilon, factor=factor, normalise=normal)
    return [*(x.detach() for x in means), *torch.autograd.grad(means, tensors, by.unbind())]


def attended_in_float64(query, sources, form, by):
    query, sources, by = query.double(), [x.double() for x in sources], by.double()
    means, *kept = reference.attend(query, sources, *form)
    by_query, by_sources = reference.attend_backward(by, query, sources, *kept, *form[1:])
    return [*means.unbind(), by_query, *by_sources]


@pytest.mark.parametrize(("sizes", "dtype", "form"), CASES, ids=str)
def test_attention(sizes, dtype, form):
    query, sources, by = arguments(*sizes, dtype)
    expected = attended_in_float64(query, sources, form, by)
    require_close(attended(query, sources, form, by), expected, dtype, times=math.sqrt(sizes[0]) + 4)


@pytest.mark.parametrize("sizes", LARGE, ids=str)
def test_attention_at_large_sizes(sizes):
    query, sources, by = arguments(*sizes, torch.bfloat16)
    expected = attended_in_float64(query, sources, FORMS[0], by)
    require_close(attended(query, sources, FORMS[0], by), expected, torch.bfloat16, times=math.sqrt(sizes[0]) + 4)


def summed(weights, sources, by):
    tensors = [x.detach().requires_grad_() for x in (weights, *sources)]
    sums = sum_depth(tensors[0], tensors[1:])
    return [*(x.detach() for x in sums), *torch.autograd.grad(sums, tensors, by.unbind())]


def summed_in_float64(weights, sources, by):
    weights, sources, by = weights.double(), [x.double() for x in sources], by.double()
    by_weights, by_sources = reference.mix_backward(by, weights, sources)
    return [*reference.mix(weights, sources).unbind(), by_weights, *by_sources]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("sizes", "dtype"), [*TYPES[1::2], (LARGE[0], torch.bfloat16)], ids=str)
def test_sums(sizes, dtype, shared):
    tokens, count, ways, dim = sizes
    _, sources, by = arguments(*sizes, dtype)
    weights = torch.randn(*(() if shared else (tokens,)), ways, count, device="cuda")
    times = math.sqrt(tokens * dim) / 4 + 4
    require_close(summed(weights, sources, by), summed_in_float64(weights, sources, by), dtype, times=times)


def test_double_precision():
    query, sources, by = arguments(20, 4, 2, 100, torch.float64)
    query = query.double()
    expected = attended_in_float64(query, sources, FORMS[0], by)
    torch.testing.assert_close(attended(query, sources, FORMS[0], by), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sizes", [LARGE[0], LARGE[2], LARGE[4]], ids=str)
def test_results_repeat_bit_by_bit(sizes):
    query, sources, by = arguments(*sizes, torch.bfloat16)
    weights = torch.randn(sizes[2], sizes[1], device="cuda")
    first = [*attended(query, sources, FORMS[1], by), *summed(weights, sources, by)]
    for _ in range(3):
        again = [*attended(query, sources, FORMS[1], by), *summed(weights, sources, by)]
        assert all(map(torch.equal, again, first))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [129, 520, 9000])
def test_nothing_else_is_read_or_written(dim, dtype):
    """The memory around the arguments is NaN, and so is what torch.empty returns."""
    query, sources, by = arguments(9, 3, 2, dim, dtype)
    expected = attended(query, sources, FORMS[0], by)
    around = [torch.full((x.numel() + 1024,), math.nan, dtype=x.dtype, device="cuda") for x in (query, by, *sources)]
    inside = [a[512:-512].view_as(x).copy_(x) for a, x in zip(around, (query, by, *sources), strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = attended(inside[0], inside[2:], FORMS[0], inside[1])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, got, expected))
    assert all(a[:512].isnan().all() and a[-512:].isnan().all() for a in around)


def test_strides_and_odd_addresses():
    query, sources, by = arguments(33, 3, 1, 65, torch.bfloat16)
    odd = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x) for x in sources[:2]]
    odd.append(sources[2].mT.contiguous().mT)
    got, expected = attended(query, odd, FORMS[0], by), attended(query, sources, FORMS[0], by)
    assert all(map(torch.equal, got, expected))


def test_sources_of_two_types():
    """As autocast makes them: what a network begins with is of float32, what its layers return is not."""
    for dim in (520, 9000):
        query, sources, by = arguments(130, 5, 1, dim, torch.float32)
        sources[1:4] = [x.bfloat16() for x in sources[1:4]]
        expected = attended_in_float64(query, sources, FORMS[0], by)
        got = attended(query, sources, FORMS[0], by)
        assert [x.dtype for x in got] == [torch.float32] * 2 + [x.dtype for x in sources]
        require_close(got, expected, torch.float32, times=16)
        weights = torch.randn(2, 5, device="cuda")
        by = torch.randn(2, 130, dim, device="cuda")
        require_close(summed(weights, sources, by), summed_in_float64(weights, sources, by), torch.float32, times=100)


def test_many_sources():
    query, sources, by = arguments(17, 200, 1, 256, torch.bfloat16)
    expected = attended_in_float64(query, sources, FORMS[0], by)
    require_close(attended(query, sources, FORMS[0], by), expected, torch.bfloat16, times=10)


def test_it_compiles_whole():
    query, sources, by = arguments(64, 4, 2, 256, torch.bfloat16)
    leaves = [x.requires_grad_() for x in (query, *sources)]
    function = torch.compile(lambda q, *v: [y * 2 for y in attend_depth(q, v)], fullgraph=True)
    means = function(*leaves)
    got = [*means, *torch.autograd.grad(means, leaves, by.unbind())]
    expected = attended_in_float64(query, sources, FORMS[0], 2 * by)
    require_close(got[2:], expected[2:], torch.bfloat16, times=20)
    require_close(got[:2], [2 * x for x in expected[:2]], torch.bfloat16, times=20)


def test_a_captured_graph_follows_what_its_arguments_become():
    query, sources, by = arguments(64, 5, 1, 256, torch.bfloat16)
    attended(query, sources, FORMS[0], by)  # compiles, which nobody may do during capture
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        attended(query, sources, FORMS[0], by)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = attended(query, sources, FORMS[0], by)
    churn = [torch.randn(64, 256, device="cuda") for _ in range(50)]  # memory that was freed has other owners
    with torch.no_grad():
        for i, x in enumerate(sources):
            x.copy_(torch.randn_like(x) * (i + 1))
        query.mul_(-3)
    graph.replay()
    expected = attended(query, sources, FORMS[0], by)
    assert all(map(torch.equal, got, expected))
    del churn


def test_a_source_that_is_freed_at_once_was_read():
    """Memory goes to another tensor only after the kernel in the order of the stream."""
    query, sources, _ = arguments(4096, 3, 1, 1024, torch.bfloat16)
    (expected,) = attend_depth(query, [2 * x for x in sources])
    (got,) = attend_depth(query, [2 * x for x in sources])
    noise = [torch.full_like(x, math.nan) for x in sources]
    assert torch.equal(got, expected)
    del noise


def test_on_a_stream_of_its_own():
    query, sources, by = arguments(256, 4, 1, 512, torch.bfloat16)
    expected = attended(query, sources, FORMS[0], by)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = attended(query, sources, FORMS[0], by)
    stream.synchronize()
    assert all(map(torch.equal, got, expected))
