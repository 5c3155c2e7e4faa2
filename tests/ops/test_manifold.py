"""Reading streams against the reference: values, derivatives, types, the dispatcher."""

import importlib.util

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from levada._errors import UsageError
from levada.ops import _cpu, _kernels, write_streams
from levada.ops._define import is_direct
from levada.ops.manifold import Form, cpu, read_streams, reference
from levada.ops.manifold.ahead import write_and_read

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

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
    outputs = [x, reads, writes, *([] if mix is None else [mix]), new[0] if new else tensors[0]]
    generator = torch.Generator().manual_seed(1)
    by = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    total = sum((y * g).sum() for y, g in zip(outputs, by, strict=True))
    return [x, reads, writes, *([] if mix is None else [mix])], torch.autograd.grad(total, tensors)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (17, 4, 33), (40, 5, 8)], ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_values_and_gradients_are_the_references(sizes, form, compiled, monkeypatch):
    tensors = arguments(*sizes, form)
    if compiled and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if not compiled:
        monkeypatch.setattr(_kernels, "_FOUND", False)
    assert (cpu.loops_for(tensors[0], form, *tensors[1:]) is not None) == compiled
    got, expected = run(read_streams, tensors, form), run(reference.read, tensors, form)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (40, 5, 8)], ids=str)
def test_products_of_a_large_projection_are_made_apart(sizes, form, monkeypatch):
    pytest.importorskip("numba")
    tensors, calls = arguments(*sizes, form), []
    monkeypatch.setattr(cpu, "IN_LOOPS", 0)
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * sizes[1] * sizes[2])  # tokens by twenties
    real = cpu.product
    monkeypatch.setattr(cpu, "product", lambda *given: calls.append(1) or real(*given))
    got, expected = run(read_streams, tensors, form), run(reference.read, tensors, form)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert calls


def outputs_of(*tensors, form):
    return [y for y in read_streams(*tensors, form) if y is not None]


@pytest.mark.parametrize("form", [FORMS["paper"], FORMS["identity"]], ids=["paper", "identity"])
def test_derivatives_of_first_and_second_order(form):
    tensors = arguments(2, 2, 3, form)

    def function(*tensors):
        return tuple(outputs_of(*tensors, form=form))

    assert gradcheck(function, tensors, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("form", [FORMS["released"], FORMS["identity"]], ids=["released", "identity"])
def test_the_dispatcher_knows_it(form):
    tensors = arguments(3, 4, 5, form)
    torch.library.opcheck(torch.ops.levada.streams_read.default, (*tensors, *form))
    given = [x.detach() for x in tensors]
    x, reads, writes, mix, *kept = torch.ops.levada.streams_read(*given, *form)
    for optional in ((None, None), (torch.ones_like(reads), torch.ones_like(given[0]))):
        by = x, optional[0], writes, mix, optional[1]
        torch.library.opcheck(torch.ops.levada.streams_read_backward.default, (*by, *given, *kept, *form))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_compiles_whole(dtype):
    tensors = arguments(3, 4, 5, FORMS["paper"])
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    compiled = torch.compile(read_streams, fullgraph=True, backend="aot_eager")
    got, expected = (run(f, tensors, FORMS["paper"]) for f in (compiled, reference.read))
    # In 16 bits the streams' gradient is the sum of two, in either order.
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("dims", [(0, None, None, None), (2, 0, 0, 0)], ids=["streams", "all"])
def test_vmap_and_grad(dims):
    form = FORMS["paper"]
    batches = [arguments(3, 4, 5, form), [x * 1.1 for x in arguments(3, 4, 5, form)]]
    if dims[1] is None:
        batches[1][1:] = batches[0][1:]
    together = [
        both[0] if dim is None else torch.stack(both, dim)
        for both, dim in zip(zip(*batches, strict=True), dims, strict=True)
    ]

    def gradients(*tensors):
        total = lambda *tensors: sum(y.square().sum() for y in outputs_of(*tensors, form=form))  # noqa: E731
        return torch.func.grad(total, argnums=(0, 1, 2, 3))(*tensors)

    for function in (lambda *tensors: outputs_of(*tensors, form=form), gradients):
        got = torch.vmap(function, in_dims=dims)(*together)
        expected = [torch.stack(y) for y in zip(*(function(*tensors) for tensors in batches), strict=True)]
        torch.testing.assert_close(list(got), expected)


def test_it_may_be_checkpointed():
    form = FORMS["paper"]
    tensors = arguments(3, 4, 5, form)
    function = lambda *given: checkpoint(read_streams, *given, use_reentrant=False)  # noqa: E731
    torch.testing.assert_close(run(function, tensors, form), run(reference.read, tensors, form))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    form = FORMS["paper"]
    tensors = arguments(6, 4, 16, form, torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, gradients = run(read_streams, tensors, form)
    assert [x.dtype for x in (*values, *gradients)] == [dtype, *[torch.float32] * 3, dtype, *[torch.float32] * 3]
    expected = run(reference.read, wide, form)
    for found, truth in zip((*values, *gradients), (*expected[0], *expected[1]), strict=True):
        # The cotangents are rounded as well, to the type of what they belong to.
        assert (found.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_autocast_changes_nothing():
    form = FORMS["paper"]
    tensors = arguments(6, 4, 16, form, torch.float32)
    expected = run(read_streams, tensors, form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(read_streams, tensors, form)
    assert all(map(torch.equal, (*got[0], *got[1]), (*expected[0], *expected[1])))


def test_what_is_asked_for_alone():
    """A gradient may come by some of the results only: the others count as zero."""
    form = FORMS["paper"]
    for place in range(5):
        tensors = arguments(3, 4, 5, form)
        got = torch.autograd.grad(read_streams(*tensors, form)[place].square().sum(), tensors, allow_unused=True)
        expected = torch.autograd.grad(
            (*reference.read(*tensors, form), tensors[0])[place].square().sum(), tensors, materialize_grads=True
        )
        torch.testing.assert_close(list(got), list(expected))


def test_memory_may_be_strided_and_leading_axes_are_kept():
    form = FORMS["released"]
    tensors = arguments(6, 4, 5, form)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in tensors]
    torch.testing.assert_close(run(read_streams, strided, form), run(reference.read, tensors, form))
    got = read_streams(tensors[0].view(2, 3, 4, 5), *tensors[1:], form)
    assert [tuple(y.shape) for y in got] == [(2, 3, 5), (2, 3, 4), (2, 3, 4), (2, 3, 4, 4), (2, 3, 4, 5)]
    torch.testing.assert_close(got[0].view(6, 5), reference.read(*tensors, form)[0])


def test_iterations_past_what_the_loops_take():
    form = FORMS["paper"]._replace(iterations=80)
    tensors = arguments(3, 4, 5, form, torch.float32)
    assert cpu.loops_for(tensors[0], form, *tensors[1:]) is None
    torch.testing.assert_close(run(read_streams, tensors, form), run(reference.read, tensors, form))


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


def test_gradients_of_parameters_that_cancel_over_many_tokens():
    form = FORMS["paper"]
    tensors = arguments(4096, 4, 16, form, torch.float32)
    state, projection, scale, bias = (x.detach().double().requires_grad_() for x in tensors)
    _, got = run(read_streams, tensors, form)
    _, expected = run(reference.read, [state, projection, scale, bias], form)
    for found, truth in zip(got[2:], expected[2:], strict=True):
        assert (found.double() - truth).norm() < 6e-7 * truth.norm()


def test_numbers_whose_sign_or_memory_is_not_made_yet_are_read_as_what_they_are():
    form, made = FORMS["paper"], torch.randn(5, 4, 8)
    negative = torch._neg_view(-made)  # PyTorch keeps the sign aside
    assert negative.is_neg()
    assert not made.is_neg()
    state, *parameters = arguments(5, 4, 8, form, torch.float32)
    torch.testing.assert_close(read_streams(negative, *parameters, form), read_streams(made, *parameters, form))
    x, *_ = read_streams(state, *parameters, form)
    leaves = [state, *parameters]
    by_x = torch._neg_view(-made[:, 0])
    got = torch.autograd.grad(x, leaves, by_x, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(x, leaves, made[:, 0]))
    none, out, weights, mix = torch._efficientzerotensor((5, 4, 8)), made[:, 0], made[..., 0], made[..., :4]
    for found, expected in ((negative, made), (none, torch.zeros(5, 4, 8))):
        torch.testing.assert_close(write_streams(found, out, weights, mix), write_streams(expected, out, weights, mix))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, p, c, b: (s[0, 0], p, c, b), "state must be"),
        (lambda s, p, c, b: (s.long(), p, c, b), "state must be"),
        (lambda s, p, c, b: (s, p[:8], c, b), r"projection must be \(24, 32\)"),
        (lambda s, p, c, b: (s, p[:, 1:], c, b), r"projection must be \(24, 32\)"),
        (lambda s, p, c, b: (s, p, c[:2], b), r"scale must be \(3,\)"),
        (lambda s, p, c, b: (s, p, c, b[:8]), r"bias must be \(24,\)"),
        (lambda s, p, c, b: (s, p, c.to("meta"), b), "scale must be .* on cpu as the streams are"),
        (lambda s, p, c, b: (s, p, c, b.long()), "bias must be of real floating point"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    given = change(*arguments(3, 4, 8, FORMS["paper"]))
    with pytest.raises(UsageError, match=words):
        read_streams(*given, FORMS["paper"])
    state, *parameters = given
    if state.ndim == 3 and state.is_floating_point():
        with pytest.raises(UsageError, match=words):
            write_and_read(state, state[:, 0], state[..., 0], state[..., :4], *parameters, FORMS["paper"])


def test_loops_take_only_what_is_in_memory_whatever_comes_first():
    state, *parameters = arguments(3, 4, 8, FORMS["paper"])
    for k in range(3):
        given = [x.to("meta") if i == k else x for i, x in enumerate(parameters)]
        assert cpu.loops_for(state, FORMS["paper"], *given) is None
        assert not is_direct(state, *given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_it_may_be_traced():
    state, *parameters = (x.detach() for x in arguments(3, 4, 8, FORMS["few"]))

    def layer(x):
        read, _, writes, mix, x = read_streams(x, *parameters, FORMS["few"])
        return write_streams(x, read, writes, mix)

    traced = torch.jit.trace(layer, (state,), check_trace=False)
    assert "levada::" not in str(traced.graph)  # plain operations, which need no library
    other = torch.randn_like(state)
    torch.testing.assert_close(traced(other), layer(other))
