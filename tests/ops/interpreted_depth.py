"""The Triton kernels of attention over depth, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from tests.ops.test_depth import arguments, weights_for
from triton.runtime import interpreter

from levada.ops._device import past_limit
from levada.ops.depth import reference
from levada.ops.depth import triton as kernels
from levada.ops.depth.table.triton import ready

OPTIONS = [(1e-6, 1.0, False), (0.5, 3.0, True)]


@pytest.fixture(autouse=True)
def ranges(monkeypatch):
    """The interpreter takes an array of one number for a range's end, which NumPy 2.4 no longer does."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request, monkeypatch):
    if request.param == "in blocks":
        monkeypatch.setitem(kernels.FORWARD, "whole", 0)
        monkeypatch.setitem(kernels.BACKWARD, "whole", 0)
        monkeypatch.setitem(kernels.BLOCKS, "block", 16)


def attended(module, query, sources, options, cotangent):
    means, *kept = module.attend(query, sources, *options)
    by_query, by_sources = module.attend_backward(cotangent, query, sources, *kept, *options[1:])
    return [means, *kept, by_query, *by_sources]


def summed(module, weights, sources, cotangent):
    by_weights, by_sources = module.mix_backward(cotangent, weights, sources)
    return [module.mix(weights, sources), by_weights, *by_sources]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 5, 1, 37), (2, 3, 3, 32), (0, 4, 1, 3)], ids=str)
@pytest.mark.usefixtures("blocks")
def test_attention_is_the_references(sizes, dtype, options):
    query, *sources = arguments(*sizes, dtype=dtype)
    cotangent = torch.randn(sizes[2], sizes[0], sizes[3], dtype=dtype)
    double = query.double(), [x.double() for x in sources], options, cotangent.double()
    expected = attended(reference, *double)
    got = attended(kernels, query, sources, options, cotangent)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close([x.double() for x in got], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 35, 1, 20), (2, 3, 3, 33), (0, 4, 1, 3)], ids=str)
@pytest.mark.usefixtures("blocks")
def test_sums_are_the_references(sizes, shared):
    sources = arguments(*sizes)[1:]
    weights = weights_for(sizes[0], sizes[1], sizes[2], shared=shared)
    cotangent = torch.randn(sizes[2], sizes[0], sizes[3], dtype=torch.float64)
    expected = summed(reference, weights, sources, cotangent)
    torch.testing.assert_close(summed(kernels, weights, sources, cotangent), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("blocks")
def test_narrow_sources_are_added_up_in_float32(dtype):
    query, *sources = arguments(2, 3, 1, 40, dtype=torch.float32)
    narrow, options = [x.to(dtype) for x in sources], OPTIONS[0]
    cotangent = torch.randn(1, 2, 40).to(dtype)
    got = attended(kernels, query, narrow, options, cotangent)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 3, *[dtype] * 3]
    expected = attended(reference, query.double(), [x.double() for x in narrow], options, cotangent.double())
    for found, truth in zip(got, expected, strict=True):
        assert (found.double() - truth).abs().max() <= torch.finfo(found.dtype).eps * truth.abs().max() * 16


@pytest.mark.usefixtures("blocks")
def test_sources_of_two_types():
    query, *sources = arguments(2, 4, 1, 40, dtype=torch.float32)
    sources[1:3] = [x.bfloat16() for x in sources[1:3]]
    cotangent, weights = torch.randn(1, 2, 40), weights_for(2, 4, 1, shared=False, dtype=torch.float32)
    got = [*attended(kernels, query, sources, OPTIONS[1], cotangent), *summed(kernels, weights, sources, cotangent)]
    double = query.double(), [x.double() for x in sources]
    expected = attended(reference, *double, OPTIONS[1], cotangent.double())
    expected += summed(reference, weights.double(), double[1], cotangent.double())
    types = [x.dtype for x in sources]
    assert [x.dtype for x in got] == [torch.float32] * 4 + types + [torch.float32] * 2 + types
    for found, truth in zip(got, expected, strict=True):
        assert (found.double() - truth).abs().max() <= torch.finfo(found.dtype).eps * truth.abs().max() * 16


BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("first", "kinds"),
    [(BF16, [BF16] * 2), (FP32, [BF16, FP16]), (FP32, [FP16, BF16, FP32]), (FP64, [FP32, FP64]), (FP32, [FP64] * 2)],
    ids=str,
)
def test_types_that_the_table_does_not_tell_apart_go_to_the_reference_with_a_word(first, kinds):
    """As whoever calls the operation by its name may give them; the functions convert or take plain operations."""
    past_limit.cache_clear()
    sources = [torch.randn(2, 20).to(kind) for kind in kinds]
    query, weights = torch.randn(1, 20).to(first), torch.rand(1, len(kinds)).to(first)
    by = torch.randn(1, 2, 20).to(reference.type_of(sources))
    with pytest.warns(RuntimeWarning, match="which are of one type, or of float32 and one of 16 bits") as caught:
        got = [*attended(kernels, query, sources, OPTIONS[0], by), *summed(kernels, weights, sources, by)]
    assert len(caught) == 1
    expected = [*attended(reference, query, sources, OPTIONS[0], by), *summed(reference, weights, sources, by)]
    assert all(map(torch.equal, got, expected))


@pytest.mark.usefixtures("blocks")
def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    query, *sources = arguments(2, 3, 1, 21)
    cotangent, options = torch.randn(1, 2, 21, dtype=torch.float64), OPTIONS[1]
    weights = weights_for(2, 3, 1, shared=False)
    expected = attended(reference, query, sources, options, cotangent), summed(reference, weights, sources, cotangent)
    given = query, cotangent, weights, *sources
    around = [torch.full((x.numel() + 256,), math.nan, dtype=x.dtype) for x in given]
    query, cotangent, weights, *sources = (a[128:-128].view_as(x).copy_(x) for a, x in zip(around, given, strict=True))
    torch.use_deterministic_algorithms(True)
    try:
        got = attended(kernels, query, sources, options, cotangent), summed(kernels, weights, sources, cotangent)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_sources_that_vectors_cannot_be_read_from_are_moved():
    """From an address that is no multiple of 16 bytes, or with a stride."""
    query, *sources = arguments(3, 2, 1, 7, dtype=torch.float32)
    odd = [torch.cat([torch.zeros(1), sources[0].flatten()])[1:].view(3, 7), sources[1].mT.contiguous().mT]
    assert odd[0].data_ptr() % 16
    assert all(x.is_contiguous() and x.data_ptr() % 16 == 0 for x in ready(odd))
    cotangent = torch.randn(1, 3, 7)
    got = attended(kernels, query, odd, OPTIONS[0], cotangent)
    torch.testing.assert_close(got, attended(reference, query, sources, OPTIONS[0], cotangent))
