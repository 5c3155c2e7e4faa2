from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from levada._errors import UsageError
from levada.connections import HyperConnection, ManifoldHyperConnection, Residual
from levada.studies.hyper_connections import CONNECTIONS, _hidden
from levada.study.language import (
    LanguageModel,
    LanguageRecipe,
    Shape,
    branch_gradients,
    language_loss,
    matched_hidden,
    measure_mixing,
    random_windows,
    train_language,
)

TINY = Shape(vocabulary=63, depth=4, dim=32, heads=4, context=16)
PERIODIC = torch.arange(4000) % 7  # after two tokens the next one is known


def model(name="residual", shape=TINY, seed=0):
    torch.manual_seed(seed)
    return LanguageModel(shape, hidden=_hidden(shape, name), **CONNECTIONS[name])


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_new_model_guesses_and_sees_no_later_token(name):
    net = model(name).double()
    tokens = torch.randint(63, (4, 16), generator=torch.Generator().manual_seed(1))
    scores = net(tokens)
    loss = functional.cross_entropy(scores.flatten(0, 1), tokens.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(math.log(63), abs=0.05)
    changed = tokens.clone()
    changed[:, 9:] = (tokens[:, 9:] + 1) % 63
    again = net(changed)
    torch.testing.assert_close(again[:, :9], scores[:, :9], rtol=0, atol=1e-12)
    assert (again[:, 9:] - scores[:, 9:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("shape", [Shape(63, 16, 64, 4, 64), TINY, Shape(63, 48, 512, 8, 256)], ids=str)
def test_all_connections_have_as_many_parameters(shape):
    with torch.device("meta"):
        nets = [LanguageModel(shape, hidden=_hidden(shape, name), **CONNECTIONS[name]) for name in CONNECTIONS]
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert all(abs(count / counts[0] - 1) < 0.005 for count in counts)
    assert _hidden(shape, "residual") == (4 * shape.dim,) * (shape.depth // 2)
    assert max(_hidden(shape, "mHC")) < 4 * shape.dim


def test_no_room_for_branches_is_said():
    narrow = Shape(63, 4, 8, 4, 16)
    with pytest.raises(UsageError, match=r"no unit for each of 2 .* at dim=8 the rest has \d+\. Use a larger dim"):
        _hidden(narrow, "mHC")


def test_training_learns_and_is_the_same_again():
    recipe = LanguageRecipe(steps=60, batch_size=4, lr=0.01)
    steps = []
    net = model()
    found = train_language(net, PERIODIC, recipe, 3, steps.append)
    assert steps == [*range(0, 61, 6)]
    assert len(found["loss"]) == len(found["gradient_norm"]) == 60
    assert found["loss"][0] == pytest.approx(math.log(63), abs=0.1)
    assert language_loss(net, PERIODIC, 8) < 0.5
    twin = model()
    assert train_language(twin, PERIODIC, recipe, 3) == found
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert train_language(model(), PERIODIC, recipe, 4)["loss"][1] != found["loss"][1]


def test_the_batches_of_a_seed_do_not_depend_on_the_connection():
    first = [train_language(model(name), PERIODIC, LanguageRecipe(1, 4, 0.0), 5) for name in ("residual", "mHC")]
    windows = random_windows(PERIODIC, 17, 4, torch.Generator().manual_seed(5))
    for name, found in zip(("residual", "mHC"), first, strict=True):
        scores = model(name)(windows[:, :-1])
        loss = functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
        assert found["loss"][0] == pytest.approx(loss.item(), rel=1e-5)


def test_clipping_bounds_the_step_and_training_ends_where_the_loss_does(monkeypatch):
    limits = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, limit: limits.append(limit) or clip(p, limit))
    for given in (0.5, None):
        train_language(model(), PERIODIC, LanguageRecipe(1, 4, 0.01, clip=given), 0)
    assert limits == [0.5, math.inf]
    broken = model()
    with torch.no_grad():
        broken.norm.weight[0] = math.nan
    assert len(train_language(broken, PERIODIC, LanguageRecipe(5, 4, 0.01), 0)["loss"]) == 1


def test_the_learning_rate_rises_and_falls():
    recipe = LanguageRecipe(steps=20, batch_size=1, lr=1.0)
    factors = [recipe.factor(step) for step in range(20)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors == [0.5, *sorted(factors[1:], reverse=True)]
    assert 0 < factors[-1] < 0.02


def test_the_loss_is_that_of_windows_spread_over_the_text():
    net = model().eval()
    windows = torch.stack([PERIODIC[start : start + 17] for start in (0, 1991, 3983)])
    scores = net(windows[:, :-1])
    wanted = functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten()).item()
    assert language_loss(net, PERIODIC, 3) == pytest.approx(wanted, rel=1e-6)
    assert language_loss(net, PERIODIC, 3, chunk=2) == pytest.approx(wanted, rel=1e-6)


def test_gradients_by_branch_are_autograds():
    net, windows = model("mHC"), random_windows(PERIODIC, 17, 2, torch.Generator())
    found = branch_gradients(net, windows)
    assert len(found) == 4
    twin = model("mHC").double()
    scores = twin(windows[:, :-1])
    functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten()).backward()
    wanted = sum(p.grad.square().sum() for p in twin.stack[2].branch.parameters()) ** 0.5
    assert found[2] == pytest.approx(wanted.item(), rel=1e-9)
    assert all(p.grad is None for p in net.parameters())


def test_mixing_is_that_of_the_products():
    net = LanguageModel(TINY, HyperConnection, [8, 8])
    with torch.no_grad():
        for layer in net.stack:
            layer.connection.static_mix.copy_(2 * torch.eye(4))
    found = measure_mixing(net, torch.arange(16))
    assert found["composite_forward_gain"] == pytest.approx([2, 4, 8, 16])
    assert found["composite_backward_gain"] == pytest.approx([16, 8, 4, 2])
    assert found["composite_log_column_sum"] == pytest.approx([k * math.log(2) for k in (4, 3, 2, 1)])
    assert measure_mixing(LanguageModel(TINY, Residual, [8, 8]), torch.arange(16)) == {}
    assert "coefficients" not in vars(net.stack[0].connection), "the taps are off again"
    doubly = measure_mixing(LanguageModel(TINY, ManifoldHyperConnection, [8, 8]), torch.arange(16))
    assert doubly["composite_forward_gain"] == pytest.approx([1] * 4, abs=1e-5)


def test_what_cannot_be_is_said():
    with pytest.raises(UsageError, match="depth must be even"):
        Shape(63, 5, 32, 4, 16)
    with pytest.raises(UsageError, match="dim must be at least 1"):
        Shape(63, 4, 0, 4, 16)
    with pytest.raises(UsageError, match="hidden must hold 2 widths, got 3"):
        LanguageModel(TINY, Residual, [8, 8, 8])
    with pytest.raises(UsageError, match="steps must be at least 1"):
        LanguageRecipe(0, 4, 0.01)
    with pytest.raises(UsageError, match="length of the text must be at least 17"):
        random_windows(torch.zeros(16, dtype=torch.int64), 17, 1, torch.Generator())
    with pytest.raises(UsageError, match="length of the text must be at least 17"):
        language_loss(model(), torch.zeros(16, dtype=torch.int64), 1)
    with pytest.raises(UsageError, match="leave no unit"):
        matched_hidden(TINY, lambda hidden: LanguageModel(TINY, Residual, hidden), 1)
