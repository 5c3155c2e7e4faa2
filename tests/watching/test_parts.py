"""What the parts of a model were given, where a loop calls them one by one."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from levada.watching.steps.parts import Parts


@pytest.fixture
def parts():
    model = nn.ModuleDict({"net": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    heard = Parts(model)
    heard.step()
    yield model, heard
    heard.detach()


def test_it_is_what_the_first_part_was_given_last(parts):
    model, heard = parts
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    model["head"](model["net"](x))
    model["net"](y)
    assert [*heard.given()] == ["input of net"]
    assert heard.given()["input of net"] is y


def test_what_a_checkpoint_computes_again_is_not_given_by_the_loop(parts):
    model, heard = parts
    x = torch.randn(2, 4, requires_grad=True)
    y = checkpoint(model["net"], x, use_reentrant=True)
    with torch.enable_grad():  # it ran without gradients
        model["net"](x)
    y.sum().backward()
    assert heard.given()["input of net"] is x


def test_numbers_that_are_not_there_are_not_given(parts):
    model, heard = parts
    model["net"](x := torch.randn(2, 4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model["net"](fake := torch.empty(2, 4))
    assert fake is not x
    assert heard.given()["input of net"] is x
