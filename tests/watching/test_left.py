"""A step that a loop leaves before its update, because it is not finite: judged, kept and counted as what it is."""

import math

import pytest
import torch
from tests.watching.test_not_finite import Named, squares

from levada.runs import Run
from levada.watching.rerun.replay import replay
from levada.watching.verdict.bundle import read_bundle
from levada.watching.watch import watch

BAD = 17  # not sampled; 15 is


def large(model, outputs, targets):
    return squares(outputs * 1e30, targets)


def root(model, outputs, targets):
    """A loss that is finite, with a gradient that is not."""
    return squares(outputs, targets) + (0.0 * outputs).abs().sum().sqrt()


def train(folder, spoil=large, *, at=(BAD,), end="break", scaler=None, steps=40):
    """Train, and leave each step of `at` before its update; `end` says how the loop goes on after the last of them."""
    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = watch(model, optimizer, run=folder, every=5, max_overhead=math.inf)
    try:
        with watched:
            for step in range(steps):
                x, targets = torch.randn(8, 4), torch.randn(8, 4)
                optimizer.zero_grad()
                loss = (spoil if step in at else lambda _, *given: squares(*given))(model, model(x), targets)
                (loss if scaler is None else scaler.scale(loss)).backward()
                if step not in at:
                    optimizer.step()
                elif step == at[-1]:
                    if end == "raise":
                        raise ValueError("not finite")
                    if end == "clear":
                        optimizer.zero_grad()
                    if end != "go on":
                        break
    except ValueError:
        pass
    return watched, [f for f in watched.findings if f.rule == "numerical_overflow"]


@pytest.mark.parametrize("end", ["break", "raise"])
@pytest.mark.parametrize(("at", "block"), [(BAD, None), (15, "layers.2")])
def test_a_loss_that_ends_a_loop_is_told_and_kept(tmp_path, end, at, block):
    # The block is known on a step that was to be sampled: of the loss alone, it is none.
    watched, (finding,) = train(tmp_path / "run", at=(at,), end=end)
    assert finding.severity == "error"
    assert (finding.evidence["step"], finding.evidence["entered_after"]) == (at, at - 1)
    assert finding.evidence["tensor"] == "loss"
    assert finding.where.get("first") == block
    assert watched.standing.verdict == "error"
    assert watched.steps == at  # its update was not made
    run = Run(tmp_path / "run")
    (ended,) = run.events("end")
    assert (ended["steps"], ended["left"]) == (at, at)
    assert run.losses()[-1][0] == at
    assert math.isinf(run.losses()[-1][1])
    (folder,) = watched.judge.keeper.folders
    found = replay(folder, Named(), lambda outputs: squares(outputs * 1e30, torch.zeros(8, 4)))
    assert "The loss is Inf although every block's output is finite" in found.report.findings[0].claim


def test_a_gradient_that_ends_a_loop_is_told_and_kept(tmp_path):
    watched, (finding,) = train(tmp_path / "run", root)
    assert finding.evidence["tensor"] == "gradient"
    assert (
        "the gradients of 6 of 6 parameters are not finite, as that of layers.0.weight, which holds NaN"
        in finding.claim
    )
    assert "the loss is finite" in finding.claim
    assert [folder.name for folder in watched.judge.keeper.folders] == [f"step-{BAD:06d}-numerical_overflow"]
    _, (finding,) = train(tmp_path / "sampled", root, at=(15,))
    assert finding.where["first"] == "layers.2"


@pytest.mark.parametrize(
    ("spoil", "options"),
    [
        (large, {"end": "clear"}),  # the loop left the step out
        (large, {"at": (9, BAD)}),  # and so it does with each that is not finite
        (large, {"end": "go on"}),
        (lambda model, *given: squares(*given), {}),  # what is left of an accumulation
        (root, {"scaler": torch.amp.GradScaler("cpu")}),
    ],
)
def test_what_a_loop_leaves_out_in_its_course_is_no_finding(tmp_path, spoil, options):
    watched, found = train(tmp_path / "run", spoil, **options)
    assert found == []
    assert watched.judge.keeper.folders == []
    assert "left" not in next(iter(Run(tmp_path / "run").events("end")))


def left(folder, again):
    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, run=folder, every=5, max_overhead=math.inf) as watched:
        for step in range(BAD + 1):
            x, targets = torch.randn(8, 4), torch.randn(8, 4)
            if step == BAD:
                model.layers[1].register_forward_hook(lambda m, args, output: output / 0.0)

            def gradient(x=x, targets=targets):
                optimizer.zero_grad()
                squares(model(x), targets).backward()

            gradient()
            if step == BAD:
                watched.leave(again or gradient)
                watched.leave(gradient)  # once is enough
                break
            optimizer.step()
    return watched


def test_a_step_that_is_left_and_run_once_more_names_its_block(tmp_path):
    watched = left(tmp_path / "run", None)
    (finding,) = watched.findings
    assert (finding.where["first"], finding.evidence["tensor"]) == ("layers.1", "signal")
    assert finding.evidence["step"] == BAD
    assert [sample.step for sample in watched.samples] == [0, 5, 10, 15, BAD]
    assert [step for step, _ in Run(tmp_path / "run").losses()] == list(range(BAD + 1))
    (folder,) = watched.judge.keeper.folders
    assert read_bundle(folder).facts["pass"] == 1  # that of the step itself


def test_an_error_in_running_it_once_more_leaves_what_was_found(tmp_path):
    def fails():
        raise RuntimeError("out of memory")

    with pytest.warns(UserWarning, match="measuring raised RuntimeError: out of memory"):
        watched = left(tmp_path / "run", fails)
    assert [f.rule for f in watched.findings] == ["numerical_overflow"]
    assert len(watched.judge.keeper.folders) == 1


@pytest.mark.parametrize("run", [True, False])
@pytest.mark.parametrize(("bad", "told"), [((BAD,), True), ((9, BAD), False), ((), False)])
def test_a_loop_that_stops_before_the_backward_pass_is_told_by_its_output(tmp_path, run, bad, told):
    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, run=tmp_path / "run" if run else None, every=5, max_overhead=math.inf) as watched:
        for step in range(BAD + 1):
            x = torch.randn(8, 4)
            if step in bad:
                x[2, 1] = math.nan
            outputs = model(x)
            loss = squares(outputs, torch.zeros(8, 4))
            if not math.isfinite(loss.item()):
                continue  # step 9 is left out, and the loop goes on; the last one ends it
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert [f.rule for f in watched.findings] == (["numerical_overflow"] * told or ["nonfinite_batches"] * (bad != ()))
    assert watched.steps == BAD + 1 - len(bad)
    if bad and not told:
        (finding,) = watched.findings
        assert (finding.severity, finding.evidence["step"], finding.evidence["number"]) == ("info", 9, 2)
    if told:
        (finding,) = watched.findings
        assert finding.severity == "error"
        assert "no backward pass came of the last pass, whose output holds NaN; the batch" in finding.claim
        assert "the argument x holds NaN in 1 of its 32 values" in finding.claim
    if told and run:
        (folder,) = watched.judge.keeper.folders
        found = replay(folder, Named()).report.findings[0]
        assert found.evidence["tensor"] == "inputs"


def test_of_an_update_that_is_not_made_no_size_is_told(tmp_path):
    train(tmp_path / "run", at=(15,))
    signals = Run(tmp_path / "run").signals()
    rows = dict(zip(signals.steps, signals.read("update_ratio"), strict=True))
    assert all(value > 0 for value in rows[10])
    assert all(math.isnan(value) for value in rows[15])
    weights = dict(zip(signals.steps, signals.read("weight_rms"), strict=True))
    assert all(value > 0 for value in weights[15])
