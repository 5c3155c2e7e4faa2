"""Blocks, and models, that torch.jit has made."""

import copy
import warnings

import pytest
import torch
from tests.watching.by_hand import DIM, Block, agree, by_hand, data, loss_of, make, sgd, train, watch
from torch import nn

HOW = {"script": torch.jit.script, "trace": torch.jit.trace}


def made(module, how, width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HOW[how](module, *([torch.ones(2, width)] if how == "trace" else []))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, DIM), Block(), Block(), nn.Linear(DIM, 1))


@pytest.mark.parametrize("how", HOW)
def test_blocks_that_torch_jit_made_are_measured_from_outside(how, tmp_path):
    model, expected = make(), by_hand(make(), data())
    for i in (0, 2):
        model.blocks[i] = made(model.blocks[i], how, DIM)
    optimizer = sgd(model)
    with watch(model, optimizer, run=tmp_path / "run") as watched:
        train(model, optimizer, data())
        copy.deepcopy(model)
        model.blocks[0].save_to_buffer()
    agree(watched, expected, without=("zero_fraction",))
    for sample in watched.samples:  # what is inside of them is not seen
        assert sample.values["zero_fraction"].isnan().tolist() == [True, True, False, True, True]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("how", HOW)
def test_a_whole_model_that_torch_jit_made_is_said_to_hide_its_blocks(how):
    unwatched, model = made(plain(), how, 3), made(plain(), how, 3)
    train(unwatched, sgd(unwatched), data())
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=r"script the blocks one by one.*NaN"), watch(model, optimizer) as watched:
        train(model, optimizer, data())
    assert watched.steps == 3
    sample = watched.samples[-1]
    assert sample.values["signal_rms"].isnan().all()
    assert sample.values["weight_gradient_rms"].isfinite().all()
    assert sample.scalars["loss"] > 0
    for mine, other in zip(model.parameters(), unwatched.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert loss_of(model, data()[0]).isfinite()
