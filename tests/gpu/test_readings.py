"""Reading streams by weights that were handed on, and by those of all tokens, on a GPU, against the formulas."""

import functools

import pytest
import torch
from tests.gpu.test_hyper import close, doubled, on_gpu, run
from tests.ops import test_handed as handed
from tests.ops import test_static as static

from levada.ops.hyper.static import read_static

# What is compiled in full precision is meant to be.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 2, 1), (3, 3, 37), (300, 4, 2560)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", [*SIZES, (33, 16, 96)], ids=str)
def test_weights_of_all_tokens(sizes, dtype):
    tensors = on_gpu(static.arguments(*sizes, torch.float32), dtype)
    close(run(read_static, tensors), run(static.by_formula, doubled(tensors)), dtype)


@pytest.mark.parametrize("form", handed.FORMS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_weights_that_were_handed_on(sizes, dtype, form):
    form = handed.FORMS[form]
    tokens, n, dim = sizes
    state, weights, projection, *others = handed.arguments((tokens,), n, dim, form, torch.float32)
    given = state, weights, projection.detach() * (n * dim) ** -0.5, *others
    ours, theirs = (functools.partial(f, form=form) for f in (handed.fused, handed.by_formula))
    tensors = on_gpu(given, dtype)
    close(run(ours, tensors), run(theirs, doubled(tensors)), dtype)


def test_results_repeat_bit_by_bit():
    tensors = on_gpu(static.arguments(3000, 4, 1024, torch.float32), torch.bfloat16)
    first = run(read_static, tensors)
    for _ in range(3):
        assert all(map(torch.equal, run(read_static, tensors), first))
