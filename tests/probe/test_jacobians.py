"""Jacobians against torch.func, closed forms and random matrix theory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from levada._errors import MeasurementError, UsageError
from levada.probe import (
    block_extremes,
    largest_singular_value,
    linearise,
    partial_jacobian_norms,
    singular_values,
    squared_moments,
)
from levada.theory import JacobianMoments, jacobian_moments, largest_squared_singular_value, probe_deviation


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attend(y, y, y, need_weights=False)[0]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        x = x.mul_(2.0)
        return self.linear(x.clone()).mul_(0.5).add_(x).relu_()


class Cube(torch.autograd.Function):
    """No forward mode, no batching rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class CubeOnce(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Custom(nn.Module):
    def __init__(self, function=Cube, dim=5):
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.second(self.function.apply(self.first(x)))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)), (4, 6)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten()),
        (3, 2, 5, 5),
    ),
    "attention": (lambda: nn.Sequential(Attention(), nn.Linear(4, 4), Attention()), (3, 3, 4)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 5)), (4, 5)),
    "batch norm, evaluated": (lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()).eval(), (4, 5)),
    "lstm": (lambda: nn.Sequential(nn.Linear(3, 3), Last(nn.LSTM(3, 4, batch_first=True))), (2, 4, 3)),
    "one sample": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 5)), (1, 5)),
}


class Last(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        return self.recurrent(x)[0][:, -1]


def exact(model, x):
    """Jacobians of each sample, from torch.func."""
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.stack([jacrev(lambda one: model(one[None].clone())[0])(one) for one in x])
    return found.reshape(len(x), -1, x[0].numel())


def in_double(make, shape):
    torch.manual_seed(0)
    return make().double(), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_matrices_and_values_are_those_of_torch_func(name):
    model, x = in_double(*MODELS[name])
    jacobian = linearise(model, x).jacobian()
    expected = exact(model, x)
    torch.testing.assert_close(jacobian.matrix(), expected, rtol=1e-10, atol=1e-12)
    values = torch.linalg.svdvals(expected)
    torch.testing.assert_close(singular_values(jacobian).values, values, rtol=1e-9, atol=1e-11)
    fresh = linearise(model, x).jacobian()
    krylov = singular_values(fresh, steps=200, method="lanczos")
    assert krylov.method == "lanczos"
    known = ~krylov.values.isnan()
    torch.testing.assert_close(krylov.values[known], values[known], rtol=1e-8, atol=1e-8)
    power = largest_singular_value(fresh, tolerance=1e-6, max_iterations=5000)
    assert power.converged
    torch.testing.assert_close(power.value, values[:, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_products_are_adjoint_and_agree_with_forward_mode(name):
    model, x = in_double(*MODELS[name])
    jacobian = linearise(model, x).jacobian()
    v = torch.randn(jacobian.samples, jacobian.inputs, dtype=torch.float64)
    u = torch.randn(jacobian.samples, jacobian.outputs, dtype=torch.float64)
    forward, back = jacobian.jvp(v), jacobian.vjp(u)
    torch.testing.assert_close((u * forward).sum(1), (back * v).sum(1))
    if name != "lstm":  # no forward mode in its fused kernel
        with sdpa_kernel(SDPBackend.MATH):
            _, expected = torch.func.jvp(model, (x,), (v.reshape(x.shape),))
        torch.testing.assert_close(forward, expected.reshape(forward.shape))


@pytest.mark.parametrize("name", ["mlp", "attention", "layer norm"])
def test_blocks_multiply_to_the_whole(name):
    model, x = in_double(*MODELS[name])
    at = linearise(model, x)
    product = at.block(at.blocks[0]).matrix()
    for block in at.blocks[1:]:
        product = at.block(block).matrix() @ product
    torch.testing.assert_close(product, exact(model, x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at.jacobian().matrix(), product, rtol=1e-9, atol=1e-12)


def test_operations_in_place():
    torch.manual_seed(0)
    model, x = InPlace().double(), torch.randn(4, 5, dtype=torch.float64)
    before = x.clone()
    jacobian = linearise(model, x).jacobian()
    torch.testing.assert_close(jacobian.matrix(), exact(model, before.clone()), rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)
    power = largest_singular_value(linearise(model, x).jacobian(), tolerance=1e-6, max_iterations=5000)
    torch.testing.assert_close(power.value, torch.linalg.svdvals(jacobian.matrix())[:, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", [Cube, CubeOnce])
def test_custom_functions_without_forward_mode(function):
    torch.manual_seed(0)
    model, x = Custom(function).double(), torch.randn(4, 5, dtype=torch.float64)
    a, b = model.first.weight.detach(), model.second.weight.detach()
    slope = 3 * model.first(x).detach() ** 2
    expected = b @ (slope[:, :, None] * a)
    jacobian = linearise(model, x).jacobian()
    power = largest_singular_value(jacobian, tolerance=1e-8, max_iterations=5000)
    torch.testing.assert_close(power.value, torch.linalg.svdvals(expected)[:, 0], rtol=1e-7, atol=0)
    torch.testing.assert_close(jacobian.matrix(), expected)


def test_what_cannot_be_differentiated_twice_and_is_too_large_says_so(monkeypatch):
    monkeypatch.setattr("levada.probe.jacobian._LARGEST", 10)
    jacobian = linearise(Custom(CubeOnce), torch.randn(4, 5)).jacobian()
    with pytest.raises(MeasurementError, match=r"100 elements.*differentiated twice: .*once_differentiable"):
        largest_singular_value(jacobian)
    assert jacobian.vjp(torch.ones(4, 5)).shape == (4, 5)


@pytest.mark.parametrize("name", ["attention", "lstm"])
def test_fused_kernels_are_left_out_where_they_have_no_second_derivative(name, monkeypatch):
    monkeypatch.setattr("levada.probe.jacobian._LARGEST", 0)  # no way around by the matrix
    torch.manual_seed(0)
    make, shape = MODELS[name]
    enabled = torch.backends.mkldnn.enabled
    jacobian = linearise(make(), torch.randn(shape)).jacobian()
    u, v = torch.randn(shape[0], jacobian.outputs), torch.randn(shape[0], jacobian.inputs)
    torch.testing.assert_close((u * jacobian.jvp(v)).sum(1), (jacobian.vjp(u) * v).sum(1), rtol=1e-4, atol=1e-5)
    assert torch.backends.mkldnn.enabled == enabled


def test_batch_statistics_make_the_batch_one_sample():
    model, x = in_double(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)), (4, 3))
    at = linearise(model, x)
    jacobian = at.jacobian()
    assert (jacobian.separate, jacobian.samples, jacobian.outputs, jacobian.inputs) == (False, 1, 8, 12)
    assert not at.block("0").separate  # with the normalisation after it
    assert at.block("3").separate
    twin = copy.deepcopy(model)
    expected = torch.autograd.functional.jacobian(twin, x).reshape(8, 12)
    torch.testing.assert_close(jacobian.matrix()[0], expected)
    assert linearise(model.eval(), x).jacobian().samples == 4


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_any_pair_of_samples_that_touch_is_noticed(samples):
    class Touch(nn.Module):
        def __init__(self, i, j):
            super().__init__()
            self.linear, self.i, self.j = nn.Linear(2, 2), i, j

        def forward(self, x):
            y = self.linear(x)
            return torch.cat([y[k : k + 1] + (y[self.j : self.j + 1] if k == self.i else 0) for k in range(len(x))])

    for i in range(samples):
        for j in range(samples):
            separate = linearise(Touch(i, j), torch.randn(samples, 2)).jacobian().separate
            assert separate == (i == j), (i, j)


def test_dropout_is_the_same_in_all_products():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Linear(6, 6)), torch.randn(3, 6)
    jacobian = linearise(model, x).jacobian()
    u, v = torch.randn(3, 6), torch.randn(3, 6)
    torch.testing.assert_close((u * jacobian.jvp(v)).sum(1), (jacobian.vjp(u) * v).sum(1))
    assert torch.equal(linearise(model, x).jacobian().matrix(), jacobian.matrix())
    assert not torch.equal(linearise(model, x, seed=1).jacobian().matrix(), jacobian.matrix())


def test_nothing_is_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model(torch.randn(5, 4)).sum().backward()
    model[0].weight.requires_grad_(False)
    objects = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    bits = [t.clone() for t in objects]
    x, state = torch.randn(6, 4), torch.get_rng_state()
    given = x.clone()
    at = linearise(model, x)
    singular_values(at.jacobian())
    block_extremes(at)
    partial_jacobian_norms(model, x)
    after = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert all(a is b for a, b in zip(after, objects, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(objects, bits, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nothing_is_changed_by_a_forward_that_raises():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            self.norm(x)
            raise ZeroDivisionError("no")

    model, x = Raises(), torch.randn(5, 4)
    state, buffer = torch.get_rng_state(), model.norm.running_mean
    with pytest.raises(UsageError, match=r"linearise: the model must run.*ZeroDivisionError: no"):
        linearise(model, x)
    assert model.norm.running_mean is buffer
    assert buffer.tolist() == [0.0] * 4
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.norm._forward_hooks


def frozen(model):
    return model.requires_grad_(False)


def test_frozen_models_and_tokens():
    torch.manual_seed(0)
    model = frozen(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    ids = torch.tensor([[0, 1], [2, 3], [4, 5]])
    at = linearise(model, ids)
    with pytest.raises(UsageError, match=r"no floating tensor.*jacobian\(start='0'\)"):
        at.jacobian()
    with pytest.raises(MeasurementError, match="what enters the block 0 has no graph"):
        at.block("0")
    jacobian = at.jacobian(start="0")
    assert (jacobian.samples, jacobian.outputs, jacobian.inputs) == (3, 6, 8)
    embedded = model[0](ids)
    torch.testing.assert_close(jacobian.matrix(), exact(model[1:], embedded))
    assert block_extremes(at).blocks == ("1", "3")
    assert not any(p.requires_grad for p in model.parameters())
    assert partial_jacobian_norms(model, ids).log10.isfinite().all()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x).detach())


class Poisoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).sqrt() * torch.nan


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


X = torch.randn(3, 4)
BAD = {
    "unknown block": (lambda: linearise(mlp(), X).block("5"), UsageError, "no block '5'. The blocks are: 0, 2"),
    "unknown start": (lambda: linearise(mlp(), X).jacobian(start="9"), UsageError, "no block '9'"),
    "order": (lambda: linearise(mlp(), X).jacobian("0", start="2"), UsageError, "start must come before end"),
    "NaN in the batch": (lambda: linearise(mlp(), X * torch.nan), UsageError, "batch must be finite"),
    "NaN inside": (
        lambda: singular_values(linearise(Poisoned(), X).jacobian()),
        MeasurementError,
        "the output with respect to the input is not finite",
    ),
    "NaN everywhere": (
        lambda: partial_jacobian_norms(Poisoned(), X),
        MeasurementError,
        "the output of Poisoned is not finite",
    ),
    "cut": (lambda: singular_values(linearise(Detached(), X).jacobian()), MeasurementError, "no path in the graph"),
    "no gradient": (
        lambda: linearise(nn.Sequential(mlp(), Rounding()), X),
        MeasurementError,
        "the output of Sequential has no graph",
    ),
    "wrong shape": (lambda: linearise(mlp(), torch.randn(3, 5)), UsageError, r"linearise: .*float32 \(3, 5\)"),
    "no module": (lambda: linearise(len, X), UsageError, "must be an nn.Module"),
    "vector": (lambda: linearise(mlp(), X).jacobian().vjp(torch.ones(4)), UsageError, r"shape \(3, 4\).*\(4,\)"),
    "tangent": (lambda: linearise(mlp(), X).jacobian().jvp(torch.ones(4)), UsageError, r"shape \(3, 4\).*\(4,\)"),
    "one probe": (lambda: partial_jacobian_norms(mlp(), X, probes=1), UsageError, "probes must be at least 2"),
    "method": (
        lambda: singular_values(linearise(mlp(), X).jacobian(), method="svd"),
        UsageError,
        "'explicit', 'lanczos' or left out, got 'svd'",
    ),
    "tolerance": (
        lambda: largest_singular_value(linearise(mlp(), X).jacobian(), tolerance=0),
        UsageError,
        "tolerance must be between 0 and 1",
    ),
}


class Rounding(nn.Module):
    def forward(self, x):
        return x.argmax(1)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_a_sentence(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


# Closed forms: used where they agree, never where they do not.


class Scaled(nn.Module):
    """Reads a weight that is not the one that it multiplies by."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return torch.tanh(nn.functional.linear(x, 2 * self.weight))


class Residual(nn.Module):
    def __init__(self, alpha=1.0):
        super().__init__()
        self.first, self.second, self.alpha = nn.Linear(4, 4), nn.Linear(4, 4), alpha

    def forward(self, x):
        return torch.add(x, self.second(torch.tanh(self.first(x))), alpha=self.alpha)


class Twice(nn.Module):
    """Reads what goes into the activation twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        z = self.linear(x)
        return torch.tanh(z) + z


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda: nn.Sequential(Twice(), Twice()), True),
        (lambda: nn.Sequential(Residual(), Residual()), True),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid(), nn.Dropout()), True),
        (lambda: nn.Sequential(Scaled(), Scaled()), False),
        (lambda: nn.Sequential(Residual(0.5), Residual(2.0)), False),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4), nn.LayerNorm(4)), False),
    ],
)
def test_closed_forms_are_used_where_they_agree(make, known):
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    at = linearise(model, x)
    assert [at.block(block).closed_form for block in at.blocks].count(True) == (len(at.blocks) if known else known)
    torch.testing.assert_close(at.jacobian().matrix(), exact(model, x), rtol=1e-9, atol=1e-12)
    product = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    for block in at.blocks:
        product = at.block(block).matrix() @ product
    torch.testing.assert_close(product, exact(model, x), rtol=1e-9, atol=1e-12)


def test_dead_units_and_vanished_gradients_keep_the_closed_form_exact():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(40) for m in (nn.Linear(8, 8), nn.ReLU())]).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight[0] = layer.weight[:, 1] = 0  # unit 0 is dead, and unit 1 is not read
            layer.bias[0] = -1
    x = torch.randn(3, 8, dtype=torch.float64)
    at = linearise(model, x)
    for index, block in enumerate(at.blocks):
        h = model[: 2 * index](x) if index else x
        assert at.block(block).closed_form
        torch.testing.assert_close(at.block(block).matrix(), exact(model[2 * index : 2 * index + 2], h.detach()))


def test_extremes_of_blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    at = linearise(model, torch.randn(5, 6, dtype=torch.float64))
    found = block_extremes(at)
    assert found.methods == ("closed form", "explicit", "closed form")
    for i, block in enumerate(found.blocks):
        values = torch.linalg.svdvals(at.block(block).matrix())
        torch.testing.assert_close(found.largest[i], values[:, 0].max(), rtol=1e-10, atol=0)
        torch.testing.assert_close(found.mean_square[i], values.square().mean(), rtol=1e-10, atol=0)
        assert found.condition_bound[i] <= (values[:, 0] / values[:, -1]).max() * (1 + 1e-6)
        if i != 1:  # not the one that loses two directions to its normalisation
            assert found.condition_bound[i] > 0.999 * (values[:, 0] / values[:, -1]).max()
    assert found.condition_bound[1] > 1e5


def test_condition_numbers_are_lower_bounds():
    torch.manual_seed(0)
    model = nn.Linear(250, 250, bias=False)
    u, _ = torch.linalg.qr(torch.randn(250, 250))
    model.weight.data.copy_(u * torch.logspace(0, -5, 250))
    jacobian = linearise(model, torch.randn(2, 250)).jacobian()
    found = singular_values(jacobian, method="lanczos")
    assert not found.complete
    assert found.values[:, 0] == pytest.approx(1.0, rel=2e-3)
    assert (found.condition_bound <= 1e5 * 1.001).all()
    assert (found.residual[:, 0] < 1e-2).all()
    assert (found.condition_bound > 10).all()
    assert (singular_values(jacobian, method="explicit").condition_bound <= 1e5 * 1.1).all()
    # Its square is beyond float32: the smallest eigenvalue is rounding, and the bound must know it.
    assert 100 < block_extremes(linearise(model, torch.randn(2, 250))).condition_bound[0] <= 1e5
    small = nn.Linear(2, 2, bias=False)
    nn.init.ones_(small.weight)  # singular
    assert singular_values(linearise(small, torch.randn(2, 2)).jacobian()).condition_bound.isfinite().all()
    assert block_extremes(linearise(small, torch.randn(2, 2))).condition_bound.isfinite().all()


def test_lanczos_on_repeated_and_missing_singular_values():
    model = nn.Linear(300, 300, bias=False).double()
    model.weight.data.copy_(torch.diag(torch.tensor([3.0] * 100 + [1.0] * 100 + [0.0] * 100)))
    found = singular_values(linearise(model, torch.randn(2, 300).double()).jacobian(), method="lanczos")
    kept = found.values[0][~found.values[0].isnan()]
    torch.testing.assert_close(kept, torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert found.condition_bound[0] > 1e10
    power = largest_singular_value(linearise(model, torch.randn(2, 300).double()).jacobian())
    assert power.value == pytest.approx(3.0, rel=1e-3)


def test_power_iteration_says_when_it_has_not_converged():
    torch.manual_seed(0)
    jacobian = linearise(nn.Linear(50, 50), torch.randn(2, 50)).jacobian()
    found = largest_singular_value(jacobian, tolerance=1e-6, max_iterations=3)
    assert (found.iterations, found.converged) == (3, False)
    assert (found.residual > 1e-6).all()
    exact_value = torch.linalg.svdvals(jacobian.matrix())[:, 0].double()
    assert (found.value <= exact_value * (1 + 1e-6)).all()


def test_a_far_smaller_jacobian_than_float32_can_square():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(3)])
    for layer in model:
        layer.weight.data.mul_(1e-9)
    wide = copy.deepcopy(model).double()
    x = torch.randn(2, 8)
    at, exactly = linearise(model, x), torch.linalg.svdvals(exact(wide, x.double()).detach())
    torch.testing.assert_close(singular_values(at.jacobian()).values.double(), exactly, rtol=1e-4, atol=1e-33)
    assert squared_moments(at.jacobian()).mean == pytest.approx(float(exactly.square().mean()), rel=1e-4, abs=0)
    blocks = block_extremes(at)
    assert blocks.largest[0] == pytest.approx(
        float(torch.linalg.matrix_norm(wide[0].weight.detach(), 2)), rel=1e-5, abs=0
    )
    for layer in model:
        layer.weight.data.mul_(1e-20)
    tiny = block_extremes(linearise(model[:1], x))
    assert tiny.largest[0] == pytest.approx(1e-20 * float(blocks.largest[0]), rel=1e-5, abs=0)
    assert tiny.mean_square[0] == pytest.approx(1e-40 * float(blocks.mean_square[0]), rel=1e-5, abs=0)


# Random matrix theory.


def deep(depth, width, activation=None, gain=1.0, orthogonal=False):
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        if orthogonal:
            nn.init.orthogonal_(linear.weight, gain)
        else:
            nn.init.normal_(linear.weight, std=gain / width**0.5)
        layers += [linear, activation()] if activation else [linear]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("activation", "name", "gain", "orthogonal"),
    [
        (None, "linear", 1.0, False),
        (None, "linear", 1.0, True),
        (nn.ReLU, "relu", 2**0.5, False),
        (nn.ReLU, "relu", 2**0.5, True),
    ],
)
@pytest.mark.parametrize("depth", [1, 5])
def test_moments_are_those_of_isometry_theory(activation, name, gain, orthogonal, depth):
    torch.manual_seed(0)
    predicted = jacobian_moments(name, gain**2, depth, orthogonal=orthogonal)
    found = [
        squared_moments(linearise(deep(depth, 200, activation, gain, orthogonal), torch.randn(4, 200)).jacobian())
        for _ in range(4)
    ]
    mean = sum(m.mean for m in found) / 4
    spread = sum(m.relative_variance for m in found) / 4
    assert mean == pytest.approx(predicted.mean, rel=0.1)
    assert spread == pytest.approx(predicted.relative_variance, rel=0.15, abs=1e-5)


def test_largest_value_of_a_gaussian_product():
    torch.manual_seed(0)
    found = singular_values(linearise(deep(5, 200), torch.randn(1, 200)).jacobian()).values[0, 0].item() ** 2
    assert found == pytest.approx(largest_squared_singular_value(5), rel=0.1)


def test_estimated_moments_agree_with_exact_ones():
    torch.manual_seed(0)
    model, x = deep(2, 300), torch.randn(4, 300)
    at = linearise(model, x)
    estimated, squares = squared_moments(at.jacobian(), probes=8), singular_values(at.jacobian(), method="explicit")
    squares = squares.values.double().square()
    exactly = JacobianMoments(float(squares.mean()), float(squares.var(correction=0) / squares.mean() ** 2))
    # 32 probes of 300 signs: a relative deviation of sqrt(2 (1 + v) / (k n)), v = 2.
    assert estimated.mean == pytest.approx(exactly.mean, rel=4 * probe_deviation(2.0, 300, 32))
    assert estimated.relative_variance == pytest.approx(exactly.relative_variance, rel=0.15)
    assert estimated.mean != exactly.mean


# Partial Jacobian norms.


def test_partial_norms_are_those_of_the_jacobians():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 30)).double()
    x = torch.randn(6, 30, dtype=torch.float64)
    found = partial_jacobian_norms(model, x, probes=8)
    at = linearise(model, x)
    for i, block in enumerate(at.blocks[:-1]):
        matrix = at.jacobian(start=block).matrix()
        expected = float(matrix.square().sum()) / (len(x) * matrix.shape[2])
        spread = squared_moments(at.jacobian(start=block)).relative_variance
        deviation = probe_deviation(spread, len(x) * min(matrix.shape[1:]), 8)
        assert 10 ** found.log10[i].item() == pytest.approx(expected, rel=3 * deviation)
        assert found.low[i] < found.log10[i] < found.high[i]
    assert found.probes == 8


def test_intervals_of_partial_norms_cover_what_they_say():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)).double(),
        torch.randn(2, 10, dtype=torch.float64),
    )
    truth = float(model[1].weight.detach().square().sum()) / 10
    covered = 0
    for seed in range(200):
        found = partial_jacobian_norms(model, x, probes=6, seed=1000 * seed)
        covered += 10 ** found.low[0].item() < truth < 10 ** found.high[0].item()
    assert 0.90 <= covered / 200 <= 0.99  # 95 %: three deviations of 200 trials are 4.6 %


def test_partial_norms_of_default_relu_networks_fall_by_a_sixth():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(256, 256), nn.ReLU())])
    found = partial_jacobian_norms(model, torch.randn(16, 256))
    assert found.factors.log().mean().exp().item() == pytest.approx(1 / 6, rel=0.05)
