"""Exact and effective receptive fields against known nets and closed forms."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

from levada._errors import MeasurementError, UsageError
from levada.blocks import Attention, CausalConvolution
from levada.networks import TemporalConvolutionalNetwork
from levada.probe import receptive_field
from levada.theory import field_deviation, visible_lags


@pytest.mark.parametrize(("kernel", "dilations"), [(2, [1, 2, 4, 8]), (3, [1, 6]), (4, [2, 3, 1]), (2, [9])])
def test_the_exact_field_of_a_causal_net_is_all_sums_of_taps(kernel, dilations):
    torch.manual_seed(0)
    net = TemporalConvolutionalNetwork(
        dilations, 4, inputs=3, outputs=2, kernel_size=kernel, branch=CausalConvolution, lag=0
    )
    field = receptive_field(net, torch.randn(2, 60, 3), axes=1, position=-1, draws=4)
    seen = [59 - lag for lag in visible_lags([kernel] * len(dilations), dilations)]
    assert field.exact.nonzero().flatten().tolist() == sorted(seen)
    assert field.extent == (net.receptive_field(),)
    assert (field.position, field.confirmed, field.clipped) == ((59,), True, True)
    middle = receptive_field(net, torch.randn(2, 60, 3), axes=1, draws=4)
    assert (middle.position, middle.extent, middle.clipped) == ((30,), field.extent, False)


def test_of_an_image_both_axes_are_measured():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    )
    x = torch.randn(4, 3, 24, 24)
    field = receptive_field(net, x, position=(3, 5))
    # Convolution, pooling, convolution: 1 + (k - 1) + 1 + 2 * 2 on each axis.
    assert field.extent == (8, 10)
    assert field.exact[5:13, 8:18].all()
    assert int(field.exact.sum()) == 80
    assert field.energy.shape == (24, 24)
    assert float(field.energy.sum()) == pytest.approx(1)
    assert len(field.deviation) == len(field.span) == 2


def test_units_at_rest_do_not_hide_what_is_seen():
    net = CausalConvolution(1, kernel_size=4, dilation=2)
    net.convolution.weight.data.fill_(1.0)
    net.convolution.bias.data.fill_(-2.0)
    x = torch.zeros(1, 12, 1)
    (gradient,) = torch.autograd.grad(net(x.requires_grad_())[0, -1, 0], x)
    assert not gradient.any()
    with pytest.raises(MeasurementError, match="does not depend on the input at this batch"):
        receptive_field(net, x, axes=1, position=-1)
    two = nn.Sequential(CausalConvolution(1, nn.Identity, kernel_size=1), Both(net))
    field = receptive_field(two, x, axes=1, position=-1)
    assert field.exact.nonzero().flatten().tolist() == [5, 7, 9, 11]
    assert field.confirmed


class Both(nn.Module):
    """The present step, and a branch at rest."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def uniform(depth, kernel):
    net = nn.Sequential(*(nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False) for _ in range(depth))).double()
    for layer in net:
        layer.weight.data.fill_(1 / kernel)
    return net


@pytest.mark.parametrize("kernel", [3, 5])
def test_equal_taps_give_the_convolved_uniform_distributions(kernel):
    for depth in (1, 4, 16, 64):
        length = 2 * depth * (kernel - 1) + 1
        field = receptive_field(uniform(depth, kernel), torch.randn(1, 1, length), axes=2, draws=2)
        profile = torch.ones(1, dtype=torch.float64)
        for _ in range(depth):
            taps = torch.full((1, 1, kernel), 1 / kernel, dtype=torch.float64)
            profile = nn.functional.conv1d(profile[None, None], taps, padding=kernel - 1)[0, 0]
        seen = field.energy[field.exact]
        torch.testing.assert_close(seen.sqrt() / seen.sqrt().sum(), profile)  # the gradient, not its square
        place = torch.arange(len(seen), dtype=torch.float64) - len(seen) // 2
        deviation = float((profile * place.square()).sum().sqrt())
        assert deviation == pytest.approx(math.sqrt(depth * (kernel**2 - 1) / 12), rel=1e-12)
        assert deviation == pytest.approx(field_deviation([kernel] * depth), rel=1e-12)
        # The square of a normal profile is a normal one, sqrt(2) times narrower; 95 % lie within 1.96 deviations.
        if depth >= 16:
            assert field.deviation[0].value == pytest.approx(deviation / math.sqrt(2), rel=0.02)
            assert abs(field.span[0].value - 2 * 1.96 * field.deviation[0].value) <= 1.5
        assert field.deviation[0].high - field.deviation[0].low < 1e-6  # one channel: only the size is random


def test_random_weights_give_the_same_width_to_the_energy():
    torch.manual_seed(0)
    fields = {}
    for depth in (4, 16, 64):
        net = nn.Sequential(*(nn.Conv1d(96, 96, 3, padding=1, bias=False) for _ in range(depth)))
        for layer in net:
            nn.init.normal_(layer.weight, std=(3 * 96) ** -0.5)
        fields[depth] = receptive_field(net, torch.randn(1, 96, 2 * depth + 21), axes=2, draws=16).deviation[0]
        assert fields[depth].value == pytest.approx(field_deviation([3] * depth), rel=0.1)
        assert fields[depth].low < fields[depth].value < fields[depth].high
    slope = math.log(fields[64].value / fields[4].value) / math.log(16)
    assert slope == pytest.approx(0.5, abs=0.04)


def test_the_model_and_the_random_numbers_stay_as_they_were():
    net = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.Dropout(), nn.Conv1d(3, 1, 3, padding=1))
    net.train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    x = torch.randn(4, 2, 12)
    state = torch.get_rng_state()
    first = receptive_field(net, x, axes=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert net[0].weight.dtype == torch.float32
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[3].weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    again = receptive_field(net, x, axes=2)
    assert torch.equal(first.energy, again.energy)
    assert first.extent == (5,)  # batch statistics and dropout would see everything, or other things each time


def test_an_output_without_positions_is_asked_as_a_whole():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 4))
    field = receptive_field(net, torch.randn(4, 2, 12), axes=2)
    assert (field.position, field.extent) == ((), (12,))


def test_a_model_with_constants_of_its_own_precision_runs_in_it():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv1d(1, 1, 3, padding=1)
            self.taps = torch.ones(1, 1, 3)  # no buffer: nothing converts it

        def forward(self, x):
            return self.convolution(nn.functional.conv1d(x, self.taps, padding=1))

    field = receptive_field(Fixed(), torch.randn(2, 1, 20), axes=2)
    assert field.extent == (5,)
    assert field.confirmed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: receptive_field(net, x), r"axes must be given for an input of shape \(2, 3, 9\)"),
        (lambda net, x: receptive_field(net, x, axes=3), r"axes must be in \[0, 3\)"),
        (lambda net, x: receptive_field(net, x, axes=[2, -1]), "one or more different axes"),
        (lambda net, x: receptive_field(net, x, axes=2, position=9), "9 long on this axis, got 9"),
        (lambda net, x: receptive_field(net, x, axes=2, position=(1, 1)), "one number for each of 1 axes"),
        (lambda net, x: receptive_field(net, x, axes=2, draws=1), "draws must be at least 2, got 1"),
        (lambda net, x: receptive_field(net, x[:, :2], axes=2), "must run on the batch"),
        (lambda net, x: receptive_field(net, x[:, :, :0], axes=2), "must not be empty"),
        (lambda net, x: receptive_field(nn.Embedding(3, 2), x.long().abs() % 3, axes=1), "part after the embedding"),
    ],
)
def test_bad_input_says_the_rule(call, message):
    with pytest.raises(UsageError, match=message):
        call(nn.Conv1d(3, 2, 3, padding=1), torch.randn(2, 3, 9))


def test_rounding_of_the_models_own_precision_is_not_seen():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv1d(2, 2, 3, padding=1)
            self.taps = torch.randn(2, 1, 3)  # float32, and no buffer

        def forward(self, x):
            y = nn.functional.conv1d(self.convolution(x), self.taps, groups=2, padding=1)
            return torch.fft.irfft(torch.fft.rfft(y, n=80), n=80)[..., :40]  # the identity, rounded

    torch.manual_seed(0)
    field = receptive_field(Own(), torch.randn(2, 2, 40), axes=2)
    assert field.exact.nonzero().flatten().tolist() == [18, 19, 20, 21, 22]
    assert field.confirmed


def test_what_is_not_finite_is_no_field():
    net = nn.Conv1d(3, 2, 3, padding=1)
    net.weight.data[0, 0, 0] = torch.nan
    with pytest.raises(MeasurementError, match="not finite"):
        receptive_field(net, torch.randn(2, 3, 9), axes=2)


def test_attention_sees_what_its_mask_lets_it():
    torch.manual_seed(0)
    causal = functools.partial(receptive_field, Attention(8, heads=2, causal=True), torch.randn(2, 9, 8), axes=1)
    assert causal(position=3).exact.tolist() == [True] * 4 + [False] * 5
    everything = receptive_field(Attention(8, heads=2), torch.randn(2, 9, 8), axes=1)
    assert everything.exact.all()
    assert (everything.confirmed, everything.noise) == (True, math.inf)


def test_it_costs_as_many_passes_as_it_says():
    passes = []

    class Counted(nn.Conv1d):
        def forward(self, x):
            passes.append(1)
            return super().forward(x)

    receptive_field(Counted(1, 1, 3, padding=1), torch.randn(2, 1, 20), axes=2)
    assert len(passes) == 16


class Causal(nn.Module):
    """Four taps, by a product of spectra: rounding reaches every position, the future too."""

    def __init__(self, circular=False, channels=1):
        super().__init__()
        self.taps = nn.Parameter(torch.randn(channels, 4))
        self.circular = circular

    def forward(self, x):
        n = x.shape[-1] * (1 if self.circular else 2)
        y = torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(self.taps, n=n), n=n)
        return y[..., : x.shape[-1]]


@pytest.mark.parametrize("length", [8, 32, 33, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_rounding_is_not_seen(length, channels):
    torch.manual_seed(0)
    field = receptive_field(Causal(channels=channels), torch.randn(2, channels, length), axes=2)
    middle = length // 2
    assert field.exact.nonzero().flatten().tolist() == list(range(middle - 3, middle + 1))
    assert field.confirmed


def test_what_is_small_is_no_rounding():
    net = uniform(64, 3)
    field = receptive_field(net, torch.randn(1, 1, 161), axes=2)
    assert field.extent == (129,)
    assert 0 < float(field.energy[80 - 64] / field.energy.max()) < 1e-55  # far below what rounding would leave
    assert field.confirmed


class Patches(nn.Module):
    """Signals to tokens: the output counts positions on another axis than the input."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Conv1d(3, 16, 4, stride=4)

    def forward(self, x):
        return self.embedding(x).mT


def test_positions_on_another_axis_of_the_output_are_asked_for():
    torch.manual_seed(0)
    net, x = Patches(), torch.randn(2, 3, 32)
    with pytest.raises(UsageError, match=r"all along 2 of an output of shape \(2, 8, 16\).*Give output_axes=1, or"):
        receptive_field(net, x, axes=2)
    field = receptive_field(net, x, axes=2, output_axes=1, position=3)
    assert (field.position, field.exact.nonzero().flatten().tolist()) == ((3,), [12, 13, 14, 15])
    assert receptive_field(net, x, axes=2, output_axes=2).exact.all()  # the user's word
    tokens = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.Flatten(2))
    assert receptive_field(tokens, torch.randn(2, 3, 8, 8), output_axes=-1, position=3).extent == (4, 4)
    with pytest.raises(UsageError, match=r"output_axes must be in \[0, 3\) for an output of shape"):
        receptive_field(net, x, axes=2, output_axes=3)


@pytest.mark.parametrize("build", [lambda: nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"), Causal])
def test_positions_that_wrap_have_distances_on_the_circle(build):
    torch.manual_seed(0)
    net, x = build() if build is not Causal else Causal(circular=True), torch.randn(2, 1, 100)
    middle, first = receptive_field(net, x, axes=2), receptive_field(net, x, axes=2, position=0)
    assert first.exact.roll(50).tolist() == middle.exact.tolist()
    assert (first.wraps, first.clipped, first.extent) == ((True,), False, middle.extent)
    assert first.extent == ((3,) if build is not Causal else (4,))
    assert first.deviation[0].value == pytest.approx(middle.deviation[0].value, rel=1e-6)
    assert first.span[0].value == middle.span[0].value <= 4


def test_a_field_around_the_whole_circle_still_wraps():
    torch.manual_seed(0)
    layers = [nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False) for _ in range(8)]
    net, x = nn.Sequential(*layers), torch.randn(2, 1, 16)
    for layer in layers:
        layer.weight.data.fill_(1 / 3)
    middle, first = receptive_field(net, x, axes=2), receptive_field(net, x, axes=2, position=0)
    assert (first.extent, first.wraps, first.clipped) == ((16,), (True,), True)
    assert first.deviation[0].value == pytest.approx(middle.deviation[0].value, rel=1e-6)


def test_what_wraps_need_not_hold_the_ends():
    class Turned(nn.Conv1d):
        def forward(self, x):
            y = super().forward(x)
            return y + y.roll(3, 2)

    field = receptive_field(Turned(1, 2, 1), torch.randn(2, 1, 20), axes=2, position=1)
    assert field.exact.nonzero().flatten().tolist() == [1, 18]
    assert (field.wraps, field.extent, field.clipped) == ((True,), (4,), False)
    assert field.deviation[0].value == pytest.approx(1.5)


def test_both_ends_alone_are_no_circle():
    torch.manual_seed(0)
    field = receptive_field(nn.Conv1d(1, 2, 3, padding=50, dilation=50), torch.randn(2, 1, 101), axes=2)
    assert field.exact.nonzero().flatten().tolist() == [0, 50, 100]
    assert (field.wraps, field.clipped, field.extent) == ((False,), True, (101,))


@pytest.mark.parametrize("seed", range(4))
def test_units_deeply_at_rest_are_woken_or_the_size_of_noise_is_said(seed):
    convolution = nn.Conv1d(1, 1, 3, padding=1)
    net = Both(nn.Sequential(convolution, nn.ReLU()))
    torch.manual_seed(seed)
    nn.init.normal_(convolution.weight)
    convolution.bias.data.fill_(-1000.0)
    x = torch.randn(1, 1, 9)
    field = receptive_field(net, x, axes=2, seed=seed)
    assert field.exact.nonzero().flatten().tolist() == [3, 4, 5]
    assert (field.confirmed, field.noise) == (True, 2.0**18)
    convolution.bias.data.fill_(-1e12)  # beyond any noise tried: said, not promised
    asleep = receptive_field(net, x, axes=2, seed=seed)
    assert (int(asleep.exact.sum()), asleep.noise) == (1, 2.0**18)


def test_noise_that_overflows_confirms_nothing():
    class Bounded(nn.Conv1d):
        def forward(self, x):
            return super().forward(x) + 0 * x.square().exp().sum()  # not finite where a far position is large

    field = receptive_field(Bounded(1, 1, 1), torch.randn(2, 1, 9), axes=2)
    assert int(field.exact.sum()) == 1
    assert 1.0 <= field.noise < 64.0


@pytest.mark.parametrize("depth", [200, 450])
def test_gradients_beyond_the_range_of_squares_and_of_the_arithmetic_are_scaled(depth):
    torch.manual_seed(0)
    layers = [(nn.Conv1d(2, 2, 1), nn.Sigmoid()) for _ in range(depth)]
    net = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), *(module for pair in layers for module in pair))
    field = receptive_field(net, torch.randn(2, 2, 20), axes=2)
    assert field.exact.nonzero().flatten().tolist() == [9, 10, 11]
    assert float(field.energy.sum()) == pytest.approx(1)
    assert 1 <= field.span[0].value <= 3


def test_gradients_that_overflow_are_scaled_and_none_is_no_field():
    net = nn.Sequential(*(nn.Conv1d(1, 1, 3, padding=1, bias=False) for _ in range(3)))
    for layer in net.double():
        layer.weight.data.fill_(1e110)
    x = torch.full((2, 1, 20), 1e-300, dtype=torch.float64)
    assert receptive_field(net, x, axes=2).extent == (7,)
    with pytest.raises(MeasurementError, match="its gradient is zero, at every scale"):
        receptive_field(nn.Sequential(net, nn.Threshold(1e300, 0.0)), x, axes=2)
