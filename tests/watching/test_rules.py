"""The rules of a watched run on made-up samples: each speaks of its fault at its place, and of nothing else."""

import math
import re
import sys

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn

import levada
from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.watching import Sample
from levada.watching.steps.silence import Silence
from levada.watching.verdict.account import report
from levada.watching.verdict.judge import Judge


def at(signal, site, factor):
    """Multiply a signal of one block, or of all."""

    def edit(step, values, scalars, losses):
        values[signal][site] *= factor

    return edit


def fired(findings):
    return [(f.rule, f.severity, f.where.get("first")) for f in findings if f.status == "fired"]


def raised(losses, to):
    losses[:] = [(step, to) for step, _ in losses]


def test_a_healthy_run_is_silent():
    run = Synthetic()
    run.run(40)
    assert run.judge.findings == []
    assert report(run.judge).verdict == "healthy"


def test_what_holds_on_two_samples_is_not_told_and_on_three_is():
    def cut(step, values, scalars, losses):
        values["update_ratio"][:] = 0.3
        raised(losses, 2.5)

    run = Synthetic()
    run.run(12)
    assert [f for f in run.run(2, cut) if f.rule == "learning_rate_too_high"] == []
    run.run(1)
    assert [f for f in run.run(2, cut) if f.rule == "learning_rate_too_high"] == []  # not two and two
    found = [f for f in run.run(1, cut) if f.rule == "learning_rate_too_high"]
    assert [f.evidence["samples"] for f in found] == [3]


def test_a_finding_ends_and_says_when():
    run = Synthetic()
    run.run(12)
    run.run(5, at("gradient_rms", 3, 1e-4))
    assert fired(run.judge.findings) == [("vanishing_gradient", "info", "layers.3")]
    run.run(2)
    assert run.judge.findings[0].status == "fired"
    run.run(1)
    finding = run.judge.findings[0]
    assert finding.status == "clear"
    assert finding.evidence["cleared_at"] == run.step - run.every
    assert f"Cleared at step {run.step - run.every}." in finding.claim
    assert report(run.judge).verdict == "healthy"
    assert f"Ended: vanishing_gradient at step {run.step - run.every}." in report(run.judge).notes


@pytest.mark.parametrize(
    ("severities", "told"),
    [
        (("info", "warn", "info"), ("learning_rate_too_high", "dead_units")),
        (("info", "error", "info"), ("learning_rate_too_high", "dead_units")),
        (("info", "info", "warn"), ("learning_rate_too_high", "frozen_layers")),
        (("warn", "error", "info"), ("learning_rate_too_high",)),
        (("info", "info", "info"), ("learning_rate_too_high",)),
    ],
)
def test_an_information_silences_no_alarm_and_an_alarm_what_it_explains(severities, told):
    def saying(name, severity):
        return lambda view: [Finding(name, severity, "fired", name, where={"first": "layers.0"})]

    names = ("learning_rate_too_high", "dead_units", "frozen_layers")
    run = Synthetic(rules={name: saying(name, one) for name, one in zip(names, severities, strict=True)})
    run.run(3)
    assert tuple(f.rule for f in run.judge.findings) == told


def thrown(start, level, scatter):
    """A first loss, losses that the first step threw up, and then a level with scatter."""
    draw = torch.Generator().manual_seed(1)

    def edit(step, values, scalars, losses):
        noise = scatter * torch.randn(len(losses), generator=draw)
        after = [50.0 if s < 40 else level + float(one) for (s, _), one in zip(losses, noise, strict=True)]
        losses[:] = [(s, loss if s else start) for (s, _), loss in zip(losses, after, strict=True)]
        if step == 0:
            values["update_ratio"][:] = 5.0

    return edit


@pytest.mark.parametrize(("level", "scatter", "severities"), [(1.0, 0.2, ["warn"]), (0.4, 0.2, []), (1.0, 0.02, [])])
def test_a_loss_that_is_below_its_first_by_less_than_it_scatters_did_not_come_back(level, scatter, severities):
    run = Synthetic()
    run.run(30, thrown(1.24, level, scatter))
    found = [f for f in run.judge.findings if f.rule == "learning_rate_too_high" and f.status == "fired"]
    assert [f.severity for f in found] == severities


def test_a_run_whose_first_updates_raised_the_loss_is_not_healthy_before_it_is_judged():
    run, why = Synthetic(every=5), "the loss rose with the first updates; whether it comes back takes 128 losses"
    run.run(25, thrown(1.24, 0.4, 0.02))
    early = report(run.judge)
    assert (run.judge.loss.steps, early.verdict) == (121, "unknown")
    assert why in str(early)
    run.run(2, thrown(1.24, 0.4, 0.02))
    assert run.judge.loss.steps == 131
    assert report(run.judge).verdict == "healthy"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("level", "verdict"), [(4.0, "unknown"), (2.0, "unknown"), (1.5, "unknown"), (0.4, "healthy")])
def test_a_run_whose_loss_never_comes_back_is_not_healthy_where_nothing_tells_why(kind, level, verdict):
    run, edit = Synthetic(every=5), thrown(1.24, level, 0.02)

    def short(step, values, scalars, losses):
        usual = values["update_ratio"].clone()
        edit(step, values, scalars, losses)
        values["update_ratio"][:] = usual

    run.source.optimizers = (kind([torch.zeros(1)], lr=1e-3),)
    run.run(60, short)
    known = report(run.judge)
    assert (run.judge.findings, known.verdict) == ([], verdict)
    stays, flat = "rose with the first updates and has not come back", "has not fallen since its first steps"
    why = {4.0: stays, 2.0: stays, 1.5: flat}.get(
        level
    )  # a loss that is half of its size above where it began stays up
    assert [one for one in (stays, flat) if f"learning_rate_too_high: the loss {one}" in str(known)] == (
        [why] if why else []
    )


def test_a_loss_that_comes_back_late_is_healthy_then():
    run, level = Synthetic(every=5), [4.0]

    def edit(step, values, scalars, losses):
        losses[:] = [(s, level[0] if s else 1.0) for s, _ in losses]

    run.run(40, edit)
    assert report(run.judge).verdict == "unknown"
    level[0] = 0.5
    run.run(30, edit)
    assert report(run.judge).verdict == "healthy"


def test_a_gradient_that_falls_everywhere_is_no_dying_block():
    run = Synthetic()
    run.run(12)
    assert run.run(8, at("gradient_rms", slice(None), 1e-4)) == []
    assert fired(run.run(5, at("gradient_rms", 5, 1e-4))) == [("vanishing_gradient", "info", "layers.5")]


def test_a_dying_block_whose_weights_stand_still_is_an_error():
    def dying(step, values, scalars, losses):
        values["gradient_rms"][2] *= 1e-5
        values["update_ratio"][2] = 1e-9

    def dying_and_rising(step, values, scalars, losses):
        dying(step, values, scalars, losses)
        raised(losses, 2.0)

    for edit, severity in ((dying, "info"), (dying_and_rising, "error")):  # the first as a head whose task is solved
        run = Synthetic()
        run.run(20)
        found = [one for one in fired(run.run(4, edit)) if one[0] != "loss_spike"]
        assert found == [("vanishing_gradient", severity, "layers.2")]


def over_depth(signal, factor, loss=2.3, ratio=None):
    def edit(step, values, scalars, losses):
        count = len(values[signal])
        depth = torch.arange(count, dtype=torch.float64)
        values[signal] *= factor ** (depth if factor >= 1 or signal == "signal_rms" else count - 1 - depth)
        if ratio is not None:
            values["update_ratio"][0] = ratio
        raised(losses, loss)

    return edit


def test_vanishing_over_depth_is_an_error_only_where_first_blocks_stand_still_and_nothing_is_learned():
    cases = {
        ("error", 1e-9, 2.3): 0,
        ("warn", 1e-3, 2.3): 0,  # an optimizer that rescales moves them
    }
    for severity, ratio, loss in cases:
        run = Synthetic(20)
        run.run(8, over_depth("gradient_rms", 0.4, loss, ratio))
        assert fired(run.judge.findings) == [("vanishing_gradient", severity, "layers.0")]
        assert abs(run.judge.findings[0].evidence["gradient_decay_per_block"]["value"] - 0.4) < 0.02
    run = Synthetic(20)
    run.run(8, over_depth("gradient_rms", 0.9))  # a decade: what finite width does at criticality
    assert run.judge.findings == []


def test_a_signal_that_decays_or_grows_over_depth_speaks_only_with_a_loss_that_suffers():
    for factor, rule in ((0.4, "vanishing_signal"), (2.5, "exploding_signal")):
        run = Synthetic(20)
        run.run(12, over_depth("signal_rms", factor))
        assert [name for name, _, _ in fired(run.judge.findings)] == [rule]

        def learning(step, values, scalars, losses, factor=factor):
            values["signal_rms"] *= factor ** torch.arange(20, dtype=torch.float64)

        run = Synthetic(20)
        run.run(20, learning)
        assert run.judge.findings == []


def test_a_gradient_that_explodes_is_told_where_the_loss_rises_and_is_an_error_where_it_destroys():
    def exploding(step, values, scalars, losses):
        values["gradient_rms"][4] *= 1e4
        raised(losses, 4.0 + step / 1e4)
        values["update_ratio"][4] = 0.5

    run = Synthetic()
    run.run(12)
    assert run.run(4, at("gradient_rms", 4, 1e4)) == []  # clipped, and learning on
    run.run(3)
    found = [f for f in run.run(4, exploding) if f.rule == "exploding_gradient"]
    assert fired(found) == [("exploding_gradient", "error", "layers.4")]


def frozen(step, values, scalars, losses):
    values["weight_gradient_rms"][3] = 0.0
    values["update_ratio"][3] = 0.0


def test_a_block_that_gets_no_gradient_any_more_is_a_warning():
    run = Synthetic()
    run.run(12)
    assert fired(run.run(8, frozen)) == [("frozen_layers", "warn", "layers.3")]
    assert run.judge.findings[0].claim.endswith("though others get one.")  # why, no model that is at hand can tell
    assert run.judge.findings[0].evidence["blocks"] == ["layers.3"]


def test_a_cut_is_named_at_the_last_block_that_gets_nothing():
    def cut(step, values, scalars, losses):
        for signal in ("weight_gradient_rms", "update_ratio", "gradient_rms"):
            values[signal][:4] = 0.0

    run = Synthetic()
    run.run(12)
    found = run.run(8, cut)
    assert fired(found) == [("frozen_layers", "error", "layers.3")]
    assert found[0].evidence["blocks"] == [f"layers.{i}" for i in range(4)]


def test_a_block_that_rests_at_random_is_not_frozen():
    draw = torch.Generator().manual_seed(1)

    def rests(step, values, scalars, losses):
        if float(torch.rand((), generator=draw)) < 0.5:
            frozen(step, values, scalars, losses)

    run = Synthetic()
    run.run(200, rests)
    assert run.judge.findings == []


def test_frozen_parameters_and_blocks_that_did_not_run_are_not_frozen_layers():
    def unmeasured(step, values, scalars, losses):
        frozen(step, values, scalars, losses)
        values["signal_rms"][3] = math.nan

    def asks_for_none(step, values, scalars, losses):
        values["weight_gradient_rms"][3] = math.nan

    for edit in (unmeasured, asks_for_none):
        run = Synthetic()
        run.run(30, edit)
        assert run.judge.findings == []


def test_weight_decay_that_moves_a_frozen_block_makes_it_a_warning():
    def decaying(step, values, scalars, losses):
        values["weight_gradient_rms"][3] = 0.0

    run = Synthetic()
    run.run(12)
    assert fired(run.run(8, decaying)) == [("frozen_layers", "warn", "layers.3")]


def test_dead_units_are_named_and_explain_the_blocks_before_them():
    def dead(step, values, scalars, losses):
        values["zero_fraction"][4] = 1.0
        values["weight_gradient_rms"][:5] = 0.0

    run = Synthetic()
    run.run(12)
    (finding,) = run.run(8, dead)
    assert fired([finding]) == [("dead_units", "error", "layers.4")]
    assert finding.claim.startswith("100 % of what the activations of layers.4 give is zero")


@pytest.mark.parametrize(("gradient", "samples"), [(0.0, 3), (1e-3, 4)])
def test_samples_that_a_habit_takes_confirm_dead_units_where_the_gradient_is_zero(gradient, samples):
    def dead(step, values, scalars, losses):
        values["zero_fraction"][4] = 1.0
        values["weight_gradient_rms"][4] = gradient

    run = Synthetic()
    run.run(13)
    assert run.run(samples - 1, dead) == []
    (finding,) = run.run(1, dead)
    told = ("error", "No gradient gets behind") if not gradient else ("warn", "learn on no input of these samples")
    assert finding.severity == told[0]
    assert told[1] in finding.consequence


def test_units_that_are_all_but_all_off_are_no_hundred_percent():
    def dead(step, values, scalars, losses):
        values["zero_fraction"][4] = 0.999999

    run = Synthetic()
    run.run(13)
    (finding,) = run.run(6, dead)
    assert finding.claim.startswith("99.99 % of what")
    assert "on hardly any input" in finding.consequence


@pytest.mark.parametrize(
    ("alive", "words", "usual"),
    [
        (0, "it was so from the start", None),
        (3, r"it was (.*)% on the last sample before", 50),  # all but three samples of its baseline are dead ones
        (12, r"it was (.*)% in this run's own baseline", 50),
    ],
)
def test_dead_units_are_compared_with_what_was_before_them(alive, words, usual):
    def dead(step, values, scalars, losses):
        values["zero_fraction"][4] = 1.0
        values["weight_gradient_rms"][:5] = 0.0

    run = Synthetic()
    run.run(alive)
    (finding,) = run.run(12, dead)
    told = re.fullmatch(words, finding.evidence["reference"])
    assert told
    assert finding.evidence["reference"] in finding.claim
    assert finding.evidence["explained_by"] == (None if usual is None else "baseline")
    assert usual is None or float(told[1]) == pytest.approx(usual, rel=0.4)


def test_sparse_units_from_the_start_are_not_dead():
    def sparse(step, values, scalars, losses):
        values["zero_fraction"][:] = 0.9995

    run = Synthetic()
    run.run(20, sparse)
    assert run.judge.findings == []


def lost(ratio):
    def edit(step, values, scalars, losses):
        values["update_ratio"][:] = ratio
        raised(losses, 2.3 + 0.001 * (step % 7))

    return edit


@pytest.mark.parametrize(
    ("dtype", "ratio", "lr", "rules"),
    [
        (torch.bfloat16, 1e-5, 1e-5, [("lost_update", "error", "layers.0")]),
        (torch.float32, 1e-5, 1e-5, []),  # the same steps are exact there
        (torch.bfloat16, 5e-3, 1e-3, []),
        (None, 1e-5, 1e-5, []),  # the type is not known
    ],
)
def test_updates_are_lost_below_the_spacing_of_the_weights_type(dtype, ratio, lr, rules):
    run = Synthetic(dtype=dtype)
    run.run(12, lost(ratio), lr=lr)
    assert fired(run.judge.findings) == rules
    assert ("lost_update" in report(run.judge).unknown) == (dtype is None)


@pytest.mark.parametrize(
    ("kind", "gradient", "severity"),
    [
        (torch.optim.AdamW, 1e-3, "error"),
        (torch.optim.SGD, 1e-3, "error"),
        (torch.optim.SGD, 1.0, "warn"),  # such steps would not be lost: something else makes the updates small
    ],
)
def test_what_is_lost_is_as_grave_under_each_optimizer(kind, gradient, severity):
    def edit(step, values, scalars, losses):
        lost(1e-9)(step, values, scalars, losses)
        values["weight_gradient_rms"][:] = gradient

    run = Synthetic(dtype=torch.float32)
    run.source.optimizers = (kind(run.source.model.parameters(), lr=3e-9),)
    run.run(12, edit, lr=3e-9)
    assert fired(run.judge.findings) == [("lost_update", severity, "layers.0")]


@pytest.mark.parametrize(("period", "rules"), [(4, []), (8, ["lost_update"])])
def test_what_moved_on_one_of_the_last_four_samples_is_not_lost(period, rules):
    run = Synthetic(dtype=torch.bfloat16)
    run.run(period + 7, lambda *given: lost(1e-2 if given[0] // 20 % period == 0 else 1e-5)(*given), lr=1e-5)
    assert sorted({f.rule for f in run.judge.history}) == rules


def test_a_small_gradient_of_what_was_learned_is_no_error_of_the_rate():
    def edit(step, values, scalars, losses):
        values["update_ratio"][:] = 1e-9
        values["weight_gradient_rms"][:] = 1e-3

    run = Synthetic(dtype=torch.float32)
    run.source.optimizers = (torch.optim.SGD(run.source.model.parameters(), lr=1e-8),)
    run.run(60, edit, lr=1e-8)
    assert [one.severity for one in run.judge.findings] == ["warn"]


def test_small_steps_of_a_warm_up_or_after_decay_are_asked_for():
    run = Synthetic(dtype=torch.float32)
    for step in range(20):
        run.run(1, lost(1e-9), lr=1e-9 * (step + 1))
    assert run.judge.findings == []
    run = Synthetic(dtype=torch.float32)
    run.run(12)
    run.run(12, lost(1e-9), lr=1e-8)
    assert [f.rule for f in run.judge.findings if f.rule not in ("loss_spike", "loss_above_best")] == []


def test_a_rate_at_which_nothing_moves_is_too_low():
    run = Synthetic()
    run.run(12, lost(1e-8), lr=1e-8)
    assert fired(run.judge.findings) == [("learning_rate_too_low", "error", "layers.0")]
    run = Synthetic()
    run.run(12, lost(1e-5), lr=1e-5)
    assert run.judge.findings == []


def test_large_steps_are_too_large_only_if_the_loss_suffers():
    def large(step, values, scalars, losses):
        values["update_ratio"][:] = 0.2

    run = Synthetic()
    run.run(30, large)
    assert run.judge.findings == []

    def thrown(step, values, scalars, losses):
        large(step, values, scalars, losses)
        raised(losses, 3.0)

    run = Synthetic()
    run.run(12)
    found = [f for f in run.run(4, thrown) if f.rule == "learning_rate_too_high"]
    assert fired(found) == [("learning_rate_too_high", "error", "layers.0")]


def test_baselines_begin_anew_when_the_blocks_change():
    run = Synthetic(4)
    run.run(12)
    run.sites = tuple(Site(f"other.{i}", i, "Block", (16, 32), ()) for i in range(6))
    run.source.sites = run.sites
    run.run(12)
    assert run.judge.findings == []
    assert [block["site"] for block in report(run.judge).blocks][-1] == "other.5"


def test_rows_are_judged_in_no_more_calls_where_there_are_more_sites():
    def calls_at(sites):
        run, calls = Synthetic(sites), 0
        run.run(40)
        names = ("signal_rms", "gradient_rms", "update_ratio")
        values = {name: torch.ones(sites, dtype=torch.float64) for name in names}

        def count(*_):
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            for step in range(8):
                run.judge.sampled(Sample(10_000 + step, 0.0, values, {"lr": 1e-3}))
        finally:
            sys.setprofile(None)
        return calls

    few, many = calls_at(10), calls_at(1000)
    assert many < 1.5 * few


def test_the_account_says_what_was_not_judged():
    judge = Judge(lambda: (Site("0", 0, "Linear", (1,), ()),))
    judge.sampled(Sample(0, 0.0, {"signal_rms": torch.ones(1, dtype=torch.float64)}))
    told = report(judge)
    assert told.verdict == "unknown"
    assert told.unknown["loss_spike"] == "no loss was seen"
    assert told.unknown["dead_units"] == "no block was seen to have activations with exact zeros"
    assert told.unknown["lost_update"] == "no update was measured"
    assert told.unknown["vanishing_gradient"] == "no gradient was measured at a block"
    assert told.to_dict()["blocks"] == [{"site": "0", "order": 0, "kind": "Linear", "shape": [1], "signal_rms": 1.0}]


def test_history_has_each_telling_worsening_and_ending_in_turn():
    def dying(step, values, scalars, losses):
        values["gradient_rms"][2] *= 1e-5
        values["update_ratio"][2] = 1e-9 if step >= 480 else 1e-3
        raised(losses, 2.0)

    run = Synthetic()
    run.run(20)
    run.run(12, dying)
    run.run(4)
    told = [f for f in run.judge.history if f.rule == "vanishing_gradient"]
    assert [(f.severity, f.status) for f in told] == [
        ("warn", "fired"),
        ("error", "fired"),
        ("error", "clear"),
    ]
    assert [f.status for f in run.judge.findings if f.rule == "vanishing_gradient"] == ["clear"]


def test_units_that_are_off_for_one_kind_of_batch_are_not_dead():
    def bucketed(step, values, scalars, losses):
        if step // 80 % 2:
            values["zero_fraction"][4] = 1.0
            values["weight_gradient_rms"][4] = 0.0

    run = Synthetic()
    run.run(60, bucketed)
    assert run.judge.findings == []


def test_weights_that_shrink_are_no_long_steps():
    def shrinks(step, values, scalars, losses):
        values["weight_rms"] *= 1e-3
        values["update_ratio"][:] = 0.3
        raised(losses, 3.0)

    run = Synthetic()
    run.run(12)
    run.run(6, shrinks)
    assert [f for f in run.judge.findings if f.rule == "learning_rate_too_high"] == []


def test_one_block_that_passes_little_on_is_no_law_of_depth():
    def cut(step, values, scalars, losses):
        over_depth("gradient_rms", 0.9)(step, values, scalars, losses)
        values["gradient_rms"][:10] *= 1e-4

    run = Synthetic(20)
    run.run(12, cut)
    assert run.judge.findings == []


def test_units_that_are_only_rarer_are_not_dead():
    def rarer(step, values, scalars, losses):
        values["zero_fraction"][4] = 0.97

    run = Synthetic()
    run.run(12)
    assert run.run(8, rarer) == []


def test_a_cut_behind_a_dead_block_is_told_beside_it():
    def both(step, values, scalars, losses):
        values["zero_fraction"][2] = 1.0
        for signal in ("weight_gradient_rms", "update_ratio"):
            values[signal][:3] = 0.0
            values[signal][5] = 0.0
        values["weight_gradient_rms"][3] = 0.0  # it reads zeros; its bias learns

    run = Synthetic()
    run.run(12)
    assert fired(run.run(8, both)) == [("dead_units", "error", "layers.2"), ("frozen_layers", "warn", "layers.5")]


def test_rounding_explains_a_rate_that_seems_too_low():
    run = Synthetic(dtype=torch.bfloat16)
    run.run(12, lost(1e-8), lr=1e-8)
    assert [rule for rule, _, _ in fired(run.judge.findings)] == ["lost_update"]


def test_two_frozen_blocks_are_two_findings():
    def second(step, values, scalars, losses):
        frozen(step, values, scalars, losses)
        values["weight_gradient_rms"][6] = values["update_ratio"][6] = 0.0

    run = Synthetic()
    run.run(12)
    run.run(8, frozen)
    assert fired(run.run(8, second)) == [("frozen_layers", "warn", "layers.6")]


def test_a_block_that_never_had_a_gradient_is_information():
    run = Synthetic()
    run.run(20, frozen)
    assert fired(run.judge.findings) == [("frozen_layers", "info", "layers.3")]


def test_a_block_whose_weights_move_between_the_samples_is_not_frozen():
    def turns(step, values, scalars, losses):
        frozen(step, values, scalars, losses)
        run.weights[3] *= 1.01

    run = Synthetic()
    run.run(12)
    assert run.run(12, turns) == []


def test_a_habit_of_few_samples_explains_more_than_its_estimate():
    silence = Silence(1)
    for value in [1.0, 0.0, 0.0, 1.0] + [0.0] * 9:
        silence.add(torch.tensor([value]))
    exact = math.prod((2 + 1 + j) / (4 + 2 + j) for j in range(9))
    assert silence.chance.item() == pytest.approx(exact)
    assert exact > 100 * 0.5**15


def test_no_gradient_anywhere_is_an_error_where_nothing_was_ever_learned_and_silent_at_rest():
    def nothing(loss):
        def edit(step, values, scalars, losses):
            values["weight_gradient_rms"][:] = values["update_ratio"][:] = 0.0
            raised(losses, loss)

        return edit

    run = Synthetic()
    run.run(20, nothing(2.3))
    assert fired(run.judge.findings) == [("frozen_layers", "error", "layers.0")]
    assert "No gradient reaches the weights of any block" in run.judge.findings[0].claim
    run = Synthetic()
    run.run(12)
    run.run(20, nothing(0.0))  # a hinge that is satisfied everywhere
    assert [f.rule for f in run.judge.findings] == []


def watched(optimizers, loss_of, steps, thaw=lambda *_: None):
    model = nn.ModuleDict({"trunk": nn.Linear(4, 8), **{name: nn.Linear(8, 2) for name in ("head", "aux")}})
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    used = optimizers(model)
    with levada.watch(model, used, every=2, max_overhead=math.inf) as watching:
        for step in range(steps):
            thaw(step, used)
            used.zero_grad()
            hidden = model["trunk"](x).relu()
            loss_of(step, model["head"](hidden), model["aux"](hidden)).backward()
            used.step()
    return [(f.rule, f.severity, f.where["first"]) for f in watching.findings if f.rule == "frozen_layers"]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def test_what_no_optimizer_moves_or_at_rate_zero_is_not_frozen():
    def left_out(model):
        return torch.optim.Adam([*model["trunk"].parameters(), *model["head"].parameters()], lr=1e-3)

    def at_zero(model):
        held = {"params": list(model["aux"].parameters()), "lr": 0.0}
        return torch.optim.Adam([{"params": [*model["trunk"].parameters(), *model["head"].parameters()]}, held])

    def alone(step, head, aux):
        return (head - 1).square().mean()

    def thaw(step, used):
        if step == 40:
            used.param_groups[1]["lr"] = 1e-3

    for optimizers in (left_out, at_zero):
        assert watched(optimizers, alone, 60) == []
    assert watched(at_zero, alone, 80, thaw) == [("frozen_layers", "info", "aux")]  # looked up freshly


def test_a_loss_term_of_weight_zero_is_information_and_one_that_was_cut_a_warning():
    def weighted(step, head, aux):
        return (head - 1).square().mean() + (step < 40) * (aux - 1).square().mean()

    def cut(step, head, aux):
        return (head - 1).square().mean() + (aux if step < 40 else aux.detach()).sub(1).square().mean()

    assert watched(adam, weighted, 80) == [("frozen_layers", "info", "aux")]
    assert watched(adam, cut, 80) == [("frozen_layers", "warn", "aux")]


@pytest.mark.parametrize("period", [2, 5, 10, 11])
def test_tasks_that_take_turns_are_not_frozen(period):
    def turn(step, head, aux):
        return (head - 1).square().mean() if step % period else (aux - 1).square().mean()

    assert [one for one in watched(adam, turn, 200) if one[1] != "info"] == []


def test_updates_of_an_optimizers_own_size_are_not_lost():
    run = Synthetic(dtype=torch.bfloat16)
    run.run(12, lost(2e-4), lr=1e-5)  # the exact step is 1e-4 of the weights: rounded at random
    assert run.judge.findings == []


def test_a_loss_with_a_large_constant_that_falls_has_learned():
    def offset(step, values, scalars, losses):
        values["update_ratio"][:] = 0.2
        losses[:] = [(s, 50 + 0.5 * math.exp(-s / 60) + 0.005 * (s % 3)) for s, _ in losses]

    run = Synthetic()
    run.run(30, offset)
    assert run.judge.findings == []


def test_noise_alone_is_no_rise_of_the_loss():
    draw = torch.Generator().manual_seed(2)

    def noisy(step, values, scalars, losses):
        values["update_ratio"][:] = 0.2
        losses[:] = [(s, 1.0 + 0.2 * float(torch.randn((), generator=draw))) for s, _ in losses]

    run = Synthetic()
    run.run(100, noisy)
    assert [f for f in run.judge.findings if f.severity != "info"] == []
