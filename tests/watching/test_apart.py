"""Optimizers with losses of their own, as of adversaries: the record, and each view of it, show a curve of each."""

from __future__ import annotations

import io
import math
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from tests.watching.test_series import PATTERNS, train
from torch import nn

import levada
from levada.report.watch import watch_view
from levada.runs import Run, RunWriter, doctor
from levada.runs.exporters import export
from levada.runs.exporters.exporter import loss_tag
from levada.runs.rank_log import RankLog
from levada.watching.record.exporting import Exporting
from levada.watching.record.kept_losses import KeptLosses
from levada.watching.show.courses import Courses, course_lines
from levada.watching.show.live import Live
from levada.watching.verdict.series import LossSeries

NAMES = ["optimizer 1 of 2 (Adam)", "optimizer 2 of 2 (Adam)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart") / "run"
    train(PATTERNS["five to one"], run=folder)
    return folder


def test_a_record_has_the_losses_of_each_optimizer(run):
    read = Run(run)
    each = read.losses_by_optimizer()
    assert list(each) == NAMES
    assert [step for step, _ in each[NAMES[0]]] == list(range(5, 288, 6))  # the generator, from the first step on
    assert sorted(chain(*each.values())) == read.losses()
    assert doctor(run).healthy
    (told,) = read.events("apart")
    assert told["optimizers"] == ["Adam", "Adam"]


def test_a_record_of_optimizers_that_step_together_says_nothing_of_them(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    each = [torch.optim.SGD([p], lr=1e-3) for p in model.parameters()]
    with levada.watch(model, each, run=tmp_path / "run"):
        for _ in range(40):
            model(torch.randn(8, 4)).square().mean().backward()
            for optimizer in each:
                optimizer.step()
                optimizer.zero_grad()
    read = Run(tmp_path / "run")
    assert read.losses_by_optimizer() == {}
    assert len(read.losses()) == 40
    assert all("turns" not in event for event in read.events("loss"))


def written(folder, *events):
    with RunWriter.create(folder, kind="watch", name="run") as writer:
        for type, fields in events:
            writer.append(type, **fields)
    return Run(folder)


def losses(first, *turns):
    steps = list(range(first, first + len(turns)))
    return "loss", {"steps": steps, "values": [float(step) for step in steps], "turns": list(turns)}


APART = "apart", {"step": 3, "optimizers": ["Adam", "SGD"]}


def test_what_is_under_way_is_of_none_until_it_is_told_again(tmp_path):
    read = written(tmp_path / "run", losses(0, 1, 2, 0, None), APART)
    adam, sgd, both, none = (
        "optimizer 1 of 2 (Adam)",
        "optimizer 2 of 2 (SGD)",
        "all 2 optimizers",
        ("a step that did not end"),
    )
    assert read.losses_by_optimizer() == {adam: [(0, 0.0)], sgd: [(1, 1.0)], both: [(2, 2.0)], none: [(3, 3.0)]}
    with RunWriter.open(tmp_path / "run") as writer:
        writer.append("loss", **losses(3, 2, 1)[1])
    assert read.losses_by_optimizer() == {adam: [(0, 0.0), (4, 4.0)], sgd: [(1, 1.0), (3, 3.0)], both: [(2, 2.0)]}


def test_a_process_that_begins_before_it_was_known_has_to_see_it_again(tmp_path):
    goes_on = losses(0, 1, 2, 1, 2), APART, ("continued", {"step": 4}), losses(4, 1)
    assert len(written(tmp_path / "on", *goes_on).losses_by_optimizer()) == 2
    anew = losses(0, 1, 2, 1, 2), APART, ("continued", {"step": 2}), losses(2, 1)
    assert written(tmp_path / "anew", *anew).losses_by_optimizer() == {}


def test_what_an_earlier_levada_recorded_is_laid_to_no_optimizers(tmp_path):
    before = "loss", {"steps": [0, 1], "values": [2.0, 1.0]}
    on = ("continued", {"step": 2}), losses(2, 1, 2), ("apart", {"step": 3, "optimizers": ["Adam", "Adam"]})
    found = written(tmp_path / "run", before, *on).losses_by_optimizer()
    assert found == {
        **dict(zip(NAMES, ([(2, 2.0)], [(3, 3.0)]), strict=True)),
        "optimizers that were not recorded": [(0, 2.0), (1, 1.0)],
    }


@pytest.mark.parametrize("turns", [None, 7, [1], [1, 2, 3, 4], [True, "1", {}]], ids=repr)
def test_turns_that_are_none_keep_no_loss_from_being_read(tmp_path, turns):
    fields = {"steps": [0, 1, 2], "values": [2.0, 1.0, 0.5], "turns": turns}
    read = written(tmp_path / "run", ("loss", fields), APART)
    assert read.losses() == [(0, 2.0), (1, 1.0), (2, 0.5)]
    assert [*chain(*read.losses_by_optimizer().values())] == read.losses()


def test_of_a_pipeline_the_last_stage_tells(tmp_path, run):
    read = written(tmp_path / "run", ("judged", {"step": 0}))
    folder = tmp_path / "run" / "signals" / "rank-00001"
    folder.mkdir(parents=True)
    log = RankLog(folder)
    log.append(losses(0, 1, 2)[0], **losses(0, 1, 2)[1])
    log.append(APART[0], **APART[1])
    log.close()
    assert list(read.losses_by_optimizer()) == ["optimizer 1 of 2 (Adam)", "optimizer 2 of 2 (SGD)"]


def test_the_loss_of_a_step_under_way_is_told_again_with_its_optimizer():
    told, turns, ended = [], [], []
    kept = KeptLosses(
        lambda type, **fields: told.append(fields),
        lambda: ended,
        shared=False,
        turn_of=lambda step: turns[step] if step < len(turns) else None,
    )
    kept.hear(0, torch.tensor(2.0))
    kept.found(0)  # before its update
    ended.append((0, torch.tensor(2.0)))
    turns.append(1)
    kept.hear(1, torch.tensor(7.0))
    turns.append(2)
    kept.keep(2)
    assert [(one["steps"], one["turns"]) for one in told] == [([0], [None]), ([0, 1], [1, 2])]


def test_a_step_that_is_not_made_is_no_optimizers(tmp_path):
    def break_off(watch):
        for optimizer in watch.optimizers:
            optimizer.register_step_pre_hook(lambda *_: check(watch))

    def check(watch):
        if watch.steps == 401:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(PATTERNS["both"], run=tmp_path / "run", begin=break_off)
    each = Run(tmp_path / "run").losses_by_optimizer()
    assert [name for name in each if name not in NAMES] in ([], ["a step that did not end"])
    assert max(step for name in NAMES for step, _ in each[name]) == 400


def test_the_page_draws_a_line_of_each_and_says_no_pause(run):
    read = Run(run)
    view = watch_view(read, "run", list(read.events()))
    (figure,) = [one for one in view["figures"] if one["title"] == "The loss"]
    assert all(name in figure["svg"] for name in NAMES)
    assert "Optimizers that take turns have losses of their own, with a line each." in figure["caption"]
    assert "pause" not in figure["caption"]
    assert "missing" not in figure["caption"]
    facts = {fact["label"]: fact for fact in view["facts"]}
    first = read.losses_by_optimizer()[NAMES[0]][0]
    assert facts["loss of optimizer 1"]["note"] == f"at step 5: {first[1]:.3g}"
    assert "loss of optimizer 2" in facts
    assert "loss" not in facts


def test_no_line_is_broken_where_another_optimizer_stepped_and_each_where_no_loss_is_known(tmp_path):
    rest = "loss", {**losses(16, 2, 2, 1, 2, 2)[1]}
    read = written(tmp_path / "run", losses(0, *(2, 2, 2, 2, 2, 1) * 2), rest, APART)
    (figure,) = [one for one in watch_view(read, "run", list(read.events()))["figures"] if one["title"] == "The loss"]
    assert [row for row in figure["table"]["rows"] if "—" in row] == [["12", "—", "—"]]
    assert "The line is broken where losses are missing: steps 12 to 15." in figure["caption"]


def test_the_server_gives_each(run):
    pytest.importorskip("pydantic")
    from levada.web.pictures import LossOf
    from levada.web.series import loss_of

    held = loss_of(run, LossOf(bins=4096))
    assert [one.name for one in held.by_optimizer] == NAMES
    assert sum(sum(one.bins.count) for one in held.by_optimizer) == sum(held.training.count) == 288


def test_exporters_have_each_beside_the_loss(run, monkeypatch, tmp_path):
    rows = {}

    def keep(step, time, values):
        rows.setdefault(step, {}).update(values)

    kept = SimpleNamespace(write=keep, tell=lambda *args: None, close=lambda: None, where="", hint="")
    monkeypatch.setattr("levada.runs.exporters.stored.open_exporter", lambda *args, **named: kept)
    export(run, "tensorboard", tmp_path)
    assert rows[5][loss_tag(NAMES[0])] == rows[5]["loss"]
    assert loss_tag(NAMES[1]) not in rows[5]
    rows.clear()
    train(PATTERNS["both"], listeners=[Exporting(kept)])
    last = [rows[step] for step in (470, 471)]
    assert [{name for name in row if name.startswith("loss_of")} for row in last] == [
        {"loss_of/optimizer 2"},
        {"loss_of/optimizer 1"},
    ]


def test_the_live_view_draws_each_and_its_lines_name_each():
    out = io.StringIO()
    seen = []

    class Looks:
        def before_update(self, step, loss):
            pass

        def sampled(self, sample):
            if sample.step > 300:
                seen.append((live._now(sample.step), live._curve()))

        def close(self):
            pass

    watch = None

    def begin(made):
        nonlocal watch, live
        watch, live = made, Live(made, stream=out)
        made.listen(live)
        made.listen(Looks())

    live = None
    train(PATTERNS["both"], begin=begin)
    (now, courses) = seen[-1]
    assert [words.rpartition(" ")[0] for words in now[1:]] == ["loss of optimizer 1", "loss of optimizer 2"]
    lines = [
        "".join(text for text, _ in line)
        for line in course_lines(courses.whole, [("1", courses.each[1]), ("2", courses.each[2])], 80, 4, fine=True)
    ]
    assert [line.split()[:2] for line in (lines[0], lines[2])] == [["loss", "1"], ["loss", "2"]]
    summary = out.getvalue()
    assert "480 steps watched, loss of optimizer 1 3." in summary
    assert ", loss of optimizer 2 1." in summary


def test_more_optimizers_than_lines_show_the_first():
    courses = Courses(lambda step: 1 << step % 3)
    for step in range(30):
        courses.add(step, 1.0 + step % 3)
    each = [(str(turn), one) for turn, one in courses.each.items()]
    two = course_lines(courses.whole, each, 60, 2, fine=False)
    assert ["".join(text for text, _ in line).split()[:3] for line in two] == [["loss", "1", "1"], ["loss", "2", "2"]]
    assert len(course_lines(courses.whole, each, 60, 4, fine=False)) == 4


def diverge(which_one, at, rate):
    """Watch a generator and a critic by mean squares and SGD, of which the rate of one is raised at a step."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    two = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    pair = nn.ModuleDict({"generator": one, "critic": two})
    each = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (one, two)]
    with levada.watch(pair, each, every=5, max_overhead=math.inf) as watch:
        for step in range(at + 20):
            for which in (1, 0):
                if step == at and which == which_one:
                    each[which].param_groups[0]["lr"] = rate
                each[which].zero_grad()
                fake = one(torch.randn(64, 8))
                if which == 0:
                    loss = 5 * (two(fake) - 1).square().mean()
                else:
                    loss = (two(0.1 * torch.randn(64, 2) + 1) - 1).square().mean() + two(fake.detach()).square().mean()
                loss.backward()
                each[which].step()
    assert watch.judge.losses.mixed
    (found,) = [one for one in watch.findings if one.rule == "numerical_overflow"]
    return found


def test_a_nan_of_one_of_several_losses_is_laid_to_the_steps_before_it():
    found = diverge(0, 200, 3.0)
    assert "Before it the loss jumped, at step 402, from 0.28" in found.claim, found.claim
    assert "The learning rate rose from 0.001 to 3 at step 401." in found.claim
    assert "Steps that were too long came before it, at a learning rate of 3 in optimizer 1 of 2 (SGD)" in found.claim


def test_the_other_optimizers_loss_is_no_jump_before_a_nan():
    losses = LossSeries()
    for step in range(200):
        losses.see(step, 100.0 if step % 2 else 1.0, 1 + step % 2)
    assert losses.mixed
    usual = [(200, 1.0), (201, 100.0), (202, 1.0)]
    jump, last, _ = losses.before(203, usual, lambda step: 1 + step % 2)
    assert jump is None
    assert {loss for _, loss in last} == {1.0}
    jump, last, loss = losses.before(203, [*usual[:2], (202, 50.0)], lambda step: 1 + step % 2)
    assert jump == {"step": 202, "from": 1.0, "to": 50.0}
    assert loss.now == 1.0


def test_of_a_loop_that_stops_before_the_update_the_last_loss_is_of_none(tmp_path):
    torch.manual_seed(0)
    one, two = nn.Linear(4, 1), nn.Linear(4, 1)
    pair = nn.ModuleDict({"one": one, "two": two})
    each = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (one, two)]
    out = io.StringIO()
    with levada.watch(pair, each, every=5, max_overhead=math.inf, run=tmp_path / "run") as watch:
        watch.listen(Live(watch, stream=out))
        for step in range(201):
            which = step % 2
            loss = (pair[("one", "two")[which]](torch.ones(8, 4)) - 10**which).square().mean()
            (loss * (math.nan if step == 200 else 1)).backward()
            if step < 200:
                each[which].step()
                each[which].zero_grad()
    assert watch.judge.losses.mixed
    assert [turn for turn, _ in watch.judge.losses.each] == [1, 2]
    read = Run(tmp_path / "run").losses_by_optimizer()
    (last,) = read.pop("a step that did not end")
    assert last[0] == 200
    assert math.isnan(last[1])
    assert list(read) == ["optimizer 1 of 2 (SGD)", "optimizer 2 of 2 (SGD)"]
    assert "of all optimizers" not in out.getvalue()


def test_a_rate_that_is_not_that_of_the_steps_is_told_with_whose_it_is():
    found = diverge(1, 200, 3.0)
    assert "at a learning rate of 0.001 in optimizer 1 of 2 (SGD), the one whose rate is followed:" in found.claim


def test_losses_that_no_sample_takes_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("levada.watching.loop.losses.HELD", 64)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=10_000, max_overhead=math.inf) as watch:
        for _ in range(300):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert 0 < len(watch.ended_losses()) <= 64
        assert watch.ended_losses()[-1][0] == 299
