from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager

import pytest

from levada._errors import UsageError
from levada.study import Cell, sweep
from levada.study.executors import SubmititExecutor, _guarded, _settle, executor

# A worker that dies the first time, one that always dies, one that raises, and others.
PROGRAM = """
    import json, os, signal, sys
    from pathlib import Path

    from levada.study import Cell, sweep
    from levada.study.executors import executor


    def run(config, seeds):
        import torch

        x, folder = config["x"], Path(config["folder"])
        with (folder / f"attempts-{x}").open("a") as file:
            file.write("x")
        if x == "always" or (x == "once" and len((folder / "attempts-once").read_text()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if x == "wrong":
            raise ArithmeticError("it does not add up")
        torch.manual_seed(seeds[0])
        draws = [torch.rand(()).item() for _ in seeds]
        return [{"y": y, "threads": torch.get_num_threads()} for y in draws]


    if __name__ == "__main__":
        import runner  # by name, as a study is: workers import it

        name, folder, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
        names = ["a", "once", "b", "always", "wrong", "c"]
        cells = [Cell({"x": x, "folder": folder}, [i, i + 10]) for i, x in enumerate(names)]
        values, errors = {}, {}
        with executor(name, Path(folder, "jobs"), settings) as pool:
            sweep(
                runner.run,
                cells,
                done=lambda cell, v: values.update({cell.config["x"]: v}),
                failed=lambda cell, e: errors.update({cell.config["x"]: [type(e).__name__, str(e), str(e.__cause__)]}),
                executor=pool,
            )
        attempts = {x: len(Path(folder, f"attempts-{x}").read_text()) for x in ("once", "always", "wrong")}
        print(json.dumps([values, errors, attempts]))
"""
SETTINGS = {"local": {}, "slurm": {"cluster": "local", "poll_seconds": 0.05}, "ray": {}}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    found = {}
    for name, settings in SETTINGS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "runner.py").write_text(textwrap.dedent(PROGRAM))
        command = [sys.executable, "runner.py", name, str(folder), json.dumps(settings)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, env=environment(folder))
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment(folder):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize("name", SETTINGS)
def test_results_are_the_same_whichever_executor_ran_them(outcomes, name):
    values, _, _ = outcomes[name]
    assert sorted(values) == ["a", "b", "c", "once"]
    assert values == outcomes["local"][0]
    assert {one["threads"] for result in values.values() for one in result} == {1}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_worker_that_dies_is_tried_again_and_one_that_raises_is_not(outcomes, name):
    _, errors, attempts = outcomes[name]
    assert sorted(errors) == ["always", "wrong"]
    assert errors["wrong"][:2] == ["ArithmeticError", "it does not add up"]
    assert "in run" in errors["wrong"][2], "the traceback of the worker is kept"
    # Beside a death in a pool of this machine, an innocent cell may have been at work too, and is run again.
    assert attempts["once"] in ((2,) if name != "local" else (2, 3))
    assert attempts["always"] == 3
    assert attempts["wrong"] in ((1,) if name != "local" else (1, 2))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UsageError, match="local, slurm or ray, got 'cloud'"), executor("cloud", tmp_path):
        pass
    with pytest.raises(UsageError, match="no options, got partition"), executor("local", tmp_path, {"partition": "x"}):
        pass
    with pytest.raises(UsageError, match="cluster is 'slurm' or 'local', got 'azure'"):
        SubmititExecutor(tmp_path, cluster="azure")
    with pytest.raises(UsageError, match="submitit refuses"):
        SubmititExecutor(tmp_path, cluster="local", wrong_option=1)
    with pytest.raises(UsageError, match="submitit refuses cluster 'slurm'"):
        SubmititExecutor(tmp_path)  # no sbatch here


def test_the_cells_beside_a_death_are_run_again_alone(monkeypatch):
    """Without processes: a pool that breaks while two cells are at work."""
    module = sys.modules["levada.study.sweep"]
    pools = []

    class Pool:
        def __init__(self, workers):
            self.seen = []
            pools.append((workers, self.seen))

        def submit(self, function, run, config, seeds):
            self.seen.append(config["x"])
            future = Future()
            if len(pools) == 1:
                if len(self.seen) == 2:  # both die, when both are there
                    for one in self.held, future:
                        one.set_exception(BrokenExecutor("dead"))
                self.held = future
            else:
                future.set_result(function(run, config, seeds))
            return future

    @contextmanager
    def pool(workers):
        yield Pool(workers)

    monkeypatch.setattr(module, "process_pool", pool)
    monkeypatch.setattr(module, "num_cores", lambda: 2)
    found = []
    sweep(
        lambda config, seeds: [{}],
        [Cell({"x": x}, [0]) for x in range(3)],
        done=lambda cell, values: found.append(cell.config["x"]),
        failed=print,
    )
    assert pools == [(2, [0, 1]), (1, [0]), (1, [1]), (1, [2])]
    assert found == [0, 1, 2]


def test_a_pool_that_breaks_between_two_submissions_loses_no_cell(monkeypatch):
    module = sys.modules["levada.study.sweep"]
    pools = []

    class Pool:
        """The first one runs a cell, and breaks when the next is submitted."""

        def submit(self, function, run, config, seeds):
            if len(pools) == 1 and self.count:
                raise BrokenExecutor("a worker died")
            self.count += 1
            future = Future()
            future.set_result(function(run, config, seeds))
            return future

    @contextmanager
    def pool(workers):
        pools.append(made := Pool())
        made.count = 0
        yield made

    monkeypatch.setattr(module, "process_pool", pool)
    monkeypatch.setattr(module, "num_cores", lambda: 1)
    found = []
    cells = [Cell({"x": x}, [0]) for x in range(3)]
    sweep(lambda c, s: [{}], cells, done=lambda cell, values: found.append(cell.config["x"]), failed=print)
    assert found == [0, 1, 2]


def test_a_job_that_cannot_be_submitted_again_holds_no_other(tmp_path, monkeypatch):
    from submitit.core.utils import UncompletedJobError

    both = threading.Event()  # were submitted: else the watcher takes the second job for the first once more

    class Job:
        def __init__(self, dead):
            self.dead = dead

        def done(self):
            return both.is_set()

        def result(self):
            if self.dead:
                raise UncompletedJobError("gone")
            return 7, None

    jobs = SubmititExecutor(tmp_path, cluster="local", poll_seconds=0.01)
    given = iter([Job(True), Job(False)])

    def submit(*_args, **_kwargs):
        try:
            return next(given)
        except StopIteration:
            raise RuntimeError("the controller does not answer") from None

    monkeypatch.setattr(jobs._jobs, "submit", submit)
    monkeypatch.setattr("levada.study.executors._PATIENCE", 0.2)
    dead, fine = jobs.submit(pow, 1, 1), jobs.submit(pow, 1, 1)
    both.set()
    assert fine.result(timeout=120) == 7
    assert "does not answer" in str(dead.exception(timeout=120))
    with pytest.raises(UsageError, match="poll_seconds must be"):
        SubmititExecutor(tmp_path, cluster="local", poll_seconds=0)


def test_an_error_of_levada_stays_one():
    future = Future()
    _settle(future, None, _guarded(1, _refuse)[1])
    with pytest.raises(UsageError, match="never"):
        future.result()


def _refuse():
    raise UsageError("never")
