"""A residual connection with its norm against PyTorch's own: values, derivatives of any order, types, bad input."""

import importlib.util
from itertools import product

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from levada._errors import UsageError
from levada.ops import residual_norm as module
from levada.ops.residual_norm import cpu, reference, residual_norm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

SIZES = [(1, 1), (5, 7), (3, 65), (0, 4), (700, 32)]


@pytest.fixture
def without_loops(monkeypatch):
    monkeypatch.setattr(cpu, "import_kernels", lambda module, package: None)


def arguments(tokens, width, *, affine=2, dtype=torch.float64):
    """Return state and output, and with `affine` a weight, then a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, width)] * 2 + [(width,)] * affine
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(state, out, weight=None, bias=None, *, centred=False, eps=1e-5):
    y = state + out
    if centred:
        return y, functional.layer_norm(y, y.shape[-1:], weight, bias, eps)
    z = functional.rms_norm(y, y.shape[-1:], weight, eps)
    return y, z if bias is None else z + bias


def derivatives(function, tensors, cotangents, **options):
    tensors = [x.detach().requires_grad_() for x in tensors]
    results = function(*tensors, **options)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, tensors, cotangents)]


def cotangents(tokens, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_values_and_gradients_are_those_of_two_operations(sizes, centred, affine, compiled, monkeypatch):
    if compiled and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if not compiled:
        monkeypatch.setattr(cpu, "import_kernels", lambda module, package: None)
        monkeypatch.setattr(module, "_by_torch", lambda *given: False)
    tensors = arguments(*sizes, affine=affine)
    got = derivatives(residual_norm, tensors, cotangents(*sizes), centred=centred, eps=0.01)
    expected = derivatives(by_hand, tensors, cotangents(*sizes), centred=centred, eps=0.01)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("centred", [True, False])
def test_derivatives_of_first_and_second_order(centred, affine):
    tensors = [x.requires_grad_() for x in arguments(2, 5, affine=affine)]
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}

    def function(*given):
        return residual_norm(*given, centred=centred)

    assert gradcheck(function, tensors, **options)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


def test_leading_axes_may_be_many_or_none():
    state, out, weight, bias = arguments(6, 5)
    whole = residual_norm(state, out, weight, bias)
    parts = residual_norm(state.view(2, 3, 5), out.view(2, 3, 5), weight, bias)
    assert all(torch.equal(a.view(6, 5), b) for a, b in zip(parts, whole, strict=True))
    first = residual_norm(state[0], out[0], weight, bias)
    assert all(torch.equal(a, b[0]) for a, b in zip(first, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_normalised_in_float32_after_one_rounding(dtype):
    state, out, weight, bias = arguments(8, 32, dtype=torch.float32)
    y, z = residual_norm(state.to(dtype), out.to(dtype), weight, bias, centred=True)
    assert torch.equal(y, (state.to(dtype).float() + out.to(dtype).float()).to(dtype))
    exact = functional.layer_norm(y.double(), (32,), weight.double(), bias.double(), 1e-5)
    assert z.dtype == dtype
    assert (z.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(residual_norm(state.to(dtype), out.to(dtype), weight, bias, centred=True)[1], z)


def test_gradients_come_in_the_types_of_their_arguments():
    state, out, weight, _ = arguments(4, 8, dtype=torch.float32)
    tensors = [state.requires_grad_(), out.bfloat16().requires_grad_(), weight.requires_grad_()]
    y, z = residual_norm(*tensors)
    assert y.dtype == z.dtype == torch.float32
    (y.sum() + z.square().sum()).backward()
    assert [x.grad.dtype for x in tensors] == [torch.float32, torch.bfloat16, torch.float32]


def test_one_result_alone_may_be_used():
    tensors = arguments(4, 8)
    for index in (0, 1):
        got = derivatives(
            lambda *x, index=index: residual_norm(*x)[index : index + 1], tensors[:2], cotangents(4, 8)[:1]
        )
        expected = derivatives(
            lambda *x, index=index: by_hand(*x)[index : index + 1], tensors[:2], cotangents(4, 8)[:1]
        )
        torch.testing.assert_close(got, expected)


def test_memory_may_be_strided_and_is_not_written_to():
    tensors = arguments(6, 5)
    strided = [x.mT.contiguous().mT if x.dim() == 2 else x for x in tensors]
    by = [torch.ones((), dtype=torch.float64).expand(6, 5)] * 2
    before = [x.clone() for x in strided]
    torch.testing.assert_close(derivatives(residual_norm, strided, by), derivatives(by_hand, tensors, by))
    assert all(map(torch.equal, strided, before))


@pytest.mark.parametrize("affine", [0, 1, 2])
def test_the_dispatcher_knows_it(affine):
    tensors = [*(x.requires_grad_() for x in arguments(3, 5, affine=affine)), *[None] * (2 - affine)]
    torch.library.opcheck(torch.ops.levada.residual_norm.default, (*tensors, True, 1e-5))
    given = (*cotangents(3, 5), *arguments(3, 5)[1:3], True, 1e-5, affine == 2)
    torch.library.opcheck(torch.ops.levada.residual_norm_backward.default, given)


def test_it_compiles_whole():
    tensors = arguments(3, 5)
    compiled = torch.compile(residual_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        derivatives(compiled, tensors, cotangents(3, 5)), derivatives(by_hand, tensors, cotangents(3, 5))
    )


def test_weights_may_differ_within_a_batch():
    state, out, _, _ = arguments(4, 5)
    weights = torch.rand(3, 5, dtype=torch.float64)
    got = torch.vmap(lambda w: residual_norm(state, out, w, centred=True)[1])(weights)
    for one, weight in zip(got, weights, strict=True):
        torch.testing.assert_close(one, by_hand(state, out, weight, centred=True)[1])


def test_memory_of_parameters_may_be_resized_after_it():
    """As FSDP does."""
    tensors = [x.requires_grad_() for x in arguments(3, 5)]
    sum(x.sum() for x in residual_norm(*tensors)).backward()
    for parameter in tensors[2:]:
        parameter.untyped_storage().resize_(0)


def test_nan_stays_in_its_token():
    tensors = arguments(4, 40, dtype=torch.float32)
    tensors[0][1, 2] = torch.nan
    for result in residual_norm(*tensors):
        assert result.isnan().any(-1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, o, w, b: (s.long(), o, w, b), "state must be"),
        (lambda s, o, w, b: (s, o[:1], w, b), "out must be"),
        (lambda s, o, w, b: (s, o, w[:1], b), "weight must be"),
        (lambda s, o, w, b: (s, o, w, b[None]), "bias must be"),
        (lambda s, o, w, b: (s, o, w.to("meta"), b), "on cpu as the state is"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(UsageError, match=words):
        residual_norm(*change(*arguments(3, 5)))


def test_a_negative_epsilon_is_refused():
    with pytest.raises(UsageError, match="eps must be at least 0, got -1"):
        residual_norm(*arguments(3, 5), eps=-1)


def test_the_reference_of_the_backward_pass_is_that_of_autograd():
    state, out, weight, bias = arguments(3, 5)
    new, by = state + out, cotangents(3, 5)
    by_sum, *others = reference.residual_norm_backward(*by, new, weight, True, 1e-5, True)
    expected = derivatives(by_hand, [state, out, weight, bias], by, centred=True)
    torch.testing.assert_close([by_sum, by_sum, *others], expected[2:])


@pytest.mark.parametrize("affine", [0, 1, 2, "bias"])
@pytest.mark.usefixtures("without_loops")
def test_without_loops_pytorch_itself_normalises_by_root_mean_squares(affine, monkeypatch):
    calls = []
    real = module.differentiable_residual_norm
    monkeypatch.setattr(module, "differentiable_residual_norm", lambda *given: calls.append(1) or real(*given))
    tensors = arguments(5, 64, affine=2 if affine == "bias" else affine)
    tensors, named = (tensors[:2], {"bias": tensors[3]}) if affine == "bias" else (tensors, {})
    options = {"eps": 0.01, **named}
    got = derivatives(residual_norm, tensors, cotangents(5, 64), **options)
    assert not calls
    monkeypatch.setattr(module, "_by_torch", lambda *given: False)
    expected = derivatives(residual_norm, tensors, cotangents(5, 64), **options)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    monkeypatch.undo()
    assert len(calls) == 1


@pytest.mark.usefixtures("without_loops")
@pytest.mark.parametrize("change", ["type", "centred"])
def test_without_loops_plain_operations_do_what_pytorch_does_not(change, monkeypatch):
    monkeypatch.setattr(module, "_with_torch", lambda *given: pytest.fail("PyTorch's own norm was called"))
    state, out, *others = arguments(5, 64)
    residual_norm(state, out.float() if change == "type" else out, *others, centred=change == "centred")


@pytest.mark.parametrize("centred", [True, False])
def test_it_is_called_without_the_dispatcher_where_nobody_looks(centred, monkeypatch):
    """And gives the same with any axes of tokens, and where somebody does look in the backward pass alone."""
    pytest.importorskip("numba")
    tensors, by = arguments(6, 20), cotangents(6, 20)
    expected = derivatives(by_hand, tensors, by, centred=centred)
    monkeypatch.setattr(module, "differentiable_residual_norm", lambda *given: pytest.fail("by the dispatcher"))
    torch.testing.assert_close(derivatives(residual_norm, tensors, by, centred=centred), expected)
    leaves = [x.requires_grad_() for x in tensors]
    found = residual_norm(leaves[0].view(2, 3, 20), leaves[1].view(2, 3, 20), *leaves[2:], centred=centred)
    given = [x.view(2, 3, 20) for x in by]
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        got = torch.autograd.grad(found, leaves, given, retain_graph=True)
    torch.testing.assert_close([*got], expected[2:])
    again = torch.autograd.grad(found, leaves, given, create_graph=True)
    torch.testing.assert_close([*again], expected[2:])
    assert again[0].requires_grad


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [15, 16, 20, 129, 700, 4_000])
def test_float32_is_as_in_float64(width, centred):
    """Of whole vectors, several at a time, and what is left of them; and of rows that go together, and alone."""
    tensors, by = arguments(70, width, dtype=torch.float32), cotangents(70, width, torch.float32)
    got = derivatives(residual_norm, tensors, by, centred=centred)
    wide = [x.double() for x in tensors], [x.double() for x in by]
    for a, b in zip(got, derivatives(by_hand, *wide, centred=centred), strict=True):
        assert (a.double() - b).norm() <= 5e-7 * b.norm()


def test_infinite_and_huge_numbers_are_as_in_plain_operations():
    state, out, *others = arguments(4, 40, dtype=torch.float32)
    state[1, 3], state[2] = torch.inf, 1e25 * state[2]
    for centred in (False, True):
        got = residual_norm(state, out, *others, centred=centred)
        expected = reference.residual_norm(state, out, *others, centred, 1e-5)
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("loops", [True, False])
def test_derivatives_of_second_and_third_order_in_any_nesting(centred, loops, monkeypatch):
    """PyTorch's own layer norm gives wrong ones."""
    if not loops:
        monkeypatch.setattr(cpu, "import_kernels", lambda module, package: None)
    state, out, weight, bias = arguments(1, 3)

    def by_plain_operations(y, weight):
        m = y.mean(-1, keepdim=True) if centred else 0
        return (y - m) / ((y - m).square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def ours(y, weight):
        return residual_norm(y, out, weight, bias, centred=centred)[1]

    for outer, inner in product([torch.func.jacfwd, torch.func.jacrev], repeat=2):
        got = outer(inner(ours))(state, weight)
        torch.testing.assert_close(got, outer(inner(by_plain_operations))(state + out, weight), rtol=1e-9, atol=1e-9)
    third = [torch.func.jacrev(torch.func.jacrev(torch.func.jacrev(f))) for f in (ours, by_plain_operations)]
    torch.testing.assert_close(third[0](state, weight), third[1](state + out, weight), rtol=1e-8, atol=1e-8)
