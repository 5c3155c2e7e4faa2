"""Attention over depth and weighted sums against their formulas: values, derivatives of any order, types, bad input."""

import importlib.util

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from levada._errors import UsageError
from levada.ops import attend_depth, sum_depth
from levada.ops.depth import cpu, reference

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

FORMS = [{}, {"normalise": True}, {"factor": 3.0, "epsilon": 0.5}]
SIZES = [(1, 1, 1, 1), (5, 3, 1, 7), (3, 2, 3, 65), (2, 6, 2, 8), (0, 2, 1, 3), (700, 4, 2, 16)]
"""Tokens, sources, queries and channels."""


def arguments(tokens, sources, queries, dim, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, dim)] + [(tokens, dim)] * sources
    query, *tensors = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query, *((1 + i) * x for i, x in enumerate(tensors))


def by_hand(query, *sources, epsilon=1e-6, factor=1.0, normalise=False):
    stacked = torch.stack(sources, -2)  # (tokens, sources, dim)
    normal = stacked / (stacked.square().mean(-1, keepdim=True) + epsilon).sqrt()
    shares = torch.softmax(normal @ query.T, -2)
    return tuple(factor * (shares.mT @ (normal if normalise else stacked)).unbind(-2)[k] for k in range(len(query)))


def sums_by_hand(weights, *sources):
    return torch.einsum("...ki,...ic->...kc", weights, torch.stack(sources, -2)).unbind(-2)


def derivatives(function, tensors, cotangents):
    tensors = [x.detach().requires_grad_() for x in tensors]
    found = function(*tensors)
    return *(y.detach() for y in found), *torch.autograd.grad(found, tensors, cotangents)


def attended(form):
    return lambda query, *sources: attend_depth(query, sources, **form)


def summed(weights, *sources):
    return sum_depth(weights, sources)


def cotangents(tokens, ways, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(tokens, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(ways)]


@pytest.fixture(params=["compiled", "plain"])
def kernels(request, monkeypatch):
    if request.param == "compiled" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if request.param == "plain":
        monkeypatch.setattr(cpu, "import_kernels", lambda module, package: None)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_attention_and_its_gradients_are_those_of_the_formula(sizes, form):
    tokens, _, queries, dim = sizes
    tensors, by = arguments(*sizes), cotangents(tokens, queries, dim)
    expected = derivatives(lambda *x: by_hand(*x, **form), tensors, by)
    torch.testing.assert_close(derivatives(attended(form), tensors, by), expected, rtol=1e-11, atol=1e-11)


def weights_for(tokens, sources, ways, *, shared, dtype=torch.float64):
    shape = (ways, sources) if shared else (tokens, ways, sources)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_weighted_sums_and_their_gradients_are_those_of_the_formula(sizes, shared):
    tokens, sources, ways, dim = sizes
    tensors = weights_for(tokens, sources, ways, shared=shared), *arguments(*sizes)[1:]
    by = cotangents(tokens, ways, dim)
    expected = derivatives(sums_by_hand, tensors, by)
    torch.testing.assert_close(derivatives(summed, tensors, by), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("queries", [1, 2])
def test_derivatives_of_attention_of_first_and_second_order(form, queries):
    tensors = [x.requires_grad_() for x in arguments(2, 3, queries, 3)]
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(attended(form), tensors, **options)
    assert gradgradcheck(attended(form), tensors, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("shared", [True, False])
def test_derivatives_of_sums_of_first_and_second_order(shared):
    tensors = [weights_for(2, 3, 2, shared=shared), *arguments(2, 3, 1, 3)[1:]]
    tensors = [x.requires_grad_() for x in tensors]
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(summed, tensors, **options)
    assert gradgradcheck(summed, tensors, check_fwd_over_rev=True, check_batched_grad=True)


def test_leading_axes_are_tokens():
    query, *sources = arguments(6, 3, 2, 5)
    for got, expected in zip(
        attend_depth(query, [x.view(2, 3, 5) for x in sources]), by_hand(query, *sources), strict=True
    ):
        torch.testing.assert_close(got, expected.view(2, 3, 5))
    weights = weights_for(6, 3, 2, shared=False)
    got = sum_depth(weights.view(2, 3, 2, 3), [x.view(2, 3, 5) for x in sources])
    torch.testing.assert_close([x.view(6, 5) for x in got], list(sums_by_hand(weights, *sources)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_sources_are_added_up_in_float32(dtype):
    query, *sources = arguments(8, 4, 1, 16, dtype=torch.float32)
    narrow = [x.to(dtype) for x in sources]
    (got,) = attend_depth(query, narrow)
    (expected,) = by_hand(query.double(), *(x.double() for x in narrow))
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend_depth(query, narrow)[0], got)


def test_sources_of_two_types_are_taken():
    query, first, second = arguments(3, 2, 1, 8, dtype=torch.float32)
    tensors = [query, first, second.bfloat16()]
    found = derivatives(attended({}), tensors, cotangents(3, 1, 8, torch.float32))
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.float32, torch.bfloat16]
    torch.testing.assert_close(found[0], by_hand(query, first, second.bfloat16().float())[0])
    compiled = torch.compile(attended({}), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(derivatives(compiled, tensors, cotangents(3, 1, 8, torch.float32)), found)
    (wide,) = attend_depth(query, [first.double(), second.bfloat16()])
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), found[0])


def test_threads_change_no_bit():
    tensors, by = arguments(300, 4, 2, 64, dtype=torch.float32), cotangents(300, 2, 64, torch.float32)
    weights = weights_for(300, 4, 2, shared=True, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(derivatives(attended({}), tensors, by) + derivatives(summed, (weights, *tensors[1:]), by))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_memory_may_be_strided_and_is_not_written_to():
    tensors = arguments(6, 4, 2, 5)
    strided = [x.mT.contiguous().mT for x in tensors]
    by = [torch.ones((), dtype=torch.float64).expand(6, 5)] * 2
    before = [x.clone() for x in strided]
    torch.testing.assert_close(derivatives(attended({}), strided, by), derivatives(by_hand, tensors, by))
    assert all(map(torch.equal, strided, before))


def test_a_source_may_come_twice():
    query, source = arguments(3, 1, 1, 5)
    by = cotangents(3, 1, 5)
    got = derivatives(lambda q, x: attend_depth(q, (x, x)), (query, source), by)
    torch.testing.assert_close(got, derivatives(lambda q, x: by_hand(q, x, x), (query, source), by))


@pytest.mark.parametrize("function", [attended({}), summed])
def test_it_may_be_checkpointed(function):
    first, *tensors = arguments(5, 3, 3, 3)
    again = lambda *given: checkpoint(function, *given, use_reentrant=False)  # noqa: E731
    given = (first, *tensors), cotangents(5, 3, 3)
    for one, other in zip(derivatives(again, *given), derivatives(function, *given), strict=True):
        assert torch.equal(one, other)


def test_a_single_result_is_no_view():
    """Sharding warns of a module that returns one."""
    query, *sources = (x.requires_grad_() for x in arguments(6, 3, 1, 5))
    sources = [x.view(2, 3, 5) for x in sources]
    assert not attend_depth(query, sources)[0]._is_view()
    assert not sum_depth(torch.ones(1, 3), sources)[0]._is_view()


def test_what_it_returned_may_be_written_to():
    """A branch may begin with an operation in place: nothing that the backward pass needs is what it is given."""
    tensors = [x.requires_grad_() for x in arguments(3, 3, 1, 5)]
    (mean,) = attended({})(*tensors)
    mean.relu_().sum().backward()
    expected = torch.autograd.grad(by_hand(*tensors)[0].relu().sum(), tensors)
    torch.testing.assert_close([x.grad for x in tensors], list(expected))


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_the_dispatcher_knows_attention(form):
    query, *sources = (x.requires_grad_() for x in arguments(3, 4, 2, 5))
    options = 1e-6, 2.0, bool(form)
    torch.library.opcheck(torch.ops.levada.depth_attend.default, (query, sources, *options))
    query, sources = query.detach(), [x.detach() for x in sources]
    kept = reference.attend(query, sources, *options)[1:]
    given = torch.randn(2, 3, 5, dtype=torch.float64), query, sources, *kept, *options[1:]
    torch.library.opcheck(torch.ops.levada.depth_attend_backward.default, given)
    single = query[0].requires_grad_(), [x.view(3, 1, 5).requires_grad_() for x in sources]
    torch.library.opcheck(torch.ops.levada.depth_attend.default, (*single, *options))


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 2, 4)])
def test_the_dispatcher_knows_sums(shape):
    _, *sources = (x.requires_grad_() for x in arguments(3, 4, 2, 5))
    weights = torch.randn(shape, dtype=torch.float64).requires_grad_()
    torch.library.opcheck(torch.ops.levada.depth_mix.default, (weights, sources))
    given = torch.randn(*shape[-2:-1], 3, 5, dtype=torch.float64), weights.detach(), [x.detach() for x in sources]
    torch.library.opcheck(torch.ops.levada.depth_mix_backward.default, given)


def test_an_operation_has_a_rule_for_one_more_axis():
    query, first, second = arguments(3, 2, 2, 5)
    more, options = torch.stack([first, 2 * first], 1), (1e-6, 2.0, False)
    operation, backward = torch.ops.levada.depth_attend, torch.ops.levada.depth_attend_backward
    got = torch.vmap(lambda x, y: operation(query, [x, y], *options), in_dims=(1, None))(more, second)
    expected = [reference.attend(query, [x, second], *options) for x in more.unbind(1)]
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*expected, strict=True))))
    by = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    given = [first, second], *expected[0][1:], *options[1:]
    got = torch.vmap(lambda g: backward(g, query, *given))(by)
    (q0, v0), (q1, v1) = (reference.attend_backward(g, query, *given) for g in by)
    torch.testing.assert_close(got, (torch.stack([q0, q1]), [torch.stack(x) for x in zip(v0, v1, strict=True)]))


def test_it_compiles_whole():
    tensors, by = arguments(3, 4, 2, 5), cotangents(3, 2, 5)
    compiled = torch.compile(attended({"normalise": True}), fullgraph=True, backend="aot_eager")
    expected = derivatives(lambda *x: by_hand(*x, normalise=True), tensors, by)
    torch.testing.assert_close(derivatives(compiled, tensors, by), expected)
    weights = weights_for(3, 4, 2, shared=True)
    compiled = torch.compile(summed, fullgraph=True, backend="aot_eager")
    expected = derivatives(sums_by_hand, (weights, *tensors[1:]), by)
    torch.testing.assert_close(derivatives(compiled, (weights, *tensors[1:]), by), expected)


def test_what_is_kept_are_the_sources_and_two_numbers_for_each():
    query, *sources = (x.requires_grad_() for x in arguments(10, 4, 1, 32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend_depth(query, sources)
    known = {x.untyped_storage().data_ptr() for x in (query, *sources)}
    new = {x.untyped_storage().data_ptr(): x.numel() for x in kept}
    assert sum(n for key, n in new.items() if key not in known) == 10 * 4 * 2


def test_nan_stays_in_its_token():
    query, *sources = arguments(4, 3, 1, 40, dtype=torch.float32)
    sources[1][1, 3] = torch.nan
    assert attend_depth(query, sources)[0].isnan().any(-1).tolist() == [False, True, False, False]
    assert sum_depth(torch.ones(1, 3), sources)[0].isnan().any(-1).tolist() == [False, True, False, False]


def test_large_scores_do_not_overflow():
    query, *sources = arguments(4, 3, 1, 8, dtype=torch.float32)
    tensors = 1e4 * query, *sources
    found = derivatives(attended({}), tensors, cotangents(4, 1, 8, torch.float32))
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found[0], by_hand(*(x.double() for x in tensors))[0].float())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, v: (q, []), "at least one tensor"),
        (lambda q, v: (q, v[0]), "a list of tensors, one for each layer"),
        (lambda q, v: (q, None), "a list of tensors, one for each layer, got NoneType"),
        (lambda q, v: (q, (x for x in v)), "a list of tensors, one for each layer, got generator"),
        (lambda q, v: (q, [v[0], None]), "sources must be tensors, got NoneType among them"),
        (lambda q, v: (q, [x.to(torch.float8_e4m3fn) for x in v]), "of 16 bits or more, got torch.float8_e4m3fn"),
        (lambda q, v: (q.to(torch.float8_e5m2), v), "query must be of real floating point"),
        (lambda q, v: (q[0], v), r"query must be \(queries, 5\)"),
        (lambda q, v: (q[:, :-1], v), r"query must be \(queries, 5\)"),
        (lambda q, v: (q, [v[0], v[1][:-1]]), "sources must be of one shape"),
        (lambda q, v: (q, [x.long() for x in v]), "sources must be of real floating point"),
        (lambda q, v: (q.to("meta"), v), "on cpu as the sources are"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    query, *sources = arguments(3, 2, 2, 5)
    with pytest.raises(UsageError, match=words):
        attend_depth(*change(query, sources))


@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), float("inf")])
def test_an_epsilon_that_is_none_is_refused(epsilon):
    query, *sources = arguments(3, 2, 2, 5)
    with pytest.raises(UsageError, match=r"epsilon must be in \[0, inf\)"):
        attend_depth(query, sources, epsilon=epsilon)


@pytest.mark.parametrize("shape", [(2,), (1, 3), (4, 1, 2), (1, 3, 1, 2)])
def test_weights_that_do_not_fit_are_refused(shape):
    with pytest.raises(UsageError, match=r"weights must be \(ways, 2\)"):
        sum_depth(torch.ones(shape), arguments(3, 2, 1, 5)[1:])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_reference_of_the_backward_pass_is_that_of_autograd(form):
    query, *sources = arguments(3, 4, 2, 5)
    options = form.get("epsilon", 1e-6), form.get("factor", 1.0), form.get("normalise", False)
    by = cotangents(3, 2, 5)
    kept = reference.attend(query, sources, *options)[1:]
    by_query, by_sources = reference.attend_backward(torch.stack(by), query, sources, *kept, *options[1:])
    expected = derivatives(lambda *x: by_hand(*x, **form), (query, *sources), by)[2:]
    torch.testing.assert_close([by_query, *by_sources], list(expected))
