"""The kernels of a residual connection with its norm on a GPU, against the reference in float64."""

import math

import pytest
import torch
from tests.ops.test_residual_norm import arguments, by_hand, derivatives

from levada.ops.residual_norm import residual_norm

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),  # torch's own, of its compiler
]


def on_gpu(tokens, width, dtype, affine=2):
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(tokens, width)] * 4 + [(width,)] * affine
    made = [torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [*made[:2], *(x.to(wide) for x in made[4:])], made[2:4]


def require_close(got, tensors, by, centred):
    """Compare with two operations in float64 that begin at the sum as it was rounded."""
    new = got[0]
    assert torch.equal(new, tensors[0] + tensors[1])
    wide = [new.double(), torch.zeros_like(new, dtype=torch.float64), *(x.double() for x in tensors[2:])]
    expected = derivatives(by_hand, wide, [x.double() for x in by], centred=centred)
    assert [x.dtype for x in got[2:]] == [x.dtype for x in tensors]
    for found, truth in zip(got, expected, strict=True):
        if truth.numel():
            error = (found.double() - truth).abs().max()
            assert error <= 8 * torch.finfo(found.dtype).eps * truth.abs().max() * max(1, len(new)) ** 0.5


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 37), (65, 2560), (1001, 768), (33, 8192), (5, 16384), (0, 4)], ids=str)
def test_values_and_gradients_are_the_references(sizes, dtype, centred, affine):
    tensors, by = on_gpu(*sizes, dtype, affine)
    require_close(derivatives(residual_norm, tensors, by, centred=centred), tensors, by, centred)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(4096, 4 * 2560), (16384, 2560), (100_003, 64)], ids=str)
def test_large_ones_too(sizes, dtype):
    for centred, affine in ((False, 1), (True, 2)):
        tensors, by = on_gpu(*sizes, dtype, affine)
        require_close(derivatives(residual_norm, tensors, by, centred=centred), tensors, by, centred)


def test_results_repeat_bit_by_bit():
    tensors, by = on_gpu(3000, 1000, torch.bfloat16)
    first = derivatives(residual_norm, tensors, by, centred=True)
    for _ in range(5):
        assert all(map(torch.equal, derivatives(residual_norm, tensors, by, centred=True), first))


def test_compiled_whole():
    tensors, by = on_gpu(300, 256, torch.float32)
    compiled = torch.compile(residual_norm, fullgraph=True)
    torch.testing.assert_close(
        derivatives(compiled, tensors, by), derivatives(residual_norm, tensors, by), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("width", [37, 1000, 2560])
def test_what_is_beside_the_arguments_is_not_read(width):
    tensors, by = on_gpu(33, width, torch.bfloat16)
    expected = derivatives(residual_norm, tensors, by, centred=True)
    around = [torch.full((x.numel() + 8192,), math.nan, dtype=x.dtype, device="cuda") for x in [*tensors, *by]]
    inside = [a[4096:-4096].view_as(x).copy_(x) for a, x in zip(around, [*tensors, *by], strict=True)]
    got = derivatives(residual_norm, inside[:4], inside[4:], centred=True)
    assert all(map(torch.equal, got, expected))


def test_second_derivatives():
    tensors = [x.cuda().requires_grad_() for x in arguments(3, 5)]
    assert torch.autograd.gradgradcheck(lambda *x: residual_norm(*x, centred=True), tensors)
