"""What is counted of the operations, against what PyTorch counts of the same written by products."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import levada.ops.flops  # noqa: F401  # levada.ops registers its formulas only if the counter was imported before it
from levada.ops import attend_depth, sum_depth, write_streams
from levada.ops.manifold import Form

TOKENS, N, DIM, SOURCES = 5, 3, 7, 4


def leaves(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def counted(function, tensors):
    with FlopCounterMode(display=False) as forward:
        outputs = function(*tensors)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(sum(y.sum() for y in outputs if y.requires_grad), tensors, allow_unused=True)
    return forward.get_total_flops(), backward.get_total_flops()


def write(state, out, weights, mix):
    return [torch.einsum("tij,tjc->tic", mix, state) + weights.unsqueeze(-1) * out.unsqueeze(-2)]


def read(state, projection, scale, bias):
    reads = torch.sigmoid((state.flatten(1) @ projection.t())[:, :N])
    return [torch.einsum("tj,tjc->tc", reads, state)]


def read_handed(state, handed, projection, scale, bias):
    both = state.flatten(1) @ projection.t()
    return [torch.einsum("tj,tjc->tc", handed, state), both]


def write_and_read(state, out, weights, mix, *parameters):
    return read(*write(state, out, weights, mix), *parameters)


def read_gated(state, gain, down, up, projection):
    both = state.flatten(1) @ torch.cat([down, projection]).t()
    gate = both[:, : len(down)] @ up.t()
    return [torch.einsum("tjc,tjc->tc", gate.view(state.shape), state), both]


def read_hyper(state, read, mix, write, projection, *scales):
    said = state.flatten(0, 1) @ projection.t()
    return [torch.einsum("tj,tjc->tc", said.view(TOKENS, N, -1)[..., 0], state)]


def attend(query, *sources):
    values = torch.stack(sources)
    return [torch.einsum("kts,stc->ktc", torch.einsum("kc,stc->kts", query, values).softmax(-1), values)]


def mix(weights, *sources):
    return [torch.einsum("ks,stc->ktc", weights, torch.stack(sources))]


def mix_of_tokens(weights, *sources):
    return [torch.einsum("tks,stc->ktc", weights, torch.stack(sources))]


FORM = Form(iterations=2)
ROWS = 2 * N + N * N
STREAMS, EACH = (TOKENS, N, DIM), [(TOKENS, DIM)] * SOURCES
CASES = {
    "write": (write, lambda *x: [write_streams(*x)], [STREAMS, (TOKENS, DIM), (TOKENS, N), (TOKENS, N, N)]),
    "write and read": (
        write_and_read,
        lambda *x: torch.ops.levada.streams_write_read(*x, *FORM)[:5],
        [STREAMS, (TOKENS, DIM), (TOKENS, N), (TOKENS, N, N), (ROWS, N * DIM), (3,), (ROWS,)],
    ),
    "read": (
        read,
        lambda *x: torch.ops.levada.streams_read(*x, *FORM)[:4],
        [STREAMS, (ROWS, N * DIM), (3,), (ROWS,)],
    ),
    "read by weights that were handed on": (
        read_handed,
        lambda *x: torch.ops.levada.streams_read_handed(*x, *FORM)[:4],
        [STREAMS, (TOKENS, N), (ROWS, N * DIM), (3,), (ROWS,)],
    ),
    "read through gates": (
        read_gated,
        lambda *x: torch.ops.levada.streams_read_gated(*x, 1e-6)[:2],
        [STREAMS, (N, DIM), (2, N * DIM), (N * DIM, 2), (N, N * DIM)],
    ),
    "read hyper-connections": (
        read_hyper,
        lambda *x: torch.ops.levada.streams_read_hyper(*x, None, 1e-6)[:1],
        [STREAMS, (N,), (N, N), (N,), (N + 2, DIM), (1,), (1,), (DIM,)],
    ),
    "read and score": (
        read,
        lambda *x: torch.ops.levada.streams_read_sparse(*x, 1e-6)[:3],
        [STREAMS, (N + 2, N * DIM), (1,), (N,)],
    ),
    "read by weights of all tokens": (
        lambda state, read: [torch.einsum("j,tjc->tc", read, state)],
        lambda *x: [torch.ops.levada.streams_read_static(*x)],
        [STREAMS, (N,)],
    ),
    "attend": (attend, lambda query, *sources: attend_depth(query, sources), [(2, DIM), *EACH]),
    "sum": (mix, lambda weights, *sources: sum_depth(weights, sources), [(2, SOURCES), *EACH]),
    "sums of tokens": (
        mix_of_tokens, lambda weights, *sources: sum_depth(weights, sources), [(TOKENS, 2, SOURCES), *EACH]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("products", "operation", "shapes"), CASES.values(), ids=CASES)
def test_the_operations_count_as_products_do(products, operation, shapes):
    tensors = leaves(*shapes)
    expected = counted(products, tensors)
    assert min(expected) > 0
    assert counted(operation, tensors) == expected


def test_without_mixing_nothing_is_multiplied():
    tensors = leaves(STREAMS, (TOKENS, DIM), (TOKENS, N))
    assert counted(lambda *x: [write_streams(*x)], tensors) == (0, 0)


@pytest.mark.parametrize(
    ("imports", "known"),
    [
        ("import torch.utils.flop_counter, levada.ops", True),
        ("import levada.ops, torch.utils.flop_counter", False),
        ("import levada.ops, torch.utils.flop_counter, levada.ops.flops", True),
    ],
)
def test_nobody_waits_for_the_counter(imports, known):
    code = f"{imports}; print(torch.ops.levada.streams_write in torch.utils.flop_counter.flop_registry)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(known)]
