"""Writing to streams against its reference: values, derivatives of any order, types, the dispatcher, bad input."""

import importlib.util

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from levada._errors import UsageError
from levada.ops import _kernels, write_streams
from levada.ops.streams import reference

SIZES = [(1, 2, 1), (5, 3, 7), (3, 4, 65), (2, 5, 8), (0, 4, 3), (700, 4, 16)]


def arguments(tokens, n, dim, *, mixes=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, n, dim), (tokens, dim), (tokens, n)] + [(tokens, n, n)] * mixes
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(state, out, weights, mix=None):
    mixed = state if mix is None else torch.einsum("tij,tjc->tic", mix, state)
    return mixed + torch.einsum("ti,tc->tic", weights, out)


def derivatives(function, tensors, cotangent):
    tensors = [x.detach().requires_grad_() for x in tensors]
    new = function(*tensors)
    return new.detach(), *torch.autograd.grad(new, tensors, cotangent)


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_values_and_gradients_are_those_of_the_formula(sizes, mixes, compiled, monkeypatch):
    if compiled and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if not compiled:
        monkeypatch.setattr(_kernels, "_FOUND", False)
    tensors = arguments(*sizes, mixes=mixes)
    cotangent = torch.randn(sizes, dtype=torch.float64)
    got = derivatives(write_streams, tensors, cotangent)
    torch.testing.assert_close(got, derivatives(by_hand, tensors, cotangent), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixes", [True, False])
def test_derivatives_of_first_and_second_order(mixes):
    tensors = [x.requires_grad_() for x in arguments(2, 3, 2, mixes=mixes)]
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(write_streams, tensors, **options)
    assert gradgradcheck(write_streams, tensors, check_fwd_over_rev=True, check_batched_grad=True)


def test_leading_axes_are_broadcast():
    state, out, _, _ = arguments(6, 4, 5)
    weights, mix = torch.rand(4, dtype=torch.float64), torch.rand(4, 4, dtype=torch.float64)
    got = write_streams(state.view(2, 3, 4, 5), out.view(2, 3, 5), weights, mix)
    torch.testing.assert_close(got.view(6, 4, 5), by_hand(state, out, weights.expand(6, 4), mix.expand(6, 4, 4)))
    got = write_streams(state.view(2, 3, 4, 5), out.view(2, 3, 5), weights.expand(2, 1, 4), mix)
    torch.testing.assert_close(got.view(6, 4, 5), by_hand(state, out, weights.expand(6, 4), mix.expand(6, 4, 4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_the_type_of_the_weights(dtype):
    state, out, weights, mix = arguments(8, 4, 16, dtype=torch.float32)
    got = write_streams(state.to(dtype), out.to(dtype), weights, mix)
    expected = by_hand(state.to(dtype).double(), out.to(dtype).double(), weights.double(), mix.double())
    assert torch.equal(got, expected.to(dtype)) or (got - expected).abs().max() < torch.finfo(dtype).eps * 16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(write_streams(state.to(dtype), out.to(dtype), weights, mix), got)


def test_threads_change_no_bit():
    tensors = arguments(300, 4, 64, dtype=torch.float32)
    cotangent = torch.randn(300, 4, 64)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(derivatives(write_streams, tensors, cotangent))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_memory_may_be_strided_and_is_not_written_to():
    tensors = arguments(6, 4, 5)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in tensors]
    cotangent = torch.ones((), dtype=torch.float64).expand(6, 4, 5)
    before = [x.clone() for x in strided]
    torch.testing.assert_close(
        derivatives(write_streams, strided, cotangent), derivatives(by_hand, tensors, cotangent.clone())
    )
    assert all(map(torch.equal, strided, before))


@pytest.mark.parametrize("mixes", [True, False])
def test_the_dispatcher_knows_it(mixes):
    tensors = [x.requires_grad_() for x in arguments(3, 4, 5, mixes=mixes)]
    given = tensors if mixes else [*tensors, None]
    torch.library.opcheck(torch.ops.levada.streams_write.default, given)
    cotangent = torch.randn(3, 4, 5, dtype=torch.float64)
    detached = [None if x is None else x.detach() for x in given]
    torch.library.opcheck(torch.ops.levada.streams_write_backward.default, (cotangent, *detached))


def test_it_compiles_whole():
    tensors = arguments(3, 4, 5)
    cotangent = torch.randn(3, 4, 5, dtype=torch.float64)
    compiled = torch.compile(write_streams, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(derivatives(compiled, tensors, cotangent), derivatives(by_hand, tensors, cotangent))


def test_without_mixing_the_streams_are_not_kept():
    state, out, weights = (x.requires_grad_() for x in arguments(3, 4, 5, mixes=False))
    new = write_streams(state, out, weights)
    with torch.no_grad():
        state.zero_()
    new.sum().backward()
    torch.testing.assert_close(out.grad, weights.detach().sum(-1, keepdim=True).expand(3, 5))


def test_nan_stays_in_its_token():
    tensors = arguments(4, 4, 40, dtype=torch.float32)
    tensors[0][1, 2, 3] = torch.nan
    new = write_streams(*tensors)
    assert new.isnan().any(-1).any(-1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, o, w, m: (s.long(), o, w, m), "state must be"),
        (lambda s, o, w, m: (s, o[:, :-1], w, m), "out must be"),
        (lambda s, o, w, m: (s, o[:, :1], w, m), "out must be"),
        (lambda s, o, w, m: (s, o, w[:2], m), "weights must be"),
        (lambda s, o, w, m: (s, o, w, m[..., :1]), "mix must be"),
        (lambda s, o, w, m: (s, o, w.to("meta"), m), "on cpu as the streams are"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(UsageError, match=words):
        write_streams(*change(*arguments(3, 4, 5)))


def test_the_reference_of_the_backward_pass_is_that_of_autograd():
    tensors = arguments(3, 4, 5)
    cotangent = torch.randn(3, 4, 5, dtype=torch.float64)
    found = reference.write_backward(cotangent, *tensors)
    torch.testing.assert_close(found, derivatives(by_hand, tensors, cotangent)[1:])
