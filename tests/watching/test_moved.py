"""Loops whose optimizer the watch was not given: made anew in their midst, or another one beside it."""

import math

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd, train, watch
from torch import nn

import levada
from levada._errors import UsageError
from levada.watching import Continue
from levada.watching.steps.moved import LEAST, MOVES

ENOUGH = LEAST + MOVES
SAID = "something trains the model that the watch was not given"


def test_an_optimizer_that_was_made_anew_is_said_once_and_the_verdict_is_open(tmp_path):
    model = make()
    optimizer = sgd(model, 0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf, run=tmp_path / "run") as watched:
        train(model, optimizer, data(80))
        assert watched.standing.verdict == "healthy"
        train(model, sgd(model, 0.01), data(ENOUGH - 1))
        assert watched.standing.verdict == "healthy"
        with pytest.warns(UserWarning, match=f"no step was heard since step 79, .*{SAID}.*Continue") as said:
            train(model, sgd(model, 0.01), data(ENOUGH))
        assert len(said) == 1
        assert watched.steps == 80
        assert watched.standing.verdict == "unknown"
        assert SAID in str(watched.report())
        train(model, optimizer, data(1))  # the one that is watched is back
        assert watched.standing.verdict == "healthy"


def test_a_new_watch_goes_on_with_the_record(tmp_path):
    model = make()
    optimizer = sgd(model, 0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf, run=tmp_path / "run") as first:
        train(model, optimizer, data(20))
    optimizer = torch.optim.Adam(model.parameters())
    with levada.watch(
        model, optimizer, every=5, max_overhead=math.inf, run=Continue(tmp_path / "run", first.steps)
    ) as second:
        train(model, optimizer, data(20))
    assert second.steps == 40


class ByData(torch.optim.Optimizer):
    """Writes past what PyTorch counts, as older optimizers do."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data.add_(p.grad, alpha=-0.01)


@pytest.mark.parametrize("kind", [torch.optim.SGD, ByData])
def test_a_watch_that_never_heard_a_step_says_so(kind):
    model = make()
    other = kind(model.parameters(), {"lr": 0.01}) if kind is ByData else kind(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match=f"no step was heard so far, .*{SAID}"), watch(model, sgd(model)) as watched:
        train(model, other, data(ENOUGH + 1))
    assert SAID in str(watched.report())


def test_an_optimizer_of_two_stages_whose_inner_one_steps_is_told():
    """As SAM's `first_step` and `second_step`, which call no hook of its own."""
    model = make()
    outer = sgd(model)
    inner = torch.optim.SGD(outer.param_groups, lr=0.01)

    def stages():
        for x in data(ENOUGH + 1):
            for _ in range(2):
                outer.zero_grad()
                loss_of(model, x).backward()
            inner.step()

    with watch(model, outer), pytest.warns(UserWarning, match=f"no step was heard so far, .*{SAID}"):
        stages()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["accumulation", "closure", "noise", "evaluation", "bounds"])
def test_loops_that_only_take_their_time_are_not_told(kind):
    model = make()
    if kind == "closure":
        optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=100, tolerance_change=0, tolerance_grad=0)
    else:
        optimizer = sgd(model, 1e-3)
    with watch(model, optimizer, every=50) as watched:
        for step in range(3):
            if kind == "closure":
                calls = []

                def closure(calls=calls):
                    optimizer.zero_grad()
                    loss = loss_of(model, data()[0])
                    loss.backward()
                    calls.append(1)
                    return loss

                optimizer.step(closure)
                assert len(calls) > ENOUGH
                continue
            optimizer.zero_grad()
            for i, x in enumerate(data(200)):
                if kind == "evaluation":
                    with torch.no_grad():
                        loss_of(model, x)
                    torch._foreach_mul_([p.data for p in model.parameters()], 0.999)
                    if i:
                        continue
                if kind == "bounds":  # weights are written before each pass, as they are
                    for p in model.parameters():
                        p.data.clamp_(-10, 10)
                        with torch.no_grad():
                            p.clamp_(-10, 10)
                if kind == "noise":  # weights are moved between micro-batches, which grow in number
                    torch._foreach_mul_([p.data for p in model.parameters()], 0.999)
                    if i == (20, 100, 199)[step]:
                        break
                loss_of(model, x).backward()
            optimizer.step()
    assert watched.standing.verdict == "unknown"
    assert SAID not in str(watched.report())


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        model = make()
    with pytest.raises(UsageError, match=r"must have values, but Net's are on the meta device"):
        levada.watch(model, sgd(model))
    model.embed.requires_grad_(False)
    whole = nn.ModuleList([make(), model.embed])  # what is frozen may be elsewhere
    levada.watch(whole, sgd(whole[0])).close()
