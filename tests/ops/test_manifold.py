"""Reading streams against the reference."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from levada.ops.manifold import Form, cpu, read_streams, reference

pytest.importorskip("numba")

FORMS = {
    "paper": Form(),
    "few": Form(iterations=1),
    "released": Form(epsilon=1e-6, read_epsilon=1e-6, transposed=True),
    "large epsilon": Form(epsilon=0.1, transposed=True, iterations=5),
    "identity": Form(mixes=False, read_epsilon=1e-3, write_epsilon=1e-3, norm_epsilon=1e-2),
}


def arguments(tokens, n, dim, form, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows = 2 * n + n * n * form.mixes
    state = torch.randn(tokens, n, dim, generator=generator, dtype=torch.float64)
    projection = torch.randn(rows, n * dim, generator=generator, dtype=torch.float64) * (n * dim) ** -0.5
    scale = torch.rand(2 + form.mixes, generator=generator, dtype=torch.float64) + 0.5
    bias = torch.randn(rows, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (state, projection, scale, bias)]


def run(function, tensors, form):
    x, reads, writes, mix, *new = function(*tensors, form)
    outputs = [x, writes, *([] if mix is None else [mix]), new[0] if new else tensors[0]]
    generator = torch.Generator().manual_seed(1)
    by = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    total = sum((y * g).sum() for y, g in zip(outputs, by, strict=True))
    return [x, reads, writes, *([] if mix is None else [mix])], torch.autograd.grad(total, tensors)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (17, 4, 33), (40, 5, 8)], ids=str)
def test_values_and_gradients_are_the_references(sizes, form):
    tensors = arguments(*sizes, form)
    assert cpu.loops_for(tensors[0], form, *tensors[1:]) is not None
    got, expected = run(read_streams, tensors, form), run(reference.read, tensors, form)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", [FORMS["paper"], FORMS["identity"]], ids=["paper", "identity"])
def test_derivatives_of_first_and_second_order(form):
    tensors = arguments(2, 2, 3, form)

    def function(*tensors):
        x, _, writes, mix, new = read_streams(*tensors, form)
        return (x, writes, new) if mix is None else (x, writes, mix, new)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


def test_logits_of_any_size():
    form = Form()
    tensors = arguments(20, 4, 8, form, torch.float32)
    with torch.no_grad():
        tensors[3][8:] *= 60
    got, expected = (
        run(read_streams, tensors, form),
        run(reference.read, [x.double().detach().requires_grad_() for x in tensors], form),
    )
    for found, truth in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        assert (found - truth).abs().max() <= 2e-4 * truth.abs().max()
