"""Causal convolutions, their branch and the temporal convolutional network."""

import functools

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.blocks import CausalBranch, CausalConvolution
from levada.connections import DepthWeightedAverage, HyperConnection, Plain, PostNorm, Residual, ReZero
from levada.networks import TemporalConvolutionalNetwork
from levada.theory import visible_lags


def test_a_causal_convolution_is_its_equation():
    torch.manual_seed(0)
    block = CausalConvolution(3, nn.Tanh, dim_out=4, kernel_size=3, dilation=2, norm=nn.LayerNorm).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    weight, bias = block.convolution.weight, block.convolution.bias
    y = torch.zeros(2, 9, 4, dtype=torch.float64)
    for t in range(9):
        y[:, t] = bias
        for j in range(3):
            if t - 2 * j >= 0:
                y[:, t] += x[:, t - 2 * j] @ weight[:, :, 2 - j].T
    torch.testing.assert_close(block(x), nn.functional.layer_norm(y, (4,)).tanh())


def test_the_branch_is_two_of_them():
    branch = CausalBranch(4, dim_out=6, kernel_size=2, dilation=3, dropout=0.5, weight_norm=True)
    assert [type(module).__name__ for module in branch] == ["CausalConvolution", "Dropout"] * 2
    assert [(c.convolution.in_channels, c.convolution.out_channels) for c in (branch[0], branch[2])] == [(4, 6), (6, 6)]
    assert branch[0].convolution.parametrizations.weight.original0.shape == (6, 1, 1)  # one size for each output
    assert len(CausalBranch(4)) == 2
    x = torch.randn(2, 8, 4)
    torch.testing.assert_close(branch.eval()(x), branch[2](branch[0](x)))


def seen_by_last_step(net, inputs, steps):
    """Which lags have a gradient at the last step, over inputs enough for every unit to be at work somewhere."""
    x = torch.randn(64, steps, inputs, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.double()(x)[:, -1].sum(), x)
    return tuple((gradient.flip(1) != 0).any(2).any(0).nonzero().flatten().tolist())


@pytest.mark.parametrize("connection", [Plain, Residual, ReZero, DepthWeightedAverage, HyperConnection])
@pytest.mark.parametrize("branch", [CausalBranch, CausalConvolution])
def test_the_receptive_field_is_exact_behind_any_connection(branch, connection):
    torch.manual_seed(0)
    options = {"streams": 2} if connection is HyperConnection else {}
    branch = functools.partial(branch, activation=nn.Tanh)
    net = TemporalConvolutionalNetwork(
        [1, 2, 4], 8, inputs=2, outputs=3, kernel_size=2, branch=branch, connection=connection, **options
    )
    for parameter in net.parameters():  # what starts at zero, as ReZero's factors, hides the branch
        parameter.data.add_(0.1)
    assert seen_by_last_step(net, 2, 30) == tuple(range(net.receptive_field()))
    assert net.receptive_field() == (15 if branch.func is CausalBranch else 8)


def test_gaps_between_taps_are_known():
    torch.manual_seed(0)
    branch = functools.partial(CausalConvolution, activation=nn.Tanh)
    net = TemporalConvolutionalNetwork([1, 6], 8, inputs=2, outputs=3, branch=branch)
    assert net.receptive_field() == 15
    assert seen_by_last_step(net, 2, 30) == visible_lags([3, 3], [1, 6]) == (0, 1, 2, 6, 7, 8, 12, 13, 14)
    net.require_lag(14)
    with pytest.raises(UsageError, match="lag must be one that the dilations reach, and 9 lies in a gap"):
        net.require_lag(9)


def test_no_later_step_is_seen():
    net = TemporalConvolutionalNetwork([1, 2, 4], 8, inputs=2, outputs=3, activation=nn.ReLU())
    x = torch.randn(2, 20, 2)
    changed = x.clone()
    changed[:, 12:] = torch.randn(2, 8, 2)
    assert torch.equal(net(x)[:, :12], net(changed)[:, :12])
    assert not torch.equal(net(x)[:, 12], net(changed)[:, 12])


def test_all_replicas_run_at_once():
    nets = [TemporalConvolutionalNetwork([1, 2], 4, inputs=2, outputs=3) for _ in range(3)]
    values, _ = torch.func.stack_module_state(nets)
    x = torch.randn(3, 5, 7, 2)
    together = torch.func.vmap(lambda state, x: torch.func.functional_call(nets[0], state, (x,)))(values, x)
    torch.testing.assert_close(together, torch.stack([net(one) for net, one in zip(nets, x, strict=True)]))


def test_it_learns_a_lag_that_it_sees():
    torch.manual_seed(0)
    net = TemporalConvolutionalNetwork([1, 2, 4], 16, inputs=4, outputs=4, kernel_size=2, lag=6)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        tokens = torch.randint(4, (16, 20))
        logits = net(nn.functional.one_hot(tokens, 4).float())[:, 6:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, :-6].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1  # 1.39 for who cannot see it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CausalConvolution(4, kernel_size=0), "kernel_size must be at least 1, got 0"),
        (lambda: CausalConvolution(4, dilation=0), "dilation must be at least 1, got 0"),
        (lambda: CausalConvolution(4)(torch.zeros(2, 0, 4)), r"a sequence must have a step.*\(2, 0, 4\)"),
        (lambda: CausalConvolution(4)(torch.zeros(4)), "a sequence must have a step"),
        (lambda: build()(torch.zeros(2, 0, 2)), r"a sequence must have a step.*\(2, 0, 2\). Leave empty"),
        (lambda: CausalConvolution(4)(torch.zeros(2, 9, 5)), r"CausalC.* of width 4, got \(2, 9, 5\). Give"),
        (lambda: CausalConvolution(4)(torch.zeros(2, 9, 4).double()), "CausalC.*precision torch.float32, got torch.fl"),
        (lambda: CausalConvolution(4, norm=nn.BatchNorm1d), "last axis .* BatchNorm1d takes the steps"),
        (lambda: CausalBranch(4, norm=functools.partial(nn.GroupNorm, 2)), "last axis .* GroupNorm takes the steps"),
        (lambda: build()(torch.zeros(2, 9, 5)), r"TemporalC.* of width 2, got \(2, 9, 5\). Give .* transpose"),
        (lambda: build()(torch.zeros(2, 3, 9, 2)), r"TemporalC.*\(batch, steps, width\).* got \(2, 3, 9, 2\)"),
        (lambda: build()(torch.zeros(2, 9, 2).double()), "TemporalC.*precision torch.float32, got torch.float64"),
        (lambda: build()(torch.zeros(2, 9, 2).long()), "TemporalC.*precision torch.float32, got torch.int64"),
        (lambda: build()([1.0]), "TemporalC.*must be a tensor, got list"),
        (lambda: build(branch=Beside), "TemporalC.*BatchNorm1d takes the steps"),
        (lambda: build(connection=PostNorm, norm=nn.BatchNorm1d), "TemporalC.*BatchNorm1d takes the steps"),
        (lambda: build(lag=15), "lag must be below the receptive field of 15 steps, got 15. Use 4 layers"),
        (lambda: build(lag=-1), "lag must be at least 0, got -1"),
        (lambda: build(kernel_size=1, lag=1), "receptive field of 1 steps, got 1. Use a kernel of at least 2 taps"),
        (lambda: build(branch=Opaque, lag=1), "must say its .* as `taps` .* and Opaque does not"),
        (lambda: build(dilations=[]), "at least 1"),
    ],
)
def test_bad_input_says_the_rule(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def build(dilations=(1, 2, 4), kernel_size=2, **options):
    return TemporalConvolutionalNetwork(dilations, 8, inputs=2, outputs=3, kernel_size=kernel_size, **options)


class Beside(nn.Sequential):
    def __init__(self, dim, **options):
        super().__init__(nn.BatchNorm1d(dim), CausalConvolution(dim, **options))


def test_autocast_converts_what_comes():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build()(torch.zeros(2, 9, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
        with pytest.raises(UsageError, match=r"got torch.int64"):
            build()(torch.zeros(2, 9, 2).long())


class Opaque(nn.Linear):
    def __init__(self, dim, *, dim_out, kernel_size, dilation):
        super().__init__(dim, dim_out)


def test_the_depth_in_the_message_is_enough():
    with pytest.raises(UsageError, match="Use 6 layers whose dilations double"):
        build(lag=80)
    build(dilations=[2**layer for layer in range(6)], lag=80)
    assert levada.theory.depth_for_lag(80, 2, convolutions=2) == 6
