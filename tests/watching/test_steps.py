"""Where a step ends: optimizers that rest, scalers that skip, loops without an optimizer; against values by hand."""

import math
import warnings
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from tests.watching.by_hand import NAMES, agree, by_hand, data, loss_of, make, rms, sgd, train, watch
from torch import nn

import levada
from levada.watching.loop.losses import Losses
from levada.watching.measure.together import Together
from levada.watching.measure.weights import Weights
from levada.watching.verdict.judge import Judge


class Rests:
    """Two optimizers as one, of which each steps when the pattern says so: "ab", "ba", "a", "b"."""

    def __init__(self, model, pattern):
        self.all = {
            "a": torch.optim.SGD([*model.embed.parameters(), *model.blocks.parameters()], lr=0.1),
            "b": torch.optim.SGD(model.head.parameters(), lr=0.1),
        }
        self.pattern = iter(pattern)
        self.rested = set()

    def zero_grad(self):
        for one in self.all.values():
            one.zero_grad()

    def step(self):
        steps = next(self.pattern)
        for name in steps:
            self.all[name].step()
        resting = [one for name, one in self.all.items() if name not in steps]
        self.rested = {id(p) for one in resting for group in one.param_groups for p in group["params"]}


PATTERNS = [["ab", "b", "ab", "ab"], ["ab", "a", "ab", "a"], ["ba", "b", "ba", "b"], ["a", "b", "a", "b"], ["b"] * 4]


def parts_of(model, x):
    """The loss, by calls of the model's parts alone."""
    h = model.embed(x)
    for block in model.blocks:
        h = block(h)
    return (model.head(h) - 1.0).square().mean()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("step", [loss_of, parts_of])
@pytest.mark.parametrize("clear", ["before the pass", "before backward"])
def test_an_optimizer_that_rests_leaves_every_number_with_its_step(pattern, step, clear):
    model, twin = make(), make()
    both = Rests(model, pattern)
    with watch(model, list(both.all.values())) as watched:
        for x in data(4):
            if clear == "before the pass":
                both.zero_grad()
            loss = step(model, x)
            if clear == "before backward":
                both.zero_grad()
            loss.backward()
            both.step()
    agree(watched, by_hand(twin, data(4), Rests(twin, pattern)))
    assert [s.losses for s in watched.samples] == [((i, s.scalars["loss"]),) for i, s in enumerate(watched.samples)]
    assert watched.steps == 4


@pytest.mark.parametrize("step", [loss_of, parts_of])
def test_samples_between_others_when_an_optimizer_rests(step):
    pattern = ["ab", "b", "a", "b", "ab", "a", "ab", "b"]
    model, twin = make(), make()
    both = Rests(model, pattern)
    with watch(model, list(both.all.values()), every=3) as watched:
        train(model, both, data(8), step)
    expected = by_hand(twin, data(8), Rests(twin, pattern))
    told = dict(pair for sample in watched.samples for pair in sample.losses)
    assert all(told[i] == pytest.approx(expected[i]["loss"], rel=1e-6) for i in told)
    assert [s.step for s in watched.samples] == ([0, 3, 6] if step is loss_of else [0, 4, 7])
    for sample in watched.samples:
        for name in ("signal_rms", "gradient_rms", "weight_gradient_rms", "update_ratio"):
            want = torch.tensor(expected[sample.step][name], dtype=torch.float64)
            torch.testing.assert_close(sample.values[name], want, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("step", [loss_of, parts_of])
def test_without_an_optimizer_gradients_are_those_of_the_step(step):
    model = make()
    optimizer = sgd(model)
    with watch(model, None) as watched:
        for x in data():
            loss = step(model, x)
            model.zero_grad()  # between the passes, so that those of the step before are there at the first
            loss.backward()
            optimizer.step()
            watched.step()
    agree(watched, by_hand(make(), data()))


class Ears:
    def __init__(self):
        self.heard = []

    def before_update(self, step, loss):
        self.heard.append(step)

    def sampled(self, sample):
        pass

    def close(self):
        pass


def scaled(model, optimizer, scaler, batches, overflows):
    for step, x in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_of(model, x) * (math.inf if step in overflows else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def test_a_step_that_a_scaler_skips_ends_and_the_next_one_is_sampled():
    model, twin = make(), make()
    optimizer, ears = sgd(model), Ears()
    with watch(model, optimizer, listeners=[ears]) as watched:
        scaled(model, optimizer, torch.amp.GradScaler("cpu", init_scale=64.0), data(5), {1, 2})
    kept = [x for i, x in enumerate(data(5)) if i not in {1, 2}]
    assert watched.steps == 5
    agree(watched, by_hand(twin, kept), rtol=1e-5)
    assert [sample.step for sample in watched.samples] == [0, 3, 4]
    assert [step for step, _ in watched.samples[1].losses] == [1, 2, 3]
    assert ears.heard == [0, 3, 4]
    assert not watched.findings


def test_a_training_whose_every_step_is_skipped_is_not_healthy():
    model = make()
    optimizer, ears = sgd(model), Ears()
    with watch(model, optimizer, every=5, listeners=[ears]) as watched:
        scaled(model, optimizer, torch.amp.GradScaler("cpu", init_scale=1024.0), data(60), range(20, 60))
    assert watched.steps == 60
    assert ears.heard == [*range(20), *range(22, 60)]  # the third in a row is told of
    assert {f.rule for f in watched.findings} == {"numerical_overflow"}
    assert watched.report().verdict != "healthy"


def test_a_scaler_that_skips_one_of_two_optimizers():
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, on):
            ctx.on = on
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (math.inf if ctx.on else 1.0), None

    first, last = nn.Linear(3, 4), nn.Linear(4, 1)
    model = nn.ModuleList([first, last])
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    scaler, losses, gradients = torch.amp.GradScaler("cpu", init_scale=64.0), [], []
    with watch(model, optimizers) as watched:
        for step, x in enumerate(data(4)):
            for one in optimizers:
                one.zero_grad()
            loss = last(Overflow.apply(first(x).tanh(), step == 1)).square().mean()
            scaler.scale(loss).backward()
            losses.append(loss.item())
            gradients.append(rms(last.weight.grad / scaler.get_scale()))
            for one in optimizers:
                scaler.step(one)
            scaler.update()
    assert [s.scalars["loss"] for s in watched.samples] == pytest.approx(losses, rel=1e-6)
    assert [s.values["weight_gradient_rms"][1].item() for s in watched.samples if s.step != 1] == pytest.approx(
        [g for i, g in enumerate(gradients) if i != 1], rel=1e-6
    )


def test_looking_at_losses_is_counted(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock, counted = Clock(), []
    monkeypatch.setattr("levada.watching.loop.losses.time", clock)
    state = levada.watching.loop.markers.state_of

    def slow(gradient):
        clock.now += 1.0
        return state(gradient)

    monkeypatch.setattr("levada.watching.loop.markers.state_of", slow)
    model = make()
    with watch(model, optimizer := sgd(model), every=100) as watched:
        monkeypatch.setattr(watched._engine.cadence, "count", lambda sampled, *, own: counted.append(own))
        train(model, optimizer, data(2))
    # Two that changed, two from either end of those held, then these four again; later two that changed, and the four.
    assert counted == pytest.approx([10.0, 6.0], abs=0.5)


def test_the_time_of_a_look_is_divided_among_the_watches_that_look(monkeypatch):
    ticks = count()
    monkeypatch.setattr("levada.watching.loop.losses.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    nothing = SimpleNamespace(updates=0, before_backward=lambda: None, learned=lambda roots: None)
    model, spent = nn.Linear(2, 1), {1: [], 2: [], 3: []}
    several = [Losses(model, heard=nothing, parts=lambda: 1, spent=spent[i].append) for i in spent]
    seconds = []
    for opened in several:  # one, two, three of them
        opened.open()
        for each in spent.values():
            each.clear()
        model(torch.ones(1, 2)).sum().backward()
        seconds.append([sum(each) for each in spent.values()])
    for opened in several:
        opened.close()
    assert None not in [opened.current() for opened in several]  # each has looked
    whole = seconds[0][0]
    assert whole > 0
    assert seconds == [[whole, 0, 0], [whole / 2, whole / 2, 0], [pytest.approx(whole / 3)] * 3]


@pytest.mark.parametrize("kind", ["one", "turns", "within"])
def test_no_second_of_own_code_is_counted_twice(monkeypatch, kind):
    """Steps end within the look at a backward pass where optimizers take turns, or step inside of it."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock, counted = Clock(), []

    def slowed(owner, name):
        method = getattr(owner, name)

        def slow(self, *args, **options):
            clock.now += 1.0
            return method(self, *args, **options)

        monkeypatch.setattr(owner, name, slow)

    for owner, name in ((Together, "deliver"), (Weights, "after"), (Judge, "before_update")):
        slowed(owner, name)
    for name in ("loop.losses", "loop.clocks", "engine", "steps.passes"):
        monkeypatch.setattr(f"levada.watching.{name}.time", clock)
    model = make()
    parameters = list(model.parameters())
    groups = {"one": [parameters], "turns": [parameters[:2], parameters[2:]], "within": [[p] for p in parameters]}[kind]
    optimizers = [torch.optim.SGD(group, lr=0.01) for group in groups]

    def step(p, optimizer):
        optimizer.step()
        optimizer.zero_grad()

    if kind == "within":
        for p, optimizer in zip(parameters, optimizers, strict=True):
            p.register_post_accumulate_grad_hook(partial(step, optimizer=optimizer))
    with watch(model, optimizers, every=100) as watched:
        count = watched._engine.cadence.count
        monkeypatch.setattr(
            watched._engine.cadence, "count", lambda sampled, *, own: (counted.append(own), count(sampled, own=own))
        )
        for i, x in enumerate(data(6)):
            loss_of(model, x).backward()
            if kind != "within":
                optimizers[i % len(optimizers)].step()
                model.zero_grad()
    # Gradients are heard on the real clock; the end of the watch is no step's.
    assert clock.now - 2.5 <= sum(counted) <= clock.now + 0.5
    assert clock.now >= 18.0


def test_blocks_that_begin_to_run_later_are_named():
    class Later(type(make())):
        deep = False

        def forward(self, x):
            h = self.embed(x)
            return self.extra[0](h).sum(1, keepdim=True) if self.deep else self.head(h)

    model = Later()
    model.extra = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(2))
        model.deep = True
        with pytest.warns(UserWarning, match=r"extra\.0 did not run in the first sampled step"):
            train(model, optimizer, data(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, optimizer, data(1))
    assert "extra.0" not in [site.name for site in watched.sites]


@pytest.mark.parametrize("before", [0, 2])
def test_a_part_that_was_replaced_is_measured(before):
    def replace(model, optimizer):
        torch.manual_seed(5)
        model.head = nn.Linear(6, 1)
        optimizer.add_param_group({"params": list(model.head.parameters())})

    model, twin = make(), make()
    optimizer, other = sgd(model), sgd(twin)
    with watch(model, optimizer) as watched:
        train(model, optimizer, data(before))
        replace(model, optimizer)
        train(model, optimizer, data(4)[before:])
    expected = by_hand(twin, data(before), other)
    replace(twin, other)
    expected += by_hand(twin, data(4)[before:], other)
    if before == 0:  # that step was opened with the old part: the next one is the first sample
        agree(watched, expected[1:])
    else:
        agree_from(watched, expected, skip=before)


def agree_from(watched, expected, *, skip):
    assert [site.name for site in watched.sites] == NAMES
    for step, (sample, values) in enumerate(zip(watched.samples, expected, strict=True)):
        for name in ("signal_rms", "weight_rms", "weight_gradient_rms", "update_ratio", "gradient_rms"):
            want, found = torch.tensor(values[name], dtype=torch.float64), sample.values[name]
            if step == skip:
                want, found = want[:-1], found[:-1]
            torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-9)


def test_losses_of_a_loop_that_makes_no_step_take_no_more_room_and_their_sum_is_kept():
    net = nn.Linear(2, 1)
    with watch(net, sgd(net), every=1, max_overhead=math.inf) as watched:
        total = 0.0
        for i in range(1000):
            loss = net(torch.ones(1, 2)).square().mean() * i
            total += loss.item()
            loss.backward()
        assert len(watched._engine.losses._current) <= 256
        watched.optimizers[0].step()
        net(torch.ones(1, 2)).sum().backward()
    assert dict(watched.samples[0].losses)[0] == pytest.approx(total, rel=1e-5)


def test_a_model_whose_first_layers_are_lazy_is_watched():
    net = nn.Sequential(nn.LazyLinear(4), nn.Sequential(nn.LazyLinear(4), nn.ReLU()), nn.Linear(4, 1))
    with watch(net, sgd(net), every=1, max_overhead=math.inf) as watched:
        assert watched.report().verdict == "unknown"
        for _ in range(3):
            watched.optimizers[0].zero_grad()
            net(torch.randn(4, 3)).square().mean().backward()
            watched.optimizers[0].step()
    assert len(watched.sites) == 3
    assert watched.samples[-1].values["weight_rms"].isfinite().all()
