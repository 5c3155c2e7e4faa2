"""A training that stands still because all that the model gives is NaN: it is told, and nothing else is."""

import io
import math
import time
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import levada
from levada.diagnose import Finding
from levada.runs import Run
from levada.watching.record.exporting import Exporting
from levada.watching.record.recording import Recording
from levada.watching.rerun.replay import replay
from levada.watching.steps.skipped import Skips


def model(out=2):
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)], nn.Linear(8, out))


def batch(bad=False):
    return torch.full((4, 8), math.nan) if bad else torch.randn(4, 8)


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.01)


def heard(watch):
    """Keep all that the rule says of a watch, be it taken back later."""
    said, tell = [], watch._engine.passes.skips.tell
    watch._engine.passes.skips.tell = lambda finding: (said.append(finding), tell(finding))
    return said


def train(net, step, steps, *, every=20, works=True, **options):
    """Run `step(optimizer, i)`, which returns the loss of a step that is made; return what was said, and the watch."""
    optimizer = sgd(net)
    with levada.watch(net, optimizer, every=every, max_overhead=math.inf, **options) as watch:
        said = heard(watch)
        for i in range(steps):
            optimizer.zero_grad()
            if step(optimizer, i) is not False:
                optimizer.step()
    assert works != watch._engine.passes.skips.over
    assert not watch._engine.broken
    return said, watch


def guarded(net, bad, micro=1, *, after_backward=False):
    def step(optimizer, i):
        total = 0.0
        for _ in range(micro):
            loss = net(batch(bad(i))).square().mean() / micro
            if after_backward:
                loss.backward()
            elif not torch.isfinite(loss):
                return False
            else:
                loss.backward()
            total += loss.item()
        return math.isfinite(total)

    return step


# Faulty loops.


@pytest.mark.parametrize("micro", [1, 8])
@pytest.mark.parametrize("good", [0, 50])
@pytest.mark.parametrize("after_backward", [False, True])
def test_a_loop_that_makes_no_update_any_more_is_told_of_once(after_backward, good, micro, tmp_path):
    net = model()
    step = guarded(net, lambda i: i >= good, micro, after_backward=after_backward)
    said, watch = train(net, step, good + 150, run=tmp_path / "run")
    (finding,) = said
    assert (finding.severity, finding.status) == ("error", "fired")
    assert finding.evidence["last_update"] == (good - 1 if good else None)
    assert finding.evidence["nan"] == finding.evidence["passes"]
    assert ("a loss of NaN" in finding.claim) == after_backward
    assert watch.report().verdict == "error"
    assert [e["rule"] for e in Run(tmp_path / "run").events("finding") if e["severity"] == "error"] == ["skipped_steps"]
    (bundle,) = (tmp_path / "run").glob("bundles/*")
    assert bundle.name.endswith("-skipped_steps")
    assert [e["path"] for e in Run(tmp_path / "run").events("bundle")] == [f"bundles/{bundle.name}"]


def test_a_standstill_names_the_weight_that_is_nan_and_its_pass_can_be_run_again(tmp_path):
    net = model()

    def step(optimizer, i):
        if i == 30:
            nn.init.constant_(net[2][0].bias, math.nan)
        loss = net(batch()).square().mean()
        if not torch.isfinite(loss):
            return False
        loss.backward()
        return True

    (finding,), _ = train(net, step, 100, run=tmp_path / "run")
    (event,) = Run(tmp_path / "run").events("finding")
    assert event["claim"] == f"{finding.claim} The parameter 2.0.bias holds NaN."
    assert event["where"] == {"first": "2", "last": "2"}
    (bundle,) = (tmp_path / "run").glob("bundles/*")
    again = replay(bundle, model(), lambda output: output.square().mean())
    assert math.isnan(again.loss)
    assert [f.rule for f in again.report.findings] == ["numerical_overflow"]


def test_a_standstill_whose_weights_are_finite_says_so_or_that_the_inputs_are_not(tmp_path):
    net = model()
    _, watch = train(net, guarded(net, lambda i: True), 60, run=tmp_path / "run")
    assert watch.findings[0].claim.endswith(
        "The batch that the model was given is not finite: the argument input holds NaN in 32 of its 32 values; its "
        "weights are finite."
    )

    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Root())
    nn.init.constant_(net[0].bias, -9.0)
    _, watch = train(net, guarded(net, lambda i: False), 60)
    finite = "The weights and the inputs are finite, so that it arises in the forward pass or in the loss."
    assert watch.findings[0].claim.endswith(finite)


def test_it_is_told_while_the_loop_goes_on_at_the_pass_after_the_32nd(tmp_path):
    net = model()
    with levada.watch(net, sgd(net), run=tmp_path / "run") as watch:
        said = heard(watch)
        for i in range(40):
            net(batch(True)).square().mean()
            assert len(said) == (i >= 32), i
        (recording,) = [one for one in watch._listeners if isinstance(one, Recording)]
        recording.flush()
        assert [e["rule"] for e in Run(tmp_path / "run").events("finding")] == ["skipped_steps"]
    assert watch.steps == 0
    assert said[0].claim.startswith("No update yet: of the last 32 forward passes 32 had outputs that are not finite")


def test_what_is_counted_after_updates_is_what_was_looked_at():
    net = model()
    said, _ = train(net, guarded(net, lambda i: i >= 50), 150)
    # One pass made an update: nine are not looked at, and three quarters of all must be bad.
    told = "No update since step 49, in 40 forward passes: of the last 31, which were looked at, 31 had outputs"
    assert said[0].claim.startswith(told), said[0].claim
    assert said[0].evidence["tests"]["passes_without_update"] == 40


def test_the_next_update_clears_it_and_another_standstill_is_told_again():
    net = model()
    said, watch = train(net, guarded(net, lambda i: i % 100 >= 50), 300)
    assert [None if f is None else f.severity for f in said] == ["error", None] * 2 + ["error"]
    assert [f.status for f in watch.findings if f.rule == "skipped_steps"] == ["clear", "clear", "fired"]


def test_a_loop_that_stands_still_again_and_again_fills_no_memory(tmp_path):
    net = model()
    with levada.watch(net, sgd(net), every=1000, run=tmp_path / "run") as watch:
        for time in range(1000):
            watch._engine.passes.skips.tell(Finding("skipped_steps", "error", "fired", f"standstill {time}"))
            watch._engine.passes.skips.tell(None)
        watch._engine.passes.skips.tell(Finding("skipped_steps", "error", "fired", "the last"))
        assert len(watch.findings) == 16
        assert len(watch.judge.history) <= 1024
        (recording,) = [one for one in watch._listeners if isinstance(one, Recording)]
        assert len(recording._heard) <= 16
        assert (watch.findings[-1].status, watch.findings[-1].evidence["times"]) == ("fired", 1001)
        assert watch.findings[-1].claim.endswith("It came 1,001 times so far.")
    assert len(list(Run(tmp_path / "run").events("finding"))) == 2001  # each is kept in the record


def test_a_standstill_of_crops_and_of_a_cell_is_told_too():
    net = model()

    def crops(optimizer, i):
        loss = sum(net(batch(i > 20)).square().mean() for _ in range(10))
        return False if not torch.isfinite(loss) else loss.backward()

    assert len(train(net, crops, 60)[0]) == 1
    cell = Cell()
    assert len(train(cell, cell.unrolled(lambda i: i > 20), 100)[0]) == 1


def test_a_model_in_parts_is_told_of_by_its_losses():
    net = model()

    def parts(optimizer, i):
        x = batch(i > 20)
        for block in net:
            x = block(x)
        loss = x.square().mean()
        loss.backward()
        return bool(torch.isfinite(loss))

    (finding,) = train(net, parts, 100)[0]
    assert finding.evidence["nan"] <= finding.evidence["passes"]


def test_a_model_that_is_trained_in_its_other_mode_is_told_of():
    net = model().eval()
    assert len(train(net, guarded(net, lambda i: i > 10), 100)[0]) == 1


# Honest loops.


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 8), nn.Linear(8, 8)])

    def forward(self, x, h):
        return torch.tanh(self.layers[1](torch.tanh(self.layers[0](torch.cat([x, h], 1)))))

    def unrolled(self, bad, calls=50):
        def step(optimizer, i):
            h = torch.zeros(4, 8)
            for _ in range(calls if not bad(i) else 4 * calls):
                h = self(batch(bad(i)), h)
            loss = (h - 1).square().mean()
            return False if not torch.isfinite(loss) else loss.backward()

        return step


@pytest.mark.parametrize("when", [0, 1, 4, 13])
def test_one_odd_batch_of_a_cell_that_is_called_many_times(when):
    cell = Cell()
    assert train(cell, cell.unrolled(lambda i: i == when), 30)[0] == []


@pytest.mark.parametrize("when", [0, 1, 13])
def test_one_odd_batch_of_crops(when):
    net = model()

    def crops(optimizer, i):
        loss = sum(net(batch(i == when)).square().mean() for _ in range(10))
        return False if not torch.isfinite(loss) else loss.backward()

    assert train(net, crops, 60)[0] == []


@pytest.mark.parametrize("when", [0, 1, 13])
@pytest.mark.parametrize("after_backward", [False, True])
def test_one_odd_batch_of_micro_batches(when, after_backward):
    net = model()
    assert train(net, guarded(net, lambda i: i == when, 16, after_backward=after_backward), 60)[0] == []


@pytest.mark.parametrize("micro", [32, 64, 128])
@pytest.mark.parametrize("updates", [True, False])
def test_one_odd_batch_of_many_micro_batches_before_the_first_update(micro, updates):
    net = model()

    def step(optimizer, i):
        for _ in range(micro):
            (net(batch(i == 0)).square().mean() / micro).backward()
        if updates:  # as if nothing was: then all weights are NaN, which is another finding
            return True
        return i > 0

    said, watch = train(net, step, 3)
    assert said == []
    assert watch.steps == (3 if updates else 2)


@pytest.mark.parametrize("after_backward", [False, True])
def test_of_one_odd_batch_of_many_micro_batches_the_backward_passes_tell_that_they_are_one(after_backward):
    net = model()
    odd = guarded(net, lambda i: i == 0, 64, after_backward=True)

    def step(optimizer, i):
        if after_backward or i > 0:
            return odd(optimizer, i) or i > 0
        for _ in range(64):  # each is left out before its backward pass: as many batches, for all that is seen
            assert not torch.isfinite(net(batch(True)).square().mean())
        return True

    said, _ = train(net, step, 3)
    assert [finding and finding.evidence["passes"] for finding in said] == ([] if after_backward else [32, None])


def test_many_micro_batches_that_never_make_an_update_are_told_of_after_a_few_batches():
    net = model()

    def step(optimizer, i):
        for _ in range(64):
            net(batch(True)).square().mean().backward()
        return False

    (finding,), _ = train(net, step, 5)
    assert finding.evidence["passes"] == 3 * 64 + 8


def test_gradients_that_are_never_cleared_are_told_of_after_256_passes():
    net = model()
    with levada.watch(net, sgd(net)) as watch:
        said = heard(watch)
        for i in range(300):
            net(batch(True)).square().mean().backward()
            assert len(said) == (i >= 256), i


@pytest.mark.parametrize("after_backward", [False, True])
def test_batches_that_a_guard_leaves_out_now_and_then(after_backward):
    net = model()
    assert train(net, guarded(net, lambda i: i % 10 != 0, after_backward=after_backward), 200)[0] == []


@pytest.mark.parametrize("kind", ["by sample", "jacobian", "jvp"])
@pytest.mark.parametrize("sampled", [True, False])
def test_transforms_of_functions_between_steps(kind, sampled):
    net = model()

    def step(optimizer, i):
        if sampled or i % 20 in (5, 9, 13):
            if kind == "jacobian":
                vmap(jacrev(net))(batch())
            elif kind == "jvp":
                jvp(net, (batch(),), (batch(),))
            else:
                weights = {name: p.detach() for name, p in net.named_parameters()}
                of_one = grad(lambda p, x: functional_call(net, p, (x[None],)).square().mean())
                vmap(of_one, in_dims=(None, 0))(weights, batch())
        net(batch()).square().mean().backward()

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        said, watch = train(net, step, 60, every=1 if sampled else 20)
    assert said == []
    # What is sampled is the pass of the training alone.
    assert len(watch.samples) >= (30 if sampled else 3)
    assert all(s.values["signal_rms"].isfinite().all() for s in watch.samples)


def test_gradients_by_sample_that_are_what_is_trained_with():
    net = model()

    def step(optimizer, i):
        weights = {name: p.detach() for name, p in net.named_parameters()}
        of_one = grad(lambda p, x: functional_call(net, p, (x[None],)).square().mean())
        found = vmap(of_one, in_dims=(None, 0))(weights, batch())
        for name, p in net.named_parameters():
            p.grad = found[name].mean(0)

    with pytest.warns(UserWarning, match="no pass of the model that may train it was seen"):
        found = train(net, step, 60, every=5)[0]
    assert found == []


def test_two_networks_against_each_other():
    torch.manual_seed(0)
    first, second = model(8), model(1)
    one, other = sgd(first), sgd(second)
    loss = nn.functional.binary_cross_entropy_with_logits
    with levada.watch(first, one) as watch, levada.watch(second, other) as beside:
        said = heard(watch), heard(beside)
        for _ in range(80):
            other.zero_grad()
            (
                loss(second(batch()), torch.ones(4, 1)) + loss(second(first(batch()).detach()), torch.zeros(4, 1))
            ).backward()
            other.step()
            one.zero_grad()
            loss(second(first(batch())), torch.ones(4, 1)).backward()
            one.step()
    assert said == ([], [])


def test_a_scaler_of_the_loop_that_looks_for_its_scale():
    net = model().half()
    scale = [2.0**60]

    def step(optimizer, i):
        (net(batch().half()).square().mean() * scale[0]).backward()
        if not all(p.grad.isfinite().all() for p in net.parameters()):
            scale[0] /= 2
            return False
        return None

    assert train(net, step, 80)[0] == []
    assert scale[0] < 2.0**20


def test_a_step_that_the_loop_leaves_out_while_a_scaler_looks_for_its_scale():
    net = model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=0.9, growth_interval=1000)

    def step(optimizer, i):
        scaler.scale(net(batch()).square().mean() * 1e6).backward()
        scaler.unscale_(optimizer)
        if torch.isfinite(nn.utils.clip_grad_norm_(net.parameters(), 1.0)):
            scaler.step(optimizer)
        scaler.update()
        return False

    said, watch = train(net, step, 200)
    assert said == []
    assert 0 < watch.steps < 160


def test_a_scaler_that_skips_is_told_of_by_its_own_rule():
    net = model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step(optimizer, i):
        scaler.scale(net(batch(i > 20)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        return False

    assert train(net, step, 100)[0] == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_masked_outputs_of_which_nothing_is_learned(value):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model(4)

        def forward(self, x):
            return torch.cat([self.net(x), torch.full((len(x), 1), value)], 1)

    net = Masked()

    def step(optimizer, i):
        for _ in range(40 * (i == 0 and not math.isnan(value))):  # before the first update, where all is looked at
            net(batch())
        target = net(batch())[:, :4].min(1)[0].detach()
        (net(batch())[:, 0] - 0.9 * target).square().mean().backward()
        return i % 40 == 39  # accumulated over many passes

    assert train(net, step, 200)[0] == []


def test_passes_that_are_no_training():
    net = model()
    net.eval()
    with levada.watch(net, sgd(net)) as watch:
        said = heard(watch)
        for _ in range(100):
            net(batch(True))  # padded validation, with gradients, before the first update
    assert said == []
    net.train()

    def step(optimizer, i):
        with torch.no_grad():
            net(batch(True))
        with torch.inference_mode():
            net(batch(True))
        net.eval()
        for _ in range(50):
            net(batch(True))
        net.train()
        net(batch()).square().mean().backward()

    assert train(net, step, 20)[0] == []


def test_a_closure_and_a_model_that_is_frozen():
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)
    with levada.watch(net, optimizer) as watch:
        said = heard(watch)

        def closure():
            optimizer.zero_grad()
            loss = net(batch()).square().mean()
            loss.backward()
            return loss

        for _ in range(60):
            optimizer.step(closure)
        net.requires_grad_(False)
        for _ in range(60):
            net(batch(True))
    assert said == []


def test_an_optimizer_that_the_watch_was_not_given_makes_updates_too():
    net = model()
    net.register_parameter("shift", nn.Parameter(torch.full((2,), math.nan)))
    net.forward = lambda x: nn.Sequential.forward(net, x) + net.shift
    another = torch.optim.SGD([p for p in net.parameters() if p is not net.shift], lr=0.01)

    def step(optimizer, i):
        net(batch()).sum().backward()
        another.step()
        return False

    with pytest.warns(UserWarning, match="something trains the model that the watch was not given"):
        found = train(net, step, 100)[0]
    assert found == []


# What it costs, and what it leaves behind.


def test_nothing_is_looked_at_while_updates_come(monkeypatch):
    seen = []
    monkeypatch.setattr("levada.watching.steps.skipped.tensors", lambda output: seen.append(output) or iter(()))
    net = model()

    def step(optimizer, i):
        for _ in range(1 + i % 7):
            net(batch()).square().mean().backward()

    train(net, step, 100)
    assert len(seen) == 1  # the pass before the first update


def test_a_long_look_ends():
    net = model()
    skips, looked = Skips(net), []
    skips._count = lambda count=skips._count: (count(), looked.append(skips._looks))
    for _ in range(2000):
        skips.returned(torch.ones(1, requires_grad=True) * 1.0, training=True)
    assert sum(looked) == 512


@pytest.mark.parametrize("keeps", [False, True])
def test_outputs_can_be_saved_without_a_warning(keeps):
    net = model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with levada.watch(net, sgd(net)) as watch:
            for _ in range(20):
                if keeps:
                    _ = watch.last_pass
                torch.save(net(batch()), io.BytesIO())


class Odd(torch.Tensor):
    """A tensor of which nothing can be read."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.amax, torch.isnan):
            raise RuntimeError("not to be looked at")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_is_not_looked_at():
    net = model()
    skips = Skips(net)
    for _ in range(100):
        skips.returned(net(batch(True)).as_subclass(Odd), training=True)
    assert not skips.over


def test_an_error_in_it_ends_it_alone(monkeypatch):
    net = model()

    def broken(tensor):
        raise RuntimeError("broken")

    monkeypatch.setattr("levada.watching.steps.skipped._is_nan", broken)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        _, watch = train(net, guarded(net, lambda i: False), 60, every=5, works=False)
    assert ["skipped_steps raised RuntimeError: broken" in str(one.message) for one in warned] == [True]
    assert len(watch.samples) > 8


# Who hears of it.


def stand_still(watch, passes=40):
    for _ in range(passes):
        watch.model(batch(True)).square().mean()


def test_the_live_view_says_it_before_any_sample_and_at_the_end(capsys):
    net = model()
    with levada.watch(net, sgd(net), live="plain") as watch:
        stand_still(watch)
        assert "levada: step 0, error: skipped_steps: No update yet" in capsys.readouterr().err
    ended = capsys.readouterr().err
    assert "0 steps watched" in ended
    assert "skipped_steps" in ended


class Exporter:
    where = "memory"

    def __init__(self):
        self.told = []

    def write(self, step, time, numbers):
        pass

    def tell(self, step, time, rule, text):
        self.told.append((step, rule))

    def close(self):
        pass


def test_an_exporter_is_told_although_no_sample_comes():
    net, exporter = model(), Exporter()
    exporting = Exporting(exporter)
    with levada.watch(net, sgd(net), listeners=[exporting]) as watch:
        stand_still(watch)
        for _ in range(2400):
            if exporter.told:
                break
            time.sleep(0.05)
        assert exporter.told == [(0, "skipped_steps")]


class Listening:
    found = ()  # a name of the user's own

    def __init__(self):
        self.between, self.samples = [], 0

    def before_update(self, step, loss):
        pass

    def sampled(self, sample):
        self.samples += 1

    def close(self):
        pass


class ListeningBetween(Listening):
    def found_between_samples(self, step):
        self.between.append(step)


class Named(Listening):
    found_between_samples = None


def test_a_listener_hears_between_samples_if_it_has_the_method():
    net, heard_of = model(), [Listening(), ListeningBetween(), Named()]
    step = guarded(net, lambda i: 20 <= i < 60)
    _, watch = train(net, step, 100, every=1, listeners=heard_of)
    assert [one.between for one in heard_of] == [[], [20, 20], []]
    assert [one.samples for one in heard_of] == [60] * 3
    assert all(one in watch._listeners for one in heard_of)
