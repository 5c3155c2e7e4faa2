"""Each initialisation against a closed form or what its paper claims."""

import copy
import inspect
import math

import pytest
import torch
from torch import nn

import levada
from levada import initialise
from levada._errors import UsageError
from levada.blocks import ConcatenatedReLU, Convolution, ConvolutionBranch, Fixup, FullyConnected
from levada.connections import PostNorm, Residual
from levada.initialise import INITIALISATIONS
from levada.networks import cifar_resnet, mlp, transformer
from levada.theory import Activation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]


def gains(net, x):
    """Factor by which each layer of the stack changes the root mean square of the signal."""
    rms = [net.stem(x).square().mean().sqrt()]
    for layer in net.stack:
        layer.register_forward_hook(lambda module, args, out: rms.append(out.square().mean().sqrt()))
    with torch.no_grad():
        net(x)
    return torch.stack(rms[1:]) / torch.stack(rms[:-1])


@pytest.mark.parametrize(
    ("name", "options", "variance"),
    [
        ("pytorch_default", {}, 1 / (3 * 200)),
        ("glorot", {}, 2 / 800),
        ("glorot", {"gain": 2.0}, 8 / 800),
        ("he", {}, 2 / 200),
        ("he", {"mode": "fan_out"}, 2 / 600),
        ("he", {"negative_slope": 0.5}, 2 / 1.25 / 200),
        ("gaussian", {"weight_variance": 16.0}, 16 / 200),
        ("critical", {"activation": torch.relu}, 2 / 200),
        ("orthogonal", {}, 1 / 600),
    ],
)
def test_variance_of_the_weights(name, options, variance):
    linear = INITIALISATIONS[name](nn.Linear(200, 600), generator=seeded(), **options)
    # 120,000 weights: a standard error of at most 0.4 per cent.
    assert linear.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert linear.weight.mean().abs() < 3 * math.sqrt(variance / 120_000)
    assert name == "pytorch_default" or not linear.bias.any()


@pytest.mark.parametrize(
    ("build", "fan_in", "fan_out"),
    [
        (lambda: nn.Conv1d(8, 24, 5), 40, 120),
        (lambda: nn.Conv2d(8, 24, 3), 72, 216),
        (lambda: nn.Conv2d(8, 24, 3, groups=4), 18, 54),
        (lambda: nn.Conv3d(4, 8, 3), 108, 216),
    ],
)
def test_fans_of_convolutions(build, fan_in, fan_out):
    conv = initialise.he(build().double(), generator=seeded())
    other = initialise.he(build().double(), mode="fan_out", generator=seeded())
    torch.testing.assert_close(conv.weight / other.weight, torch.full_like(conv.weight, math.sqrt(fan_out / fan_in)))
    reference = torch.empty_like(conv.weight).normal_(generator=seeded())
    torch.testing.assert_close(conv.weight.detach(), reference * math.sqrt(2 / fan_in))


def test_pytorch_default_is_what_pytorch_draws():
    def build():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(7, 5), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(3, 2, bias=False))

    theirs, ours = build(), build()
    ours.apply(lambda m: [nn.init.zeros_(p) for p in m.parameters(recurse=False)])
    torch.manual_seed(3)
    initialise.pytorch_default(ours)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("options", "fans"), [({}, (240, 240, 240)), ({"kdim": 30, "vdim": 20}, (120, 90, 80))])
def test_pytorch_default_of_attention(options, fans):
    theirs = nn.MultiheadAttention(60, 4, **options)
    ours = initialise.pytorch_default(nn.MultiheadAttention(60, 4, **options), generator=seeded())
    for attention in (theirs, ours):
        parts = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        parts = parts if options else attention.in_proj_weight.chunk(3)
        for weight, fan in zip(parts, fans, strict=True):
            assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / fan), rel=0.01)
        assert attention.out_proj.weight.abs().max().item() == pytest.approx(1 / math.sqrt(60), rel=0.01)
        assert not attention.in_proj_bias.any()
        assert not attention.out_proj.bias.any()


def test_default_rectifier_network_loses_a_factor_of_0_408_in_every_layer():
    net = initialise.pytorch_default(mlp(20, 512, inputs=512, outputs=1), generator=seeded())
    for m in linears(net):
        nn.init.zeros_(m.bias)
    measured = gains(net, torch.randn(64, 512, generator=seeded(1))).log().mean().exp()
    # Over 20 layers of width n the log of the gain has a standard error of about sqrt(5 / (4 n) / 20) = 0.011.
    assert measured.item() == pytest.approx(math.sqrt(1 / 6), rel=0.033)


def test_he_keeps_the_signal_and_the_gradient_through_50_rectified_layers():
    net = initialise.he(mlp(50, 512, inputs=512, outputs=1), generator=seeded())
    x = torch.randn(64, 512, generator=seeded(1))
    assert gains(net, x).log().mean().exp().item() == pytest.approx(1, abs=0.03)
    h = net.stem(x).detach().requires_grad_()
    out = net.stack(h)
    cotangent = torch.randn(out.shape, generator=seeded(2))
    (gradient,) = torch.autograd.grad(out, h, cotangent)
    assert (gradient.norm() / cotangent.norm()).item() ** (1 / 50) == pytest.approx(1, abs=0.03)


def test_gaussian_draws_biases_and_shares_its_weights_with_and_without():
    a, b = (
        initialise.gaussian(nn.Linear(400, 5000), bias_variance=v, generator=seeded()).requires_grad_(False)
        for v in (0.0, 0.25)
    )
    assert torch.equal(a.weight, b.weight)
    assert b.bias.var().item() == pytest.approx(0.25, rel=0.06)


def hardtanh_bias_variance(q):
    """`q - E phi^2 / E phi'^2`, by `E[z^2; |z| < a] = P - 2 a pdf(a)` with `a = 1 / sqrt q`."""
    inside = math.erf(1 / math.sqrt(2 * q))
    square = q * inside - 2 * math.sqrt(q) * math.exp(-1 / (2 * q)) / math.sqrt(2 * math.pi) + 1 - inside
    return q - square / inside


@pytest.mark.parametrize(
    ("activation", "variance", "weight_variance", "bias_variance"),
    [
        (torch.tanh, 0.05, 1.093627, 0.000128),
        (torch.tanh, 1.0, 2.153303, 0.150965),
        (torch.tanh, 2.0, 2.861162, 0.512265),
        # E erf'(z)^2 = (4 / pi) / sqrt(1 + 4 q) and E erf(z)^2 = (2 / pi) asin(2 q / (1 + 2 q)).
        (torch.erf, 1.0, 1 / 0.5694100, 1 - (2 / math.pi) * math.asin(2 / 3) / 0.5694100),
        (nn.LeakyReLU(0.1), 3.0, 2 / 1.01, 0.0),
        (nn.Identity(), 1.0, 1.0, 0.0),
        # P(|z| < 1) = erf(1 / sqrt 2): slope 1 there, 0 elsewhere.
        ("hardtanh", 1.0, 1.464795, 0.244080),
        (nn.Hardtanh(), 1.0, 1.464795, 0.244080),
        # A kink at 2 sigma = 2 sqrt(2): scaling by 2 is a scaling by 4 of variances.
        (nn.Hardtanh(-2.0, 2.0), 8.0, 1 / math.erf(0.5), 4 * hardtanh_bias_variance(2.0)),
        (nn.functional.hardtanh, 2.0, 1 / math.erf(0.5), hardtanh_bias_variance(2.0)),
        (
            Activation("clip", lambda u: u.clamp(-1, 1), (-1.0, 1.0)),
            2.0,
            1 / math.erf(0.5),
            hardtanh_bias_variance(2.0),
        ),
    ],
)
def test_critical_points(monkeypatch, activation, variance, weight_variance, bias_variance):
    drawn = []
    monkeypatch.setattr(initialise.variance, "gauss_", lambda weight, *variances: drawn.append(variances))
    initialise.critical(nn.Linear(2, 2), activation=activation, variance=variance)
    assert drawn == [(pytest.approx(weight_variance / 2, rel=1e-6), None, pytest.approx(bias_variance, abs=1e-6))]


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3)])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_orthogonal(shape, gain):
    linear = initialise.orthogonal(nn.Linear(*shape).double(), gain=gain)
    w = linear.weight if linear.weight.shape[0] <= linear.weight.shape[1] else linear.weight.T
    torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w), dtype=torch.float64))


def test_orthogonal_is_uniform():
    """Without the correction of QR's signs, the mean of the trace would not be 0, nor its variance 1."""
    net = initialise.orthogonal(nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(1000)), generator=seeded())
    traces = torch.stack([layer.weight.detach().trace() for layer in net])
    # Standard errors: 0.032 and, with a fourth moment of 3, 0.045.
    assert traces.mean().abs().item() < 0.1
    assert traces.var().item() == pytest.approx(1, abs=0.14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_orthogonal_below_single_precision(dtype):
    weight = initialise.orthogonal(nn.Linear(8, 8).to(dtype)).weight.float()
    assert (weight @ weight.T - torch.eye(8)).abs().max() < 0.02


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_delta_orthogonal_keeps_the_norm_through_100_convolutions(memory_format):
    stack = levada.Stack(
        [Convolution(16, nn.Identity, padding_mode="circular") for _ in range(100)], levada.Plain, dim=16
    )
    stack = initialise.delta_orthogonal(stack.to(memory_format=memory_format), generator=seeded())
    x = torch.randn(2, 16, 8, 8, generator=seeded(1))
    with torch.no_grad():
        assert (stack(x).norm() / x.norm() - 1).abs() < 1e-5
        initialise.orthogonal(stack, generator=seeded())
        assert (stack(x).norm() / x.norm() - 1).abs() > 0.1  # the flattened kernel alone is not enough


def test_delta_orthogonal_treats_groups_one_by_one_and_refuses_before_it_changes():
    conv = initialise.delta_orthogonal(nn.Conv1d(4, 8, 3, padding=1, groups=2).double())
    x = torch.randn(3, 4, 10, dtype=torch.float64)
    torch.testing.assert_close(conv(x).norm(), x.norm())
    for bad, message in ((nn.Conv2d(8, 4, 3), "8 -> 4 at 1"), (nn.Conv2d(4, 4, 2), "odd sizes")):
        net = nn.Sequential(nn.Conv2d(4, 8, 3), bad)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(UsageError, match=message):
            initialise.delta_orthogonal(net)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("pre_activation", [False, True])
def test_looks_linear_network_is_linear_and_an_isometry(pre_activation):
    net = mlp(50, 32, inputs=32, outputs=32, activation=ConcatenatedReLU, pre_activation=pre_activation).double()
    initialise.looks_linear(net)
    x, y = torch.randn(2, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(net(2 * x - 3 * y), 2 * net(x) - 3 * net(y))
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)
    torch.testing.assert_close(jacobian[1:], jacobian[:1].expand_as(jacobian[1:]))
    if pre_activation:  # the other order halves the width in front of the first activation
        torch.testing.assert_close(net(x).norm(dim=1), x.norm(dim=1))


def test_looks_linear_convolutions():
    activation = lambda: ConcatenatedReLU(dim=1)  # noqa: E731
    branches = [ConvolutionBranch(4, activation=activation, norm=None, pre_activation=True) for _ in range(5)]
    stack = initialise.looks_linear(levada.Stack(branches, Residual, dim=4).double())
    x, y = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(stack(x + y), stack(x) + stack(y))
    with pytest.raises(UsageError, match="ConcatenatedReLU"):
        initialise.looks_linear(mlp(2, 4, inputs=4, outputs=4))


def test_lsuv_gives_every_weight_an_output_of_unit_variance():
    torch.manual_seed(0)
    flat = [nn.Sigmoid(), nn.Flatten(), *[FullyConnected(512, nn.ELU) for _ in range(6)]]
    net = nn.Sequential(ConvolutionBranch(3, dim_out=8, norm=None), *flat)
    x = 30 * torch.rand(40, 3, 8, 8)
    initialise.lsuv(net, x, generator=seeded())
    variances = {}
    for name, m in net.named_modules():
        if m in linears(net):
            m.register_forward_hook(
                lambda _, args, out, name=name: variances.update({name: out.var(correction=0).item()})
            )
    net(x)
    assert len(variances) == 8
    assert all(abs(v - 1) <= 0.02 for v in variances.values())


def test_lsuv_leaves_mode_buffers_and_hooks_as_they_were():
    net = cifar_resnet(8, channels=(4, 6, 8)).train()
    buffers = {k: (b, b.clone()) for k, b in net.named_buffers()}
    initialise.lsuv(net, torch.randn(8, 3, 16, 16))
    assert all(b is buffers[k][0] and torch.equal(b, buffers[k][1]) for k, b in net.named_buffers())
    assert all(m.training and not m._forward_hooks for m in net.modules())

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("on purpose")

    failing = nn.Sequential(nn.Linear(2, 2), Fails())
    with pytest.raises(RuntimeError, match="on purpose"):
        initialise.lsuv(failing, torch.randn(4, 2))
    assert not failing[0]._forward_hooks


def test_lsuv_says_what_it_cannot_do():
    x, shared = torch.randn(10, 3), nn.Linear(3, 3)
    with pytest.raises(UsageError, match="has variance 0"):
        initialise.lsuv(nn.Linear(3, 3), torch.zeros(4, 3))
    with pytest.raises(UsageError, match="2 passes did not bring"):
        initialise.lsuv(nn.Sequential(shared, nn.Softplus(), shared), x, num_passes=2, tolerance=1e-6)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(UsageError, match="does not reach unused"):
        initialise.lsuv(Half(), x)
    with pytest.raises(UsageError, match="MultiheadAttention"):
        initialise.lsuv(nn.MultiheadAttention(4, 2), (torch.randn(2, 3, 4),) * 3)


def change_of_output(stack, learning_rate=1e-5):
    """How far one step of gradient descent on the weights moves the output, over the learning rate."""
    x, target = torch.randn(2, 64, stack.dim, dtype=torch.float64, generator=seeded(1))
    weights = [p for p in stack.parameters() if p.dim() > 1]
    out = stack(x)
    gradients = torch.autograd.grad((out - target).square().sum(1).mean(), weights)
    with torch.no_grad():
        for p, g in zip(weights, gradients, strict=True):
            p -= learning_rate * g
        return ((stack(x) - out).norm() / learning_rate).item()


@pytest.mark.parametrize("num_weights", [2, 3])
def test_a_step_after_fixup_changes_the_output_alike_at_any_depth(num_weights):
    def build(depth):
        branches = [Fixup([nn.Linear(16, 16, bias=False) for _ in range(num_weights)]) for _ in range(depth)]
        return initialise.fixup(levada.Stack(branches, Residual, dim=16).double(), generator=seeded())

    def unscaled(depth):  # He's weights with the last of every branch zero: all of Fixup but its scale
        stack = initialise.he(build(depth), generator=seeded())
        for layer in stack:
            nn.init.zeros_(linears(layer)[-1].weight)
        return stack

    assert change_of_output(build(100)) / change_of_output(build(10)) == pytest.approx(1, abs=0.25)
    assert change_of_output(unscaled(100)) / change_of_output(unscaled(10)) == pytest.approx(10, rel=0.25)


def test_fixup_sets_what_the_paper_says():
    depth, dim = 16, 200
    branches = [Fixup([nn.Linear(dim, dim, bias=False) for _ in range(3)]) for _ in range(depth)]
    net = nn.Sequential(nn.Linear(5, dim), levada.Stack(branches, Residual, dim=dim), nn.ReLU(), nn.Linear(dim, 3))
    for p in net.parameters():
        nn.init.constant_(p, 7.0)
    initialise.fixup(net, generator=seeded())
    first, second, last = linears(net[1][4])
    for weight in (first.weight, second.weight):
        assert weight.var().item() == pytest.approx(2 / dim * depth ** (-1 / 2), rel=0.03)
    assert not last.weight.any()
    assert not net[3].weight.any()
    assert not any(net[i].bias.any() for i in (0, 3))
    assert net[0].weight.var().item() == pytest.approx(2 / 5, rel=0.2)
    scalars = [p.item() for p in net[1][4].branch.parameters() if p.shape == (1,)]
    assert sorted(scalars) == [0.0] * 6 + [1.0]


def test_fixup_refuses_what_it_is_not():
    normalised = levada.Stack([ConvolutionBranch(4)], Residual, dim=4)
    without_scalars = levada.Stack([FullyConnected(4)], Residual, dim=4)
    for module, message in (
        (normalised, "BatchNorm2d"),
        (without_scalars, "scalars=False"),
        (nn.Linear(2, 2), "no Layer"),
    ):
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(UsageError, match=message):
            initialise.fixup(module)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not initialise.fixup(without_scalars, scalars=False)(torch.zeros(1, 4)).any()
    with pytest.raises(UsageError, match="outside of the branches"):
        initialise.fixup(without_scalars, scalars=False, classifier=without_scalars[0])


def update_of_transformer(depth, initialisation, seed, **options):
    torch.manual_seed(seed)
    net = transformer(depth, 32, vocabulary=20, heads=2, norm=None, connection=PostNorm, **options).double()
    initialisation(net, generator=seeded(seed))
    tokens = torch.randint(20, (4, 12))
    weights = [p for layer in net.stack for p in layer.branch.parameters() if p.dim() > 1]
    h = net.stack(net.stem(tokens))
    loss = nn.functional.cross_entropy(net.head(h).flatten(0, 1), tokens.roll(-1, 1).flatten())
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for p, g in zip(weights, gradients, strict=True):
            p -= 1e-7 * g
        return ((net.stack(net.stem(tokens)) - h).norm() / h.norm() / 1e-7).item()


def test_deepnorm_bounds_the_update_of_the_model_at_any_depth():
    deepnorm = [update_of_transformer(d, initialise.deepnorm, s, alpha="deepnorm") for d in (4, 64) for s in range(3)]
    assert 0.02 < min(deepnorm) < max(deepnorm) < 0.2
    post = [[update_of_transformer(d, initialise.glorot, s) for s in range(3)] for d in (4, 64)]
    assert min(post[1]) > 10 * max(post[0])


def test_deepnorm_scales_all_but_queries_and_keys_of_the_branches():
    net = transformer(16, 96, vocabulary=96)
    outside = [p.clone() for part in (net.stem, net.head) for p in part.parameters()]
    initialise.deepnorm(net, generator=seeded())
    assert all(map(torch.equal, outside, [*net.stem.parameters(), *net.head.parameters()]))
    beta = (8 * 8) ** -0.25
    attention, feed_forward = net.stack[0].branch, net.stack[1].branch
    glorot = 1 / 96
    for linear, variance in [
        (attention.query, glorot),
        (attention.key, glorot),
        (attention.value, beta**2 * glorot),
        (attention.output, beta**2 * glorot),
        (feed_forward.expand, beta**2 * 2 / (5 * 96)),
        (feed_forward.contract, beta**2 * 2 / (5 * 96)),
    ]:
        assert linear.weight.var().item() == pytest.approx(variance, rel=0.05)
    theirs = initialise.deepnorm(nn.MultiheadAttention(96, 4), num_layers=8, generator=seeded())
    query, key, value = theirs.in_proj_weight.chunk(3)
    expected = (glorot, glorot, beta**2 * glorot, beta**2 * glorot)
    for weight, variance in zip((query, key, value, theirs.out_proj.weight), expected, strict=True):
        assert weight.var().item() == pytest.approx(variance, rel=0.05)
    with pytest.raises(UsageError, match="num_layers"):
        initialise.deepnorm(nn.Linear(2, 2))


def build_for(name):
    """Return a network that the initialisation can set, and the arguments that it needs besides."""
    if name == "fixup":
        branches = [Fixup([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]) for _ in range(2)]
        return levada.Stack(branches, Residual, dim=4), ()
    if name == "looks_linear":
        return mlp(2, 4, inputs=4, outputs=4, activation=ConcatenatedReLU), ()
    return mlp(2, 4, inputs=4, outputs=4, connection=Residual), (torch.randn(20, 4),) if name == "lsuv" else ()


@pytest.mark.parametrize("name", INITIALISATIONS)
def test_every_initialisation(name):
    function = INITIALISATIONS[name]
    assert getattr(initialise, name) is function
    assert inspect.getdoc(function).splitlines()[0].endswith(".")
    net, args = build_for(name)
    state = torch.get_rng_state()
    assert function(net, *args, generator=seeded()) is net
    assert torch.equal(torch.get_rng_state(), state), "a generator that is given must be the only source of randomness"
    first = [p.clone() for p in net.parameters()]
    function(net, *args, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(first, net.parameters(), strict=True))
    function(net, *args, generator=seeded(1))
    assert not all(torch.equal(a, b) for a, b in zip(first, net.parameters(), strict=True))
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())
    with pytest.raises(UsageError, match=rf"{name}: (found no|without num_layers)"):
        function(nn.ReLU(), *args)
    with pytest.raises(UsageError, match="computed from other parameters"):
        function(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            *args,
            **{"num_layers": 1} if name == "deepnorm" else {},
        )


def test_what_a_connection_mixes_with_is_left_alone():
    class Gate(levada.connection.SingleStream):
        def __init__(self, dim, *, layer=0, depth=1):
            super().__init__(dim, layer=layer, depth=depth)
            self.gate, self.shortcut = nn.Linear(dim, dim), nn.Linear(dim, dim)

        def write(self, state, out):
            return self.shortcut(state) + self.gate(state).sigmoid() * out

    stack = levada.Stack([nn.Linear(3, 3)], Gate, dim=3)
    for p in stack.parameters():
        nn.init.constant_(p, 7.0)
    initialise.he(stack)
    assert (stack[0].connection.gate.weight == 7).all()
    assert not (stack[0].connection.shortcut.weight == 7).any()
    assert not (stack[0].branch.weight == 7).any()


def test_a_shared_weight_is_set_once_and_a_network_on_meta_stays_there():
    shared = nn.Linear(3, 3).double()
    initialise.he(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)), generator=seeded())
    expected = initialise.he(nn.Linear(3, 3).double(), generator=seeded())
    assert torch.equal(shared.weight, expected.weight)
    with torch.device("meta"):
        assert initialise.orthogonal(nn.Conv2d(4, 8, 3)).weight.is_meta


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: initialise.he(nn.Linear(2, 2), mode="fan"), '"fan_in" or "fan_out"'),
        (lambda: initialise.gaussian(nn.Linear(2, 2), weight_variance=-1.0), r"at least 0\.0, got -1"),
        (lambda: initialise.critical(nn.Linear(2, 2), variance=0.0), "must be positive"),
        (lambda: initialise.critical(nn.Linear(2, 2), activation=torch.sigmoid), "no critical point at q=1"),
        (lambda: initialise.critical(nn.Linear(2, 2), activation="sine"), "'sine' is not known"),
        (lambda: initialise.looks_linear(nn.Sequential(ConcatenatedReLU(), nn.Linear(3, 2))), "even number"),
    ],
)
def test_bad_arguments_say_why(call, message):
    with pytest.raises(UsageError, match=message):
        call()
