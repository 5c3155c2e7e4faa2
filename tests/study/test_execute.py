from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from levada._errors import UsageError
from levada.runs import Run, RunWriter
from levada.studies import STUDIES, find, run_study
from levada.study import Axis, Cell, Claim, Figure, Series, Study, claims, execute, failures, figures, results, sweep

CALLS: list[tuple[int, tuple[int, ...]]] = []


def square(config, seeds):
    CALLS.append((config["x"], tuple(seeds)))
    if config["x"] == config.get("bad"):
        raise ArithmeticError(f"{config['x']} is bad")
    return [{"y": config["x"] ** 2 + seed} for seed in seeds]


def squares(*, bad=None, run=square):
    def configurations(settings, seeds):
        fields = {} if bad is None else {"bad": bad}
        return [Cell({"x": x, "offset": settings["offset"], **fields}, seeds) for x in (3, 2)]

    def drawn(found):
        return [
            Figure(
                "f",
                "t",
                "c",
                Axis("x"),
                Axis("y"),
                tuple(Series("s", "measured", [0], [y]) for y in found.column("y", x=2)[:1]),
            )
        ]

    def claimed(settings):
        return [
            Claim("grows", "", "", "", lambda r: (r.column("y", x=3) > r.column("y", x=2), {}, None)),
            Claim("small", "", "", "", lambda r: (max(r.column("y")) < 5, {}, None), {"x": 2}),
        ]

    return Study(
        "S", "squares", "Squares", "Do they grow?", ("nobody",), {"seeds": 5, "offset": 0}, configurations, run,
        claimed, drawn, scales={"smoke": {"seeds": 2}}, notes=("none",),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()


def test_a_run_holds_the_study_its_results_claims_and_figures(tmp_path, threads):
    progress = []
    run = execute(squares(), out=tmp_path, executor=threads, progress=lambda *p: progress.append(p))
    assert run.path == tmp_path / "S-small"
    assert (run.manifest.kind, run.manifest.name) == ("study", "S")
    (study,) = run.events("study")
    assert study["question"] == "Do they grow?"
    assert study["settings"] == {"seeds": 5, "offset": 0}
    events = list(run.events("result"))
    assert len(events) == 10
    assert all(Cell(e["config"], [e["seed"]]).key(e["seed"]) == e["key"] for e in events)
    assert {(e["config"]["x"], e["seed"]): e["values"]["y"] for e in events}[3, 4] == 13
    assert {name: claim["status"] for name, claim in claims(run).items()} == {"grows": "held", "small": "not held"}
    assert figures(run)["f"]["series"][0]["y"] == [4]
    assert progress == [(0, 10), (5, 10), (10, 10)]


def test_to_resume_is_to_call_again(tmp_path, threads):
    execute(squares(), out=tmp_path, seeds=3, executor=threads)
    assert CALLS == [(3, (0, 1, 2)), (2, (0, 1, 2))]
    run = execute(squares(), out=tmp_path, executor=threads)
    assert CALLS[2:] == [(3, (3, 4)), (2, (3, 4))], "only the seeds that were missing"
    execute(squares(), out=tmp_path, executor=threads)
    assert len(CALLS) == 4
    assert len(results(run)) == 10
    # The last event of a name counts.
    statuses = [e["status"] for e in run.events("claim") if e["name"] == "grows"]
    assert statuses == ["not decided", "held", "held"]
    assert claims(run)["grows"]["status"] == "held"


def test_other_settings_in_the_same_folder_are_refused_and_the_claims_stay(tmp_path, threads):
    run = execute(squares(), out=tmp_path, executor=threads)
    before = list(run.events())
    with pytest.raises(UsageError, match=r"S-small holds results at offset=0, and offset=1 was asked for: .* --out"):
        execute(squares(), out=tmp_path, settings={"offset": "1"}, executor=threads)
    assert list(run.events()) == before
    assert len(CALLS) == 2


def test_fewer_seeds_never_take_a_decision_back(tmp_path, threads):
    execute(squares(), out=tmp_path, executor=threads)
    run = execute(squares(), out=tmp_path, seeds=2, executor=threads)
    assert len(CALLS) == 2
    assert claims(run)["grows"]["status"] == "held"
    assert claims(run)["grows"]["seeds"] == [0, 1, 2, 3, 4]
    assert [event["settings"]["seeds"] for event in run.events("study")] == [5, 5]


def test_settings_at_which_everything_failed_bind_nobody(tmp_path, threads):
    def broken(config, seeds):
        if config["offset"]:
            raise ArithmeticError("no offset here")
        return square(config, seeds)

    told = r"4 results of S failed, the first with: ArithmeticError: no offset here \(levada\.study\.failures"
    with pytest.warns(UserWarning, match=told):
        run = execute(squares(run=broken), out=tmp_path, seeds=2, settings={"offset": 1}, executor=threads)
    assert claims(run)["grows"]["reason"] == "4 of 4 results failed: ArithmeticError: no offset here"
    assert sorted(event["seed"] for event in failures(run).values()) == [0, 0, 1, 1]
    run = execute(squares(run=broken), out=tmp_path, executor=threads)
    assert failures(run) == {}
    assert claims(run)["grows"]["status"] == "held"


def test_a_result_mends_a_failure(tmp_path):
    with RunWriter.create(tmp_path / "run", kind="study", name="S") as writer:
        for key in ("a", "b"):
            writer.append("failure", key=key, seed=0, error="E: no")
        writer.append("result", key="a", seed=0, values={})
    assert list(failures(Run(tmp_path / "run"))) == ["b"]


def test_the_cheapest_cells_come_first_and_the_rest_as_it_was():
    order = []

    def note(config, seeds):
        order.append(config["x"])
        return [{}]

    with ThreadPoolExecutor(1) as pool:
        sweep(note, [Cell({"x": x}, [0]) for x in range(8)], done=lambda *_: None, failed=print, executor=pool)
    assert order == [7, 6, 0, 1, 2, 3, 4, 5]


class OfTwoError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def held():
    error = ValueError("a lock is held")
    error.lock = threading.Lock()
    return error


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (lambda: SystemExit(3), "SystemExit: 3"),  # would end the sweep
        (lambda: OfTwoError(1, 2), "OfTwoError: 1 and 2"),  # would break the pool that unpickles it
        (held, "ValueError: a lock is held"),  # would be told as what cannot be pickled
    ],
)
def test_what_cannot_cross_processes_is_told_as_it_was(raised, told):
    def run(config, seeds):
        if config["x"] == 1:
            raise raised()
        return [{}]

    done, failed = [], []
    with ThreadPoolExecutor(1) as pool:
        sweep(
            run,
            [Cell({"x": x}, [0]) for x in range(3)],
            done=lambda cell, values: done.append(cell.config["x"]),
            failed=lambda cell, error: failed.append(error),
            executor=pool,
        )
    assert done == [0, 2]
    (error,) = failed
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other)) == (RuntimeError, told)
    assert isinstance(error.__cause__, type(raised()))


def test_an_exception_is_written_and_leaves_its_claims_undecided(tmp_path, threads):
    with pytest.warns(UserWarning, match="execute: 5 results of S failed") as told:
        run = execute(squares(bad=3), out=tmp_path, executor=threads)
    assert [one.filename for one in told] == [__file__]
    failed = list(run.events("failure"))
    assert [f["seed"] for f in failed] == [0, 1, 2, 3, 4]
    assert failed[0]["error"] == "ArithmeticError: 3 is bad"
    found = claims(run)
    assert found["grows"]["status"] == "not decided"
    assert "ArithmeticError: 3 is bad" in found["grows"]["reason"]
    assert found["small"]["status"] == "not held", "this claim does not need the cell that failed"
    # It is tried again, not remembered as done.
    with pytest.warns(UserWarning, match="5 results"):
        execute(squares(bad=3), out=tmp_path, executor=threads)
    assert CALLS[2:] == [(3, (0, 1, 2, 3, 4))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "one dictionary for each of 5 seeds"),
        ([{"y": {1}}] * 5, "not JSON serializable"),
        ("abcde", "one dictionary for each of 5 seeds, got str"),
        ([[1.0]] * 5, "one dictionary for each of 5 seeds, got 5 of list"),
    ],
)
def test_what_run_returns_is_checked(tmp_path, threads, values, message):
    with pytest.warns(UserWarning, match=message):
        run = execute(squares(run=lambda config, seeds: values), out=tmp_path, executor=threads)
    assert message in claims(run)["grows"]["reason"]


def test_a_folder_of_something_else_is_refused(tmp_path, threads):
    RunWriter.create(tmp_path / "S-small", kind="watch", name="S").close()
    with pytest.raises(UsageError, match="holds the watch 'S', not study S"):
        execute(squares(), out=tmp_path, executor=threads)


def test_the_default_executor_is_processes_with_one_thread_each(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found, failed = {}, []
    cells = [Cell({"x": 1}, [0]), Cell({"x": "oops"}, [0])]
    sweep(
        describe_process,
        cells,
        done=lambda cell, values: found.update({cell.config["x"]: values[0]}),
        failed=lambda cell, error: failed.append((cell, error)),
    )
    assert found[1]["threads"] == 1
    assert found[1]["pid"] != os.getpid()
    ((cell, error),) = failed
    assert cell is cells[1]
    assert isinstance(error, TypeError)


def describe_process(config, seeds):
    import torch

    return [{"threads": torch.get_num_threads(), "pid": os.getpid(), "x": config["x"] + 1}]


SLEEPER = """
    import os, signal, sys, time
    from pathlib import Path
    from levada.study import Cell, sweep

    def run(config, seeds):
        if config["x"]:
            Path(config["folder"], "began").write_text(str(os.getpid()))
            time.sleep(600)
        return [{}]

    if __name__ == "__mp_main__" and len(sys.argv) > 2:
        signal.raise_signal(signal.SIGINT)
    if __name__ == "__main__":
        # A shell's background jobs, and their children, begin with the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cells = [Cell({"x": x, "folder": sys.argv[1]}, [0]) for x in (0, 1)]
        sweep(run, cells, done=lambda c, v: Path(sys.argv[1], "done").touch(), failed=print)
"""


def interrupted(tmp_path, *arguments, after):
    """Run the sleeper, send Ctrl-C once the files `after` exist, and return what it wrote to standard error."""
    script = tmp_path / "sleeper.py"
    script.write_text(textwrap.dedent(SLEEPER))
    command = [sys.executable, script, tmp_path, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while not all((tmp_path / name).exists() for name in after):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and workers
        _, stderr = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode != 0
    return stderr


def test_an_interruption_ends_at_once_and_keeps_what_is_done(tmp_path):
    stderr = interrupted(tmp_path, after=("began", "done"))
    assert stderr.count(b"\nKeyboardInterrupt") == 1, "the workers are silent"
    worker = int((tmp_path / "began").read_text())
    deadline = time.monotonic() + 120
    while running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows spawns without a signal mask")
def test_an_interruption_does_not_reach_a_worker_that_is_still_importing(tmp_path):
    stderr = interrupted(tmp_path, "while importing", after=("began", "done"))
    assert stderr.count(b"\nKeyboardInterrupt") == 1


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # an orphan that nobody reaps has ended all the same
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_studies_are_found_by_name():
    assert list(STUDIES) == sorted(STUDIES, key=lambda name: int(name.removeprefix("R")))
    assert all(study.name == name for name, study in STUDIES.items())
    assert find("Degradation") is STUDIES["R4"]
    with pytest.raises(
        UsageError,
        match=r"'R99' is not known\. Did you mean 'R9'\? There are 22: `levada list studies` names them\.",
    ):
        run_study("R99")
    for study in STUDIES.values():
        for scale in ("smoke", "small", "full"):
            settings = study.resolve(scale)
            cells = study.configurations(settings, range(settings["seeds"]))
            keys = [cell.key(seed) for cell in cells for seed in cell.seeds]
            assert len(set(keys)) == len(keys)
            assert all(claim.statement and claim.criterion and claim.source for claim in study.claims(settings))
    assert Run  # the type that run_study returns


def test_what_is_no_executor_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"must be a concurrent.futures.Executor, or 'local', .* got 2"):
        execute(squares(), out=tmp_path, executor=2)
    with pytest.raises(UsageError, match=r"an executor is local, slurm or ray, got 'cloud'. Name one of them"):
        execute(squares(), out=tmp_path, executor="cloud")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["local", "ray"])
def test_an_executor_is_taken_by_the_name_that_the_command_line_takes(tmp_path, threads, monkeypatch, name):
    made = []

    @contextlib.contextmanager
    def ours(*of):
        made.append(of)
        yield threads

    monkeypatch.setattr(importlib.import_module("levada.study.execute"), "named", ours)
    run = execute(squares(), out=tmp_path, executor=name)
    assert made == [(name, tmp_path / ".jobs")]
    assert len(results(run)) == len(results(execute(squares(), out=tmp_path / "other", executor=threads)))


@pytest.mark.parametrize(("name", "change"), [("R12", "folds"), ("R14", "reach_lag"), ("R21", "dim"), ("R1", "seeds")])
def test_a_count_that_is_planned_without_end_is_refused_at_once(name, change, tmp_path):
    with pytest.raises(UsageError, match=rf"study {name}: {change} must be at most \d+, .* got 100000000000\."):
        execute(STUDIES[name], scale="smoke", out=tmp_path, settings={change: str(10**11)})
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_configurations_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"study R10 has no configurations at depths=8,14,20,26: .* changed together"):
        execute(STUDIES["R10"], scale="smoke", out=tmp_path, settings={"depths": (8, 14, 20, 26)})
    assert not list(tmp_path.iterdir())
