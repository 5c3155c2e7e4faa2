"""A kept step, run again: the same numbers as then, the operation that breaks them, and clear words where it cannot."""

import json
import math

import pytest
import torch
from torch import nn

from levada._errors import MeasurementError, UsageError
from levada.cli import main
from levada.probe.origin import Origins
from levada.watching.rerun.replay import replay
from levada.watching.verdict.bundle import Bundle, write_bundle
from levada.watching.watch import watch

TARGET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.norm, self.drop = nn.Linear(12, 12), nn.LayerNorm(12), nn.Dropout(0.4)

    def forward(self, x):
        return x + self.drop(torch.relu(self.map(self.norm(x))))


class Root(nn.Module):
    def forward(self, x):
        return torch.sqrt(x)


def build(root=False):
    return nn.Sequential(nn.Linear(6, 12), *[Block() for _ in range(4)], *([Root()] if root else []), nn.Linear(12, 3))


def rooted():
    return build(root=True)


def wider():
    return nn.Sequential(nn.Linear(6, 13), nn.Linear(13, 3))


def shorter():
    return nn.Sequential(nn.Linear(6, 12), Block(), nn.Linear(12, 3))


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
"""


@pytest.fixture
def target(tmp_path):
    file = tmp_path / "target.py"
    file.write_text(TARGET)
    return str(file)


def load(target, name):
    from levada.targets import load as found

    return found(f"{target}:{name}")


def kept(run, model, loss, at=44, factor=100.0, autocast=False):
    """Train until a batch is spoiled; return its bundle, and the loss and the blocks' gradients of that step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watching = watch(model, optimizer, run=run, every=1, max_overhead=math.inf)
    losses, gradients = [], {}

    def see(name, output):
        output.register_hook(lambda g: gradients.__setitem__(name, float(g.double().square().mean().sqrt())))

    for name, block in model.named_children():
        block.register_forward_hook(lambda m, args, output, name=name: see(name, output))
    with watching:
        for step in range(at + 1):
            inputs, targets = torch.randn(8, 6), torch.randint(3, (8,))
            watching.note(targets=targets)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = loss(model(inputs * factor if step == at else inputs), targets)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    (folder,) = watching.judge.keeper.folders
    return folder, losses[-1], gradients


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_with_dropout_gives_the_same_loss_and_signals_again(tmp_path, target, autocast):
    torch.manual_seed(0)
    build, loss = load(target, "build"), load(target, "loss")
    folder, value, gradients = kept(tmp_path / "run", build(), loss, autocast=autocast)
    torch.manual_seed(99)
    found = replay(folder, build(), loss)
    assert found.loss == pytest.approx(value, rel=1e-6)
    assert found.bundle.facts["autocast"] == ({"cpu": "bfloat16"} if autocast else {})
    again = dict(zip(found.trace.names(), found.trace["gradient_rms"][0].tolist(), strict=True))
    assert again == pytest.approx(gradients, rel=1e-5)
    assert found.origin is None
    other = replay(folder, build(), loss)
    assert other.loss == found.loss  # it leaves nothing behind


def test_another_random_state_gives_another_loss(tmp_path, target):
    torch.manual_seed(0)
    folder, value, _ = kept(tmp_path / "run", load(target, "build")(), load(target, "loss"))
    from dataclasses import replace

    from levada.watching.verdict.bundle import read_bundle

    bundle = read_bundle(folder)
    states = {"cpu": torch.Generator().manual_seed(5).get_state()}
    other = replace(bundle, values={**bundle.values, "random_state": states})
    assert replay(other, load(target, "build")(), load(target, "loss")).loss != pytest.approx(value, rel=1e-3)


def test_without_a_loss_the_backward_pass_begins_at_the_kept_gradient(tmp_path, target):
    torch.manual_seed(0)
    folder, _, _ = kept(tmp_path / "run", load(target, "build")(), load(target, "loss"))
    with_loss = replay(folder, load(target, "build")(), load(target, "loss")).trace["gradient_rms"]
    without = replay(folder, load(target, "build")())
    assert math.isnan(without.loss)
    torch.testing.assert_close(without.trace["gradient_rms"], with_loss, rtol=1e-5, atol=0.0)


def test_the_modes_of_modules_come_back(tmp_path, target):
    torch.manual_seed(0)
    model = load(target, "build")()
    model[2].eval()
    folder, value, _ = kept(tmp_path / "run", model, load(target, "loss"))
    assert replay(folder, load(target, "build")(), load(target, "loss")).loss == pytest.approx(value, rel=1e-6)


def test_generators_and_their_state_are_left_alone(tmp_path, target):
    folder, _, _ = kept(tmp_path / "run", load(target, "build")(), load(target, "loss"))
    model = load(target, "build")()
    torch.manual_seed(3)
    replay(folder, model)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))


def test_the_operation_that_makes_the_first_nan_is_named(tmp_path, target, capsys):
    torch.manual_seed(0)
    model, loss = load(target, "rooted")(), load(target, "loss")
    inputs, targets = torch.randn(8, 6), torch.randint(3, (8,))
    values = {"args": (inputs,), "kwargs": {}, "targets": targets, "weights": model.state_dict()}
    folder = write_bundle(tmp_path, Bundle(3, "numerical_overflow", "The loss of step 3 is nan.", values=values))
    found = replay(folder, load(target, "rooted")(), loss)
    assert (found.origin.kind, found.origin.operation, found.origin.module) == ("NaN", "sqrt", "5 (Root)")
    assert found.report.verdict == "error"
    assert found.report.findings[0].rule == "numerical_overflow"
    code = main(["replay", str(folder), "--model", f"{target}:rooted", "--loss", f"{target}:loss"])
    shown = " ".join((out := capsys.readouterr().out).split())
    assert code == 1
    rows = [line.lstrip("✕x! ").split() for line in out.splitlines()]
    (last,) = (row for row in rows if row[:1] == ["4"])  # whose output is finite: the root comes behind it
    assert math.isfinite(float(last[1]))
    assert last[-2:] == ["NaN", "NaN"]
    assert "The row of 4 has what that returns: sqrt in 5 (Root) comes behind it." in shown
    assert [row[-2:] for row in rows if row[:1] == ["0"]] == [["NaN", "NaN"]]
    assert "The first NaN is made by sqrt in 5 (Root), out of numbers without one." in shown


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.map(x))


def test_an_inf_that_does_not_come_out_of_its_block_is_told_beside_the_first_that_does(tmp_path):
    model = nn.Sequential(Hidden(), Hidden(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].map.bias.fill_(9.0)
        model[1].map.weight[:3], model[1].map.weight[3:] = -3e38, 0.0  # -Inf, of which the ReLU makes 0
        model[1].map.bias[3:] = 3e38
        model[2].weight.fill_(9.0)
    values = {"args": (torch.ones(4, 6),), "kwargs": {}, "weights": model.state_dict()}
    folder = write_bundle(tmp_path, Bundle(3, "numerical_overflow", "why", values=values))
    claim = replay(folder, model, None).report.findings[0].claim
    assert "The first Inf is made by addmm in 1.map (Linear)" in claim
    assert claim.endswith(
        "The output of 1 is finite all the same, as where a ReLU makes 0 of -Inf: that of 2 is the first that is not."
    )


def test_a_mask_of_infinities_is_no_origin():
    scores = nn.Linear(3, 3)
    with Origins(scores) as origins:
        masked = scores(torch.ones(2, 3)).masked_fill(torch.eye(3)[:2].bool(), -math.inf)
        masked.softmax(-1).sum().backward()
    assert origins.first is None


def test_an_operation_of_the_backward_pass_is_named_as_one():
    weights = torch.zeros(3, requires_grad=True)
    with Origins(nn.Linear(1, 1)) as origins:
        weights.sqrt().sum().backward()
    assert origins.first.backward
    assert "in the backward pass" in str(origins.first)


def test_json_on_standard_output_is_alone(tmp_path, target, capsys):
    torch.manual_seed(0)
    folder, value, _ = kept(tmp_path / "run", load(target, "build")(), load(target, "loss"))
    words = ["replay", str(folder), "--model", f"{target}:build", "--loss", f"{target}:loss", "--json", "-"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss_value"] == pytest.approx(value, rel=1e-6)
    assert told["step"] == 44
    assert "gradient_rms" in told["blocks"][1]


def test_what_cannot_be_run_again_is_said_in_a_sentence(tmp_path, target, capsys):
    model = load(target, "build")()
    values = {"args": (torch.randn(4, 6),), "kwargs": {}, "weights": model.state_dict()}
    whole = write_bundle(tmp_path / "whole", Bundle(3, "loss_spike", "why", values=values))
    without = {"args": values["args"], "kwargs": {}}
    missing = {"weights": "4096 bytes, above the cap of 100"}
    bare = write_bundle(
        tmp_path / "bare", Bundle(3, "loss_spike", "why", values=without, missing=missing, checkpoint="c/5.pt")
    )
    no_inputs = Bundle(3, "loss_spike", "why", values={"weights": {}}, missing={"args": "larger than the cap"})
    empty = write_bundle(tmp_path / "empty", no_inputs)
    cases = {
        (str(tmp_path), "build"): "a bundle is a folder with a bundle.json",
        (str(whole), "wider"): "0.weight is (13, 6) here and (12, 6) in the bundle",
        (str(whole), "shorter"): "only in the bundle",
        (str(bare), "build"): "above the cap of 100. Let the model load the checkpoint c/5.pt",
        (str(empty), "build"): "this has none: larger than the cap",
        (str(whole), "loss"): "must work without arguments",
    }
    for (folder, name), words in cases.items():
        assert main(["replay", folder, "--model", f"{target}:{name}"]) == 2
        said = capsys.readouterr().err
        assert words in said, said
        assert "Traceback" not in said
    assert main(["replay", str(bare), "--model", f"{target}:build", "--as-built"]) == 0
    with pytest.raises(UsageError, match="loss must be a callable"):
        replay(whole, model, "hinge")


class Mean(nn.Module):
    def forward(self, outputs, targets):
        return outputs.mean()


def test_a_loss_of_outputs_and_targets_is_refused_by_its_signature_where_none_were_noted(tmp_path, target, capsys):
    model = load(target, "build")()
    values = {"args": (torch.randn(4, 6),), "kwargs": {}, "weights": model.state_dict()}
    folder = write_bundle(tmp_path, Bundle(3, "loss_spike", "why", values=values))
    assert main(["replay", str(folder), "--model", f"{target}:build", "--loss", f"{target}:loss"]) == 2
    said = capsys.readouterr().err
    assert "must be a function of the outputs alone, got loss(outputs, targets). Leave it out: the backward" in said
    assert "is given the outputs alone" not in said  # it is not
    with pytest.raises(UsageError, match=r"got Mean\(outputs, targets\)"):
        replay(folder, model, Mean())


def test_a_class_in_the_place_of_a_loss_is_refused(tmp_path, target, capsys):
    model = load(target, "build")()
    values = {
        "args": (torch.randn(4, 6),),
        "kwargs": {},
        "weights": model.state_dict(),
        "targets": torch.tensor([0, 1, 2, 0]),
    }
    folder = write_bundle(tmp_path, Bundle(3, "loss_spike", "why", values=values))
    loss = ["--loss", "torch.nn:CrossEntropyLoss"]
    for words in (["replay", str(folder), "--model", f"{target}:build"], ["check", f"{target}:build"]):
        assert main([*words, *loss]) == 2
        said = capsys.readouterr().err
        assert "or an instance, and torch.nn:CrossEntropyLoss is a class. Make one in a file" in said
        assert "`loss = CrossEntropyLoss()`" in said


def test_a_forward_pass_that_raises_is_unmeasured(tmp_path, target):
    model = load(target, "build")()
    values = {"args": (torch.randn(4, 5),), "kwargs": {}, "weights": model.state_dict()}
    folder = write_bundle(tmp_path, Bundle(3, "loss_spike", "why", values=values))
    with pytest.raises(MeasurementError, match="the forward pass raised RuntimeError"):
        replay(folder, model)


class Averaged(nn.Module):
    """Subtracts a running mean that forward writes, in place or anew."""

    def __init__(self, anew, persistent=True):
        super().__init__()
        self.map, self.out, self.anew = nn.Linear(6, 8), nn.Linear(8, 3), anew
        self.register_buffer("mean", torch.zeros(8), persistent=persistent)

    def forward(self, x):
        h = self.map(x)
        mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        if self.anew:
            self.mean = mean
        else:
            self.mean.copy_(mean)
        return self.out(h - self.mean)


@pytest.mark.parametrize("anew", [False, True])
def test_buffers_that_forward_writes_are_those_from_before_it(tmp_path, target, anew):
    torch.manual_seed(0)
    loss = load(target, "loss")
    folder, value, _ = kept(tmp_path / "run", Averaged(anew), loss)
    found = replay(folder, Averaged(anew), loss)
    assert found.loss == pytest.approx(value, rel=1e-6)
    assert not any("Not kept" in note for note in found.report.notes)


@pytest.mark.parametrize("cap", [0, None])
def test_a_buffer_that_cannot_be_put_back_is_named(tmp_path, target, monkeypatch, cap):
    if cap is not None:
        monkeypatch.setattr("levada.watching.steps.passes._BUFFERS", cap)
    folder, _, _ = kept(tmp_path / "run", Averaged(False, persistent=cap is not None), load(target, "loss"))
    found = replay(folder, Averaged(False, persistent=cap is not None), load(target, "loss"))
    assert any(note.startswith("Not kept: buffers, the pass wrote mean, ") for note in found.report.notes)


def test_buffers_that_nothing_writes_are_copied_once(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, run=tmp_path / "run", every=100) as watched:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
            copies = watched._engine.passes._buffers._copies
            monkeypatch.setattr(torch, "_foreach_copy_", lambda *_: pytest.fail("copied again"))
        assert sorted(copies) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
        assert watched.last_pass.buffers == {}


def test_the_loss_of_a_part_is_not_compared_with_that_of_the_whole_step(tmp_path, target):
    torch.manual_seed(0)
    model, loss = load(target, "build")(), load(target, "loss")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watching = watch(model, optimizer, run=tmp_path / "run", every=1, max_overhead=math.inf)
    with watching:
        for step in range(45):
            optimizer.zero_grad()
            for _ in range(3):
                inputs, targets = torch.randn(8, 6) * (100.0 if step == 44 else 1.0), torch.randint(3, (8,))
                watching.note(targets=targets)
                value = loss(model(inputs), targets)
                (value / 3).backward()
            optimizer.step()
    found = replay(watching.judge.keeper.folders[0], load(target, "build")(), loss)
    assert found.loss == pytest.approx(float(value.detach()), rel=1e-6)
    assert any("that of pass 3 of the step alone, and was that of the whole step" in n for n in found.report.notes)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_loss_that_compares_is_refused_where_the_bundle_has_no_targets(tmp_path, target, capsys, loss):
    values = {"args": (torch.randn(4, 6),), "kwargs": {}, "weights": load(target, "build")().state_dict()}
    folder = write_bundle(tmp_path / "run", Bundle(3, "loss_spike", "why", values=values))
    assert main(["replay", str(folder), "--model", f"{target}:build", "--loss", loss]) == 2
    said = capsys.readouterr()
    assert f"--loss {loss} compares outputs with targets, and the bundle of step 3 holds none." in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("rule", "finding", "verdict"),
    [
        ("learning_rate_too_high", {}, "unknown"),
        ("loss_spike", {}, "unknown"),
        ("dead_units", {"rule": "dead_units"}, "unknown"),
        ("asked", {}, "healthy"),
    ],
)
def test_a_pass_that_does_not_show_what_it_was_kept_for_is_not_called_healthy(tmp_path, target, rule, finding, verdict):
    values = {"args": (torch.randn(4, 6),), "kwargs": {}, "weights": load(target, "build")().state_dict()}
    values["output_gradient"] = torch.ones(4, 3)
    folder = write_bundle(tmp_path / "run", Bundle(3, rule, "why", values=values, finding=finding))
    report = replay(folder, load(target, "build")()).report
    assert report.verdict == verdict
    assert any(note.startswith(f"Not judged: {rule}: ") for note in report.notes) is (verdict == "unknown")


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (
            None,
            "levada replay: step 3 was kept with inputs, weights and the gradient of the output, but without targets",
        ),
        (
            "outputs",
            "own.py:outputs is given the outputs alone. watch.note(targets=targets) in the loop keeps them next time",
        ),
    ],
)
def test_without_targets_it_is_said_first_what_is_kept_and_that_is_run(tmp_path, target, capsys, loss, told):
    values = {"args": (torch.randn(4, 6),), "kwargs": {}, "weights": load(target, "build")().state_dict()}
    values["output_gradient"] = torch.ones(4, 3)
    folder = write_bundle(tmp_path / "run", Bundle(3, "loss_spike", "why", values=values))
    build = f"{target}:build"
    (tmp_path / "own.py").write_text("def outputs(outputs):\n    return outputs.square().mean()\n")
    named = [] if loss is None else ["--loss", f"{tmp_path / 'own.py'}:outputs" if loss == "outputs" else loss]
    assert main(["replay", str(folder), "--model", build, *named, "--json", "-"]) == 0
    said = capsys.readouterr()
    assert told in said.err
    report = json.loads(said.out)
    assert (report["loss_value"] is None) == (loss != "outputs")
    assert report["blocks"][0]["gradient_rms"] > 0
    values["targets"] = torch.zeros(4, dtype=torch.long)
    folder = write_bundle(tmp_path / "noted", Bundle(3, "loss_spike", "why", values=values))
    assert main(["replay", str(folder), "--model", build, "--loss", "cross_entropy", "--json", "-"]) == 0
    assert "without targets" not in capsys.readouterr().err
