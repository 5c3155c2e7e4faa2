"""Writing to streams and reading them in one pass, against the two operations: values, derivatives, the dispatcher."""

import importlib.util
import weakref

import pytest
import torch
from tests.ops.test_manifold import FORMS
from tests.ops.test_manifold import arguments as of_reading
from tests.ops.test_streams import arguments as of_writing
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from levada.ops import _cpu, _kernels, write_streams
from levada.ops._define import plain_operations
from levada.ops.manifold import cpu as reading_cpu
from levada.ops.manifold import read_streams
from levada.ops.manifold.ahead import autograd as registered
from levada.ops.manifold.ahead import cpu, write_and_read

FEW = FORMS["few"]


def arguments(tokens, n, dim, form, dtype=torch.float64):
    """Return the arguments but the form; the matrix that mixes the old streams comes last, if there is one."""
    state, out, weights, *mix = of_writing(tokens, n, dim, mixes=form.mixes, dtype=dtype)
    parameters = [x.detach() for x in of_reading(tokens, n, dim, form, dtype)[1:]]
    return [x.requires_grad_() for x in (state, out, weights, *parameters, *mix)]


def in_one(state, out, weights, projection, scale, bias, mix=None, form=FEW):
    found = write_and_read(state, out, weights, mix, projection, scale, bias, form)
    return tuple(y for y in found if y is not None)


def in_two(state, out, weights, projection, scale, bias, mix=None, form=FEW):
    found = read_streams(write_streams(state, out, weights, mix), projection, scale, bias, form)
    return tuple(y for y in found if y is not None)


def run(function, tensors, form, which=None):
    """Return results, and gradients by what arrives at all of them, or one."""
    found = function(*tensors, form=form)
    generator = torch.Generator().manual_seed(1)
    by = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in found]
    some = slice(None) if which is None else slice(which, which + 1)
    gradients = torch.autograd.grad(found[some], tensors, by[some], allow_unused=True, materialize_grads=True)
    return [*(y.detach() for y in found), *gradients]


@pytest.fixture
def calls(monkeypatch):
    """Count how often the operation of one pass is taken."""
    found = []
    real = registered._Pass.apply
    monkeypatch.setattr(registered._Pass, "apply", lambda *given: found.append(1) or real(*given))
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (70, 4, 33), (0, 4, 5)], ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_values_and_gradients_are_those_of_two_operations(sizes, form, compiled, calls, monkeypatch):
    if compiled and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    tensors = arguments(*sizes, form)
    expected = run(in_two, tensors, form)
    monkeypatch.setattr(_kernels, "_FOUND", compiled)
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * sizes[1] * sizes[2])  # tokens by twenties, and what is over
    torch.testing.assert_close(run(in_one, tensors, form), expected, rtol=1e-10, atol=1e-12)
    assert len(calls) == compiled


@pytest.mark.parametrize("form", [FEW, FORMS["identity"]], ids=["few", "identity"])
@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (2, 0)], ids=str)
def test_tokens_may_have_any_axes_and_nothing_stands_before_or_behind_the_node(leading, form, calls):
    """A view of each argument and result would take a tenth of the time of a few tokens, and sharding warns of them."""
    pytest.importorskip("numba")
    tensors = arguments(torch.Size(leading).numel(), 3, 5, form)
    of_tokens = [0, 1, 2, *range(6, len(tensors))]  # but for projection, scale and bias
    given = [x.detach().view(*leading, *x.shape[1:]) if i in of_tokens else x for i, x in enumerate(tensors)]
    given = [x.detach().requires_grad_() for x in given]
    torch.testing.assert_close(run(in_one, given, form), run(in_two, given, form))
    found = in_one(*given, form=form)
    assert not any(y._is_view() for y in found)
    assert len({y.grad_fn for y in found}) == 1
    edges = [node for node, _ in found[0].grad_fn.next_functions if node is not None]
    assert len(edges) == len(given)
    assert all(hasattr(node, "variable") for node in edges)
    by = torch.linspace(-1, 1, found[0].numel(), dtype=torch.float64).view(found[0].shape)
    again = torch.autograd.grad(found[0], given, by, create_graph=True)  # by plain operations
    expected = torch.autograd.grad(in_two(*given, form=form)[0], given, by)
    torch.testing.assert_close([x.detach() for x in again], [*expected])
    assert len(calls) == 2


@pytest.mark.parametrize("form", [FEW, FORMS["identity"]], ids=["few", "identity"])
def test_products_of_a_large_projection_are_made_apart(form, calls, monkeypatch):
    pytest.importorskip("numba")
    tensors = arguments(70, 4, 33, form)
    expected = run(in_two, tensors, form)
    monkeypatch.setattr(reading_cpu, "IN_LOOPS", 0)
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * 4 * 33)
    torch.testing.assert_close(run(in_one, tensors, form), expected, rtol=1e-10, atol=1e-12)
    assert calls


def test_the_sums_of_one_block_are_given_up_before_the_next(monkeypatch):
    """Of 16 streams those of 16 tokens take more memory than the tokens."""
    loops = pytest.importorskip("levada.ops.manifold.loops", exc_type=ImportError)
    real, made, alive = loops.over_addresses, [], []

    def noted(function, *given):
        found = real(function, *given)
        if function is loops.read_backward_at:
            alive.append(sum(one() is not None for one in made))
            made.extend(weakref.ref(part[2]) for part in found)
        return found

    monkeypatch.setattr(loops, "over_addresses", noted)
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * 12)
    run(in_one, arguments(100 * torch.get_num_threads(), 3, 4, FEW), FEW)
    assert len(alive) == 5
    assert max(alive) <= 1


@pytest.mark.parametrize("form", [FORMS["released"], FORMS["identity"]], ids=["released", "identity"])
def test_the_reference_of_the_operation_is_the_two_operations(form, calls, monkeypatch):
    """Past what the loops take, as beyond their number of iterations."""
    pytest.importorskip("numba")
    tensors = arguments(6, 4, 5, form)
    monkeypatch.setattr(cpu, "loops_for", lambda *given: None)
    torch.testing.assert_close(run(in_one, tensors, form), run(in_two, tensors, form), rtol=1e-10, atol=1e-12)
    assert calls


@pytest.mark.parametrize("form", [FEW, FORMS["identity"]], ids=["few", "identity"])
def test_a_gradient_may_come_by_one_result_alone(form):
    tensors = arguments(5, 3, 4, form)
    for which in range(4 + form.mixes):
        got, expected = (run(f, tensors, form, which) for f in (in_one, in_two))
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", [FEW, FORMS["identity"]], ids=["few", "identity"])
def test_derivatives_of_first_and_second_order(form):
    tensors = arguments(2, 2, 3, form)

    def function(*tensors):
        return in_one(*tensors, form=form)

    assert gradcheck(function, tensors, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("form", [FORMS["released"], FORMS["identity"]], ids=["released", "identity"])
def test_the_dispatcher_knows_it(form):
    state, out, weights, projection, scale, bias, *mix = arguments(3, 4, 5, form)
    given = [state, out, weights, *(mix or [None]), projection, scale, bias]
    torch.library.opcheck(torch.ops.levada.streams_write_read.default, (*given, *form))
    given = [x if x is None else x.detach() for x in given]
    new, x, reads, writes, mixes, *kept = torch.ops.levada.streams_write_read(*given, *form)
    for optional in ((None, None), (torch.ones_like(new), torch.ones_like(reads))):
        by = optional[0], x, optional[1], writes, mixes
        arguments_ = (*by, *given[:4], new, *given[4:], *kept, *form)
        torch.library.opcheck(torch.ops.levada.streams_write_read_backward.default, arguments_)


@pytest.mark.parametrize("form", [FEW, FORMS["identity"]], ids=["few", "identity"])
def test_it_compiles_whole(form):
    tensors = arguments(3, 4, 5, form)
    compiled = torch.compile(in_one, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, tensors, form), run(in_two, tensors, form), rtol=1e-10, atol=1e-12)


def test_vmap_of_the_operations():
    tensors = arguments(3, 4, 5, FEW)
    batch = [torch.stack([x.detach(), 1.1 * x.detach()]) for x in tensors]

    def function(state, out, weights, projection, scale, bias, mix):
        return torch.ops.levada.streams_write_read(state, out, weights, mix, projection, scale, bias, *FEW)

    got = torch.vmap(function)(*batch)
    expected = [torch.stack(y) for y in zip(*(function(*one) for one in zip(*batch, strict=True)), strict=True)]
    torch.testing.assert_close(list(got), expected)


def test_who_looks_or_transforms_gets_the_two_operations(calls):
    pytest.importorskip("numba")
    tensors = [x.detach() for x in arguments(3, 4, 5, FEW)]
    expected = in_two(*tensors)
    with plain_operations():
        torch.testing.assert_close(in_one(*tensors), expected)
    total = lambda *given: sum(y.square().sum() for y in in_one(*given))  # noqa: E731
    torch.func.grad(total)(*tensors)
    assert not calls
    in_one(*tensors)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams(dtype):
    tensors = arguments(6, 4, 16, FEW, torch.float32)
    for place in (0, 1):
        tensors[place] = tensors[place].detach().to(dtype).requires_grad_()
    for found, truth in zip(run(in_one, tensors, FEW), run(in_two, tensors, FEW), strict=True):
        assert torch.equal(found, truth)


def test_it_may_be_checkpointed_whatever_is_kept_of_it():
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    tensors = arguments(8, 4, 5, FEW)
    expected = run(in_two, tensors, FEW)

    def keep_products(ctx, operation, *args, **kwargs):
        kept = operation in (torch.ops.aten.mm.default, torch.ops.levada.streams_write_read.default)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = {"context_fn": lambda: create_selective_checkpoint_contexts(keep_products)}
    for options in ({}, contexts):
        function = lambda *given, form, options=options: checkpoint(in_one, *given, use_reentrant=False, **options)  # noqa: E731
        torch.testing.assert_close(run(function, tensors, FEW), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", [in_one, in_two])
def test_what_was_saved_may_come_back_in_another_layout(function):
    tensors = arguments(70, 4, 5, FEW)
    expected = run(function, tensors, FEW)
    turned = lambda x: x.detach().mT.contiguous().mT if x.ndim > 1 else x.detach()  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(turned, lambda x: x):
        torch.testing.assert_close(run(function, tensors, FEW), expected)


def test_threads_and_autocast_change_nothing():
    tensors = arguments(300, 4, 40, FEW, torch.float32)
    expected = run(in_one, tensors, FEW)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.autocast("cpu", torch.bfloat16):
            got = run(in_one, tensors, FEW)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, expected)
