"""Reading streams by weights that were handed on against the plain formula: values, derivatives, types, dispatcher."""

import importlib.util
import math

import pytest
import torch
from tests.ops.test_hyper import run
from torch.autograd import gradgradcheck

from levada import SinglePassManifoldHyperConnection, Stack
from levada._errors import UsageError
from levada.ops import _kernels, write_streams
from levada.ops._define import plain_operations
from levada.ops.manifold import Form
from levada.ops.manifold import reference as own
from levada.ops.manifold.handed import cpu, read_handed, write_and_read_handed

FORMS = {
    "paper": Form(iterations=3, norm_epsilon=1e-2),
    "released": Form(True, 3, 1e-2, 1e-2, 0.0, 1e-2, True),
    "without mixing": Form(mixes=False, norm_epsilon=1e-2),
}
PAPER = FORMS["paper"]


def arguments(leading, n, dim, form=PAPER, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows, kinds = (n * (2 + n), 3) if form.mixes else (2 * n, 2)
    shapes = [(*leading, n, dim), (*leading, n), (rows, n * dim), (kinds,), (rows,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def by_formula(state, handed, projection, scale, bias, form=PAPER):
    _, reads, writes, mix = own.read(state, projection, scale, bias, form)
    x = torch.einsum("...j,...jc->...c", handed, state)
    return x, reads, writes, *(() if mix is None else (mix,)), state


def fused(*tensors, form=PAPER):
    return [x for x in read_handed(*tensors, form) if x is not None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (71, 4, 33), (3, 16, 2), (0, 4, 3)], ids=str)
@pytest.mark.parametrize("way", ["loops", "reference", "plain"])
def test_values_and_gradients_are_the_formulas(sizes, form, way, calls, monkeypatch):
    if way == "loops" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if way == "reference":
        monkeypatch.setattr(cpu, "loops_for", lambda *given: None)
    monkeypatch.setattr(_kernels, "_FOUND", way != "plain")
    tensors = arguments(sizes[:1], *sizes[1:], FORMS[form])
    ours, theirs = (lambda *x, f=f: f(*x, form=FORMS[form]) for f in (fused, by_formula))
    torch.testing.assert_close(run(ours, tensors), run(theirs, tensors), rtol=1e-9, atol=1e-11)
    assert len(calls) == (way != "plain")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    tensors = arguments((6,), 4, 16, dtype=torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(fused, tensors)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 3, dtype, dtype, *[torch.float32] * 4]
    for found, truth in zip(got, run(by_formula, wide), strict=True):
        # The cotangents are rounded as well, to the type of what they belong to.
        assert (found.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_a_weight_that_is_not_finite_spoils_its_own_token_alone():
    tensors = arguments((3,), 4, 5)
    expected = run(by_formula, tensors)
    with torch.no_grad():
        tensors[1][1, 2] = math.nan
    got = run(fused, tensors)
    assert got[0][1].isnan().all()
    assert got[5][1, 2].isnan().all()
    got[0][1], got[5][1, 2] = expected[0][1], expected[5][1, 2]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_some_threads_compute_what_one_does():
    pytest.importorskip("numba")
    tensors, threads = arguments((640,), 4, 33), torch.get_num_threads()
    found = []
    try:
        for several in (1, 3):
            torch.set_num_threads(several)
            found.append(run(fused, tensors))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("leading", [(5,), (2, 3), ()], ids=str)
def test_written_and_read_as_one_node_they_are_the_two_operations(leading, joined):
    generator = torch.Generator().manual_seed(2)
    _, *others = arguments(leading, 3, 4)
    shapes = [(*leading, 3, 4), (*leading, 4), (*leading, 3), (*leading, 3, 3)]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]

    def in_one(*given):
        return write_and_read_handed(*given[:5], given[5:], PAPER)

    def in_two(*given):
        return by_formula(write_streams(*given[:4]), *given[4:])

    given = [*tensors, *others]
    torch.testing.assert_close(run(in_one, given), run(in_two, given), rtol=1e-9, atol=1e-11)
    assert joined
    assert gradgradcheck(in_one, given) if leading == () else True


def test_the_connection_reads_by_it_unless_somebody_looks(calls, joined):
    torch.manual_seed(0)
    branches = [torch.nn.Tanh() for _ in range(3)]
    stack = Stack(branches, SinglePassManifoldHyperConnection, dim=6, streams=3, iterations=3).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 5, 6, dtype=torch.float64)

    def step():
        return [stack(x).detach(), *torch.autograd.grad(stack(x).square().sum(), list(stack.parameters()))]

    got = step()
    assert (len(calls), len(joined)) == (2, 4)
    with plain_operations():
        torch.testing.assert_close(got, step(), rtol=1e-9, atol=1e-11)
    assert (len(calls), len(joined)) == (2, 4)


@pytest.mark.parametrize("way", ["kernels", "plain"])
@pytest.mark.parametrize("shape", [(3, 2, 4), (6, 4), (1, 3, 4), (4,)], ids=str)
def test_weights_of_other_tokens_are_refused(shape, way, monkeypatch):
    """As many numbers in another order would be read as other tokens'."""
    monkeypatch.setattr(_kernels, "_FOUND", way == "kernels")
    state, _, *others = (x.detach() for x in arguments((2, 3), 4, 5))
    writes = state[..., 0, :], torch.ones(2, 3, 4).double(), torch.eye(4).double().expand(2, 3, 4, 4)
    for call in (
        lambda handed: read_handed(state, handed, *others, PAPER),
        lambda handed: write_and_read_handed(state, *writes, handed, tuple(others), PAPER),
    ):
        assert call(torch.ones(2, 3, 4).double())[0].shape == (2, 3, 5)
        with pytest.raises(UsageError, match=r"one weight for each stream of each token, \(2, 3, 4\)"):
            call(torch.ones(shape).double())
