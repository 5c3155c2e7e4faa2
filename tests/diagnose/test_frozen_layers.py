"""Where the graph is cut: an error where everything flows through the cut, never where the gradient goes around."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check

DIM = 16
X = torch.randn(16, DIM, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 4


def body(depth, width=DIM):
    layers = [m for _ in range(depth) for m in (nn.Linear(DIM, DIM), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(DIM, width))


class Halves(nn.Module):
    """Two halves in a row, with something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = body(2), body(2, 4), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Quiet(Halves):
    def forward(self, x):
        with torch.no_grad():
            h = self.first(x)
        return self.second(h)


class Teacher(nn.Module):
    """A student that learns what a slowly moving teacher says."""

    def __init__(self, *, quiet):
        super().__init__()
        self.student, self.teacher, self.quiet = body(3), body(3), quiet

    def forward(self, x):
        with torch.set_grad_enabled(not self.quiet):
            target = self.teacher(x + 1)
        return functional.mse_loss(self.student(x), target.detach())


class Quantised(nn.Module):
    """A codebook behind a straight-through estimator."""

    def __init__(self):
        super().__init__()
        self.encoder, self.codes, self.decoder = body(2), nn.Parameter(torch.randn(8, DIM)), body(2, 4)

    def forward(self, x):
        z = self.encoder(x)
        nearest = self.codes[torch.cdist(z, self.codes).argmin(1)]
        return self.decoder(z + (nearest - z).detach())


class Both(nn.Module):
    """The teacher's word is an output, and the loss is the user's."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = body(2), body(2)

    def forward(self, x):
        return self.teacher(x).detach(), self.student(x)


def verdict(model, batch, **how):
    torch.manual_seed(0)
    report = check(model, batch, **how)
    found = [f for f in report.findings if f.rule == "frozen_layers"]
    return report.verdict, *found


@pytest.mark.parametrize(
    ("between", "operation"),
    [
        (torch.Tensor.detach, "detach"),
        (lambda h: h.data, "data"),
        (lambda h: torch.from_numpy(h.detach().numpy()), "detach"),
    ],
    ids=["detach", "data", "numpy"],
)
def test_a_cut_through_which_everything_flows_is_an_error_at_its_place(between, operation):
    said, finding = verdict(Halves(between), (X, Y))
    assert (said, finding.severity) == ("error", "error")
    assert finding.where == {"first": "first.0", "last": "first.4"}
    assert finding.evidence["cut"] == [f"{operation} in the model's own forward, block first.4"]
    assert finding.evidence["number"] == 6
    assert verdict(Halves(nn.Identity()), (X, Y)) == ("healthy",)


def test_a_cut_that_nothing_shows_is_a_warning():
    said, finding = verdict(Halves(lambda h: torch.tensor(h.tolist())), (X, Y))
    assert (said, finding.severity, finding.evidence["cut"]) == ("warn", "warn", [])


@pytest.mark.parametrize(("model", "batch"), [(lambda: Quiet(None), (X, Y)), (lambda: Teacher(quiet=True), X)])
def test_what_runs_without_gradients_on_purpose_is_information(model, batch):
    said, finding = verdict(model(), batch)
    assert (said, finding.severity) == ("healthy", "info")
    assert "gradients disabled" in finding.claim


def test_a_detached_teacher_is_a_warning():
    said, finding = verdict(Teacher(quiet=False), X)
    assert (said, finding.severity) == ("warn", "warn")
    assert finding.evidence["gradient_goes_around"]
    assert all(name.startswith("teacher.") for name in finding.evidence["parameters"])


def test_a_straight_through_estimator_is_a_warning_that_names_the_codebook_alone():
    said, finding = verdict(Quantised(), (X, Y))
    assert (said, finding.severity) == ("warn", "warn")
    assert finding.evidence["parameters"] == ["codes"]
    assert finding.claim.startswith("codes acts on the loss but gets no gradient: the graph is cut at detach")


def test_a_target_among_the_outputs_is_a_warning():
    said, finding = verdict(Both(), (X, X), loss=lambda out, _: functional.mse_loss(out[1], out[0]))
    assert (said, finding.severity) == ("warn", "warn")


class Passing(nn.Module):
    """Two halves with a block without gradients between them, and a prompt in front of it."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = body(1), nn.Linear(DIM, DIM), body(1, 4)

    def forward(self, x):
        h = self.first(x)
        with torch.no_grad():
            h = self.middle(h)
        return self.last(h)


class Fixed(Passing):
    """The same block, beside which the gradient passes."""

    def forward(self, x):
        h = self.first(x)
        with torch.no_grad():
            moved = self.middle(h)
        return self.last(h + moved)


@pytest.mark.parametrize("function", [torch.round, torch.floor, torch.trunc], ids=lambda f: f.__name__)
def test_what_has_no_slope_and_lets_nothing_by_is_an_error_at_its_place(function):
    said, finding = verdict(Halves(lambda h: function(8 * h) / 8), (X, Y))
    assert (said, finding.severity) == ("error", "error")
    assert finding.where == {"first": "first.4", "last": "first.4"}
    assert finding.evidence["number"] == 6
    assert finding.evidence["tests"]["gradient"] == "zero"
    assert f"{function.__name__} in the model's own forward, block first.4 has no slope" in finding.claim


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h + (torch.round(h) - h).detach(),
        lambda h: torch.sign(h) * h.abs(),
        lambda h: h + torch.round(h),
        lambda h: 0 * h + torch.round(h).detach() * 0 + h.relu(),
    ],
    ids=["straight through", "sign and size", "beside", "constant"],
)
def test_a_rounding_that_lets_the_gradient_by_is_silent(between):
    assert verdict(Halves(between), (X, Y)) == ("healthy",)


def test_a_rounding_beside_another_way_that_is_closed_is_not_named():
    _, *found = verdict(Halves(lambda h: (h - 1000).relu() + torch.round(8 * h)), (X, Y))
    assert not found


def test_a_zero_gradient_for_another_reason_is_none_of_its():
    model = Halves(torch.round)
    nn.init.zeros_(model.second[-1].weight)  # nothing gets by, rounding or not; and nothing acts
    _, *found = verdict(model, (X, Y))
    assert not found


def test_a_block_without_gradients_behind_what_was_recorded_is_a_warning_at_its_place():
    said, warning, info = verdict(Passing(), (X, Y))
    assert (said, warning.severity, info.severity) == ("warn", "warn", "info")
    assert warning.where == {"first": "middle", "last": "middle"}
    assert set(warning.evidence["parameters"]) == {f"first.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
    assert info.evidence["parameters"] == ["middle.weight", "middle.bias"]


def test_a_block_without_gradients_beside_which_the_gradient_passes_is_information():
    said, finding = verdict(Fixed(), (X, Y))
    assert (said, finding.severity) == ("healthy", "info")
