"""Layers that do not all do the same, or not again, run one by one."""

from __future__ import annotations

import enum
import warnings

import numpy as np
import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, branch, gradients, is_recorded, pair
from torch import Tensor, nn

from levada.connection import SingleStream
from levada.connections import Plain, Residual, StochasticDepth
from levada.stack import Stack


class PerLayer(SingleStream):
    """Reads which layer it is."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return state + out / (1 + self.layer)


class Counting(nn.Linear):
    """Does something else at each call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) / self.calls


class Deciding(nn.Linear):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class Hidden(nn.Linear):
    """Computes where no dispatcher sees it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.empty_like(x)
            y.numpy()[:] = x.numpy() ** 2
        return super().forward(x) * y


class Fixed(nn.Linear):
    """Holds a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.by = torch.rand(())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.by


class Editing(nn.Linear):
    """Writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


@pytest.mark.parametrize(
    ("make", "connection", "why"),
    [
        (branch, PerLayer, "something else in each layer"),
        (branch, StochasticDepth, "'survival' is not the same"),
        (lambda: Deciding(DIM, DIM), Residual, "depends on values|gives Python a number"),
        (lambda: Counting(DIM, DIM), Residual, "changes an attribute"),
        (lambda: Hidden(DIM, DIM), Residual, "run again, give something else"),
        (Fixed, Residual, "'by' holds a Tensor"),
    ],
)
def test_layers_that_differ_run_one_by_one_and_say_why(make, connection, why, batch):
    plain, stacked = pair(make, connection)
    with pytest.warns(UserWarning, match=why):
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))


def test_a_stream_that_is_written_into_is_left_to_autograd(batch):
    _, stacked = pair(lambda: Editing(DIM, DIM), Plain)
    with pytest.warns(UserWarning, match="writes into its state"), torch.no_grad():
        stacked(batch.clone())


def test_a_setting_that_changes_later_counts(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        for layer in stack:
            layer.branch[1].p = 0.9
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    stacked[3].branch[1].p = plain[3].branch[1].p = 0.1
    with pytest.warns(UserWarning, match="'p' is not the same"):
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))
    stacked[2].eval(), plain[2].eval()
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


class Scaled(nn.Linear):
    """Asks what it was given how to scale."""

    def __init__(self, scale) -> None:
        super().__init__(DIM, DIM)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * by(self.scale)


class Setting:
    """What configurations are: attributes, and a call."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self) -> float:
        return self.value

    def __deepcopy__(self, memo):
        return self


def by(scale):
    if isinstance(scale, Setting):
        return scale.value
    if isinstance(scale, list | tuple):
        return by(scale[0])
    if isinstance(scale, dict):
        return by(scale["by"])
    if isinstance(scale, np.ndarray):
        return scale.item()
    return scale() if callable(scale) else scale


@pytest.mark.parametrize(
    ("give", "kind"),
    [
        (lambda setting: setting, "Setting"),
        (lambda setting: [setting], "Setting"),
        (lambda setting: {"by": (setting,)}, "Setting"),
        (lambda setting: setting.__call__, "method"),
        (lambda setting: lambda: setting.value, "Setting"),
        (lambda setting: lambda held=setting: held.value, "Setting"),
    ],
)
def test_objects_that_may_change_unseen_are_not_recorded(give, kind, batch):
    setting = Setting(2.0)
    given = give(setting)  # one for all layers
    plain, stacked = (Stack([Scaled(given) for _ in range(DEPTH)], Residual, dim=DIM, stacked=s) for s in (False, True))
    stacked.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match=f"Scaled: 'scale' holds a {kind}, in which a change would not be seen"):
        assert torch.equal(stacked(batch), plain(batch))
    setting.value = 0.0
    assert torch.equal(stacked(batch), batch)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("make", [lambda: torch.ones(DIM), lambda: np.ones(1), lambda: torch.ones(())])
def test_tensors_that_are_no_buffers_are_not_recorded(make, share, batch):
    held = [make()] * DEPTH if share else [make() for _ in range(DEPTH)]
    plain, stacked = (Stack([*map(Scaled, held)], Residual, dim=DIM, stacked=s) for s in (False, True))
    stacked.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match=r"'scale' holds a (Tensor|ndarray)"):
        assert torch.equal(stacked(batch), plain(batch))
    for tensor in held:
        tensor *= 0
    assert torch.equal(stacked(batch), batch)


@pytest.mark.parametrize("before", [None, 0])
def test_a_tensor_that_is_made_at_the_first_call_is_not_recorded(before, batch):
    class Lazy(nn.Linear):
        cache: Tensor | int | None

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self.cache, Tensor):
                self.cache = torch.full((DIM,), 2.0)
            return super().forward(x) * self.cache

    def make() -> nn.Module:
        made = Lazy(DIM, DIM)
        made.cache = before
        return made

    plain, stacked = pair(make)
    with pytest.warns(UserWarning, match="changes an attribute of its own"):
        torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


def test_a_dictionary_that_a_layer_puts_in_another_order_counts(batch):
    class Turning(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            name = next(iter(self.scales))
            self.scales[name] = scale = self.scales.pop(name)
            return super().forward(x) * scale

    def make() -> nn.Module:
        made = Turning(DIM, DIM)
        made.scales = {"a": 1.0, "b": 0.5, "c": 0.25}
        return made

    plain, stacked = pair(make)
    with pytest.warns(UserWarning, match="changes an attribute of its own"):
        assert torch.equal(stacked(batch), plain(batch))
    for _ in range(3):
        assert torch.equal(stacked(batch), plain(batch))


class Power(enum.Enum):
    ONE, TWO = 1.0, 2.0

    def __call__(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1.0, 2.0),
        (0.0, -0.0),
        (np.float64(0.5), np.float64(0.25)),
        ([1.0], [2.0]),
        ({"by": 1.0}, {"by": 2.0}),
        (Power.ONE, Power.TWO),
        (lambda: 1.0, lambda: 2.0),
    ],
)
def test_what_cannot_change_unseen_is_recorded_again_when_it_changes(before, after, batch):
    plain, stacked = (Stack([Scaled(before) for _ in range(DEPTH)], Plain, dim=DIM, stacked=s) for s in (False, True))
    stacked.load_state_dict(plain.state_dict())
    for given in (before, after):
        for stack in (plain, stacked):
            for layer in stack:
                layer.branch.scale = given
        assert is_recorded(stacked)
        assert torch.equal(1 / stacked(batch), 1 / plain(batch))  # with the sign of zero


def test_a_setting_that_changes_in_place_counts(batch):
    plain, stacked = pair(lambda: Scaled({"by": [1.0]}))
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        for layer in stack:
            layer.branch.scale["by"][0] = 0.0
    assert is_recorded(stacked)
    assert torch.equal(stacked(batch), batch)


def test_a_module_that_is_replaced_counts(batch):
    plain, stacked = pair()
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        stack[1].branch[2] = nn.ReLU()
    with pytest.warns(UserWarning, match="the tree of modules"):
        assert torch.equal(stacked(batch), plain(batch))


def test_layers_in_another_order_count(batch):
    plain, stacked = pair()
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        stack.layers[0], stack.layers[3] = stack.layers[3], stack.layers[0]
    with pytest.warns(UserWarning, match="the tree of modules"):
        assert torch.equal(stacked(batch), plain(batch))


def test_hooks_see_every_layer_without_a_word(batch):
    plain, stacked = pair()
    seen: list[Tensor] = []
    handle = stacked[2].branch[1].register_forward_hook(lambda module, args, y: seen.append(y))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    assert len(seen) == 1
    handle.remove()
    assert is_recorded(stacked)


def test_hooks_that_are_not_called_in_a_pass_do_not_count(batch):
    _, stacked = pair()
    stacked.layers[2].branch.register_state_dict_post_hook(lambda *_: None)
    assert is_recorded(stacked)


def test_arguments_go_to_every_branch(batch):
    class Shift(nn.Linear):
        def forward(self, x: Tensor, by: float) -> Tensor:
            return super().forward(x) + by

    plain, stacked = pair(lambda: Shift(DIM, DIM))
    assert torch.equal(stacked(batch, 2.0), plain(batch, 2.0))
