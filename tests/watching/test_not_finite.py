"""A step that is not finite: what is said while it runs, and when it is run again, of data, weights and the loss."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.cli import main
from levada.report.words import headline
from levada.watching.measure.given import unfit_inputs
from levada.watching.rerun.replay import replay
from levada.watching.verdict.bundle import Bundle

BAD, LAST = 17, 24  # a step that is not sampled, and the number of steps


class Named(nn.Module):
    """Maps `x` where `mask` allows it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x, mask=None):
        scores = x.unsqueeze(1) if mask is None else x.unsqueeze(1) + mask
        x = torch.where(scores.isneginf(), 0.0, scores).squeeze(1)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def squares(outputs, targets):
    return (outputs - targets).square().mean()


def ran(tmp_path, spoil, *, note=False, at=BAD, model=None, run=True, every=5, forward=None, loss=squares):
    """Train; before step `at` `spoil` changes its batch. Return the finding, the watch and the model."""
    torch.manual_seed(0)
    model = Named() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    folder = tmp_path / "run" if run else None
    with levada.watch(model, optimizer, run=folder, every=every, max_overhead=math.inf) as watch:
        for step in range(LAST):
            x, targets = torch.randn(8, 4), torch.randn(8, 4)
            if step == at:
                spoil(x, targets)
            if note:
                watch.note(targets=targets)
            optimizer.zero_grad()
            outputs = model(x) if forward is None else forward(model, x, step)
            loss(outputs, targets, *([step] if loss is not squares else [])).backward()
            optimizer.step()
    (finding,) = (f for f in watch.findings if f.rule == "numerical_overflow")
    return finding, watch, model


def again(watch, loss=None):
    return replay(watch.judge.keeper.folders[0], Named(), loss)


def overflow(replayed):
    return next(f for f in replayed.report.findings if f.rule == "numerical_overflow")


def spoilt_inputs(x, targets):
    x[3, 2], x[0, 0] = math.nan, math.inf


def spoilt_targets(x, targets):
    targets[3, 1] = math.nan


def nothing(x, targets):
    pass


@pytest.mark.parametrize(("run", "at"), [(True, BAD), (False, BAD), (True, 15)])  # step 15 is sampled
def test_a_batch_that_is_not_finite_is_told_with_its_argument_and_how_many_values(tmp_path, run, at):
    finding, _, _ = ran(tmp_path, spoilt_inputs, run=run, at=at)
    held = "the argument x holds NaN in 1 and Inf in 1 of its 32 values; its weights are finite"
    assert held in finding.claim
    assert (finding.evidence["tensor"], finding.evidence["step"], finding.evidence["entered_after"]) == (
        "inputs",
        at,
        at - 1,
    )
    assert finding.remedies[0].name == "look at the data"
    assert "operation" not in finding.falsify


@pytest.mark.parametrize("run", [True, False])
def test_noted_targets_are_looked_at_with_a_folder_and_without(tmp_path, run):
    finding, watch, _ = ran(tmp_path, spoilt_targets, note=True, run=run)
    assert (
        "the targets hold NaN in 1 of their 32 values; its weights are finite, and so are the inputs" in finding.claim
    )
    assert finding.evidence["tensor"] == "targets"
    assert watch.judge.left_out.targets is None  # they are let go


def test_targets_of_another_step_say_nothing_of_this_one():
    model, x = Named(), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, max_overhead=math.inf) as watch:
        watch.note(targets=torch.zeros(8, 4))
        for step in range(6):
            optimizer.zero_grad()
            squares(model(x), torch.full((8, 4), math.nan if step == 5 else 0.0)).backward()
            optimizer.step()
    (finding,) = (f for f in watch.findings if f.rule == "numerical_overflow")
    assert "the weights and the inputs are finite" in finding.claim
    assert "or comes with the targets, which were not noted" in finding.claim


class Scaled(Named):
    """Times a buffer that holds 1, beside a mask and running statistics that pass NaN on to nobody."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x, mask=None):
        return self.norm(super().forward(x, mask) * self.scale)


def test_a_buffer_that_is_not_finite_is_named_and_the_pass_not_blamed(tmp_path):
    def forward(model, x, step):
        if step == BAD:
            model.scale.fill_(math.nan)
        return model(x)

    finding, _, _ = ran(tmp_path, nothing, model=Scaled(), run=False, forward=forward)
    assert "the buffer scale holds NaN; the weights and the inputs are finite, so that it comes from" in finding.claim
    assert "unless this forward pass wrote it" in finding.claim
    assert finding.evidence["tensor"] == "buffer"


def test_masks_and_statistics_that_the_pass_has_written_are_not_blamed(tmp_path):
    class Rooted(Scaled):
        bad = False

        def forward(self, x, mask=None):
            return super().forward((-x.abs() - 1.0).sqrt() if self.bad else x, mask)

    def forward(model, x, step):
        model.bad = step == BAD
        return model(x)

    finding, _, model = ran(tmp_path, nothing, model=Rooted(), run=False, forward=forward)
    assert model.norm.running_mean.isnan().all()
    assert "so that it arises in the forward pass or in the loss" in finding.claim
    assert "buffer" not in finding.claim


def test_a_replay_of_it_says_so_and_to_look_at_the_data(tmp_path, capsys):
    _, watch, _ = ran(tmp_path, spoilt_inputs)
    (tmp_path / "target.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Named(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])\n\n"
        "    def forward(self, x):\n        for layer in self.layers:\n            x = x + torch.tanh(layer(x))\n"
        "        return x\n"
    )
    assert main(["replay", str(watch.judge.keeper.folders[0]), "--model", f"{tmp_path}/target.py:Named"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "The batch holds NaN or Inf. numerical_overflow" in shown
    assert "the argument x holds NaN in 1 and Inf in 1 of its 32 values; its parameters are finite." in shown
    assert "repair: look at the data (what to look at)" in shown
    assert "its input and its parameters are finite" not in shown
    assert "detect_anomaly" not in shown


def test_infinities_of_a_mask_are_not_blamed_for_another_nan():
    mask = torch.zeros(8, 4, 4)
    mask[:, :, 3] = -math.inf

    class Rooted(Named):
        def forward(self, x, mask=None):
            return super().forward(x, mask) + torch.sqrt(-x.abs() - 1.0)

    model = Rooted()
    values = {"args": (torch.randn(8, 4),), "kwargs": {"mask": mask[:, :1]}, "weights": model.state_dict()}
    facts = {"loss_of": 3}
    kept = Bundle(3, "numerical_overflow", "The loss of step 3 is NaN.", values=values, facts=facts)
    found = replay(kept, model)
    finding = overflow(found)
    assert finding.evidence["tensor"] == "signal"
    assert "The first NaN is made by sqrt" in finding.claim
    assert finding.remedies == ()  # it is known which
    assert any("the argument mask holds -Inf in 8 of its 32 values" in note for note in found.report.notes)


class Scores(nn.Module):
    """Scores of which a mask closes some."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.eye(4))

    def forward(self, x):
        return (x @ self.scale).masked_fill(torch.eye(4, dtype=torch.bool)[0], -math.inf)


class Masked(Named):
    def __init__(self):
        super().__init__()
        self.scores = Scores()

    def forward(self, x):
        return super().forward(torch.softmax(self.scores(x), -1) + x)


@pytest.mark.parametrize("at", [BAD, LAST - 1])  # the last one is behind all samples
def test_a_mask_that_a_block_gives_hides_nothing_that_is_not_finite_later(tmp_path, at):
    finding, watch, _ = ran(tmp_path, spoilt_inputs, model=Masked(), at=at)
    assert (finding.severity, finding.evidence["step"], finding.evidence["tensor"]) == ("error", at, "inputs")
    assert watch.report().verdict == "error"
    assert len(watch.judge.keeper.folders) == 1
    finding, watch, _ = ran(tmp_path / "sound", nothing, model=Masked())
    assert (finding.severity, finding.where["first"]) == ("info", "scores")


def test_a_row_that_a_mask_closes_whole_is_blamed_on_the_mask():
    class Soft(Named):
        def forward(self, x, mask):
            return self.layers[0](x) * torch.softmax(mask, -1)

    mask = torch.zeros(8, 4)
    mask[2] = -math.inf
    model = Soft()
    values = {"args": (torch.randn(8, 4), mask), "kwargs": {}, "weights": model.state_dict()}
    kept = Bundle(3, "numerical_overflow", "why", values=values, facts={"loss_of": 3})
    finding = overflow(replay(kept, model))
    assert finding.evidence["tensor"] == "inputs"
    assert "the argument mask holds -Inf in 4 of its 32 values" in finding.claim
    assert finding.claim.endswith("A mask of -Inf may be meant.")


def test_nan_in_a_batch_that_the_model_leaves_out_is_no_error():
    class Filled(Named):
        def forward(self, x):
            return super().forward(torch.nan_to_num(x))

    model, x = Filled(), torch.randn(8, 4)
    x[0, 0] = math.nan
    values = {"args": (x,), "kwargs": {}, "weights": model.state_dict(), "targets": torch.zeros(8, 4)}
    found = replay(Bundle(3, "loss_spike", "why", loss=1.0, values=values), model, squares)
    assert found.report.findings == ()
    assert found.report.verdict == "unknown"  # it does not show the spike that it was kept for
    assert any("the argument x holds NaN in 1 of its 32 values" in note for note in found.report.notes)


def test_inputs_that_are_not_at_hand_are_not_called_finite(tmp_path, monkeypatch):
    monkeypatch.setattr("levada.watching.engine._CAP", 8)
    finding, _, _ = ran(tmp_path, spoilt_inputs)
    assert "the weights are finite, so that it arises" in finding.claim
    assert "or comes with the inputs, which were not seen" in finding.claim
    assert "the weights are finite, so that it arises in the forward pass or in the loss" in finding.claim


def test_nested_inputs_are_named_by_their_place():
    batch = {"ids": torch.ones(2), "parts": [torch.ones(1), torch.tensor([math.nan, 1.0])]}
    assert [one.name for one in unfit_inputs({"batch": batch}, None)] == ["the argument batch['parts'][1]"]


# The targets.


def test_targets_that_were_noted_and_are_not_finite_are_named(tmp_path):
    finding, watch, _ = ran(tmp_path, spoilt_targets, note=True)
    assert (
        "the targets hold NaN in 1 of their 32 values; its weights are finite, and so are the inputs" in finding.claim
    )
    for loss in (None, squares):
        told = overflow(again(watch, loss))
        assert told.evidence["tensor"] == "targets"
        assert "the targets hold NaN in 1 of their 32 values" in told.claim
        assert told.remedies[0].name == "look at the data"


def test_targets_that_were_not_noted_are_not_ruled_out(tmp_path):
    finding, watch, _ = ran(tmp_path, spoilt_targets)
    assert finding.claim.endswith("in the loss, or comes with the targets, which were not noted.")
    told = overflow(again(watch))
    assert told.evidence["tensor"] == "loss"
    assert told.claim.endswith("it arises in the loss, or comes with the targets, which were not noted.")
    assert told.remedies[0].name == "run the loss again"


def infinite_targets(x, targets):
    targets[2, 1] = math.inf


def test_a_loss_that_was_not_run_again_is_not_said_to_overflow_itself(tmp_path):
    _, watch, _ = ran(tmp_path, infinite_targets)
    told = overflow(again(watch))
    assert told.claim.startswith(f"The loss of step {BAD} was Inf, although every block's output is finite: ")
    # The NaN that the backward pass makes of the gradient that was kept follows from it, and is no cause.
    assert told.claim.endswith("it arises in the loss, or comes with the targets, which were not noted.")


def test_a_loss_that_needs_targets_where_none_were_noted_says_how_they_are(tmp_path):
    _, watch, _ = ran(tmp_path, spoilt_targets)
    with pytest.raises(UsageError, match=r"holds no targets.* Watch.note\(targets=targets\)"):
        again(watch, squares)


# The loss alone.


def with_a_term(outputs, targets, step=BAD):
    """Add a term without a gradient, of the logarithm of a negative number."""
    return squares(outputs, targets) + (torch.log(torch.tensor(-1.0)) if step == BAD else 0.0)


def test_a_loss_that_is_nan_with_finite_gradients_does_not_threaten_the_weights(tmp_path):
    finding, watch, model = ran(tmp_path, nothing, note=True, loss=with_a_term)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert "the weights, the inputs and the noted targets are finite" in finding.claim
    assert finding.consequence.startswith("The gradients are finite all the same")
    found = again(watch)
    assert found.report.verdict == "error"  # and not healthy, as every block is
    told = overflow(found)
    assert (
        f"The loss of step {BAD} was NaN, although every block's output is finite: it arises in the loss, and the"
        in told.claim
    )
    assert told.consequence.startswith("The gradients are finite all the same")
    named = again(watch, with_a_term)
    assert (named.origin.kind, named.origin.operation) == ("NaN", "log")
    assert str(named.origin) in overflow(named).claim
    other = overflow(again(watch, squares))  # another loss than that of the loop
    assert other.severity == "warn"
    assert f"was NaN, and run again it is {again(watch, squares).loss:.4g} now" in other.claim


def test_of_several_passes_only_the_kept_one_is_spoken_for(tmp_path):
    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, run=tmp_path / "run", every=5, max_overhead=math.inf) as watch:
        for part in range(3):
            x, targets = torch.randn(8, 4), torch.randn(8, 4)
            if part == 1:
                spoilt_targets(x, targets)
            watch.note(targets=targets)
            squares(model(x), targets).backward()
        optimizer.step()
    found = again(watch)
    assert found.report.verdict == "warn"
    told = overflow(found).claim
    assert "every number of this pass is finite. Pass 3 of the step is kept: it arose in one of those before" in told


# The weights.


def test_weights_that_hold_nan_from_the_start_were_not_broken_by_an_update(tmp_path):
    model = Named()
    for layer in model.layers[:2]:
        layer.weight.data[0, 0] = math.nan
    state = model.state_dict()
    loaded = Named()
    loaded.load_state_dict(state)
    finding, _, _ = ran(tmp_path, nothing, model=loaded)
    assert (
        "2 parameters of several blocks hold NaN or Inf since before the first step that was watched" in finding.claim
    )
    assert "update of" not in finding.claim


def test_the_last_finite_loss_is_the_one_before(tmp_path):
    def broken(model, x, step):
        if step == BAD:
            for layer in model.layers[:2]:
                layer.weight.data[0, 0] = math.nan
        return model(x)

    finding, _, _ = ran(tmp_path, nothing, forward=broken)
    assert f"hold NaN or Inf since the update of step {BAD - 1}" in finding.claim  # not of the last sampled one


def test_a_step_that_a_scaler_skips_is_no_finding(tmp_path):
    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with levada.watch(model, optimizer, run=tmp_path / "run", every=5, max_overhead=math.inf) as watch:
        for step in range(60):
            optimizer.zero_grad()
            loss = squares(model(torch.randn(8, 4)), torch.randn(8, 4))
            scaler.scale(loss * 1e38 if step in (15, 42, 59) else loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() == 2.0**7
    assert not [f for f in watch.findings if f.rule == "numerical_overflow"]
    assert watch.judge.keeper.folders == []


class Around(nn.Module):
    """Holds a model that the loop calls by itself."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"net": Named()})
        self.head = nn.Linear(4, 4)

    def parted(self, x, step):
        return self.head(self.parts["net"](x))


@pytest.mark.parametrize("run", [True, False])
def test_of_a_model_whose_parts_the_loop_calls_the_first_one_names_its_argument(tmp_path, run):
    finding, _, model = ran(tmp_path, spoilt_inputs, model=Around(), forward=Around.parted, run=run)
    held = "the argument x of parts.net holds NaN in 1 and Inf in 1 of its 32 values; its weights are finite"
    assert held in finding.claim
    assert not any(module._forward_pre_hooks for module in model.modules()), "the watch was closed"


def test_inputs_of_parts_that_were_not_seen_are_not_ruled_out(tmp_path, monkeypatch):
    monkeypatch.setattr("levada.watching.steps.parts._MOST", 0)
    finding, _, _ = ran(tmp_path, spoilt_inputs, model=Around(), forward=Around.parted)
    unseen = "or comes with the inputs, which were not seen, or with the targets, which were not noted"
    assert f"the weights are finite, so that it arises in the forward pass or in the loss, {unseen}." in finding.claim


def test_of_parts_the_inputs_of_the_first_are_ruled_out_alone(tmp_path):
    def parted(model, x, step):
        return model.head(model.parts["net"](x) * (math.nan if step == BAD else 1.0))

    finding, _, _ = ran(tmp_path, nothing, model=Around(), forward=parted, note=True)
    told = (
        "the weights, the inputs of parts.net and the noted targets are finite, so that it arises in the forward pass"
    )
    assert told in finding.claim
    assert finding.claim.endswith("or in the loss, or comes with what other parts were given.")


def test_parts_are_not_listened_to_where_the_model_is_called(tmp_path):
    hooks = []

    def whole(model, x, step):
        hooks.append(sum(len(module._forward_pre_hooks) for module in model.modules()))
        return model(x)

    ran(tmp_path, spoilt_inputs, forward=whole, every=100)
    assert set(hooks[1:]) == {1}


class Between(nn.Module):
    """Makes NaN between two blocks, by an operation of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(4)])
        self.spoils = False

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            x = x + block(x) if i else block(x)
            if self.spoils and i == 1:
                x = x + torch.log(x * 0 - 1) * 0
        return x


def test_what_arises_between_two_blocks_is_blamed_on_neither_by_all_three_commands(tmp_path):
    torch.manual_seed(0)

    def forward(model, x, step):
        model.spoils = step == 15  # which is sampled
        return model(x)

    watched, watch, _ = ran(tmp_path, nothing, model=Between(), forward=forward, note=True)
    blocks = (
        "it is in the output of blocks.2, the first block to have any; that of blocks.1 is finite, so that it arose"
    )
    assert f"{blocks} in blocks.2 or between the two" in watched.claim
    spoils = Between()
    spoils.spoils = True
    replayed = overflow(replay(watch.judge.keeper.folders[0], spoils, squares))
    checked = overflow(SimpleNamespace(report=levada.check(spoils, (torch.randn(8, 4), torch.randn(8, 4)), loss="mse")))
    for finding in (replayed, checked):
        assert finding.claim.startswith(
            "NaN or Inf arises between the output of blocks.1 (Sequential), which is finite"
        )
        assert "and the input of blocks.2, of which it is 100.0%: log in the model (Between) makes it" in finding.claim
    assert {finding.where["first"] for finding in (watched, replayed, checked)} == {"blocks.2"}


def test_what_a_module_without_weights_makes_is_not_said_to_be_the_output_of_the_block_before_it():
    class Logs(nn.Module):
        def forward(self, x):
            return x + torch.log(x * 0 - 1) * 0

    model = nn.Sequential(*(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(4)))
    model.insert(2, Logs())
    finding = overflow(SimpleNamespace(report=levada.check(model, (torch.randn(8, 4), torch.randn(8, 4)), loss="mse")))
    assert "between the output of 1.1 (Linear), which is finite, and the input of 3.0" in finding.claim
    assert "log in 2 (Logs) makes it" in finding.claim
    assert finding.where["first"] == "1.1", "to which it belongs"


class Behind(nn.Module):
    """Puts a function behind its last block, or before it."""

    def __init__(self, function, place):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.function, self.place, self.returned = function, place, None

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            x = block(x)
            self.returned = x if i == self.place else self.returned
            x = self.function(x) if i == self.place else x
        return x


@pytest.mark.parametrize("function", [torch.sqrt, lambda x: x / torch.zeros(())])
@pytest.mark.parametrize("place", [3, 1])
def test_a_block_that_returns_finite_numbers_has_them_in_its_row_whatever_comes_behind(tmp_path, function, place):
    model, batch = Behind(function, place), (torch.randn(8, 4), torch.randn(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, run=tmp_path / "run", every=1) as watch:
        watch.note(targets=batch[1])
        squares(model(batch[0]), batch[1]).backward()
        size = float(model.returned.detach().square().mean().sqrt())
        optimizer.step()
    replayed = replay(watch.judge.keeper.folders[0], Behind(function, place), squares).report
    for report in (replayed, levada.check(Behind(function, place), batch, loss="mse")):
        block = report.blocks[place]
        assert block["site"] == f"blocks.{place}"
        assert block["nonfinite"] == 0
        assert block["signal_rms"] == pytest.approx(size, rel=1e-5)
        assert any(f"The row of blocks.{place} has what that returns" in note for note in report.notes)
        assert all(not math.isfinite(later["signal_rms"]) for later in report.blocks[place + 1 :])


def test_what_arises_in_a_block_is_blamed_on_it():
    model = Between()
    with torch.no_grad():
        model.blocks[1][1].weight.fill_(3e38)
    finding = overflow(SimpleNamespace(report=levada.check(model, (torch.randn(8, 4), torch.randn(8, 4)), loss="mse")))
    assert "of the output of blocks.1 (Sequential) is NaN or Inf, the first block to have any" in finding.claim
    assert finding.where["first"] == "blocks.1"


def test_a_parameter_that_an_update_broke_is_told_with_that_step():
    """A gradient that is not finite behind a loss that is: it is seen with the loss of the step after it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=100) as watch:
        for step in range(BAD + 2):
            optimizer.zero_grad()
            x = torch.randn(8, 4)
            x[0, 0] = math.inf if step == BAD else x[0, 0]
            model(x).square().mean().backward()
            optimizer.step()
    (finding,) = (f for f in watch.findings if f.rule == "numerical_overflow")
    wrote = f"the loss of step {BAD} was finite, so that its update wrote it, or what came after that"
    assert f"the parameter 0.weight holds NaN; {wrote}" in finding.claim


class Rooted(nn.Module):
    """A model that takes a root of what its last block returns."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return (x - x.max().detach() - 1.0).sqrt()


def test_what_the_model_computes_behind_its_last_block_is_not_ruled_out():
    torch.manual_seed(0)
    model = Rooted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=1, max_overhead=1.0) as watch:
        squares(model(torch.randn(8, 4)), torch.zeros(8, 4)).backward()
        optimizer.step()
    (finding,) = watch.findings
    assert "it arises behind the last one, in the model or in the loss, or comes with the targets" in finding.claim
    report = levada.check(Rooted(), (torch.randn(8, 4), torch.zeros(8, 4)), loss="mse")
    assert headline(report.to_dict()) == "The signal becomes NaN or Inf behind blocks.2"  # which is finite
