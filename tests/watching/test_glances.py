"""Looks at gradients between samples: a short training is seen to its end, and a fault there asks for samples."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import levada
from levada.runs import Run
from levada.runs.standing import EVENT
from levada.watching.steps.silence import Silence
from levada.watching.verdict.between import Between
from levada.watching.verdict.glances import Glances
from levada.watching.verdict.ledger import Ledger
from levada.watching.verdict.view import Blocks


def chain():
    return nn.Sequential(
        nn.Linear(4, 8), *[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)], nn.Linear(8, 1)
    )


def whole(model, x, step):
    return model(x)


def train(steps=400, *, forward=whole, fault=None, every=20, rate=0.02, zero="before", model=None, run=None):
    """Train as a quick training is sampled, whatever this machine's steps take: eleven times, and then when asked."""
    torch.manual_seed(0)
    model = chain() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with levada.watch(model, optimizer, every=every, max_overhead=1e-9, run=run) as watch:
        for step in range(steps):
            x = torch.randn(16, 4)
            if fault is not None:
                fault(model, step)
            if zero == "before":
                optimizer.zero_grad()
            (forward(model, x, step) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
            if zero == "behind":
                optimizer.zero_grad()
    return watch


def alarms(watch):
    found = [one for one in watch.findings if one.status == "fired" and one.severity != "info"]
    return [(one.rule, one.where.get("first")) for one in found]


@pytest.mark.parametrize("zero", ["before", "behind"])
def test_a_healthy_training_is_seen_to_reach_every_block_near_its_end(zero, tmp_path):
    watch = train(run=tmp_path / "run", zero=zero)
    told, last = watch.standing, watch.samples[-1].step
    assert (len(watch.samples), alarms(watch)) == (11, [])
    assert told.called == f"healthy up to step {last} of 400"
    assert told.reached is not None
    assert 375 < told.reached < 400
    assert told.basis.endswith(f"rules judged it; every trained block still had some gradient at step {told.reached}")
    assert told.beyond in str(watch.report())
    kept = [event for event in Run(tmp_path / "run").events() if event["type"] == EVENT]
    assert "reached" not in told.event(counts=False), "no event for each look"
    assert kept[-1]["reached"] == told.reached


def cut(model, x, step):
    for i, layer in enumerate(model):
        x = layer(x).detach() if i == 2 and step >= 250 else layer(x)
    return x


@pytest.mark.parametrize("zero", ["before", "behind"])
def test_a_cut_behind_the_last_sample_is_found(zero):
    watch = train(forward=cut, zero=zero)
    assert alarms(watch) == [("frozen_layers", "2")]
    assert watch.standing.beyond == ""
    assert "times it was looked at, though others get one" in watch.findings[-1].claim


def cut_from(first):
    def forward(model, x, step):
        for i, layer in enumerate(model):
            x = layer(x).detach() if i == 2 and step >= first else layer(x)
        return x

    return forward


@pytest.mark.parametrize("first", [0, 60, 80, 120])
def test_a_cut_that_the_first_samples_saw_but_could_not_judge_is_found(first):
    watch = train(forward=cut_from(first))
    assert alarms(watch) == [("frozen_layers", "2")]


def test_a_cut_too_late_to_be_judged_keeps_the_verdict_open():
    watch = train(forward=cut_from(350))
    assert alarms(watch) == []
    assert watch.standing.verdict == "unknown"
    assert "frozen_layers: 0 has had no gradient for longer than its habit explains" in watch.standing.told


def apart(model, x, step):
    """The first blocks run on their own, from some step on without a graph."""
    with torch.set_grad_enabled(step < 200):
        x = model[:3](x)
    return model[3:](x)


def test_blocks_that_learned_and_run_under_no_grad_since_are_an_information():
    watch = train(forward=apart)
    (found,) = watch.findings
    assert (found.rule, found.severity, found.where) == ("frozen_layers", "info", {"first": "0", "last": "2"})
    assert "3 blocks, 0 to 2, learn no more" in found.claim
    assert watch.standing.verdict == "healthy"
    assert train(300, forward=lambda model, x, step: apart(model, x, 200)).findings == []


def die(model, step):
    if step == 300:
        nn.init.constant_(model[2][0].bias, -100.0)


def test_units_that_die_behind_the_last_sample_are_found():
    watch = train(fault=die)
    assert ("dead_units", "2") in alarms(watch)
    assert len(watch.samples) <= 11 + 7


def test_what_is_frozen_on_purpose_asks_for_nothing():
    def freeze(model, step):
        if step == 250:
            model[:2].requires_grad_(False)

    watch = train(fault=freeze)
    assert (len(watch.samples), alarms(watch)) == (11, [])
    assert watch.standing.reached > 375


class Halves(nn.Module):
    """Two branches, one of which rests now and then."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x):
        return self.blocks[0](x) + sum(block(x) for block in self.blocks[1:] if torch.rand(()) < 0.7)


def test_a_block_that_rests_now_and_then_asks_for_nothing_and_is_reached_where_all_are():
    watch = train(600, model=Halves(), rate=1e-3)
    assert alarms(watch) == []
    assert len(watch.samples) == 11


class Looking:
    """Looks at a model of two layers, of which the first one's gradient can be taken away."""

    def __init__(self, every=20, grad=1.0):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        sites = [levada.probe.Site(f"{i}", i, "Linear", (1, 2), (f"{i}.weight", f"{i}.bias")) for i in range(2)]
        self.blocks = Blocks.of(sites, self.model)
        self.glances, self.silence, self.grad = Glances(every), Silence(2), grad
        for step in range(0, 11 * every, every):
            self.silence.add(torch.ones(2))
            self.glances.sampled(step, self.blocks, self.silence)
        self.last = 10 * every

    def run(self, first, last, gradient=None):
        """Return the steps that were looked at, and those that asked."""
        looked, asked = [], []
        for step in range(first, last):
            for parameter in self.model.parameters():
                parameter.grad = torch.full_like(parameter, self.grad)
            for parameter in self.model[0].parameters() if gradient != "whole" else ():
                parameter.grad = gradient
            before = self.glances._last
            self.glances.before_update(step, self.model, self.blocks, self.silence)
            looked += [step] if self.glances._last != before else []
            asked += [step] if self.glances.asks else []
        return looked, asked


def test_looks_are_as_far_apart_as_samples_may_be_at_least_and_then_a_sixteenth_of_the_steps():
    looked, asked = Looking().run(201, 700, "whole")
    assert looked[:6] == [228, 248, 268, 288, 308, 328]
    assert all(after - before == max(20, after // 16) for before, after in itertools.pairwise(looked))
    assert asked == []


def test_three_zeros_in_a_row_ask_once_and_again_after_a_gradient_came_or_when_chance_explains_no_more():
    looking = Looking()
    assert looking.run(201, 300)[1] == [268]
    assert looking.glances.waits
    assert looking.glances.reached is None
    looking.run(300, 330, "whole")
    assert not looking.glances.waits
    assert looking.glances.reached == 328
    assert looking.run(330, 600)[1] == [450]
    assert looking.run(600, 665)[1] == [617, 658]


def test_a_gradient_too_small_to_be_squared_is_none_that_is_missed():
    looking = Looking(grad=1e-40)
    looking.run(201, 300, "whole")
    assert looking.glances.reached == 288


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_neither_missed_nor_one_that_reached(bad):
    looking = Looking(grad=bad)
    looking.run(201, 300, "whole")
    assert looking.glances.reached is None
    assert not looking.glances.waits


def test_weights_that_were_exchanged_are_looked_at_as_they_are():
    looking = Looking()
    looking.run(201, 240, "whole")
    looking.model.zero_grad()
    looking.model[0] = nn.Linear(2, 2)
    looking.run(240, 300, "whole")
    assert looking.glances.reached == 288


def test_a_block_that_never_had_a_gradient_asks_once_and_waits_until_samples_have_judged_it():
    looking = Looking()
    looking.silence = Silence(2)
    for _ in range(6):
        looking.silence.add(torch.tensor([0.0, 1.0]))
    assert looking.run(201, 365)[1] == [268]
    assert looking.silence.run.tolist()[0] == 13
    assert len(looking.run(365, 500)[1]) > 1, "chance explains it no longer"
    for samples in range(4):
        assert looking.silence.sure.tolist() == [samples, 0], "a look is no sample"
        assert looking.glances.waits == (samples < 3)
        looking.silence.add(torch.tensor([0.0, 1.0]))
        looking.glances.sampled(500 + samples, looking.blocks, looking.silence)
    looking.silence.add(torch.ones(2))
    assert looking.silence.sure.tolist() == [0, 0]


def test_a_gradient_that_a_frozen_weight_has_left_is_none_of_its_block():
    looking = Looking()
    site = replace(looking.blocks.sites[0], parameters=("0.weight", "1.weight"))
    looking.blocks = Blocks.of([site], looking.model)
    looking.silence = Silence(1)
    looking.silence.add(torch.ones(1))
    looking.model[1].weight.requires_grad_(False).grad = torch.ones(1, 2)
    looking.glances.before_update(228, looking.model, looking.blocks, looking.silence)
    assert looking.silence.run.tolist() == [1]
    assert looking.glances.reached is None


def test_of_what_is_sharded_nothing_is_said():
    looking = Looking()
    looking.model[1].weight.placements = ()
    assert looking.run(201, 400)[1] == []
    assert looking.glances.reached is None


def test_what_raises_ends_the_looks_alone():
    looking = Looking()
    between = Between(Ledger(3, lambda finding: None), 20)
    for step in (0, 200):
        between.sampled(step, looking.blocks, looking.silence)
    given = looking.model, (), looking.blocks, looking.silence
    looking.run(201, 202, "whole")
    between.before_update(240, *given)
    assert between.reached == 240
    looking.silence.add = lambda values, look: 1 / 0
    with pytest.warns(UserWarning, match="gradients between samples raised ZeroDivisionError"):
        between.before_update(280, *given)
    between.before_update(320, *given)
    assert (between.reached, between.asks, between.waits, between.ended) == (None, False, False, {})


def test_weights_that_the_last_update_broke_are_found_at_the_end():
    def spoil(model, step):
        if step == 399:
            handle = next(p for p in model[2].parameters()).register_hook(lambda g: g * math.nan)
            assert handle

    watch = train(fault=spoil)
    (finding,) = [one for one in watch.findings if one.rule == "numerical_overflow"]
    assert finding.where["first"] == "2"
    assert finding.evidence["step"] == 399
    assert watch.standing.verdict == "error"


def test_losses_that_no_sample_brought_and_that_are_not_finite_are_found_at_the_end():
    watch = train(230)
    ended = [(230, torch.tensor(1.0)), (231, torch.tensor(math.nan)), (232, torch.tensor(math.nan))]
    watch.ended_losses = lambda: ended
    watch.judge.close()
    watch.judge.close()
    (finding,) = [one for one in watch.findings if one.rule == "numerical_overflow"]
    assert "The loss of step 231 is the first that is not finite" in finding.claim


def test_optimizers_that_take_turns_lose_no_updates():
    torch.manual_seed(0)
    model = chain()
    one, other = torch.optim.AdamW(model[:2].parameters()), torch.optim.SGD(model[2:].parameters(), lr=0.02)
    with levada.watch(model, [one, other], max_overhead=1e-9) as watch:
        for step in range(110):
            for optimizer in (one, other):
                optimizer.zero_grad()
            model(x := torch.randn(16, 4)).sub(x.sum(1, keepdim=True)).square().mean().backward()
            (one if step % 2 == 0 else other).step()
    for sample in watch.samples:  # an update that was not made, as an optimizer rested, is none of 0
        assert sample.values["update_ratio"].isnan()[[0, -1]].tolist() == [sample.step % 2 == 1, sample.step % 2 == 0]
    assert alarms(watch) == []


def test_a_block_that_asks_for_a_gradient_since_the_last_sample_is_not_left_out_of_every_block():
    looking = Looking()
    looking.model[0].requires_grad_(False)
    looking.blocks = Blocks.of(looking.blocks.sites, looking.model)
    looking.run(201, 260)
    assert looking.glances.reached == 248
    looking.model[0].requires_grad_(True)  # behind a detach, as `run` leaves it
    looking.run(260, 400)
    assert looking.glances.reached == 248


class Tuned(nn.Module):
    """A body whose features a head reads, detached or not."""

    def __init__(self, detached):
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
        self.head, self.detached = nn.Linear(8, 1), detached

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden.detach() if self.detached else hidden)


def tuned(fault, steps=700):
    """Fine-tune as is done: the head alone at first, the body too from step 300 on."""
    torch.manual_seed(0)
    model = Tuned(detached=fault == "detached").requires_grad_(False)
    model.head.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with levada.watch(model, optimizer, max_overhead=1e-9) as watch:
        for step in range(steps):
            if step == 300:
                model.requires_grad_(True)
            if step == 320 and fault == "dead":
                nn.init.constant_(model.body[1][0].bias, -100.0)
            x = torch.randn(32, 8)
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    return watch


@pytest.mark.parametrize(
    ("fault", "told"), {None: [], "detached": [("frozen_layers", "body.2")], "dead": [("dead_units", "body.1")]}.items()
)
def test_what_is_thawed_later_is_sampled_and_judged(fault, told):
    watch = tuned(fault)
    assert [one.step for one in watch.samples if one.step > 210][:6] == [301, 303, 307, 315, 331, 363]
    assert [one for one in alarms(watch) if one[0] in ("frozen_layers", "dead_units")] == told
    assert watch.standing.verdict == ("error" if told else "healthy")
    if fault == "detached":
        assert watch.standing.reached is None or watch.standing.reached <= 300


class Tasks(nn.Module):
    """A body and two heads."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
        self.first, self.second = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x, head):
        return getattr(self, head)(self.body(x))


def test_a_head_that_the_loop_calls_no_more_is_told_of_by_the_samples_that_its_silence_asks_for():
    torch.manual_seed(0)
    model = Tasks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with levada.watch(model, optimizer, max_overhead=1e-9) as watch:
        for step in range(900):
            x = torch.randn(16, 8)
            heads = ("first", "second") if step < 300 else ("first",)
            optimizer.zero_grad()
            sum((model(x, head) - x.sum(1, keepdim=True)).square().mean() for head in heads).backward()
            optimizer.step()
    (found,) = [one for one in watch.findings if one.rule == "frozen_layers"]
    assert (found.severity, found.status, found.where["first"]) == ("info", "fired", "second")
    assert "no forward pass" in found.claim
    assert alarms(watch) == []
