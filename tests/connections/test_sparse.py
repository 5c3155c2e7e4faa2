"""Sparse hyper-connections: the equation token by token, what stays, how streams part, and what is never built.

No code of others runs beside ours: the equations written out here are all that it is held to.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import levada
from levada import SparseHyperConnection
from levada._errors import UsageError
from levada.connections.sparse import SparseCoefficients
from levada.connections.streams import Coefficients
from levada.conversion import convert
from levada.probe.streams import Mixing

DIM, STREAMS, ACTIVE, FIXED = 6, 7, 4, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def connection(*, std: float = 0.5, seed: int = 3, **options) -> SparseHyperConnection:
    """One layer in float64, its parameters off their start."""
    torch.manual_seed(seed)
    made = SparseHyperConnection(DIM, **{"streams": STREAMS, "active": ACTIVE, "fixed": FIXED, **options}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return made


def by_hand(c: SparseHyperConnection, x: Tensor, branch) -> Tensor:
    """The new streams of one token, `(n, dim)`, from the equation."""
    n, k, m = c.streams, c.active, c.fixed
    route, look = c.projection[: n - m], c.projection[n - m :]
    r, s, t = c.scale
    flat = x.flatten()
    score = torch.sigmoid(route @ nn.functional.layer_norm(flat, flat.shape, eps=1e-6))
    read = torch.sigmoid(r * (look @ flat) / (flat.square().mean() + 1e-6).sqrt() + c.bias[:n])
    out = branch(sum(read[i] * x[i] for i in range(n)))
    chosen = sorted(range(m, n), key=lambda i: -score[i - m].item())[: k - m]
    index = [*range(m), *sorted(chosen)]
    own = torch.cat([x[i] for i in index])
    logits = c.active_projection @ own / (own.square().mean() + 1e-6).sqrt()
    write = 2 * torch.sigmoid(s * logits[:k] + c.bias[n : n + k])
    mix = (t * logits[k:] + c.bias[n + k :]).reshape(k, k).exp()
    for _ in range(20):
        mix = mix / mix.sum(0, keepdim=True)
        mix = mix / mix.sum(1, keepdim=True)
    new = [x[i] for i in range(n)]
    for a, i in enumerate(index):
        p = 1.0 if i < m else score[i - m]
        new[i] = sum(mix[a, b] * x[j] for b, j in enumerate(index)) + p * write[a] * out
    return torch.stack(new)


@pytest.mark.parametrize("fixed", [0, 2, ACTIVE])
def test_every_token_is_updated_as_the_equation_says(fixed):
    c, branch = connection(fixed=fixed), nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()).double()
    state = drawn(5, STREAMS, DIM).requires_grad_()
    parameters = [state, *c.parameters()]
    new = c.advance(state, branch)
    expected = torch.stack([by_hand(c, x, branch) for x in state])
    torch.testing.assert_close(new, expected, rtol=1e-11, atol=1e-11)
    cotangent = drawn(5, STREAMS, DIM, seed=1)
    found = torch.autograd.grad(new, parameters, cotangent)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters, cotangent), rtol=1e-9, atol=1e-9)
    x, y = connection(fixed=fixed, head="mean").end(new), c.end(new)
    torch.testing.assert_close(x * STREAMS, y)
    torch.testing.assert_close(y, expected.sum(-2))


def test_what_is_not_active_stays_bit_for_bit():
    c, state = connection(), drawn(200, STREAMS, DIM)
    before = state.clone()
    same = (c.advance(state, nn.Tanh()) == state).all(-1)
    assert torch.equal(state, before), "the state before is left as it was"
    assert same.sum(-1).eq(STREAMS - ACTIVE).all()
    assert not same[:, :FIXED].any()
    assert same[:, FIXED:].any(0).all(), "each of the others rests for some tokens"
    assert (~same[:, FIXED:]).any(0).all(), "and is written for some"


def test_the_coefficients_of_all_streams_do_the_same():
    c, state, out = connection(), drawn(3, 5, STREAMS, DIM), drawn(3, 5, DIM, seed=1)
    sparse = c.coefficients(state)
    read, mix, write = sparse
    assert (read.shape, mix.shape, write.shape) == ((3, 5, 7), (3, 5, 7, 7), (3, 5, 7))
    dense = levada.HyperConnection(DIM, streams=STREAMS).update(Coefficients(read, mix, write), state, out)
    torch.testing.assert_close(c.update(sparse, state, out), dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mix.sum(-1), torch.ones(3, 5, 7, dtype=torch.float64))
    assert (write > 0).sum(-1).eq(ACTIVE).all()


def test_matrices_of_all_streams_are_never_built(monkeypatch):
    def built(self: SparseCoefficients) -> Tensor:
        raise AssertionError("built")

    monkeypatch.setattr(SparseCoefficients, "mix", property(built))
    monkeypatch.setattr(SparseCoefficients, "write", property(built))
    stack = levada.Stack([nn.Linear(DIM, DIM) for _ in range(3)], SparseHyperConnection, dim=DIM)
    stack(drawn(2, DIM).float()).sum().backward()
    with pytest.raises(AssertionError, match="built"):
        tuple(stack[0].connection.coefficients(torch.zeros(1, 16, DIM)))


def test_rows_never_sum_to_more_than_one():
    c = connection(std=60.0)
    sums = c.coefficients(10 * drawn(300, STREAMS, DIM).float()).active_mix.sum(-1)
    assert (sums - 1).abs().max() < 1e-5


def test_the_start():
    torch.manual_seed(0)
    stack = levada.Stack([nn.Linear(DIM, DIM) for _ in range(5)], SparseHyperConnection, dim=DIM).double()
    x = drawn(4, DIM)
    for layer in stack:
        c = layer.connection
        read = c.coefficients(drawn(1, 16, DIM)).read[0]
        torch.testing.assert_close(read.sum().item(), 1.0, rtol=1e-6, atol=0)
        assert read.argmax().item() == c.layer % 2
    first, branch = stack[0].connection, stack[0].branch
    state = first.begin(x)
    torch.testing.assert_close(first.read(state), x, rtol=1e-6, atol=1e-6)
    weights = first.coefficients(state)
    new = first.advance(state, branch)
    torch.testing.assert_close(new[:, :2], state[:, :2] + branch(x)[:, None], rtol=1e-5, atol=1e-5)
    assert weights.write[:, :2].eq(1).all()
    # exp(-6) beside 1, in rows and columns that then sum to one number: the mixing hardly mixes.
    beside, mix = torch.tensor(-6.0, dtype=torch.float64).exp(), weights.active_mix
    expected = (torch.eye(4, dtype=torch.float64) * (1 - beside) + beside) / (1 + 3 * beside)
    torch.testing.assert_close(mix, expected.expand_as(mix), rtol=1e-6, atol=1e-9)
    routed = weights.write[:, 2:]
    assert (routed > 0).sum(-1).eq(2).all()
    assert routed.max() < 0.8
    assert (first.coefficients(drawn(500, 16, DIM)).index.unique()).tolist() == list(range(16)), "all are in use"
    with pytest.raises(UsageError, match="computes another function"):
        first.start_as_residual()


def spread(stack: levada.Stack, x: Tensor) -> Tensor:
    """Root mean square of what each pair of streams differs by after the last layer, `(n, n)`."""
    state = stack[0].connection.begin(x)
    for layer in stack:
        state = layer(state)
    return (state.unsqueeze(-2) - state.unsqueeze(-3)).square().mean((0, -1)).sqrt()


@pytest.mark.parametrize("alike", [False, True])
def test_streams_part_when_trained_unless_they_are_read_alike(alike):
    torch.manual_seed(0)
    stack = levada.Stack(
        [nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(4)], SparseHyperConnection, dim=DIM, streams=8
    ).double()
    x, target = drawn(64, DIM), drawn(64, DIM, seed=1)
    if alike:  # the symmetric point, at which the two fixed streams stay one
        with torch.no_grad():
            for layer in stack:
                layer.connection.bias[:2] = layer.connection.bias[:2].mean()
                layer.connection.projection[:, DIM : 2 * DIM] = layer.connection.projection[:, :DIM]
    before = spread(stack, x)
    assert before[0, 1] < 1e-12
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        (stack(x) - target).square().mean().backward()
        optimizer.step()
    after = spread(stack, x) + torch.eye(8)
    if alike:
        assert after[0, 1] < 1e-9
    else:
        assert after.min() > 1e-4


def test_the_router_learns_by_the_streams_it_chose():
    c, state = connection(), drawn(1, STREAMS, DIM)
    index = c.coefficients(state).index[0]
    c.advance(state, nn.Tanh()).square().sum().backward()
    rows = c.projection.grad[: STREAMS - FIXED].abs().sum(-1)
    chosen = torch.zeros(STREAMS - FIXED, dtype=torch.bool)
    chosen[index[FIXED:] - FIXED] = True
    assert torch.equal(rows > 0, chosen)


def test_the_probe_sees_the_mixing():
    torch.manual_seed(0)
    stack = levada.Stack([nn.Linear(DIM, DIM) for _ in range(3)], SparseHyperConnection, dim=DIM, streams=8)
    mixing = Mixing(stack)
    mixing.attach()
    mixing.begin(0)
    stack(drawn(5, DIM).float())
    mixing.end()
    samples = [sample for _, sample in mixing.samples]
    mixing.detach()
    assert [sample.layer for sample in samples] == [0, 1, 2]
    assert samples[0].matrices().shape == (5, 8, 8)
    assert (samples[0].write > 0).sum(-1).eq(4).all()


def test_cost_is_what_the_docstring_says():
    for n, k, m in ((16, 4, 2), (6, 3, 0), (5, 5, 5)):
        made = SparseHyperConnection(DIM, streams=n, active=k, fixed=m)
        count = (2 * n - m) * n * DIM + (k + k**2) * (k * DIM + 1) + n + 3
        assert sum(p.numel() for p in made.parameters()) == count
        made.advance(made.begin(torch.randn(2, DIM)), nn.Tanh())
    # The paper's own count for two such layers, whose router scores fixed streams as well: 4 n^2 + 2 k^3 + 2 k^2.
    made = SparseHyperConnection(DIM)
    matrices = made.projection.numel() + made.active_projection.numel() + 2 * 16 * DIM
    assert 2 * matrices == (4 * 16**2 + 2 * 4**3 + 2 * 4**2) * DIM


def test_images():
    torch.manual_seed(0)
    images = levada.Stack([nn.Conv2d(DIM, DIM, 1) for _ in range(2)], SparseHyperConnection, dim=DIM, axis=1)
    lines = levada.Stack([nn.Linear(DIM, DIM) for _ in range(2)], SparseHyperConnection, dim=DIM)
    lines.load_state_dict({k: v.reshape(lines.state_dict()[k].shape) for k, v in images.state_dict().items()})
    x = drawn(2, 3, 4, DIM).float()
    torch.testing.assert_close(images(x.movedim(-1, 1)).movedim(1, -1), lines(x), rtol=1e-5, atol=1e-5)


def test_rules():
    stack = levada.Stack([nn.Linear(DIM, DIM)], SparseHyperConnection, dim=DIM)
    groups = {g["name"]: {id(p) for p in g["params"]} for g in levada.parameter_groups(stack, optimizer="muon")}
    c = stack[0].connection
    assert {id(c.projection), id(c.active_projection)} <= groups["adamw, decayed"], "the paper keeps them from Muon"
    assert {id(c.bias), id(c.scale)} <= groups["adamw, not decayed"]


def test_conversion_says_that_it_changes_the_function():
    model = levada.Stack([nn.Linear(DIM, DIM) for _ in range(2)], levada.Residual, dim=DIM)
    x = drawn(3, DIM).float()
    with pytest.raises(UsageError, match=r"cannot compute what the residual connection does.* preserve=False"):
        convert(model, SparseHyperConnection, batch=x)
    assert convert(model, SparseHyperConnection, batch=x, preserve=False)(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"streams": 1}, "streams must be at least 2, got 1"),
        ({"active": 1}, "active must be at least 2, got 1"),
        ({"active": 17}, r"active at most streams, got fixed=2, active=17 and streams=16\. Change them"),
        ({"fixed": 5}, r"fixed must be in \[0, active\] .* got fixed=5, active=4"),
        ({"fixed": -1}, r"fixed must be in \[0, active\] .* got fixed=-1"),
        ({"head": "last"}, "head must be 'sum' or 'mean', got 'last'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UsageError, match=f"^SparseHyperConnection: .*{words}"):
        SparseHyperConnection(DIM, **options)


def test_a_state_of_another_shape():
    with pytest.raises(UsageError, match=r"the state must be \(..., 16, 6\)"):
        SparseHyperConnection(DIM).advance(torch.zeros(2, 4, DIM), nn.Tanh())
