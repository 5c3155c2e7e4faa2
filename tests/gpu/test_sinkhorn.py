"""Sinkhorn normalisation on a GPU against the reference in float64."""

import math

import pytest
import torch
from tests.ops.test_sinkhorn import drawn, gradient

from levada.ops import sinkhorn
from levada.ops.sinkhorn import reference

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
]


@pytest.mark.parametrize("options", [(1, 0.0), (20, 0.0), (20, 1e-6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "n"), [(1, 2), (1001, 3), (4096, 4), (77, 7), (513, 16), (0, 4)])
def test_values_and_gradients_are_the_references(count, n, dtype, options):
    iterations, epsilon = options
    logits, cotangent = (drawn(count, n, n, seed=seed).to("cuda", dtype) for seed in (0, 1))
    wide = [x.double() for x in (logits, cotangent)]
    expected = reference.normalise(wide[0], *options), reference.sinkhorn_backward(*wide, *options)
    mix = sinkhorn(logits, iterations, epsilon=epsilon)
    got = mix, gradient(lambda x: sinkhorn(x, iterations, epsilon=epsilon), logits, cotangent)
    for found, truth in zip(got, expected, strict=True):
        assert found.dtype == dtype
        if truth.numel():
            assert (found.double() - truth).norm() <= 32 * torch.finfo(dtype).eps * truth.norm()


def test_results_repeat_bit_by_bit():
    logits, cotangent = (drawn(5000, 4, 4, seed=seed).to("cuda", torch.float32) for seed in (0, 1))
    first = sinkhorn(logits), gradient(sinkhorn, logits, cotangent)
    for _ in range(5):
        again = sinkhorn(logits), gradient(sinkhorn, logits, cotangent)
        assert all(map(torch.equal, again, first))


def test_compiled_whole():
    logits, cotangent = (drawn(100, 4, 4, seed=seed).to("cuda", torch.float32) for seed in (0, 1))
    compiled = torch.compile(sinkhorn, fullgraph=True)
    torch.testing.assert_close(gradient(compiled, logits, cotangent), gradient(sinkhorn, logits, cotangent))


def test_nothing_around_the_logits_is_read():
    around = torch.full((9 * 25 + 256,), math.nan, device="cuda")
    logits = around[128:-128].view(9, 5, 5).copy_(drawn(9, 5, 5))
    torch.testing.assert_close(sinkhorn(logits).double(), reference.normalise(logits.double(), 20, 0.0))
