"""Whole networks: the papers' numbers of parameters, and any connection where it fits."""

import itertools

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.connections import LayerScale, Plain, PostNorm, Residual, ReZero, StochasticDepth
from levada.networks import cifar_resnet, densenet, imagenet_resnet, mlp, transformer


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_cifar_networks_have_the_parameters_of_the_paper(depth, millions):
    with torch.device("meta"):
        residual, plain = cifar_resnet(depth), cifar_resnet(depth, connection=Plain)
    digits = 1 if millions > 1 else 2
    assert round(num_parameters(residual) / 1e6, digits) == millions
    assert num_parameters(plain) == num_parameters(residual)
    n = (depth - 2) // 6
    # Counted by hand: convolutions of 9 weights per pair of channels, each with a norm of 2 per channel; a linear map.
    convolutions = [(3, 16), *[(16, 16)] * 2 * n]
    convolutions += [(16, 32), *[(32, 32)] * (2 * n - 1), (32, 64), *[(64, 64)] * (2 * n - 1)]
    assert num_parameters(residual) == sum(9 * a * b + 2 * b for a, b in convolutions) + 64 * 10 + 10
    assert len(residual.stack) == 3 * n


@pytest.mark.parametrize(
    ("depth", "exact", "projections"),
    [
        (18, 11_689_512, [(64, 128), (128, 256), (256, 512)]),
        (34, 21_797_672, [(64, 128), (128, 256), (256, 512)]),
        (50, 25_557_032, [(64, 256), (256, 512), (512, 1024), (1024, 2048)]),
        (101, 44_549_160, [(64, 256), (256, 512), (512, 1024), (1024, 2048)]),
        (152, 60_192_808, [(64, 256), (256, 512), (512, 1024), (1024, 2048)]),
    ],
)
def test_imagenet_networks_have_the_exact_numbers_of_parameters(depth, exact, projections):
    with torch.device("meta"):
        residual = imagenet_resnet(depth)
        plain, padded = imagenet_resnet(depth, connection=Plain), imagenet_resnet(depth, shortcut="A")
        assert residual(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert num_parameters(residual) == exact
    assert num_parameters(plain) == num_parameters(padded) == exact - sum(a * b + 2 * b for a, b in projections)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules()) == depth


@pytest.mark.parametrize(("depth", "billions"), [(18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3)])
def test_imagenet_networks_take_the_multiplications_of_the_paper(depth, billions):
    """The paper counts one operation for each multiplication with its addition; 18 and 34 have padded shortcuts."""
    total = 0

    def count(module, args, out):
        nonlocal total
        total += out[0, 0].numel() * module.weight.numel()

    with torch.device("meta"):
        net = imagenet_resnet(depth, shortcut="A" if depth < 50 else "B")
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        net(torch.empty(1, 3, 224, 224))
    assert total / 1e9 == pytest.approx(billions, rel=0.05)


def test_a_network_of_constant_channels_keeps_the_length_of_signals():
    net = cifar_resnet(20, channels=(16,), inputs=1, dims=1, pre_activation=True)
    lengths = set()
    for layer in net.stack:
        layer.register_forward_hook(lambda module, args, out: lengths.add(tuple(out.shape[1:])))
    assert net(torch.randn(3, 1, 40)).shape == (3, 10)
    assert lengths == {(16, 40)}
    assert len(net.stack) == 9


@pytest.mark.parametrize("connection", [Plain, Residual])
@pytest.mark.parametrize("pre_activation", [False, True])
def test_residual_networks_equal_one_written_out(connection, pre_activation):
    torch.manual_seed(0)
    net = cifar_resnet(14, channels=(4, 8), dims=1, connection=connection, pre_activation=pre_activation).eval()
    x = torch.randn(2, 3, 12)
    h = net.stem(x)
    for i, layer in enumerate(net.stack):
        skip = nn.functional.pad(h[:, :, ::2], (0, 0, 0, 4)) if i == 3 else h
        h = layer.branch(h) + (skip if connection is Residual else 0)
        h = h if pre_activation else h.relu()
    if pre_activation:
        h = net.head[0](h).relu()
    expected = net.head[-1](h.mean(-1))
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("connection", [ReZero, StochasticDepth, Residual, Plain])
def test_connections_of_one_stream_fit_a_residual_network(connection):
    net = cifar_resnet(20, channels=(4, 6, 8), connection=connection, pre_activation=True)
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert [layer.connection.depth for layer in net.stack] == [9] * 9
    assert [layer.connection.layer for layer in net.stack] == list(range(9))
    widening = Plain if connection is Plain else Residual
    expected = [widening if i in (3, 6) else connection for i in range(9)]
    assert [type(layer.connection) for layer in net.stack] == expected


def test_options_reach_the_connection_and_the_stack():
    net = mlp(4, 8, inputs=3, outputs=2, connection=LayerScale, init=0.5, checkpoint=2)
    assert all((p == 0.5).all() for layer in net.stack for p in layer.connection.parameters())
    assert net.stack.segments == 2
    with pytest.raises(UsageError, match="takes no option 'streams'"):
        cifar_resnet(8, streams=4)
    with pytest.raises(UsageError, match="pre_activation=True"):
        cifar_resnet(8, connection=ReZero)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_mlp_is_its_equation(pre_activation):
    net = mlp(3, 5, inputs=4, outputs=2, activation=nn.Tanh, pre_activation=pre_activation)
    x = torch.randn(6, 4)
    h = net.stem(x)
    for layer in net.stack:
        linear = layer.branch.linear
        h = linear(h.tanh()) if pre_activation else linear(h).tanh()
    torch.testing.assert_close(net(x), net.head.linear(h.tanh()) if pre_activation else net.head(h))


def test_transformer_alternates_and_looks_back_alone():
    torch.manual_seed(0)
    net = transformer(6, 16, vocabulary=11)
    assert [type(layer.branch).__name__ for layer in net.stack] == ["Attention", "FeedForward"] * 3
    tokens = torch.randint(11, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 11
    same = (net(tokens) - net(changed)).abs().amax((0, 2)) < 1e-6
    assert same.tolist() == [True] * 5 + [False] * 4
    # Positions are told apart: without them, equal tokens would give equal scores.
    assert (net(torch.zeros(1, 4, dtype=torch.long))[0].diff(dim=0).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(
    ("connection", "options", "norm"), [(PostNorm, {"alpha": "deepnorm"}, None), (ReZero, {}, None)]
)
def test_transformer_without_norms_in_its_branches(connection, options, norm):
    net = transformer(4, 8, vocabulary=7, heads=2, norm=norm, connection=connection, **options)
    in_branches = [m for layer in net.stack for m in layer.branch.modules() if isinstance(m, nn.LayerNorm)]
    assert in_branches == []
    assert net(torch.zeros(2, 3, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cifar_resnet(21), r"6 n \+ 2"),
        (lambda: cifar_resnet(2), r"6 n \+ 2"),
        (lambda: imagenet_resnet(20), "18, 34, 50, 101, 152, got 20"),
        (lambda: imagenet_resnet(18, shortcut="C"), '"A" or "B"'),
        (lambda: transformer(3, 8, vocabulary=5), "depth must be even"),
        (lambda: transformer(2, 7, vocabulary=5, heads=1), "dim must be even"),
    ],
)
def test_what_cannot_be_built_says_why(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_residual_networks_start_from_he():
    net = cifar_resnet(8, channels=(16, 32, 64))
    for a, b in itertools.pairwise([layer.branch[0] for layer in net.stack]):
        assert a.out_channels <= b.out_channels
        assert (b.weight.var() * b.weight[0].numel()).item() == pytest.approx(2, rel=0.1)
    assert not net.head[-1].bias.any()


@pytest.mark.parametrize(
    ("depth", "growth", "tight", "millions"),
    [(40, 12, False, 1.0), (100, 12, False, 7.0), (100, 24, False, 27.2), (100, 12, True, 0.8), (250, 24, True, 15.3),
     (190, 40, True, 25.6)],
)  # fmt: skip
def test_dense_networks_have_the_parameters_of_the_paper(depth, growth, tight, millions):
    with torch.device("meta"):
        net = densenet(depth, growth=growth, bottleneck=tight, compression=0.5 if tight else 1.0)
    assert round(num_parameters(net) / 1e6, 1) == millions
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


@pytest.mark.parametrize("tight", [False, True])
def test_a_dense_network_equals_one_written_out(tight):
    options = {"bottleneck": True, "compression": 0.5} if tight else {}
    net = densenet(22 if tight else 13, growth=4, **options).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = net.stem(x)
    assert h.shape[1] == (8 if tight else 16)
    for i, block in enumerate(net.blocks):
        for layer in block.layers:
            h = torch.cat([h, layer.branch(h)], 1)
        if i < 2:
            width = h.shape[1]
            h = net.transitions[i](h)
            assert h.shape[1:] == (width // 2 if tight else width, 4 // 2**i, 4 // 2**i)
    torch.testing.assert_close(net(x), net.head(h))


def test_dropout_of_a_dense_network_acts_in_training():
    net = densenet(7, growth=4, dropout=0.2)
    assert sum(isinstance(m, nn.Dropout) for m in net.modules()) == 3 + 2  # layers and transitions
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("depth", "options", "told"),
    [
        (41, {}, r"3 n \+ 4, n >= 1, without bottlenecks, got 41"),
        (13, {"bottleneck": True}, r"6 n \+ 4, n >= 1, with bottlenecks, got 13"),
        (4, {}, "got 4"),
        (40, {"growth": 0}, "growth must be at least 1"),
        (40, {"compression": 0.0}, "compression must be above 0 and at most 1, got 0.0"),
        (40, {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_dense_networks_that_do_not_exist_are_refused(depth, options, told):
    with pytest.raises(UsageError, match=told):
        densenet(depth, **options)
