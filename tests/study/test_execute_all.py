from __future__ import annotations

import subprocess
from importlib import import_module
from types import SimpleNamespace

import pytest

from levada._errors import UsageError
from levada.runs import Run
from levada.study import Cell, Claim, Cost, Study, claims, execute, execute_all, failures, provenance, results
from levada.study.execution import Execution
from levada.study.standing import Clock

CALLS: list[tuple[str, int]] = []


def double(config, seeds):
    CALLS.append((config["study"], config["x"]))
    if config["x"] == config["bad"]:
        raise ArithmeticError(f"{config['x']} is bad")
    return [{"y": 2 * config["x"] + seed} for seed in seeds]


def study(name, *, bad=-1, hours=None, claimed=None):
    def configurations(settings, seeds):
        return [Cell({"study": name, "x": x, "bad": bad}, seeds) for x in range(settings["sizes"], 0, -1)]

    def grows(settings):
        return [Claim("grows", "It grows.", "y > 0", "", lambda r: (min(r.column("y")) > 0, {}, None))]

    return Study(
        name, name.lower(), name, "Does it?", (), {"seeds": 5, "sizes": 3}, configurations, double,
        claimed or grows, lambda found: [], scales={"smoke": {"seeds": 2}},
        costs={} if hours is None else {"small": Cost(hours)},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()


def test_every_study_gets_its_run_and_the_standing_counts_all_of_them(tmp_path, threads):
    standings = []
    executed = execute_all([study("A"), study("B")], out=tmp_path, executor=threads, progress=standings.append)
    assert [one.study.name for one in executed] == ["A", "B"]
    for one in executed:
        assert one.run.path == tmp_path / f"{one.study.name}-small"
        assert claims(one.run)["grows"]["status"] == "held"
        assert len(results(one.run)) == 15
    assert [s.results_done for s in standings] == [0, 5, 10, 15, 20, 25, 30]
    # Which study ends first is the executor's affair.
    assert [s.studies_done for s in standings] == sorted(s.studies_done for s in standings)
    assert [standings[i].studies_done for i in (2, -2, -1)] == [0, 1, 2]
    assert all((s.results, s.studies) == (30, 2) for s in standings)
    assert standings[0].seconds_left is None
    assert standings[-1].seconds_left == 0


def test_the_study_that_costs_most_begins(tmp_path, threads):
    execute_all([study("A", hours=1), study("B"), study("C", hours=2)], out=tmp_path, executor=threads)
    assert [name for name, _ in CALLS] == ["C"] * 3 + ["A"] * 3 + ["B"] * 3


def test_what_fails_in_one_study_leaves_the_others_alone(tmp_path, threads):
    def broken(settings):
        raise ZeroDivisionError("a claim")

    one, two, three = execute_all(
        [study("A", bad=2), study("B", claimed=broken), study("C")], out=tmp_path, executor=threads
    )
    assert len(failures(one.run)) == 5
    assert claims(one.run)["grows"]["status"] == "not decided"
    assert one.error is None
    assert isinstance(two.error, ZeroDivisionError)
    assert len(results(two.run)) == 15
    assert claims(three.run)["grows"]["status"] == "held"
    with pytest.raises(ZeroDivisionError, match="a claim"):
        execute(study("B", claimed=broken), out=tmp_path, executor=threads)


def test_a_setting_that_one_study_lacks_is_refused_before_any_begins(tmp_path, threads):
    with pytest.raises(UsageError, match="study A has no setting 'depth'"):
        execute_all([study("A"), study("B")], out=tmp_path, executor=threads, settings={"depth": 3})
    assert not list(tmp_path.iterdir())
    assert not CALLS


def test_a_study_that_is_whole_is_concluded_again_and_not_computed(tmp_path, threads):
    execute_all([study("A")], out=tmp_path, executor=threads)
    CALLS.clear()
    execute_all([study("A"), study("B")], out=tmp_path, executor=threads)
    assert {name for name, _ in CALLS} == {"B"}
    assert len(list(Run(tmp_path / "A-small").events("claim"))) == 2
    # Writers are let go of: the folder can be continued.
    execute(study("A"), out=tmp_path, executor=threads, seeds=6)


def test_a_result_says_what_its_seed_cost(tmp_path, threads, monkeypatch):
    monkeypatch.setattr(import_module("levada.study.sweep").time, "process_time", iter([10.0, 15.0]).__next__)
    run = execute(study("A"), out=tmp_path, executor=threads, settings={"sizes": 1})
    assert [event["seconds"] for event in run.events("result")] == [1.0] * 5


def test_a_run_says_which_code_and_machine_computed_it(tmp_path, threads):
    run = execute(study("A"), out=tmp_path, executor=threads)
    (told,) = run.events("study")
    assert {key: told[key] for key in ("commit", "dirty", "machine")} == provenance.provenance()
    assert told["machine"]["cpu"]
    assert told["machine"]["cores"] >= 1


def git(folder, *arguments):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_package_and_dirty_if_files_differ(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "src"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    monkeypatch.setattr(provenance, "levada", SimpleNamespace(__file__=str(package / "__init__.py")))

    def told():
        provenance.provenance.cache_clear()
        found = provenance.provenance()
        return found["commit"], found["dirty"]

    assert told() == ("", False)
    git(tmp_path, "init", "-q", "repository")
    assert told() == ("", False), "in a repository that does not hold it"
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    assert told() == (git(package, "rev-parse", "HEAD"), False)
    (tmp_path / "repository" / "notes.txt").write_text("elsewhere")
    assert told()[1] is False
    (package / "more.py").write_text("")
    assert told()[1] is True, "a file that is not in the commit"
    provenance.provenance.cache_clear()


def begun(tmp_path, made, **seconds):
    """An execution of which some seeds of some sizes have been computed."""
    execution = Execution(made, "small", tmp_path, {})
    for cell in execution.cells:
        for seed in seconds.get(f"x{cell.config['x']}", ()):
            execution.values[cell.key(seed)] = {}
            execution.seconds[cell.key(seed)] = seconds[f"x{cell.config['x']}"][seed]
    return execution


def test_what_is_left_is_estimated_by_configuration_and_else_by_the_study_s_cost(tmp_path):
    assert begun(tmp_path, study("A")).seconds_left() is None
    assert begun(tmp_path, study("A", hours=1)).seconds_left() == pytest.approx(3600)
    measured = {"x3": {0: 10.0, 1: 14.0}}  # mean 12, three seeds of it are left
    assert begun(tmp_path, study("A", hours=1), **measured).seconds_left() == pytest.approx(3 * 12 + 10 * 3600 / 15)
    assert begun(tmp_path, study("A"), **measured).seconds_left() == pytest.approx(3 * 12 + 10 * 12)


def test_the_time_left_follows_the_pace(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("levada.study.standing.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("levada.study.standing.num_cores", lambda: 2)
    clock = Clock([begun(tmp_path, study("A", hours=1)), begun(tmp_path, study("B", hours=1))])
    assert clock.standing().seconds_left == pytest.approx(3600), "two cores, at first"
    now[0] += 10_000
    clock.add(1_000)  # of processor time, in ten times as long
    assert clock.standing().seconds_left == pytest.approx(7200 * 10_030 / 1_060)
    assert Clock([begun(tmp_path, study("A", hours=1)), begun(tmp_path, study("B"))]).standing().seconds_left is None
