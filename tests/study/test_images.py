"""Training on images: what augmentation does to a pixel, the schedule, and one network as a replica."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.study.data import Dataset
from levada.study.images import Alone, Augment, in_steps, standardised
from levada.study.training import Recipe, train


def _window(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    window = image[:, top : top + 5, left : left + 6]
    return window.flip(-1) if flip else window


def test_augmented_images_are_windows_of_the_padded_ones_mirrored_or_not() -> None:
    images = torch.arange(1.0, 1 + 64 * 2 * 5 * 6).view(64, 2, 5, 6)
    augmented = Augment(2, seed=3)(images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    shifts, mirrored = set(), 0
    for image, found in zip(padded, augmented, strict=True):
        found_at = [
            (top, left, flip)
            for top, left, flip in itertools.product(range(5), range(5), (False, True))
            if torch.equal(_window(image, top, left, flip), found)
        ]
        (chosen,) = found_at
        shifts.add(chosen[:2])
        mirrored += chosen[2]
    assert len(shifts) > 15  # of 25
    assert 20 <= mirrored <= 44  # of 64: binomial, p below .002 on either side


def test_augmentation_draws_from_its_own_seed_and_rests_in_evaluation() -> None:
    images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, again, other = (Augment(2, seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert Augment(2, seed=1).eval()(images) is images


def test_the_rate_falls_at_half_and_three_quarters() -> None:
    factor = in_steps(0.01)
    assert [factor(x) for x in (0, 0.0099, 0.01, 0.4999, 0.5, 0.7499, 0.75, 0.9999)] == [
        *(0.1, 0.1, 1.0, 1.0),
        *(0.1, 0.1, 0.01, 0.01),
    ]
    assert in_steps()(0) == 1


def test_images_are_standardised_by_channel_over_the_training_set() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=draw)
    images[:, 1] //= 4
    data = Dataset("made", images, torch.arange(50), images[:7], torch.arange(7))
    found = standardised(data, pool=2)
    assert found.train_inputs.shape == (50, 3, 4, 4)
    torch.testing.assert_close(found.train_inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.train_inputs.std((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(found.test_inputs, found.train_inputs[:7])
    grey = Dataset("grey", images[:, 0], data.train_targets, images[:7, 0], data.test_targets)
    torch.testing.assert_close(standardised(grey).train_inputs[:, 0], standardised(data).train_inputs[:, 0])
    with pytest.raises(UsageError, match="pool must be at least 1"):
        standardised(data, pool=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_one_network_trains_as_torch_trains_it(nesterov: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(12, 4, generator=draw), torch.arange(12) % 3
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    recipe = Recipe(4, 3, 0.1, schedule=in_steps(), nesterov=nesterov)
    curves = train(Alone(ours), inputs, targets, recipe, [5])
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=nesterov)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5)).split(3)
    for index, lr, told in zip(order, (0.1, 0.1, 0.01, 0.001), curves.loss, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        loss = nn.functional.cross_entropy(theirs(inputs[index]), targets[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(told, loss.detach()[None])
    torch.testing.assert_close(ours.weight, theirs.weight)
