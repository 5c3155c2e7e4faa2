"""Path lengths against closed forms and against all paths, lesions and reorderings against what they must do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import levada
from levada._errors import MeasurementError, UsageError
from levada.networks import cifar_resnet, transformer
from levada.probe import estimated_path_lengths, lesion, linearise, reorder, sampled_path_lengths


def stack_of(branches, dim):
    return levada.Stack(branches, levada.Residual, dim=dim)


def orthogonal(depth, gain, dim=8):
    branches = [nn.Linear(dim, dim, bias=False) for _ in range(depth)]
    for branch in branches:
        nn.init.orthogonal_(branch.weight, gain)
    return stack_of(branches, dim)


def gaussian(depth, gain, dim=128):
    branches = [nn.Linear(dim, dim, bias=False) for _ in range(depth)]
    for branch in branches:
        nn.init.normal_(branch.weight, std=gain / dim**0.5)
    return stack_of(branches, dim)


@pytest.mark.parametrize(("depth", "gain"), [(20, 0.5), (20, 2.0), (54, 1.0), (200, 0.5), (3, 1e-4)])
def test_orthogonal_branches_give_a_binomial(depth, gain):
    torch.manual_seed(0)
    at = linearise(orthogonal(depth, gain), torch.randn(4, 8))
    p = gain**2 / (1 + gain**2)
    found = sampled_path_lengths(at, draws=2)
    assert found.lengths.mean == pytest.approx(depth * p, rel=2e-4)
    assert found.lengths.variance == pytest.approx(depth * p * (1 - p), rel=2e-3)
    assert found.low <= found.lengths.mean <= found.high
    by_norm = sampled_path_lengths(at, draws=2, squared=False)
    assert by_norm.lengths.mean == pytest.approx(depth * gain / (1 + gain), rel=2e-4)


def test_golden_values():
    torch.manual_seed(0)
    found = sampled_path_lengths(linearise(gaussian(20, 0.5), torch.randn(8, 128)), draws=32)
    assert found.lengths.mean == pytest.approx(4.0, abs=0.08)
    halves = sampled_path_lengths(linearise(orthogonal(54, 1.0), torch.randn(2, 8)), draws=2)
    assert halves.lengths.share(5, 17) == pytest.approx(0.004537, abs=1e-6)


def test_sampling_agrees_with_all_paths():
    torch.manual_seed(0)
    dim, depth = 4, 5
    branches = [nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh()) for _ in range(depth)]
    model, x = stack_of(branches, dim).double(), torch.randn(1, dim, dtype=torch.float64)
    at = linearise(model, x)
    cotangent = torch.randn(1, dim, generator=torch.Generator().manual_seed(0)).double()  # that of seed 0
    slopes, h = [], x
    for layer in model:
        slopes.append(torch.autograd.functional.jacobian(layer.branch, h).reshape(dim, dim))
        h = layer(h).detach()
    weights = torch.zeros(depth + 1, dtype=torch.float64)
    for chosen in itertools.product([False, True], repeat=depth):
        g = cotangent[0]
        for slope, through in zip(reversed(slopes), reversed(chosen), strict=True):
            g = slope.T @ g if through else g
        weights[sum(chosen)] += g.square().sum()
    found = sampled_path_lengths(at, draws=8000)
    torch.testing.assert_close(found.lengths.weights, weights / weights.sum(), rtol=0, atol=0.01)
    exact = float((weights / weights.sum() * torch.arange(depth + 1)).sum())
    assert found.low - 0.02 < exact < found.high + 0.02


def small_networks():
    torch.manual_seed(0)
    relu = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(20)]
    for branch in relu:
        nn.init.kaiming_normal_(branch[0].weight)
    norms = [nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(20)]
    image, tokens = torch.randn(4, 3, 12, 12), torch.randint(0, 16, (4, 8))
    return {
        "gaussian": (gaussian(20, 1.0), torch.randn(4, 128)),
        "relu": (stack_of(relu, 64), torch.randn(8, 64)),
        "pre-norm": (stack_of(norms, 64), torch.randn(8, 64)),
        "resnet, training": (cifar_resnet(20, channels=(4, 8, 16)), image),
        "resnet, evaluated": (cifar_resnet(20, channels=(4, 8, 16)).eval(), image),
        "transformer": (transformer(12, 32, vocabulary=16), tokens),
    }


@pytest.mark.parametrize(
    "name", ["gaussian", "relu", "pre-norm", "resnet, training", "resnet, evaluated", "transformer"]
)
def test_the_estimate_is_within_a_fifth_of_the_samples(name):
    model, x = small_networks()[name]
    at = linearise(model, x)
    sampled, estimated = sampled_path_lengths(at, draws=32), estimated_path_lengths(at)
    assert len(estimated.weights) == len(sampled.blocks) + 1
    assert estimated.mean == pytest.approx(sampled.lengths.mean, rel=0.2)


def test_parts_that_change_the_shape_are_passed_and_not_counted():
    torch.manual_seed(0)
    at = linearise(cifar_resnet(20, channels=(4, 8, 16)), torch.randn(2, 3, 12, 12))
    found = sampled_path_lengths(at)
    assert len(found.blocks) == 7  # of nine, two halve the image
    assert len(found.lengths.weights) == 8


class ByHand(nn.Module):
    def __init__(self, around=False):
        super().__init__()
        self.stem, self.head, self.around = nn.Linear(4, 4), nn.Linear(4, 2), around
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))

    def forward(self, x):
        h = start = self.stem(x)
        h = self.second(self.first(h))
        return self.head(h + start if self.around else h)


def test_named_modules_and_a_loss():
    torch.manual_seed(0)
    model, x, y = ByHand().double(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 2
    at = linearise(model, x)

    def loss(output):
        return nn.functional.cross_entropy(output, y)

    found = estimated_path_lengths(at, ["first", "second"], loss=loss)
    h0 = model.stem(x).detach().requires_grad_(True)
    h1 = model.first(h0)
    h2 = model.second(h1)
    g0, g1, g2 = torch.autograd.grad(loss(model.head(h2)), [h0, h1, h2])
    ratios = [float((a - b).norm() / b.norm()) for a, b in ((g0, g1), (g1, g2))]
    assert found.mean == pytest.approx(sum(r**2 / (1 + r**2) for r in ratios))
    assert sampled_path_lengths(at, ["first", "second"], loss=loss).blocks == ("first", "second")
    assert all(p.grad is None for p in model.parameters())


def hand(around=False):
    torch.manual_seed(0)
    return linearise(ByHand(around), torch.randn(6, 4))


BAD = {
    "unknown": (lambda: sampled_path_lengths(hand(), ["third"]), UsageError, "no module 'third'"),
    "shape": (
        lambda: estimated_path_lengths(hand(), ["first", "head"]),
        UsageError,
        r"head has \(6, 4\) -> \(6, 2\)",
    ),
    "none": (lambda: sampled_path_lengths(hand()), MeasurementError, "no residual blocks were found"),
    "around": (
        lambda: sampled_path_lengths(hand(around=True), ["first", "second"]),
        MeasurementError,
        "do not go through all of the blocks",
    ),
    "draws": (lambda: sampled_path_lengths(hand(), ["first"], draws=1), UsageError, "draws must be at least 2"),
    "loss": (lambda: estimated_path_lengths(hand(), ["first"], loss=lambda y: y), UsageError, "into one number"),
    "lesion of nothing": (lambda: lesion(ByHand(), torch.randn(2, 4)), MeasurementError, "no residual blocks"),
    "lesion of what is not": (lambda: lesion(ByHand(), torch.randn(2, 4), ["x"]), UsageError, "no module 'x'"),
    "lesion of a head": (
        lambda: lesion(ByHand(), torch.randn(2, 4), ["head"]),
        UsageError,
        r"head has \(2, 4\) -> \(2, 2\)",
    ),
    "loss is NaN": (
        lambda: lesion(ByHand(), torch.randn(2, 4), ["first"], loss=lambda y: y.sum() * torch.nan),
        MeasurementError,
        "the loss is nan",
    ),
    "one block": (lambda: reorder(ByHand(), torch.randn(2, 4), ["first"]), MeasurementError, "no two blocks"),
    "no swaps": (
        lambda: reorder(ByHand(), torch.randn(2, 4), ["first", "second"], swaps=(0,)),
        UsageError,
        "each number of swaps must be at least 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_a_sentence(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


def test_gradients_beyond_float32_keep_their_path_lengths():
    torch.manual_seed(0)
    model = nn.Sequential(orthogonal(100, 3.0), nn.Linear(8, 2))
    found = sampled_path_lengths(linearise(model, 1e-20 * torch.randn(2, 8)), draws=2)
    assert found.lengths.mean == pytest.approx(90, rel=1e-3)
    tiny = orthogonal(20, 1e-5)
    assert sampled_path_lengths(linearise(tiny, torch.randn(2, 8)), draws=2).lengths.mean == pytest.approx(
        2e-9, rel=0.1
    )


def test_lesions_are_the_losses_without_the_blocks():
    torch.manual_seed(0)
    model, x, y = cifar_resnet(20, channels=(4, 8, 16)), torch.randn(4, 3, 12, 12), torch.arange(4)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = lesion(model, (x, y), loss=nn.functional.cross_entropy)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    model.eval()
    with torch.no_grad():
        assert found.baseline == pytest.approx(float(nn.functional.cross_entropy(model(x), y)), rel=1e-6)
        for name, loss in zip(found.blocks, found.loss, strict=True):
            # A layer whose branch gives nothing keeps its skip; the activation after it leaves what is positive.
            branch = model.get_submodule(name).branch
            handle = branch.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
            assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(model(x), y)), rel=1e-5)
            handle.remove()
    assert found.change.abs().max() > 1e-4


def test_lesion_leaves_the_model_as_it_was_if_the_loss_raises():
    model, calls = orthogonal(3, 0.5), []

    def loss(output):
        calls.append(1)
        if len(calls) > 2:
            raise ZeroDivisionError
        return output.sum()

    with pytest.raises(ZeroDivisionError):
        lesion(model, torch.randn(2, 8), loss=loss)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_reordering_blocks_that_commute_changes_nothing():
    branches = [nn.Linear(4, 4, bias=False) for _ in range(6)]
    for branch in branches:
        branch.weight.data.copy_(torch.rand(4).diag())
    model = stack_of(branches, 4).double()
    order = list(model.layers)
    found = reorder(model, torch.randn(3, 4).double(), swaps=(1, 3, 20), draws=10)
    assert found.loss.max() < 1e-12
    assert found.kendall_tau[0].max() < 1
    assert (found.kendall_tau.abs() <= 1).all()
    assert found.kendall_tau[0].mean() > found.kendall_tau[2].mean()
    assert list(model.layers) == order


def test_reordering_blocks_that_do_not_commute_changes_the_output():
    torch.manual_seed(0)
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    a.weight.data.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    b.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    found = reorder(stack_of([a, b], 2), torch.tensor([[1.0, 0.0]]), swaps=(1,), draws=1)
    # (I + B)(I + A) e_1 = (1, 1); in the other order (I + A)(I + B) e_1 = (2, 1).
    assert found.loss.item() == pytest.approx(1 / math.sqrt(2))
    assert found.kendall_tau.item() == -1


def test_blocks_of_different_shapes_keep_their_places():
    torch.manual_seed(0)
    model, x = cifar_resnet(20, channels=(4, 8, 16)), torch.randn(2, 3, 12, 12)
    found = reorder(model, x, swaps=(5,), draws=4)
    assert found.loss.isfinite().all()
    assert found.loss.max() > 0
