"""Parameters that are frozen while a model trains, and what only looks like it."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

import levada
from levada.watching.verdict.frozen import RULE, UPDATES, Frozen


def network():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])


class Loop:
    """A training without its gradients: what the optimizers hold, step after step."""

    def __init__(self, kind=torch.optim.SGD, groups=True):
        self.model, self.looking, self.step = network(), Frozen(), 0
        held = [{"params": list(part.parameters())} for part in self.model] if groups else self.model.parameters()
        self.optimizer = kind(held, lr=0.1)

    def run(self, steps, *, at_rest=(), rate_0=(), moved=()):
        """Make steps with parts of the model frozen, or groups at a rate of 0; `moved` are moved by something else."""
        for _ in range(steps):
            for i, part in enumerate(self.model):
                part.requires_grad_(i not in at_rest)
                if len(self.optimizer.param_groups) == 3:
                    self.optimizer.param_groups[i]["lr"] = 0.0 if i in rate_0 else 0.1
            self.looking.before_update(self.step, self.model, [self.optimizer], ())
            with torch.no_grad():
                for i in moved:
                    self.model[i].weight.add_(1.0)
            self.step += 1
        return self.looking.found


def test_parameters_that_are_frozen_are_named_with_the_step():
    loop = Loop()
    assert loop.run(30) is None
    assert loop.run(UPDATES, at_rest=[1]) is None
    found = loop.run(1, at_rest=[1])
    assert (found.severity, found.evidence["step"]) == ("info", 30)
    assert found.evidence["parameters"] == ["1.weight", "1.bias"]
    assert found.claim.startswith("Since step 30 2 of 6 parameters (1.weight, 1.bias) ask for no gradient")


def test_a_parameter_is_told_of_once_64_updates_have_passed_it_over_and_the_first_step_of_several():
    loop = Loop()
    loop.run(30)
    loop.run(10, at_rest=[2])
    loop.run(54, at_rest=[1, 2])
    found = loop.run(1, at_rest=[1, 2])
    assert (found.evidence["step"], found.evidence["number"]) == (30, 2)
    loop.run(9, at_rest=[1, 2])
    found = loop.run(1, at_rest=[1, 2])
    assert (found.evidence["step"], found.evidence["number"]) == (30, 4)
    assert found.evidence["parameters"] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert found.evidence["tests"] == {"updates_since": 64}


def test_a_rate_of_0_is_told_apart_and_what_follows_is_added():
    loop = Loop()
    loop.run(30)
    loop.run(50, rate_0=[0])
    found = loop.run(UPDATES + 1, rate_0=[0], at_rest=[2])
    assert found.evidence["number"] == 4
    assert found.evidence["at_rate_0"] == 2
    assert "Since step 80 2 of 6 parameters (2.weight, 2.bias) ask for no gradient" in found.claim
    assert "Since step 30 2 of 6 parameters (0.weight, 0.bias) are at a learning rate of 0" in found.claim


def test_a_training_in_which_nothing_moves_is_warned_of_with_its_step():
    loop = Loop()
    loop.run(60)
    for p in loop.model.parameters():
        p.grad = torch.ones_like(p)
    found = loop.run(UPDATES + 1, rate_0=[0, 1, 2])
    assert (found.severity, found.evidence["step"], found.evidence["all"]) == ("warn", 60, True)
    assert found.claim.startswith("Nothing that an optimizer holds is trained any more, and gradients still come. ")
    assert "Since step 60 6 of 6 parameters" in found.claim
    assert "on purpose" not in found.consequence
    assert loop.run(1, rate_0=[0, 1]).severity == "info"  # one moves again


@pytest.mark.parametrize(
    ("trained", "still", "alarmed"), [(4 * UPDATES - 2, UPDATES + 1, True), (5 * UPDATES, UPDATES + 1, False)]
)
def test_the_end_of_a_schedule_is_no_alarm_before_it_is_a_fifth_of_the_training(trained, still, alarmed):
    loop = Loop()
    loop.run(trained)
    for p in loop.model.parameters():
        p.grad = torch.ones_like(p)
    assert (loop.run(still, rate_0=[0, 1, 2]).severity == "warn") is alarmed
    assert loop.run(UPDATES, rate_0=[0, 1, 2]).severity == "warn"  # it becomes one
    assert loop.looking.found.evidence["step"] == trained


@pytest.mark.parametrize("case", ["without gradients", "frozen", "another is trained", "something else moves one"])
def test_what_is_frozen_whole_without_gradients_or_in_part_is_information(case):
    loop = Loop()
    loop.run(10)
    for p in loop.model.parameters():
        p.grad = None if case == "without gradients" else torch.ones_like(p)
    frozen = {"frozen": {"at_rest": [0, 1, 2]}, "another is trained": {"rate_0": [0, 1]}}
    moved = {"moved": [2]} if case == "something else moves one" else {}
    assert loop.run(3 * UPDATES, **frozen.get(case, {"rate_0": [0, 1, 2]}), **moved).severity == "info"


def test_what_is_thawed_is_over_and_is_not_told_again():
    loop = Loop()
    loop.run(10)
    assert loop.run(UPDATES + 1, at_rest=[1]) is not None
    assert loop.run(1) is None
    assert loop.run(2 * UPDATES, at_rest=[1]) is None
    assert loop.run(2 * UPDATES, at_rest=[2]).evidence["parameters"] == ["2.weight", "2.bias"]


def test_layers_that_are_thawed_one_after_the_other_are_no_news():
    loop = Loop()
    for frozen in ([1, 2], [2], []):
        assert loop.run(2 * UPDATES, at_rest=frozen) is None


@pytest.mark.parametrize("turns", [1, 3, UPDATES])
def test_what_takes_turns_is_no_news(turns):
    loop = Loop()
    for _ in range(400 // turns):
        assert loop.run(turns, at_rest=[0]) is None
        assert loop.run(turns, at_rest=[2]) is None


def test_a_rate_that_ends_at_0_or_begins_there_is_no_news():
    loop = Loop()
    assert loop.run(2 * UPDATES, rate_0=[0, 1, 2]) is None
    assert loop.run(UPDATES) is None
    assert loop.run(UPDATES, rate_0=[0, 1, 2]) is None


def test_what_takes_the_place_of_others_is_followed_and_they_are_let_go():
    loop = Loop()
    loop.run(10)
    old = [weakref.ref(p) for p in loop.model[1].parameters()]
    loop.model[1] = nn.Linear(4, 4)
    loop.optimizer.param_groups[1]["params"] = list(loop.model[1].parameters())
    loop.run(10)
    gc.collect()
    assert [held() for held in old] == [None, None]
    found = loop.run(UPDATES + 1, at_rest=[1])
    assert (found.evidence["step"], found.evidence["parameters"]) == (20, ["1.weight", "1.bias"])


def test_what_something_else_moves_is_not_frozen():
    loop = Loop()
    loop.run(10)
    found = loop.run(3 * UPDATES, at_rest=[0, 1], moved=[1])
    assert found.evidence["parameters"] == ["0.weight", "0.bias", "1.bias"]


def test_of_many_parameters_the_step_is_known_within_some():
    loop = Loop(groups=False)
    loop.optimizer.param_groups[0]["params"] += [torch.zeros(1, requires_grad=True) for _ in range(250)]
    loop.run(31)
    found = loop.run(2 * UPDATES, at_rest=[1])
    assert "Since a step from 31 to 35 2 of 6 parameters" in found.claim


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_training_that_freezes_a_layer_says_so_and_its_block_is_judged_no_more(kind):
    model = network()
    optimizer = kind(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(160):
            if step == 60:
                model[0].requires_grad_(False)
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    (finding,) = [f for f in watch.findings if f.status == "fired"]
    assert (finding.rule, finding.severity, finding.where["first"]) == (RULE, "info", "0")
    assert (finding.evidence["step"], finding.evidence["told_at"]) == (60, 60 + UPDATES)
    assert watch.judge.blocks.trainable.tolist() == [False, True, True]


def test_a_run_whose_schedule_ended_long_before_it_is_not_called_healthy():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 40))
    with levada.watch(model, optimizer, every=10, max_overhead=math.inf) as watch:
        for _ in range(120):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            schedule.step()
    (finding,) = [f for f in watch.findings if f.rule == RULE]
    assert (finding.severity, finding.evidence["step"], finding.status) == ("warn", 40, "fired")
    assert watch.report().verdict == "warn"


def test_an_error_ends_this_look_alone(monkeypatch):
    monkeypatch.setattr(Frozen, "before_update", lambda *_: 1 / 0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer) as watch:
        model(torch.randn(8, 4)).square().mean().backward()
        with pytest.warns(UserWarning, match=f"{RULE} raised ZeroDivisionError"):
            optimizer.step()
        optimizer.step()
    assert len(watch.samples) > 0


@pytest.mark.parametrize("at", [UPDATES - 1, UPDATES, 200])
def test_what_is_trained_for_the_first_time_is_told_once_and_what_goes_on_after_a_rest_is_not(at):
    model, looking = network(), Frozen()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    thawed = []
    for step in range(400):
        model[0].requires_grad_(step >= at and not 300 <= step < 320)
        looking.before_update(step, model, [optimizer], ())
        thawed += [step] * looking.thawed
    assert thawed == ([at] if at >= UPDATES else [])
