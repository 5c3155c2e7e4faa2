"""Passes that the loop itself leaves out: no update tells of them, and the watch does."""

import math

import pytest
import torch
from torch import nn

import levada
from levada.runs import Run
from levada.watching.recording import Recording


def model():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)], nn.Linear(8, 2))


def batch(bad):
    return torch.full((4, 8), math.nan) if bad else torch.randn(4, 8)


def skips(watch):
    return [f for f in watch.findings if f.rule == "skipped_steps"]


def loop(net, bad, passes, *, after_backward=False, run=None, enter=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with levada.watch(net, optimizer, every=5, max_overhead=math.inf, run=run) as watch:
        for i in range(passes):
            if enter is not None:
                enter(net, i)
            optimizer.zero_grad()
            loss = net(batch(bad(i))).square().mean()
            if after_backward:
                loss.backward()
            if not torch.isfinite(loss):
                continue
            if not after_backward:
                loss.backward()
            optimizer.step()
    return watch


@pytest.mark.parametrize("after_backward", [False, True])
@pytest.mark.parametrize("good", [0, 50])
def test_a_loop_that_leaves_out_most_passes_is_told_of(after_backward, good, tmp_path):
    run = tmp_path / "run"
    watch = loop(model(), lambda i: i >= good and i % 3 != 2, good + 150, after_backward=after_backward, run=run)
    (finding,) = skips(watch)
    assert (finding.severity, finding.status) == ("error", "fired")
    assert finding.evidence["tests"]["of"] == (["loss"] if after_backward else ["output"])
    assert watch.report().verdict == "error"
    assert [e["rule"] for e in Run(run).events("finding")].count("skipped_steps") >= 1
    assert [f.rule for f in watch.findings if f.severity != "info"] == ["skipped_steps"]


def test_a_loop_that_never_makes_a_step_is_told_of_while_it_goes_on(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with levada.watch(net, optimizer, run=tmp_path / "run") as watch:
        for i in range(12):
            net(batch(True)).square().mean()
            assert len(skips(watch)) == (i >= 9), i
        (recording,) = [one for one in watch._listeners if isinstance(one, Recording)]
        recording.flush()
        assert [e["rule"] for e in Run(tmp_path / "run").events("finding")] == ["skipped_steps"]
    assert watch.steps == 0
    assert "8 of the last 10 forward passes" in skips(watch)[0].claim


def test_some_passes_are_a_warning_and_it_is_over_when_none_is_left_out_any_more():
    watch = loop(model(), lambda i: i < 200 and i % 6 == 0, 300)
    (finding,) = skips(watch)
    assert (finding.severity, finding.status) == ("warn", "clear")
    assert [f.status for f in watch.judge.history if f.rule == "skipped_steps"] == ["fired", "clear"]


def test_an_odd_batch_now_and_then_is_what_a_guard_is_for():
    assert skips(loop(model(), lambda i: i % 20 == 7, 300)) == []


def quiet(net, i):
    """Passes that are no training, on inputs of which NaN would be seen."""
    for _ in range(3 * (i % 10 == 0)):
        with torch.no_grad():
            net(batch(True))
        with torch.inference_mode():
            net(batch(True))
        net(batch(False))  # validation with gradients, in the mode of training
        net.eval()
        net(batch(True))  # and in the other
        net.train()


def test_evaluation_and_validation_are_passed_over():
    assert skips(loop(model(), lambda i: False, 200, enter=quiet)) == []


def test_masked_outputs_that_nothing_is_learned_of_are_passed_over():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, x):
            return torch.cat([self.net(x), torch.full((len(x), 1), -math.inf)], 1)

    net = Masked()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with levada.watch(net, optimizer) as watch:
        for _ in range(50):
            for _ in range(4):
                net(batch(False))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch(False)), torch.zeros(4, dtype=torch.long)).backward()
            optimizer.step()
    assert skips(watch) == []


@pytest.mark.parametrize("kind", ["accumulation", "two passes", "closure", "attack"])
def test_several_passes_a_step_are_no_skips(kind):
    net = model()
    optimizer = (
        torch.optim.LBFGS(net.parameters(), max_iter=4)
        if kind == "closure"
        else torch.optim.SGD(net.parameters(), lr=0.01)
    )

    def closure():
        optimizer.zero_grad()
        loss = net(batch(False)).square().mean()
        loss.backward()
        return loss

    with levada.watch(net, optimizer) as watch:
        for _ in range(60):
            if kind == "closure":
                optimizer.step(closure)
                continue
            if kind == "attack":
                x = batch(False).requires_grad_()
                net(x).square().mean().backward()
            optimizer.zero_grad()
            if kind == "two passes":
                (net(batch(False)).mean() - net(batch(False)).mean()).square().backward()
            for _ in range(3 if kind == "accumulation" else 1 if kind == "attack" else 0):
                net(batch(False)).square().mean().backward()
            optimizer.step()
    assert skips(watch) == []
    assert watch.steps == 60


def test_a_scaler_that_skips_is_told_of_by_its_own_rule():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with levada.watch(net, optimizer, every=5) as watch:
        for i in range(60):
            optimizer.zero_grad()
            scaler.scale(net(batch(i > 20)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert skips(watch) == []


def test_outputs_are_not_looked_at_while_each_pass_has_its_backward_pass(monkeypatch):
    seen = []
    monkeypatch.setattr("levada.watching.skipped.tensors", lambda output: seen.append(output) or iter(()))
    loop(model(), lambda i: False, 50)
    assert seen == []
    loop(model(), lambda i: False, 4000, enter=lambda net, i: net(batch(False)))
    assert len(seen) < 1000
