"""Watching changes nothing and sees what one computes by hand, whatever a training loop does."""

import copy
import gc
import io
import itertools
import math
import pickle
import warnings
import weakref

import pytest
import torch
from tests.watching.by_hand import NAMES, agree, by_hand, data, loss_of, make, sgd, train, watch
from torch import nn
from torch.utils.checkpoint import checkpoint

import levada
from levada.diagnose.finding import Finding
from levada.runs import Run
from levada.watching import WATCHED
from levada.watching.loop import arrivals
from levada.watching.loop.overhead import Cadence
from levada.watching.loop.places import find_places
from levada.watching.measure import compiled


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("directly", [arrivals._DIRECTLY, False])
def test_a_plain_loop_by_hand(directly, monkeypatch):
    monkeypatch.setattr(arrivals, "_DIRECTLY", directly)
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data())
    agree(watched, by_hand(make(), data()))
    assert set(watched.samples[0].values) == set(WATCHED)
    assert [len(site.shape) for site in watched.sites] == [2] * len(NAMES)
    assert watched.sites[1].parameters == ("blocks.0.linear.weight", "blocks.0.linear.bias")
    assert [s.losses[0][0] for s in watched.samples] == [0, 1, 2]
    assert watched.trace()["signal_rms"].shape == (3, len(NAMES))


def test_training_is_the_same_and_nothing_stays():
    plain, model = make(), make()
    backward = torch.autograd.backward
    train(plain, sgd(plain), data(6))
    with watch(model, optimizer := sgd(model), every=2):
        assert torch.autograd.backward is not backward
        train(model, optimizer, data(6))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert torch.autograd.backward is backward
    assert hooks_of(model) == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(p._backward_hooks for p in model.parameters())


def test_between_samples_no_block_has_a_hook():
    model = make()
    with watch(model, optimizer := sgd(model), every=4) as watched:
        for step, x in enumerate(data(9)):
            inner = sum(hooks_of(block) for block in model.blocks)
            assert bool(inner) == (step % 4 == 0)
            train(model, optimizer, [x])
    assert [sample.step for sample in watched.samples] == [0, 4, 8]
    assert [step for sample in watched.samples for step, _ in sample.losses] == list(range(9))
    expected = [step["loss"] for step in by_hand(make(), data(9))]
    assert [loss for s in watched.samples for _, loss in s.losses] == pytest.approx(expected, rel=1e-6)


def test_gradient_accumulation():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data(3, rows=6):
            optimizer.zero_grad()
            for part in x.chunk(3):
                (loss_of(model, part) / 3).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data(3, rows=6), parts=3))


def test_gradients_that_were_cleared_do_not_count():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            loss_of(model, 100 * x).backward()  # thrown away by the next line, as by a scaler that skips a step
            train(model, optimizer, [x])
            optimizer.zero_grad()
    agree(watched, by_hand(make(), data()))


@pytest.mark.parametrize("given", [True, False])
def test_the_loss_scale_is_divided_out(given):
    model = make()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    with watch(model, optimizer, scaler=scaler if given else None) as watched:
        for x in data():
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x)).backward()
            scaler.step(optimizer)
            scaler.update()
    agree(watched, by_hand(make(), data()), rtol=1e-5)
    assert [sample.scalars["loss_scale"] for sample in watched.samples] == [1024.0, 1024.0, 2048.0]


def test_of_a_fused_optimizer_that_unscales_by_itself_gradients_are_divided_too():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler, shown = torch.amp.GradScaler("cpu", init_scale=1024.0), []
    optimizer.register_step_pre_hook(lambda *_: shown.append(model.head.weight.grad.norm().item()))
    with watch(model, optimizer) as watched:
        for x in data():
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x)).backward()
            scaled = model.head.weight.grad.norm().item()
            scaler.step(optimizer)
            assert shown.pop() == scaled, "nobody sees them without their scale before the update"
            scaler.update()
    agree(watched, by_hand(make(), data()), rtol=1e-5)


def test_bfloat16_autocast():
    def loss(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        return (out.float() - 1.0).square().mean()

    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(), loss)
    agree(watched, by_hand(make(), data(), dtype=torch.bfloat16))
    assert watched.samples[0].values["signal_rms"][0] != by_hand(make(), data(1))[0]["signal_rms"][0]


@pytest.mark.parametrize("kind", ["reentrant", "not"])
def test_activation_checkpointing(kind):
    model = make(kind)
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data())
    agree(watched, by_hand(make(), data()))


def test_tied_layers_count_once_and_average():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Linear(4, 4), *[shared] * 3)
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, [x := torch.randn(5, 4)], lambda m, x: m(x).square().mean())
    fresh = copy.deepcopy(model)
    fresh[0].weight.data, fresh[0].bias.data = model[0].weight.data, model[0].bias.data
    assert [site.name for site in watched.sites] == ["0", "1"]
    torch.manual_seed(0)
    again = nn.Linear(4, 4, bias=False)
    h = nn.Linear(4, 4)(x)
    squares = []
    for _ in range(3):
        h = again(h)
        squares.append(h.detach().double().square().mean())
    found = watched.samples[0].values["signal_rms"][1]
    assert found.item() == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-6)


def test_tied_weights_are_at_both_blocks():
    embed, head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    head.weight = embed.weight
    model = nn.Sequential(embed, nn.Linear(4, 4), head)
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, [torch.randn(5, 4)], lambda m, x: m(x).square().mean())
    ratio = watched.samples[0].values["update_ratio"]
    assert ratio[0] == ratio[2] > 0
    assert watched.sites[2].parameters == ("0.weight",)


def test_frozen_weights_have_no_gradient_and_no_update():
    model = make()
    model.embed.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with watch(model, optimizer) as watched:
        train(model, optimizer, data(1))
    values = watched.samples[0].values
    for name in ("gradient_rms", "weight_gradient_rms", "update_ratio"):
        assert values[name].isnan().tolist() == [True, True, False, False, False], name
    assert not values["weight_rms"].isnan().any()
    assert not values["signal_rms"].isnan().any()


def test_a_gradient_that_does_not_arrive_is_zero():
    class Cut(type(make())):
        def forward(self, x):
            h = self.embed(x)
            self.blocks[0](h)
            return self.head(h)

    model = Cut()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(1))
    names = [site.name for site in watched.sites]
    gradient = watched.samples[0].values["gradient_rms"]
    assert gradient[names.index("blocks.0")] == 0
    assert gradient[names.index("head")] > 0
    assert gradient[names.index("blocks.1")].isnan()  # kept among its neighbours, though it did not run


def test_a_hook_of_the_users_own_on_a_blocks_output_is_called_and_the_gradient_measured():
    heard = []

    class Hooked(type(make())):
        def forward(self, x):
            x = self.embed(x)
            x.register_hook(heard.append)
            for block in self.blocks:
                x = block(x)
                x.register_hook(heard.append)
            return self.head(x)

    class Within(type(make().blocks[0])):
        def forward(self, x):
            y = super().forward(x)
            y.register_hook(lambda gradient: heard.append(2 * gradient) or 2 * gradient)  # before ours
            return y

    torch.manual_seed(0)
    plain, model = make(), Hooked()
    model.load_state_dict(plain.state_dict())
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data())
    agree(watched, by_hand(plain, data()))
    assert len(heard) == 3 * (1 + len(model.blocks))
    heard.clear()
    model = make()
    model.blocks[1] = Within()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(1))
    (doubled,) = heard
    gradient = watched.samples[0].values["gradient_rms"]
    measured = gradient[[site.name for site in watched.sites].index("blocks.1")]
    assert float(measured) == pytest.approx(float(doubled.square().mean().sqrt()), rel=1e-5)


def test_several_optimizers_end_a_step_together():
    model = make()
    one = torch.optim.SGD([*model.embed.parameters(), *model.blocks.parameters()], lr=0.1)
    two = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with watch(model, [one, two]) as watched:
        for x in data():
            one.zero_grad()
            two.zero_grad()
            loss_of(model, x).backward()
            one.step()
            two.step()
    agree(watched, by_hand(make(), data()))


def test_an_optimizer_that_rests_is_not_waited_for():
    model = make()
    one, two = torch.optim.SGD(model.blocks.parameters(), lr=0.1), torch.optim.SGD(model.head.parameters(), lr=0.1)
    with watch(model, [one, two]) as watched:
        for step, x in enumerate(data(6)):
            model.zero_grad()
            loss_of(model, x).backward()
            if step == 0:
                two.step()
            one.step()
    assert watched.steps == 6


def test_two_models_each_have_their_own_loss():
    generator, critic = make(seed=0), make(seed=1)
    opt_g, opt_c = sgd(generator), sgd(critic)
    losses = {"g": [], "c": []}
    with watch(generator, opt_g) as of_g, watch(critic, opt_c) as of_c:
        for x in data():
            opt_c.zero_grad()
            loss = loss_of(critic, generator(x).detach().expand(-1, 3))
            loss.backward()
            losses["c"].append(loss.item())
            opt_c.step()
            opt_g.zero_grad()
            loss = loss_of(critic, generator(x).expand(-1, 3))
            loss.backward()
            losses["g"].append(loss.item())
            opt_g.step()
    assert [s.scalars["loss"] for s in of_g.samples] == pytest.approx(losses["g"])
    assert [s.scalars["loss"] for s in of_c.samples] == pytest.approx(losses["c"])


def test_losses_of_models_that_wait_for_each_other():
    one, two = make(seed=0), make(seed=1)
    optimizers = sgd(one), sgd(two)
    with watch(one, optimizers[0]) as of_one, watch(two, optimizers[1]) as of_two:
        for x in data():
            for model, optimizer in zip((one, two), optimizers, strict=True):
                optimizer.zero_grad()
                loss_of(model, x).backward()
            for optimizer in optimizers:
                optimizer.step()
    agree(of_one, by_hand(make(seed=0), data()))
    agree(of_two, by_hand(make(seed=1), data()))


def test_what_is_computed_again_is_not_counted_again():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def both(self, x):
            first = self.layers[0](x)
            outputs.append(first.detach())
            return self.layers[1](first)

        def forward(self, x):
            second = self.layers[0](10 * checkpoint(self.both, x, use_reentrant=False))
            outputs.append(second.detach())
            return second

    outputs, model = [], Twice()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, [torch.randn(5, 4)], lambda m, x: m(x).square().mean())
    assert len(outputs) == 3
    mean = torch.stack(outputs[:2]).double().square().mean().sqrt()
    assert watched.samples[0].values["signal_rms"][0].item() == pytest.approx(mean.item(), rel=1e-6)


def test_exceptions_leave_nothing_behind():
    class Failing(type(make())):
        fails = False

        def forward(self, x):
            if self.fails:
                self.blocks[0](self.embed(x))
                raise RuntimeError("of the model")
            return super().forward(x)

    torch.manual_seed(0)
    model = Failing()
    model.load_state_dict(make().state_dict())
    with watch(model, optimizer := sgd(model)) as watched:
        for x in data():
            model.fails = True
            with pytest.raises(RuntimeError, match="of the model"):
                model(x * 100)
            model.fails = False
            train(model, optimizer, [x])
    agree(watched, by_hand(make(), data()))
    backward = torch.autograd.backward
    with pytest.raises(KeyError), watch(model, sgd(model)):
        raise KeyError
    assert torch.autograd.backward is backward
    assert hooks_of(model) == 0


def test_copies_and_pickles_are_not_watched():
    model = make()
    optimizer, keys = sgd(model), list(model.state_dict())
    with watch(model, optimizer) as watched:
        train(model, optimizer, data(1))
        other = copy.deepcopy(model)
        reread = pickle.loads(pickle.dumps(model))
        torch.save(model.state_dict(), io.BytesIO())
        assert list(model.state_dict()) == keys
        for twin in (other, reread):
            train(twin, sgd(twin), data(2))
        train(model, optimizer, data(2)[1:])
    agree(watched, by_hand(make(), data(2)))


def test_entering_twice_and_again():
    model = make()
    optimizer = sgd(model)
    watched = watch(model, optimizer)
    train(model, optimizer, data(1))
    with watched:
        with pytest.raises(levada._errors.UsageError, match="entered already"):
            watched.__enter__()
        train(model, optimizer, data(2)[1:])
    train(model, optimizer, data(1))  # not seen
    with watched:
        train(model, optimizer, data(1))
    watched.close()
    watched.close()
    assert watched.steps == 3
    assert len(watched.samples) == 3
    assert hooks_of(model) == 0


def test_evaluation_is_not_counted():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            with torch.no_grad():
                model(100 * x)
            model(100 * x)  # with a graph that nothing goes back through
            optimizer.zero_grad()
            loss_of(model, x).backward()
            with torch.no_grad():
                model(100 * x)
            with torch.inference_mode():
                model(100 * x)
            optimizer.step()
    agree(watched, by_hand(make(), data()))


def test_closures():
    model, twin = make(), make()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    with watch(model, optimizer) as watched:
        for x in data():

            def closure(x=x):
                optimizer.zero_grad()
                loss = loss_of(model, x)
                loss.backward()
                return loss

            optimizer.step(closure)
    before = twin.head.weight.detach().clone()
    optimizer = torch.optim.LBFGS(twin.parameters(), max_iter=3)
    last = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(twin, data()[0])
        loss.backward()
        last.append(loss.item())
        return loss

    optimizer.step(closure)
    change = (twin.head.weight.detach() - before).norm() / before.norm()
    assert watched.samples[0].values["update_ratio"][-1].item() == pytest.approx(change.item(), rel=1e-5)
    assert watched.samples[0].scalars["loss"] == pytest.approx(last[-1])
    assert watched.steps == 3


def test_without_an_optimizer():
    model = make()
    with watch(model, None) as watched:
        for x in data():
            model.zero_grad()
            loss_of(model, x).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            watched.step()
    agree(watched, by_hand(make(), data()))


def test_a_report_without_a_step_says_what_ends_one():
    ends = "A step ends with optimizer.step(), or with Watch.step() for a watch without an optimizer."
    with watch(make(), None) as watched:
        assert watched.report().notes[-1].endswith(ends)
        watched.step()
        assert ends not in watched.report().notes[-1]


def test_what_cannot_be_watched():
    with pytest.raises(levada._errors.UsageError, match="must have parameters"):
        levada.watch(nn.ReLU(), None)
    with pytest.raises(levada._errors.UsageError, match="holds none of"):
        levada.watch(make(), sgd(make()))
    with pytest.raises(levada._errors.UsageError, match=r"must be a torch\.optim\.Optimizer"):
        levada.watch(make(), object())
    with pytest.raises(levada._errors.UsageError, match="every must be at least 1"):
        levada.watch(make(), None, every=0)
    with pytest.raises(levada._errors.UsageError, match=r"max_overhead must be a share of the .* got 0"):
        levada.watch(make(), None, max_overhead=0.0)
    model = make()
    with watch(model, sgd(model)) as watched, pytest.raises(levada._errors.UsageError, match="counts its optimizer"):
        watched.step()


def test_an_optimizer_that_is_given_twice_is_refused():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(levada._errors.UsageError, match="must be another, got the same SGD twice"):
        levada.watch(layer, [optimizer, optimizer])


def test_nonfinite_numbers_are_flagged():
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        model.blocks[1].linear.weight.data[0, 0] = math.nan
        train(model, optimizer, data(1))
    values = watched.samples[0].values
    assert values["nonfinite"].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert values["gradient_nonfinite"].tolist() == [1.0] * 5
    assert values["signal_rms"].isnan().tolist() == [False, False, True, True, True]


def test_small_and_large_numbers_are_neither_lost_nor_infinite():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    with watch(model, optimizer := sgd(model)) as watched:
        for factor in (1e-25, 1e25):
            train(model, optimizer, [torch.ones(3, 4)], lambda m, x, f=factor: (f * m(x)).sum())
    for sample, factor in zip(watched.samples, (1e-25, 1e25), strict=True):
        assert sample.values["gradient_rms"][-1].item() == pytest.approx(factor, rel=1e-6)
        assert sample.values["gradient_nonfinite"].sum() == 0


def test_tensors_that_are_overwritten_are_measured_before():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
                outputs.append(x.detach().clone())
                x += 10.0
            return x

    outputs, model = [], InPlace()
    with watch(model, optimizer := sgd(model, 1e-3)) as watched:
        train(model, optimizer, [torch.randn(5, 4) for _ in range(3)], lambda m, x: m(x).square().mean())
    for step, sample in enumerate(watched.samples):
        expected = [y.double().square().mean().sqrt().item() for y in outputs[3 * step : 3 * step + 3]]
        assert sample.values["signal_rms"].tolist() == pytest.approx(expected, rel=1e-6)


def test_listeners_hear_every_update_and_a_broken_one_is_dropped():
    class Ears:
        def __init__(self, broken=False):
            self.broken, self.updates, self.heard, self.closed = broken, [], [], 0

        def before_update(self, step, loss):
            if self.broken:
                raise RuntimeError("disk full")
            self.updates.append((step, float(loss)))

        def sampled(self, sample):
            self.heard.append(sample.step)

        def close(self):
            self.closed += 1

    model, ears, broken = make(), Ears(), Ears(broken=True)
    optimizer = sgd(model)
    with watch(model, optimizer, every=2, listeners=[broken, ears]) as watched:
        with pytest.warns(UserWarning, match="disk full"):
            train(model, optimizer, data(1))
        train(model, optimizer, data(4)[1:])
        watched.log(accuracy=0.5)
    assert [step for step, _ in ears.updates] == [0, 1, 2, 3]
    assert ears.heard == [0, 2]
    assert ears.closed == 1
    assert [loss for _, loss in ears.updates] == pytest.approx([s["loss"] for s in by_hand(make(), data(4))])
    assert broken.heard == []
    assert broken.closed == 0


def test_the_last_pass_is_kept_to_run_again():
    model = make()
    with watch(model, optimizer := sgd(model), every=5) as watched:
        assert watched.last_pass is None
        train(model, optimizer, data(2))
        last = watched.last_pass
        assert last.step == 1
        assert torch.equal(last.args[0], data(2)[1])
        assert last.kwargs == {}
        assert last.output_gradient.shape == (5, 1)
        assert torch.equal(last.random_state["cpu"], torch.get_rng_state())  # nothing drew a number since
        last.args[0].add_(1.0)
        assert watched.last_pass.args is None


def test_the_throttle_keeps_the_overhead_below_its_limit():
    model = make()
    with watch(model, optimizer := sgd(model), every=2, max_overhead=0.002) as watched:
        train(model, optimizer, data(60))
    assert watched.sampling > 2  # a step of this model takes less than its measurement
    assert watched.overhead > 0
    assert "overhead" in str(watched.report())


def test_a_short_training_has_the_samples_of_a_verdict_and_then_pays_for_them():
    cadence, sampled, trained = Cadence(every=20, max_overhead=0.01, regardless=11), [], 0.0
    for step in range(3000):  # of 13 ms, and a sample costs 7
        cadence.count(due := cadence.due(step), own=0.007 * due, seconds=0.013 + 0.007 * due)
        trained += 0.013 + 0.007 * due
        if due:
            sampled.append((step, trained))
            cadence.plan(step)
    assert {b - a for (a, _), (b, _) in itertools.pairwise(sampled[:11])} == {20, 21}
    assert sampled[11][0] > 500, "they are paid for before the next"
    assert all(0.007 * count <= 0.01 * end + 1e-9 for count, (_, end) in enumerate(sampled[11:], 12))


def test_what_a_short_training_has_not_paid_for_is_said_with_the_time_that_it_takes():
    def go_on(steps, own=0.0):
        for _ in range(steps):
            cadence.count(due := cadence.due(go_on.step), own=0.007 if due else own, seconds=0.013 + 0.007 * due)
            if due:
                cadence.plan(go_on.step)
            go_on.step += 1

    go_on.step, cadence = 0, Cadence(every=20, max_overhead=0.01, regardless=11)
    assert (cadence.told, cadence.paid_in) == ("overhead not measured yet", 0)
    go_on(220)  # of 13 ms, of which 11 cost 7 more
    assert cadence.told == "overhead 2.6 % (1 % after 5 more seconds)"
    go_on(int(cadence.paid_in / 0.013))
    assert (cadence.told, 0 < cadence.paid_in < 0.02) == ("overhead 1 %", True), "rounded it is as it should be"
    go_on(2)
    assert (cadence.told, cadence.paid_in) == ("overhead 1 %", 0)
    assert cadence.overhead <= 0.01
    cadence = Cadence(every=20, max_overhead=0.01, regardless=11)
    go_on.step = 0
    go_on(500, own=0.0005)
    assert cadence.overhead > 0.038
    assert cadence.told.endswith(" (1 % after 4 more minutes)"), "once not every step is heard"
    cadence.pauses = False
    assert cadence.told.endswith(" % (steps are too short for 1 %)")
    go_on(2, own=0.00001)  # a busy machine stretched the others
    assert cadence.told.endswith(" more seconds)")
    cadence.max_overhead = float("inf")  # as tests ask for
    assert cadence.told.endswith(" %")


def test_several_processes_pay_for_the_first_samples_too():
    cadence, sampled, wanted = Cadence(every=20, max_overhead=0.01, regardless=11), [], 20
    for step in range(3000):
        if due := cadence.due(step):
            sampled.append(step)
            cadence.plan(step, wanted)
        cadence.count(due, own=0.007 * due, seconds=0.013 + 0.007 * due)
        if due:  # what they agree on counts from the sample after this one
            wanted = cadence.wanted()
    assert sampled[10] < 210 < 500 < sampled[12]


def test_a_watch_takes_as_many_samples_regardless_as_a_verdict_needs():
    model = make()
    with levada.watch(model, optimizer := sgd(model), every=2, max_overhead=1e-9) as watched:
        train(model, optimizer, data(40))
    assert len(watched.samples) == 11
    assert "8 for a baseline and 3 that confirm" not in str(watched.report())


def test_the_distance_follows_what_steps_take():
    cadence, sampled = Cadence(every=4, max_overhead=0.01), []
    for step in range(2000):
        cost = 0.5 if step < 300 else 0.02  # of a step
        if cadence.due(step):
            sampled.append(step)
            cadence.count(True, own=0.0, seconds=1.0 + cost)
            cadence.plan(step)
        else:
            cadence.count(False, own=0.0, seconds=1.0)
    distances = [b - a for a, b in itertools.pairwise(sampled)]
    assert sampled[:3] == [0, 4, 8], "it takes two comparisons to know what a sample costs"
    dear = [step for step in sampled if step < 300]
    assert all(0.5 * count <= 0.01 * (step + 2) for count, step in enumerate(dear[3:], 4)), "never more in all"
    assert 50 in distances
    assert set(distances[-40:]) == {4, 5}, "one step longer now and then: no period is always missed"
    assert all(after >= before // 2 for before, after in itertools.pairwise(distances))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: nn.Linear(2, 2), ["(root)"]),
        (lambda: nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)), ["1", "4"]),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2), ["layers.0", "layers.1"]),
        (lambda: make(), NAMES),
        (
            lambda: nn.Sequential(
                nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()),
                nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()) for _ in range(2))),
                nn.Sequential(nn.Flatten(), nn.Linear(2, 2)),
            ),
            ["0", "1.0", "1.1", "2"],
        ),
        (
            lambda: levada.Stack([nn.Linear(2, 2) for _ in range(3)], levada.Residual, dim=2),
            ["layers.0", "layers.1", "layers.2"],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_places(build, names):
    assert [place.name for place in find_places(build())] == names


def test_stages_are_opened():
    from benchmarks.torchvision import define_what_torchvision_lacks

    define_what_torchvision_lacks()
    torchvision = pytest.importorskip("torchvision")
    names = [place.name for place in find_places(torchvision.models.resnet18())]
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert names == ["conv1", "bn1", *blocks, "fc"]


def test_nothing_is_said_where_nothing_is_wrong():
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(model, optimizer := sgd(model)):
            train(model, optimizer, data(2))


def test_an_error_of_ours_ends_the_watching_and_not_the_training(monkeypatch):
    plain, model = make(), make()
    train(plain, sgd(plain), data())
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(1))
        monkeypatch.setattr("levada.watching.measure.reading.Reading.see", lambda *_, **__: 1 / 0)
        with pytest.warns(UserWarning, match="measuring raised ZeroDivisionError"):
            train(model, optimizer, data()[1:])
        assert len(watched.samples) == 1
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert hooks_of(model) == 0


def test_gradients_that_were_filled_with_zeros_do_not_count():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            loss_of(model, 100 * x).backward()  # thrown away
            optimizer.zero_grad(set_to_none=False)
            loss_of(model, x).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    agree(watched, by_hand(make(), data()))


def test_gradients_that_were_clipped_between_micro_batches_count():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        first = loss_of(model, data(1)[0])
        first.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        second = loss_of(model, data(2)[1])
        second.backward()
        optimizer.step()
    assert watched.samples[0].scalars["loss"] == pytest.approx(first.item() + second.item(), rel=1e-6)


def test_gradients_of_autograd_grad_are_not_those_of_the_loss():
    def loss(model, x):
        x = x.clone().requires_grad_()
        out = model(x)
        torch.autograd.grad(1000 * out.sum(), x, retain_graph=True)
        return (out - 1.0).square().mean()

    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(), loss)
    agree(watched, by_hand(make(), data()))


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_of_two_backward_passes_through_one_graph_are_added(dropped):
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            optimizer.zero_grad()
            loss = loss_of(model, x)
            if dropped:
                (1e3 * loss).backward(retain_graph=True)
                optimizer.zero_grad()
            (0.5 * loss).backward(retain_graph=True)
            (0.5 * loss).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data()))


def test_a_gradient_that_is_too_large_to_be_kept_until_the_rest_comes_is_unknown(monkeypatch):
    monkeypatch.setattr("levada.watching.measure.reading._KEPT", 0)
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        loss = loss_of(model, data()[0])
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    assert watched.samples[0].values["gradient_rms"].isnan().all()
    assert watched.samples[0].values["gradient_nonfinite"].isnan().all()


@pytest.mark.parametrize("inner", [None, "reentrant", "not"])
def test_a_model_that_is_a_checkpoint_as_a_whole(inner):
    def loss(model, x):
        return (checkpoint(model, x.requires_grad_(), use_reentrant=True) - 1.0).square().mean()

    model = make(inner)
    with warnings.catch_warnings(), watch(model, optimizer := sgd(model)) as watched:
        warnings.filterwarnings("error", message="watch")
        warnings.filterwarnings("ignore", message="None of the inputs")
        train(model, optimizer, data(), loss)
    agree(watched, by_hand(make(), data()))


def test_micro_batches_of_a_model_that_is_a_checkpoint_as_a_whole():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data(3, rows=6):
            optimizer.zero_grad()
            for part in x.chunk(3):
                out = checkpoint(model, part.clone().requires_grad_(), use_reentrant=True)
                ((out - 1.0).square().mean() / 3).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data(3, rows=6), parts=3))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_whose_parts_are_called_one_by_one(in_place):
    def loss(model, x):
        h = model.embed(x)
        for block in model.blocks:
            h = block(h)
        out = model.head(h)
        if in_place:
            out -= 1.0
            return out.square().mean()
        return (out - 1.0).square().mean()

    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            loss(model, 100 * x).backward()  # thrown away
            train(model, optimizer, [x], loss)
    agree(watched, by_hand(make(), data()))


SCALED = {
    "divided": lambda scaler, loss: (scaler.scale(loss) / 1.0).backward(),
    "mean": lambda scaler, loss: scaler.scale(loss.reshape(1)).mean().backward(),
    "list": lambda scaler, loss: torch.autograd.backward(scaler.scale([loss / 2, loss / 2])),
    "sum": lambda scaler, loss: (scaler.scale(loss / 4) + scaler.scale(0.75 * loss)).backward(),
}


@pytest.mark.parametrize("how", SCALED)
def test_a_scaler_is_found_however_its_loss_is_spelled(how):
    model = make()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    other = torch.amp.GradScaler("cpu", init_scale=8.0)
    with watch(model, optimizer) as watched:
        for x in data():
            optimizer.zero_grad()
            SCALED[how](scaler, loss_of(model, x))
            other.scale(x.sum().requires_grad_())  # of another model
            scaler.step(optimizer)
            scaler.update()
    agree(watched, by_hand(make(), data()), rtol=1e-5)
    assert [sample.scalars["loss_scale"] for sample in watched.samples] == [1024.0] * 3


def test_a_loss_that_is_not_scaled_is_not_divided():
    model = make()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(model, optimizer) as watched:
        for x in data():
            scaler.scale(loss_of(make(), x))  # of another model
            train(model, optimizer, [x])
    agree(watched, by_hand(make(), data()))
    assert "loss_scale" not in watched.samples[0].scalars


def test_the_loss_is_seen_where_the_ends_of_the_model_do_not_learn():
    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.old, self.net = nn.Linear(3, 3), net
            self.last = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(3)])

        def forward(self, x):
            return self.old(x) * self.last[0] if self.early else self.net(x)

    model = Wrapped(make())
    model.early = False
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data())
        model.early = True  # other parameters from now on
        loss = loss_of(model, data(1)[0]).item()
        with pytest.warns(UserWarning, match="old did not run in the first sampled step"):
            train(model, optimizer, data(1))
    losses = [sample.scalars["loss"] for sample in watched.samples]
    assert losses == pytest.approx([*(step["loss"] for step in by_hand(make(), data())), loss], rel=1e-6)


@pytest.mark.parametrize("recompute", [None, "not"])
def test_a_block_that_returns_a_mask_too_is_measured_at_its_signal(recompute):
    class Masked(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.linear, self.relu = inner.linear, inner.relu

        def forward(self, mask, x):
            return mask, x + self.relu(self.linear(x))

    class Passing(type(make())):
        def forward(self, x):
            mask, h = torch.ones(len(x)), self.embed(x)
            for block in self.blocks:
                if self.recompute is None:
                    mask, h = block(mask, h)
                else:
                    mask, h = checkpoint(block, mask, h, use_reentrant=False)
            return self.head(h)

    model = Passing(recompute)
    model.load_state_dict(make().state_dict())
    model.blocks = nn.ModuleList(Masked(block) for block in model.blocks)
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data())
    expected = by_hand(make(), data())
    agree(watched, expected)


class Odd(nn.Module):
    """A model that does with its inputs what it is told to."""

    def __init__(self, forward):
        super().__init__()
        self.net, self.then = make(), forward

    def forward(self, *given):
        return self.then(self, *given)


def test_nothing_of_a_pass_is_kept_unless_somebody_asks(monkeypatch):
    drawn = []
    state = torch.get_rng_state
    monkeypatch.setattr("levada.watching.steps.passes.torch.get_rng_state", lambda: drawn.append(1) or state())
    model = make()
    with watch(model, optimizer := sgd(model), every=5) as watched:
        train(model, optimizer, data(3))
        assert drawn == []
        passes = watched._engine.passes
        assert (passes._inputs, passes._gradient) == (None, None)
        assert watched.last_pass is None
        train(model, optimizer, data(1))
        assert len(drawn) == 1
        assert watched.last_pass.step == 3


def test_the_time_of_every_hook_on_the_model_is_counted():
    model = make()
    with watch(model, optimizer := sgd(model), every=100) as watched:
        train(model, optimizer, data(2))
        watched._engine._spent.take()
        model(data(1)[0])
        assert watched._engine._spent.take() > 0


class Held:
    pass


class Before(torch.autograd.Function):
    """A graph in front of the model, whose end shows in what it holds."""

    @staticmethod
    def forward(ctx, x):
        ctx.held = Held()
        Before.held = weakref.ref(ctx.held)
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_inputs_are_let_go_and_the_graph_before_them_too():
    model = make()
    with watch(model, sgd(model)) as watched:
        assert watched.last_pass is None
        x = Before.apply(data(1)[0].requires_grad_())
        given = weakref.ref(x)
        model(x).sum()
        (held,) = watched.inputs.values()
        assert held is x
        assert not watched.last_pass.args[0].requires_grad
        del x, held
        gc.collect()
        assert given() is None
        assert Before.held() is None
        assert watched.inputs == {}
        kept = weakref.ref(watched._engine.passes._inputs)
    assert kept() is None
    assert watched.last_pass is None


def test_ctrl_c_in_a_forward_pass_leaves_what_follows_as_it_is():
    stop = []

    def forward(self, x):
        if stop:
            raise KeyboardInterrupt
        return self.net(x)

    model = Odd(forward)
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(1))
        stop.append(True)
        with pytest.raises(KeyboardInterrupt):
            model(data(1)[0])
        stop.clear()
        assert watched._engine.passes._under.depth == 1
        for x in data(3)[1:]:
            with torch.no_grad():
                model(1000 * x)  # an evaluation
            train(model, optimizer, [x])
    expected = by_hand(make(), data(3))
    for sample, hand in zip(watched.samples, expected, strict=True):
        assert sample.values["signal_rms"][-1].item() == pytest.approx(hand["signal_rms"][-1], rel=1e-5)


def test_a_model_that_calls_itself_has_one_pass():
    model = Odd(lambda self, x, again=True: self(x, False) if again else self.net(x))
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(2))
        assert watched._engine.passes.seen == 2
        assert watched._engine.passes._under.depth == 0


def test_a_forward_pass_that_returns_nothing_has_signals():
    kept = []
    model = Odd(lambda self, x: kept.append(self.net(x).square().mean()))
    with watch(model, optimizer := sgd(model)) as watched:
        optimizer.zero_grad()
        model(data(1)[0])
        kept.pop().backward()
        optimizer.step()
    assert torch.isfinite(watched.samples[0].values["signal_rms"]).all()
    assert (watched.samples[0].values["gradient_rms"] > 0).all()


class Lazy(dict):
    def values(self):
        raise RuntimeError("the disk is away")

    items = values


def test_odd_inputs_do_not_end_the_training():
    endless = [torch.ones(1)]
    endless += [endless, endless]
    model = Odd(lambda self, x, other: self.net(x))
    with warnings.catch_warnings(), watch(model, optimizer := sgd(model)) as watched:
        warnings.simplefilter("error")
        assert watched.last_pass is None
        for other in (Lazy(a=1), endless, (x for x in "abc"), object()):
            optimizer.zero_grad()
            model(data(1)[0], other).square().mean().backward()
            optimizer.step()
            assert watched.last_pass.step == watched.steps - 1
    assert len(watched.samples) == 4


def test_an_error_in_a_hook_of_the_model_ends_the_watching_alone(monkeypatch):
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        monkeypatch.setattr(torch, "is_grad_enabled", lambda: 1 / 0)
        with pytest.warns(UserWarning, match="measuring raised ZeroDivisionError"):
            model(data(1)[0])
        monkeypatch.undo()
        train(model, optimizer, data(1))
    assert len(watched.samples) == 0


KEPT = {"_copies", "_buffers"}


def test_no_copy_of_the_weights_stays_between_sampled_steps():
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(2))
        stacks = watched._engine._structure.norms._stacks._all
        assert stacks
        assert all(value == [] for stack in stacks for name, value in vars(stack).items() if name in KEPT)


def test_a_watch_that_is_gone_leaves_no_switch():
    before = set(compiled._switches)
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(2))
        assert len(set(compiled._switches) - before) == 1
    del watched, model, optimizer
    gc.collect()
    assert set(compiled._switches) <= before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": 5}, "run must name a folder or an address, got int"),
        ({"run": " "}, "run must name a folder, got ' '"),
        ({"run": "/proc/x/y"}, "run must name a folder that can be written to, got '/proc/x/y'"),
        ({"scaler": 3}, r"scaler must have a method get_scale\(\), got int"),
        ({"live": "yes"}, "live must be True, False or 'plain', got 'yes'"),
        ({"listeners": 3}, "listeners must be a sequence of them, got int"),
        ({"listeners": [3]}, "but int has no before_update"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, message):
    model = make()
    with pytest.raises(levada._errors.UsageError, match=message):
        levada.watch(model, sgd(model), **arguments)
    assert hooks_of(model) == 0


def test_no_optimizers_and_no_numbers_are_refused():
    model = make()
    with pytest.raises(levada._errors.UsageError, match="there must be one at least, got none"):
        levada.watch(model, [])
    with (
        levada.watch(model, sgd(model)) as watched,
        pytest.raises(levada._errors.UsageError, match="accuracy must be a number, got 'high'"),
    ):
        watched.log(accuracy="high")


@pytest.mark.parametrize("name", ["loss", "lr", "gradient_norm", "loss_scale", "overhead"])
def test_what_the_watch_measures_is_not_logged_over(name):
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as watched:
        with pytest.raises(
            levada._errors.UsageError, match=rf"Watch\.log: '{name}' is measured by the watch itself, got"
        ):
            watched.log(accuracy=0.5, **{name: 7.0})
        watched.log(accuracy=torch.tensor(0.25), train_loss=torch.ones(1, requires_grad=True))
        with pytest.raises(levada._errors.UsageError, match="accuracy must be one number, got a tensor of 2"):
            watched.log(accuracy=torch.ones(2))
        train(model, optimizer, data(1))
    scalars = watched.samples[0].scalars
    assert (scalars["accuracy"], scalars["train_loss"]) == (0.25, 1.0)
    assert scalars["loss"] == pytest.approx(by_hand(make(), data(1))[0]["loss"])
    assert scalars["lr"] == optimizer.param_groups[0]["lr"]


def test_what_the_judge_found_stays_when_an_error_ends_it(tmp_path):
    model = make()
    optimizer = sgd(model)
    found = Finding("dead_units", "warn", "fired", "half of the units are dead")

    def fail(sample):
        raise ValueError("a rule is broken")

    with levada.watch(model, optimizer, every=1, max_overhead=1.0, run=tmp_path / "run") as watched:
        watched.judge._ledger.stand(found)
        watched.judge.sampled = fail
        with pytest.warns(UserWarning, match="a rule is broken"):
            train(model, optimizer, data(3))
        assert watched.findings == [found]
        assert [finding.claim for finding in watched.report().findings if finding.status == "fired"] == [found.claim]
    assert [event["rule"] for event in Run(tmp_path / "run").events("finding")] == ["dead_units"]
