"""What operations that read streams have in common: derivatives, the dispatcher, the compiler, transforms."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import ModuleType

import pytest
import torch
from tests.ops import test_handed, test_hyper, test_sparse
from tests.ops.test_hyper import run
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def of_hyper(leading, n, dim, centred=True):
    state, *own = test_hyper.arguments(prod(leading), n, dim, centred)
    return [state.detach().view(*leading, n, dim).requires_grad_(), *own]


@dataclass(frozen=True)
class Reading:
    """One of them.

    Attributes:
        name: of the operation.
        tests: the module of its own tests, with `fused` and `by_formula`.
        arguments: makes them, of leading axes, streams and channels.
        options: behind them.
        left_out: how many come as None behind these.
    """

    name: str
    tests: ModuleType
    arguments: Callable
    options: tuple
    left_out: int = 0

    @property
    def operation(self):
        return getattr(torch.ops.levada, self.name).default

    @property
    def backward(self):
        return getattr(torch.ops.levada, f"{self.name}_backward").default


READINGS = {
    "hyper": Reading("streams_read_hyper", test_hyper, of_hyper, (test_hyper.EPSILON,)),
    "hyper by root mean square": Reading(
        "streams_read_hyper", test_hyper, lambda *sizes: of_hyper(*sizes, False), (test_hyper.EPSILON,), 1
    ),
    "sparse": Reading("streams_read_sparse", test_sparse, test_sparse.arguments, (test_sparse.EPSILON,)),
    "handed": Reading("streams_read_handed", test_handed, test_handed.arguments, tuple(test_handed.PAPER)),
}


@pytest.fixture(params=READINGS)
def reading(request):
    return READINGS[request.param]


def test_a_gradient_may_come_by_one_result_alone(reading):
    tensors, functions = reading.arguments((5,), 3, 4), (reading.tests.fused, reading.tests.by_formula)
    for which in range(len(reading.tests.fused(*tensors))):
        got, expected = (run(function, tensors, slice(which, which + 1)) for function in functions)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_derivatives_of_first_and_second_order(reading):
    tensors = reading.arguments((2,), 2, 3)
    assert gradcheck(reading.tests.fused, tensors, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(reading.tests.fused, tensors)


def test_the_dispatcher_knows_it(reading):
    tensors = [*reading.arguments((3,), 4, 5), *[None] * reading.left_out]
    torch.library.opcheck(reading.operation, (*tensors, *reading.options))
    given = [x if x is None else x.detach() for x in tensors]
    count = len(reading.tests.fused(*given[: len(given) - reading.left_out])) - 1  # the streams are none of its results
    found = reading.operation(*given, *reading.options)
    (x, reads, *others), kept = found[:count], found[count:]
    for by_reads, by_new in ((None, None), (reads, torch.ones_like(given[0]))):
        by = x, by_reads, *others, by_new
        torch.library.opcheck(reading.backward, (*by, *given, *kept, *reading.options))


@pytest.mark.parametrize("leading", [(3,), (2, 3), ()], ids=str)
def test_it_compiles_whole(reading, leading):
    tensors = reading.arguments(leading, 4, 5)
    compiled = torch.compile(reading.tests.fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, tensors), run(reading.tests.by_formula, tensors), rtol=1e-9, atol=1e-11)


def test_vmap_of_the_operation_and_of_its_gradients(reading, calls):
    batch = [torch.stack([x.detach(), 1.1 * x.detach()]) for x in reading.arguments((3,), 4, 5)]
    count = len(reading.tests.fused(*(x[0] for x in batch))) - 1
    calls.clear()

    def operation(*tensors):
        return reading.operation(*tensors, *[None] * reading.left_out, *reading.options)[:count]

    def gradients(*tensors):
        total = lambda *tensors: sum(y.square().sum() for y in reading.tests.fused(*tensors))  # noqa: E731
        return torch.func.grad(total, argnums=tuple(range(len(tensors))))(*tensors)

    for function in (operation, gradients):
        got = torch.vmap(function)(*batch)
        expected = [torch.stack(y) for y in zip(*(function(*one) for one in zip(*batch, strict=True)), strict=True)]
        torch.testing.assert_close(list(got), expected)
    assert not calls  # transforms get plain operations
