"""Gradients that are never cleared: told of, and nothing else taken for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import Tensor, nn

import levada
from levada.watching.loop.uncleared import Uncleared
from levada.watching.verdict.judge import Judge
from levada.watching.verdict.judged import standing_of


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


def _watched(
    step: Callable[[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]], object], steps: int = 80
) -> levada.watching.Watch:
    net = _network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x = torch.randn(32, 4)

    def loss() -> Tensor:
        return (net(x) - x[:, :1]).square().mean()

    with levada.watch(net, optimizer, every=4) as watch:
        for _ in range(steps):
            step(net, optimizer, loss)
    return watch


def _piled(watch: levada.watching.Watch) -> list[str]:
    return [finding.severity for finding in watch.findings if finding.rule == "accumulated_gradients"]


@pytest.mark.parametrize("clip", [False, True])
def test_gradients_that_are_never_cleared_are_told_of(clip: bool) -> None:
    def step(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
        loss().backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    watch = _watched(step)
    assert _piled(watch)
    (finding,) = [one for one in watch.findings if one.rule == "accumulated_gradients"]
    assert finding.evidence["steps_with_old_gradients"] >= 8
    assert [remedy.name for remedy in finding.remedies] == ["zero_grad"]
    assert watch.report().verdict in {"warn", "error"}


def _none(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def _zeros(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def _late(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    found = loss()
    net.zero_grad()
    found.backward()
    optimizer.step()


def _data(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    optimizer.step()
    for parameter in net.parameters():
        parameter.grad.data.zero_()  # which autograd does not see


def _parts(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    for _ in range(4):
        (loss() / 4).backward()
    optimizer.step()


def _another(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()  # of another model's step, through this one
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


@pytest.mark.parametrize("step", [_none, _zeros, _late, _data, _parts, _another])
def test_gradients_that_are_cleared_in_whatever_way_are_not(step: Callable[..., None]) -> None:
    assert _piled(_watched(step)) == []


def test_gradients_that_were_zeros_at_first_are_looked_at_again() -> None:
    made = itertools.count()

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
        (loss() * (next(made) >= 12)).backward()  # never cleared
        optimizer.step()

    assert _piled(_watched(step))


def test_it_is_said_where_zeros_do_not_tell_if_gradients_are_cleared() -> None:
    standing = standing_of(_judge(_watched(_data)))
    assert "zeros" in standing.unjudged["accumulated_gradients"]
    assert "accumulated_gradients" not in standing.waiting  # it keeps no verdict
    assert "accumulated_gradients" in standing_of(_judge(_watched(_none))).judged


def _judge(watch: levada.watching.Watch) -> Judge:
    assert watch.judge is not None
    return watch.judge


@pytest.mark.parametrize("clears", [False, True])
def test_of_a_layer_that_alone_is_optimised_the_gradients_are_looked_at(clears: bool) -> None:
    net, x = _network(), torch.randn(16, 4)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=1e-3)  # between others that get gradients
    with levada.watch(net, optimizer, every=4) as watch:
        for _ in range(60):
            if clears:
                optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert bool(_piled(watch)) is not clears
    assert "accumulated_gradients" in standing_of(_judge(watch)).judged


@pytest.mark.parametrize("period", [2, 7, 25])
def test_gradients_that_are_cleared_too_rarely_are_told_of(period: int) -> None:
    made = itertools.count()

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
        if next(made) % period == 0:
            optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    watch = _watched(step, 100)
    (finding,) = [one for one in watch.findings if one.rule == "accumulated_gradients"]
    assert finding.status == "fired"  # and not taken back where a run has just ended
    assert finding.evidence["of"] >= finding.evidence["steps_with_old_gradients"] >= 8
    last, counted = watch.samples[-1].step, watch.samples[-1].scalars["uncleared_steps"]
    assert counted == sum(step % period > 0 for step in range(max(0, last - 63), last + 1))


def test_of_how_many_steps_is_known_without_a_loss() -> None:
    net, x = _network(), torch.randn(16, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with levada.watch(net, optimizer, every=4) as watch:
        for step in range(60):
            if step % 2 == 0:
                optimizer.zero_grad()
            out = net(x)
            out.backward(out.detach() / 16)  # begins at no scalar
            optimizer.step()
    (finding,) = [one for one in watch.findings if one.rule == "accumulated_gradients"]
    assert abs(finding.evidence["of"] - 2 * finding.evidence["steps_with_old_gradients"]) <= 1


def test_gradients_that_were_not_added_to_are_not_counted() -> None:
    layer = nn.Linear(1, 1)
    looking = Uncleared([torch.optim.SGD(layer.parameters(), lr=0.1)])
    layer(torch.ones(1)).sum().backward()
    for _ in range(10):  # each step makes the same update again
        looking.before()
        looking.after(changed=False)
        looking.updated(layer.parameters())
    assert (looking.run, looking.steps, looking.of) == (0, 0, 10)


@pytest.mark.parametrize(("loss", "severity"), [(2.5, "error"), (0.1, "warn")])
def test_it_is_an_error_where_the_loss_suffers(loss: float, severity: str) -> None:
    def edit(step: int, values: object, scalars: dict[str, float], losses: list[tuple[int, float]]) -> None:
        scalars["uncleared_steps"] = 20.0
        losses[:] = [(at, loss if at > 40 else 2.3) for at, _ in losses]

    run = Synthetic()
    run.run(40, edit)
    (finding,) = [one for one in run.judge.findings if one.rule == "accumulated_gradients"]
    assert finding.severity == severity


def test_a_part_that_alone_is_optimised_may_lie_between_others_that_keep_theirs() -> None:
    net, x = _network(), torch.randn(16, 4)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.01)
    with levada.watch(net, optimizer, every=4) as watch:
        for _ in range(60):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert _piled(watch) == []


def test_parameters_that_no_optimizer_holds_may_keep_theirs() -> None:
    body, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)
    net, x = nn.Sequential(body, head), torch.randn(16, 4)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    with levada.watch(net, optimizer, every=4) as watch:
        for _ in range(80):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert _piled(watch) == []


def _several(forget: tuple[int, ...], zero: str = "none", parts: int = 1, steps: int = 80) -> levada.watching.Watch:
    """Train two halves of a network by a common loss, with an optimizer each; those of `forget` clear nothing."""
    net = _network()
    optimizers = [torch.optim.SGD(net[at].parameters(), lr=0.01) for at in (0, 2)]
    with levada.watch(net, optimizers, every=4) as watch:
        for _ in range(steps):
            for i, optimizer in enumerate(optimizers):
                for p in (p for group in optimizer.param_groups for p in group["params"] if i not in forget):
                    if zero == "data" and p.grad is not None:
                        p.grad.data.zero_()
                    elif zero != "data":
                        optimizer.zero_grad(set_to_none=zero == "none")
            for _ in range(parts):
                x = torch.randn(32, 4)
                (net(x) - x[:, :1]).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    return watch


@pytest.mark.parametrize(("forget", "which"), [((0, 1), 1), ((1,), 2)])
def test_of_several_optimizers_each_is_told_that_clears_nothing(forget: tuple[int, ...], which: int) -> None:
    watch = _several(forget, parts=len(forget))
    (finding,) = [one for one in watch.findings if one.rule == "accumulated_gradients"]
    assert finding.evidence["optimizer"] == which
    assert f"steps of optimizer {which} of 2, up to" in finding.claim


@pytest.mark.parametrize("zero", ["none", "zeros", "data"])
def test_of_several_optimizers_none_is_told_that_clears(zero: str) -> None:
    watch = _several((), zero, parts=2)
    assert _piled(watch) == []
    assert ("accumulated_gradients" in standing_of(_judge(watch)).judged) is (zero != "data")


@pytest.mark.parametrize("forgets", [False, True])
def test_what_the_turn_of_another_adds_is_cleared_before_the_own_one(forgets: bool) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 1)])
    made, judged = (torch.optim.SGD(part.parameters(), lr=0.01) for part in net)
    with levada.watch(net, [made, judged], every=4) as watch:
        for _ in range(60):
            x = torch.randn(8, 4)
            if not forgets:
                judged.zero_grad()
            net[1](net[0](x).detach()).square().mean().backward()
            judged.step()
            made.zero_grad()
            net[1](net[0](x)).square().mean().backward()  # reaches the other one, too
            made.step()
    told = [one.evidence["optimizer"] for one in watch.findings if one.rule == "accumulated_gradients"]
    assert told == [2] * forgets


def test_of_many_optimizers_it_is_said_that_it_is_not_judged() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(17)))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in net]
    with levada.watch(net, optimizers, every=4) as watch:
        for _ in range(60):
            net(torch.randn(8, 4)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert _piled(watch) == []
    assert "16 optimizers at most" in standing_of(_judge(watch)).unjudged["accumulated_gradients"]


def test_what_is_cleared_between_two_backward_passes_of_a_step_is_cleared() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 1)])
    first, second = (torch.optim.SGD(part.parameters(), lr=0.01) for part in net)
    with levada.watch(net, [first, second], every=4) as watch:
        for _ in range(40):
            x = torch.randn(8, 4)
            first.zero_grad()
            net[1](net[0](x)).square().mean().backward()  # reaches the second one, too, and that is not used
            second.zero_grad()
            net[1](net[0](x).detach()).square().mean().backward()
            first.step()
            second.step()
    assert _piled(watch) == []
