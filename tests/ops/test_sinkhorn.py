"""Sinkhorn normalisation against loops written out, and its limits: by the kernels of the CPU and by the reference."""

import importlib.util
import math

import pytest
import torch
from tests.ops.differences import relative_errors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from levada._errors import UsageError
from levada.ops import _define, sinkhorn
from levada.ops.sinkhorn import cpu


@pytest.fixture(autouse=True, params=["loops", "reference"])
def kernels(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(cpu, "_FOUND", False)
    elif not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    return request.param


def drawn(*shape: int, seed: int = 0, std: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def alternating(logits: Tensor, iterations: int = 20, *, first: int = -2) -> Tensor:
    matrix = (logits - logits.amax((-2, -1), keepdim=True)).exp()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(first, keepdim=True)
        matrix = matrix / matrix.sum(-3 - first, keepdim=True)
    return matrix


def released(logits: Tensor, epsilon: float = 1e-6, iterations: int = 20) -> Tensor:
    """The order of DeepSeek-V4's code, which returns the transpose of what multiplies the streams."""
    matrix = logits.softmax(-1) + epsilon
    matrix = matrix / (matrix.sum(-2, keepdim=True) + epsilon)
    for _ in range(iterations - 1):
        matrix = matrix / (matrix.sum(-1, keepdim=True) + epsilon)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + epsilon)
    return matrix


def gradient(function, logits: Tensor, cotangent: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, cotangent)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 16, 33])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_sinkhorn_and_its_gradient_are_those_of_the_loop(size, iterations):
    for std in (1.0, 8.0):
        logits, cotangent = drawn(7, size, size, std=std), drawn(7, size, size, seed=1)
        torch.testing.assert_close(
            sinkhorn(logits, iterations), alternating(logits, iterations), rtol=1e-12, atol=1e-12
        )
        found = gradient(lambda x: sinkhorn(x, iterations), logits, cotangent)
        expected = gradient(lambda x: alternating(x, iterations), logits, cotangent)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_the_released_order_is_the_same_on_the_transpose(size, epsilon):
    logits, cotangent = drawn(7, size, size, std=3.0), drawn(7, size, size, seed=1)

    def ours(x: Tensor) -> Tensor:
        return sinkhorn(x.mT, epsilon=epsilon)

    def theirs(x: Tensor) -> Tensor:
        return released(x, epsilon).mT

    torch.testing.assert_close(ours(logits), theirs(logits), rtol=1e-12, atol=1e-12)
    expected = gradient(theirs, logits, cotangent)
    torch.testing.assert_close(gradient(ours, logits, cotangent), expected, rtol=1e-10, atol=1e-12)
    if size > 2:  # a doubly stochastic 2 x 2 matrix is symmetric
        assert (sinkhorn(logits, epsilon=epsilon) - theirs(logits)).abs().max() > 0.1


def test_columns_come_first_and_rows_last():
    logits = drawn(50, 4, 4, std=4.0)
    mix = sinkhorn(logits)
    ones = torch.ones(50, 4, dtype=torch.float64)
    torch.testing.assert_close(mix.sum(-1), ones, rtol=0, atol=1e-15)
    columns = [(sinkhorn(logits, count).sum(-2) - 1).abs().max().item() for count in (20, 50, 200)]
    assert columns[0] > 1e-2, "what 20 iterations leave undone is in the columns"
    assert columns[0] > columns[1] > columns[2]
    assert (mix - alternating(logits, first=-1)).abs().max() > 1e-2, "rows first is another matrix"


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_gradcheck_twice(epsilon):
    logits = drawn(2, 3, 3, std=2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 4, epsilon=epsilon), logits)
    assert torch.autograd.gradgradcheck(lambda x: sinkhorn(x, 4, epsilon=epsilon), logits)


def gradient_by_the_last_iterate(logits: Tensor, cotangent: Tensor) -> Tensor:
    """As if every iteration had seen the last matrix: exact in the limit alone."""
    mix = alternating(logits)
    by_logits = cotangent * mix
    for _ in range(20):
        by_logits = by_logits - mix * by_logits.sum(-1, keepdim=True)
        by_logits = by_logits - mix * by_logits.sum(-2, keepdim=True)
    return by_logits


@pytest.mark.parametrize(("std", "least"), [(4.0, 0.1), (8.0, 0.5)])
def test_the_last_iterate_would_not_do(std, least):
    logits, cotangent = drawn(400, 4, 4, std=std), drawn(400, 4, 4, seed=1)
    expected = gradient(alternating, logits, cotangent)
    found = gradient(sinkhorn, logits, cotangent)
    approximate = gradient_by_the_last_iterate(logits, cotangent)
    assert max(relative_errors(approximate, expected)) > least
    assert max(relative_errors(found, expected)) < 1e-11


def test_only_the_logits_are_kept():
    logits, kept = drawn(64, 4, 4).requires_grad_(), []
    for function in (sinkhorn, alternating):
        sizes = []

        def keep(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            function(logits)
        kept.append(sum(sizes))
    assert kept[0] == logits.numel()
    assert kept[1] > 40 * kept[0]


@pytest.mark.parametrize("std", [100.0, 1e4])
def test_any_finite_logits_give_a_finite_matrix_and_gradient(std):
    logits = drawn(200, 4, 4, std=std, dtype=torch.float32)
    logits[0, 2] = -1e6  # a row that underflows against every other
    logits[1, :, 2] = -1e6
    mix = sinkhorn(logits)
    torch.testing.assert_close(mix.sum(-1), torch.ones(200, 4))
    assert torch.isfinite(gradient(sinkhorn, logits, drawn(200, 4, 4, seed=1, dtype=torch.float32))).all()


def by_logarithms(logits: Tensor, iterations: int, epsilon: float = 0.0) -> Tensor:
    """The loop for logits of any size: what underflows in it is no factor of anything that does not."""
    matrix = logits
    if epsilon:
        least = torch.tensor(epsilon, dtype=logits.dtype).log()
        matrix = torch.logaddexp(matrix.log_softmax(-2), least)
        matrix = matrix - torch.logaddexp(matrix.logsumexp(-1, keepdim=True), least)
        for _ in range(iterations - 1):
            for axis in (-2, -1):
                matrix = matrix - torch.logaddexp(matrix.logsumexp(axis, keepdim=True), least)
        return matrix.exp()
    for _ in range(iterations):
        matrix = matrix.log_softmax(-2).log_softmax(-1)
    return matrix.exp()


# How many steps are taken at once depends on size and iterations where epsilon is zero; else each epsilon with each.
SIZES, ITERATIONS = (2, 4, 5, 8, 16), (1, 20, 26, 50, 200)
CASES = [
    (size, iterations, epsilon)
    for i, size in enumerate(SIZES)
    for j, iterations in enumerate(ITERATIONS)
    for epsilon in (0.0, (1e-6, 1e-2)[(i + j) % 2])
]


@pytest.mark.parametrize(("size", "iterations", "epsilon"), CASES)
def test_any_number_of_iterations_over_logits_of_any_size(size, iterations, epsilon):
    for std in (1.0, 30.0, 100.0, 300.0):
        logits = drawn(100, size, size, std=std, dtype=torch.float32)
        cotangent = drawn(100, size, size, seed=1, dtype=torch.float32)

        def function(x: Tensor) -> Tensor:
            return sinkhorn(x, iterations, epsilon=epsilon)

        expected = by_logarithms(logits.double(), iterations, epsilon)
        torch.testing.assert_close(function(logits).double(), expected, rtol=0, atol=1e-5)
        expected = gradient(lambda x: by_logarithms(x, iterations, epsilon), logits.double(), cotangent.double())
        torch.testing.assert_close(gradient(function, logits, cotangent).double(), expected, rtol=0, atol=1e-5)


def test_entries_that_underflow_come_back():
    logits = torch.tensor([[9.0, 36, -45, 4], [-103, 9, -7, -251], [241, 180, -71, 137], [79, 47, -30, -96]])
    mix = sinkhorn(logits, 100)
    assert mix[3, 1] > 0.97, "of its column it is exp(-133) at the start"
    torch.testing.assert_close(mix.double(), by_logarithms(logits.double(), 100), rtol=0, atol=1e-6)
    assert sinkhorn(10 * logits.double(), 2000).isfinite().all()
    for n in (3, 4, 16):  # what grows fastest: all columns but one want the first row, all rows but one the last column
        for least in (-90.0, -400.0):
            hard = torch.full((n, n), least)
            hard[0], hard[:, -1] = 0.0, 0.0
            for iterations in (20, 50, 200):
                expected = by_logarithms(hard.double(), iterations)
                torch.testing.assert_close(sinkhorn(hard, iterations).double(), expected, rtol=0, atol=1e-6)


def test_single_precision_is_near_double_precision():
    logits, cotangent = drawn(200, 4, 4, std=2.0), drawn(200, 4, 4, seed=1)
    torch.testing.assert_close(sinkhorn(logits.float()).double(), sinkhorn(logits), rtol=1e-5, atol=1e-6)
    found = gradient(sinkhorn, logits.float(), cotangent.float()).double()
    torch.testing.assert_close(found, gradient(sinkhorn, logits, cotangent), rtol=1e-4, atol=1e-5)
    assert sinkhorn(logits.bfloat16()).dtype == torch.bfloat16


# The compiler makes an autograd.Function itself; its own guard against the warning does not hold where warnings raise.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("size", [4, 16])  # with 16 streams the factors are absorbed once
def test_sinkhorn_under_compilation_export_and_function_transforms(size):
    logits, cotangent = drawn(3, 5, size, size).float(), drawn(3, 5, size, size, seed=1).float()
    expected = gradient(sinkhorn, logits, cotangent)
    torch.compiler.reset()
    compiled = torch.compile(sinkhorn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, logits, cotangent), expected)

    def objective(x: Tensor, weight: Tensor) -> Tensor:
        return (sinkhorn(x) * weight).sum()

    torch.testing.assert_close(torch.func.vmap(torch.func.grad(objective))(logits, cotangent), expected)

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sinkhorn(x)

    batch = torch.export.Dim("batch")
    exported = torch.export.export(Module(), (logits,), dynamic_shapes=({0: batch},)).module()
    more = drawn(6, 5, size, size).float()
    torch.testing.assert_close(exported(more), sinkhorn(more))


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize(("size", "iterations"), [(3, 1), (3, 4), (8, 40)])
def test_forward_mode_and_what_is_made_of_it(size, iterations, epsilon):
    logits, tangent = drawn(5, size, size, std=3.0).float(), drawn(5, size, size, seed=1).float()

    def ours(x: Tensor) -> Tensor:
        return sinkhorn(x, iterations, epsilon=epsilon)

    def loop(x: Tensor) -> Tensor:
        return by_logarithms(x, iterations, epsilon)

    found, expected = (torch.func.jvp(f, (logits,), (tangent,)) for f in (ours, loop))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    one, weight = logits[0, :3, :3].double(), tangent[0, :3, :3].double()
    assert torch.autograd.gradcheck(ours, one.clone().requires_grad_(), check_forward_ad=True, check_batched_grad=True)
    torch.testing.assert_close(torch.func.jacfwd(ours)(one), torch.func.jacrev(loop)(one), rtol=1e-9, atol=1e-11)
    found, expected = (torch.func.hessian(lambda x, f=f: (f(x) * weight).sum())(one) for f in (ours, loop))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    jacfwd = torch.func.jacfwd  # a forward mode around a forward mode
    found = jacfwd(jacfwd(lambda x: (ours(x) * weight).sum()))(one)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 0, 3, 3), (2, 1, 1)])
def test_sinkhorn_of_no_batch_and_of_nothing(shape):
    mix = sinkhorn(drawn(*shape))
    assert mix.shape == shape
    torch.testing.assert_close(mix.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    assert gradient(sinkhorn, drawn(*shape), drawn(*shape)).shape == shape


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(3, 4), {}, r"must be \(\.\.\., n, n\), got \(3, 4\)"),
        (torch.zeros(4), {}, "got \\(4,\\)"),
        (torch.zeros(2, 0, 0), {}, r"must have a row or more, got \(2, 0, 0\)"),
        (torch.zeros(4, 4, dtype=torch.int64), {}, r"floating point, got torch.int64"),
        (torch.zeros(4, 4), {"iterations": 0}, "iterations must be at least 1, got 0"),
        (torch.zeros(4, 4), {"epsilon": -1.0}, "epsilon must be at least 0.0, got -1.0"),
    ],
)
def test_what_sinkhorn_refuses(logits, options, message):
    with pytest.raises(UsageError, match=message):
        sinkhorn(logits, **options)


def test_the_loops_run_where_they_may(kernels, monkeypatch):
    logits, names = drawn(5, 4, 4), []
    monkeypatch.setattr(cpu, "import_kernels", lambda module, package: names.append(module))
    sinkhorn(logits)
    assert names == (["levada.ops.sinkhorn.loops"] if kernels == "loops" else [])
    del names[:]
    sinkhorn(logits, 242)  # an entry that underflowed could matter
    sinkhorn(logits.half().requires_grad_()).sum().backward()
    with _define.plain_operations():
        sinkhorn(logits)
    assert len(names) == (2 if kernels == "loops" else 0)


def test_the_dispatcher_knows_it():
    logits, cotangent = drawn(5, 4, 4), drawn(5, 4, 4, seed=1)
    for options in ((20, 0.0), (3, 1e-3)):
        torch.library.opcheck(torch.ops.levada.sinkhorn.default, (logits.clone().requires_grad_(), *options))
        torch.library.opcheck(torch.ops.levada.sinkhorn_backward.default, (logits, cotangent, *options))


def test_what_is_recorded_is_the_operation_and_no_constant(kernels):
    """A kernel that is called without the dispatcher leaves nothing in a graph but its numbers."""
    first, second = drawn(5, 4, 4), drawn(5, 4, 4, seed=1)
    graph = make_fx(lambda x: sinkhorn(x, 3))(first)
    torch.testing.assert_close(graph(second), alternating(second, 3))

    def by_logits(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(sinkhorn(x, 3).square().sum(), x)[0]

    torch.testing.assert_close(make_fx(by_logits)(first)(second), by_logits(second))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sinkhorn(first, 3).shape == first.shape


def test_numbers_that_are_not_in_memory_as_they_are(kernels):
    logits = drawn(5, 4, 4)
    torch.testing.assert_close(sinkhorn(torch._neg_view(-logits), 3), alternating(logits, 3))  # with the sign aside
    zeros = torch._efficientzerotensor((2, 4, 4))
    torch.testing.assert_close(sinkhorn(zeros, 3), torch.full((2, 4, 4), 0.25))


def test_the_operation_under_vmap():
    logits, cotangent = drawn(3, 5, 4, 4), drawn(5, 4, 4, seed=1)
    mix = torch.vmap(lambda x: torch.ops.levada.sinkhorn(x, 3, 0.0), in_dims=1)(logits)
    torch.testing.assert_close(mix, alternating(logits, 3).movedim(1, 0))
    found = torch.vmap(lambda x, g: torch.ops.levada.sinkhorn_backward(x, g, 3, 0.0), (0, None))(logits, cotangent)
    expected = [gradient(lambda x: alternating(x, 3), x, cotangent) for x in logits]
    torch.testing.assert_close(found, torch.stack(expected))


def test_threads_change_no_bit():
    logits, cotangent = drawn(10000, 4, 4).float(), drawn(10000, 4, 4, seed=1).float()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((sinkhorn(logits), gradient(sinkhorn, logits, cotangent)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


def test_memory_may_be_strided_and_is_not_written_to():
    logits, cotangent = drawn(4, 4, 37).movedim(-1, 0), torch.ones((), dtype=torch.float64).expand(37, 4, 4)
    weight = drawn(4, 37, 4, seed=1).movedim(1, 0)
    before = logits.clone()
    torch.testing.assert_close(sinkhorn(logits.mT), alternating(logits.mT))
    for by in (cotangent, weight):
        torch.testing.assert_close(gradient(sinkhorn, logits, by), gradient(alternating, logits, by))
    assert torch.equal(logits, before)


def test_nan_stays_in_its_matrix():
    logits = drawn(40, 3, 3)
    logits[17, 1, 2] = torch.nan
    for found in (sinkhorn(logits), gradient(sinkhorn, logits, torch.ones_like(logits))):
        assert found.isnan().flatten(1).any(-1).nonzero().flatten().tolist() == [17]


def test_exponentials_of_the_loops_are_right_to_the_last_bit_but_one():
    numba = pytest.importorskip("numba")
    from levada.ops._numba import exp

    @numba.njit
    def exponentials(x):
        y = x.copy()
        for i in range(len(x)):
            y[i] = exp(x[i])
        return y

    x = torch.cat([torch.linspace(-110, 89, 40_001), torch.tensor([0.0, -torch.inf, -1e30])])
    found, expected = torch.from_numpy(exponentials(x.numpy())).double(), x.double().exp()
    normal = (expected > 2.0**-126) & (expected < torch.finfo(torch.float32).max)
    assert ((found - expected).abs() <= 1e-7 * expected)[normal].all()
    small = expected <= 2.0**-126  # in units of the smallest number
    assert ((found - expected).abs() <= 2.0**-149)[small].all()
    ends = exponentials(torch.tensor([torch.nan, torch.inf, 88.8, -torch.inf]).repeat(16).numpy())
    assert [str(y) for y in ends[-4:]] == ["nan", "inf", "inf", "0.0"]
    assert exponentials(torch.ones(1, dtype=torch.float64).numpy())[0] == math.e
