"""Scripts that were not written for it: run as python runs them, their models found and watched."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.watching.terminal import Terminal
from torch import nn

from levada import commands
from levada._errors import UsageError
from levada.cli import main
from levada.commands.script import Script, run_script
from levada.runs import Run, SignalWriter
from levada.watching.loop.owners import find_trained
from levada.watching.script import Watches

TRAIN = """
import sys, time
import torch
from torch import nn

def train(steps, pause=0.0, out=print):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        out(f"said {step}")
        time.sleep(pause)
"""


@pytest.fixture(autouse=True)
def pythons_own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back what torch.distributed put before every line of a traceback, in tests that ran before."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


class Recorder:
    """Stands for a watch."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Any], before: int) -> None:
        self.model, self.optimizers, self.before, self.closed = model, tuple(optimizers), before, 0

    def close(self) -> None:
        self.closed += 1


def run_text(folder: Path, text: str, *arguments: str, name: str = "script.py") -> tuple[int, list[Any]]:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    watches = Watches(Recorder)
    return run_script(Script(str(file), arguments), watches), watches.started


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        model(torch.ones(2, 4)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


# As python runs it.

ASKS = """
import json, os, sys, __main__
import beside
print(json.dumps([sys.argv, sys.path[0], __file__, __name__, beside.WORD, __main__ is sys.modules["__main__"],
    __main__.__dict__ is globals(), repr(__spec__), __package__, type(__loader__).__name__, os.getcwd()]))
"""


@pytest.mark.parametrize("how", ["relative", "absolute", "link", "folder", "module", "package"])
def test_a_script_finds_what_python_would_have_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "asks.py").write_text(ASKS.replace("repr(__spec__)", "getattr(__spec__, 'name', None)"))
    (place / "__main__.py").write_text((place / "asks.py").read_text())
    (place / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "beside.py").write_text("WORD = 'above'\n")
    (tmp_path / "link.py").symlink_to(place / "asks.py")
    target, words = {
        "relative": ("place/asks.py", ["place/asks.py"]),
        "absolute": (str(place / "asks.py"), [str(place / "asks.py")]),
        "link": ("link.py", ["link.py"]),
        "folder": ("place", ["place"]),
        "module": ("place.asks", ["-m", "place.asks"]),
        "package": ("place", ["-m", "place"]),
    }[how]
    monkeypatch.chdir(tmp_path)
    python = subprocess.run(
        [sys.executable, *words, "a", "--run", "b"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    before = list(sys.argv), list(sys.path), sys.modules["__main__"]
    code = run_script(Script(target, ("a", "--run", "b"), module=words[0] == "-m"), Watches(Recorder))
    for name in ("beside", "place", "place.asks"):
        sys.modules.pop(name, None)
    assert code == 0
    assert capfd.readouterr().out == python.stdout
    assert (sys.argv, sys.path, sys.modules["__main__"]) == before


FAILING = """
def inner(value):
    raise ValueError(f"no {value}")

def outer():
    try:
        inner("first")
    except ValueError as error:
        raise RuntimeError("second") from error

outer()
"""


@pytest.mark.parametrize(
    "text", [FAILING, "def broken(:\n    pass\n", "import absent_module_of_levada\n", "raise KeyboardInterrupt\n"]
)
def test_what_a_script_raises_is_printed_as_python_prints_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    code, _ = run_text(tmp_path, text)
    python = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert capfd.readouterr().err == python.stderr
    assert code == (130 if "Keyboard" in text else python.returncode)


def test_an_error_inside_of_a_watched_step_shows_the_scripts_frames_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(
        TRAIN + "class Bad(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x): return x.clone()\n"
        "    @staticmethod\n    def backward(ctx, g): raise RuntimeError('backward failed')\n"
        "train(3)\n"
        "Bad.apply(torch.ones(1, requires_grad=True)).sum().backward()\n"
    )
    code = main(["run", "--plain", "--run", str(tmp_path / "run"), str(tmp_path / "script.py")])
    told = capfd.readouterr().err
    assert code == 1
    assert told.rstrip().endswith("RuntimeError: backward failed")
    assert "levada/watching" not in told
    assert told.index("steps watched") < told.index("Traceback")  # the terminal is given back first


def test_an_interruption_while_the_record_is_written_shows_the_scripts_frames_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    append, steps = SignalWriter.append, []

    def interrupted(self: SignalWriter, step: int, *args: Any) -> Any:
        steps.append(step)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return append(self, step, *args)

    # As if it were a line of levada/runs: the frame of a function that is compiled under its name.
    code = interrupted.__code__.replace(co_filename=sys.modules[SignalWriter.__module__].__file__)
    interrupted.__code__ = code
    monkeypatch.setattr(SignalWriter, "append", interrupted)
    (tmp_path / "script.py").write_text(TRAIN + "train(100)\n")
    options = ["--quiet", "--every", "1", "--max-overhead", "1", "--run", str(tmp_path / "run")]
    assert main(["run", *options, str(tmp_path / "script.py")]) == 130
    told = capfd.readouterr().err
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert "optimizer.step()" in told
    assert "levada/" not in told


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('what failed')", 1, "what failed\n"),
        ("raise SystemExit(True)", 1, ""),
        ("print('done')", 0, ""),
    ],
)
def test_the_exit_code_is_the_scripts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, code: int, told: str
) -> None:
    assert run_text(tmp_path, text)[0] == code
    assert capfd.readouterr().err == told


def test_a_script_that_sigterm_ends_closes_its_watches_first_unless_it_has_a_handler(tmp_path: Path) -> None:
    text = """
        import os, signal, sys, warnings
        from torch import nn, optim, ones
        net = nn.Linear(4, 1)
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        net(ones(4)).sum().backward(); optimizer.step()
        if "handled" in sys.argv:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        if "forked" in sys.argv:
            warnings.simplefilter("ignore")  # python's, of threads
            if child := os.fork():
                sys.exit(8 if os.waitpid(child, 0)[1] == signal.SIGTERM else 9)
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(1)
        signal.raise_signal(signal.SIGTERM)
        """
    for words, expected in ((), 143), (("handled",), 7), (("forked",), 8):
        code, watches = run_text(tmp_path, text, *words)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert (code, [watch.closed for watch in watches]) == (expected, [1])


@pytest.mark.parametrize("script", [Script("absent.py"), Script("absent_module_of_levada", module=True)])
def test_a_script_that_is_not_there_is_told_in_a_sentence(script: Script) -> None:
    with pytest.raises(UsageError, match="absent"):
        run_script(script, Watches(Recorder))
    words = ["-m", script.target] if script.module else [script.target]
    assert main(["run", *words]) == 2


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("raise ValueError('broken')", "package.train"),
        ("import absent_module_of_levada", "package.train"),
        ("raise ValueError('broken')", "package.absent"),
        ("", "package"),
    ],
)
def test_a_package_that_raises_is_told_as_python_tells_it(tmp_path: Path, package: str, name: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(f"print('begun')\n{package}\n")
    (tmp_path / "package" / "train.py").write_text("print('trained')\n")
    python, ours = (
        subprocess.run([sys.executable, *words, "-m", name], capture_output=True, text=True, cwd=tmp_path, check=False)
        for words in ((), ("-m", "levada", "run", "--quiet"))
    )
    assert ours.returncode == python.returncode == 1
    assert ours.stdout.replace("begun\n", "") == python.stdout.replace("begun\n", "") == ""
    kept = [line for line in python.stderr.splitlines() if "<frozen" not in line]
    if package:
        assert ours.stderr.splitlines() == kept
    else:
        assert "'package' is a package and cannot be directly executed" in ours.stderr


@pytest.mark.parametrize("name", ["train.py", ".train", "train.", "package..train", "package.train.more", "__main__."])
def test_what_is_no_modules_name_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "package").mkdir()
    for file in ("train.py", "package/__init__.py", "package/train.py"):
        (tmp_path / file).write_text("print('trained')\n")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-m", name]) == 2
    told = capfd.readouterr()
    assert f"-m takes the name of a module that can be imported, got {name!r}." in told.err
    assert told.out == ""


def test_a_module_of_a_package_that_says_itself_where_its_modules_are_is_run(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(f"__path__ = [{str(tmp_path / 'elsewhere')!r}]\n")
    (tmp_path / "elsewhere" / "train.py").write_text("print('trained')\n")
    words = [sys.executable, "-m", "levada", "run", "--quiet", "-m", "package.train"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (0, "trained\n")


def test_a_hook_for_exceptions_that_the_script_sets_is_called(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "import sys\nsys.excepthook = lambda kind, error, trace: print('mine', error)\nraise ValueError('x')\n"
    assert run_text(tmp_path, text)[0] == 1
    assert capfd.readouterr().out == "mine x\n"


def test_a_hook_for_exceptions_that_fails_is_told_as_python_tells_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "import sys\ndef hook(*_): raise KeyError('hook')\nsys.excepthook = hook\nraise ValueError('script')\n"
    code, _ = run_text(tmp_path, text)
    python = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert capfd.readouterr().err == python.stderr
    assert code == python.returncode == 1
    assert run_text(tmp_path, text.replace("raise KeyError('hook')", "sys.exit(5)"))[0] == 5


def test_what_a_script_raises_is_printed_where_it_closed_standard_output(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.stdout.close()\nraise ValueError('script')\n")
    python, ours = (
        subprocess.run([sys.executable, *words, "script.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
        for words in ((), ("-m", "levada", "run", "--quiet"))
    )
    assert (ours.returncode, ours.stderr) == (python.returncode, python.stderr)


FORKS = """
import os, sys
train(3)
if (child := os.fork()) == 0:
    train(3)
    sys.exit(3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_what_a_script_forks_is_not_watched_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN + FORKS)
    done = subprocess.run(
        [sys.executable, "-m", "levada", "run", "--run", "run", "train.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.count("steps watched") == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]


WITHOUT_A_MODULE = """
import torch
for _ in range(2):
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(3):
        (weight - 1).square().sum().backward()
        optimizer.step()
print("trained")
"""


def test_a_script_that_makes_warnings_errors_is_told_once_and_trains(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WITHOUT_A_MODULE)
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "levada", "run", "script.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "trained\n")
    told = "levada run: a model could not be watched: LookupError: no module holds the parameters of SGD\n"
    assert done.stderr == told  # and not that no optimizer made a step


@pytest.mark.parametrize(
    "failing", ["verdict.judge.Judge.sampled", "measure.together.Together.send", "loop.losses.Losses.before"]
)
def test_what_fails_in_a_watch_stops_no_script_that_makes_warnings_errors(tmp_path: Path, failing: str) -> None:
    module, kind, method = failing.rsplit(".", 2)
    (tmp_path / "script.py").write_text(
        f"from levada.watching.{module} import {kind}\n"
        f"def fails(*args, **kwargs): raise ValueError('planted')\n"
        f"{kind}.{method} = fails\n" + TRAIN + "import warnings\nwarnings.simplefilter('error')\ntrain(6)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "levada", "run", "--quiet", "--every", "1", "script.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("said 5\n")
    assert done.stderr.count("planted") == 1


# What the command line hands on.


@pytest.mark.parametrize(
    ("words", "own", "script", "module"),
    [
        (["train.py"], {}, ["train.py"], None),
        (["a.py", "--lr", "3", "--run", "x", "-m"], {"run": None}, ["a.py", "--lr", "3", "--run", "x", "-m"], None),
        (["--run", "d", "a.py", "--run", "x", "--debug"], {"run": "d"}, ["a.py", "--run", "x", "--debug"], None),
        (["--every", "5", "--plain", "a.py", "--", "-h"], {"every": 5, "view": "plain"}, ["a.py", "--", "-h"], None),
        (["-m", "a.b", "--every", "3", "--help"], {"every": 20}, [], ["a.b", "--every", "3", "--help"]),
        (["--quiet", "-m", "a"], {"view": "quiet"}, [], ["a"]),
        (["train.py", "--help"], {}, ["train.py", "--help"], None),
    ],
)  # fmt: skip
def test_a_scripts_arguments_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, words: list[str], own: dict[str, Any], script: list[str], module: list[str] | None
) -> None:
    seen: list[Any] = []
    monkeypatch.setitem(commands.COMMANDS, "run", lambda options: seen.append(options) or 0)  # type: ignore[arg-type]
    assert main(["run", *words]) == 0
    assert (seen[0].script, seen[0].module) == (script, module)
    assert {key: getattr(seen[0], key) for key in own} == own


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "SCRIPT must be given"),
        (["--every", "0", "x.py"], "--every must be at least 1, got 0. 20 is every twentieth step"),
        (["--every", str(2**62), "x.py"], "--every must be less than 2^62, got 4611686018427387904"),
        (["--max-overhead", "2", "x.py"], "in (0, 1], got 2."),
    ],
)
def test_options_out_of_range_are_told(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert main(["run", *words]) == 2
    assert told in capsys.readouterr().err


def test_no_run_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN + "train(2)\n")
    assert [main(["run", "--quiet", "train.py"]) for _ in range(2)] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["train-1", "train-2"]
    assert main(["run", "--quiet", "--run", "runs/train-1", "train.py"]) == 2
    said = capfd.readouterr()
    rule = "levada run: --run must name a folder that holds no run yet, got 'runs/train-1'."
    assert said.err == f"{rule} Name another, or look at the one that is there: levada report runs/train-1\n"
    assert said.out == "said 0\nsaid 1\n" * 2
    # A worker that torchrun starts again goes on beside the first attempt.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["run", "--quiet", "--run", "runs/train-1", "train.py"]) == 0
    assert (tmp_path / "runs" / "train-1-2" / "run.json").exists()


def test_a_watched_script_leaves_a_run_and_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text(TRAIN + "train(9)\n")
    code = main(
        ["run", "--run", str(tmp_path / "run"), "--every", "2", "--max-overhead", "1", str(tmp_path / "train.py")]
    )
    said = capfd.readouterr()
    assert code == 0
    assert said.out == "".join(f"said {step}\n" for step in range(9))
    assert "levada  8 steps watched, 1 to 8, loss " in said.err  # the first shows the model, and is not watched
    assert f"levada report {tmp_path / 'run'}" in said.err
    run = Run(tmp_path / "run")
    assert run.manifest.kind == "watch"
    assert [site["name"] for site in run.signals().sites] == ["0", "1", "2", "3", "4"]
    assert run.signals().steps[:2] == (1, 3)
    assert [step for step, _ in run.losses()] == list(range(1, 9))
    (end,) = run.events("end")
    assert end["steps"] == 9


def test_a_script_that_trains_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.py").write_text("pass\n")
    assert main(["run", str(tmp_path / "x.py")]) == 0
    assert "no optimizer made a step" in capsys.readouterr().err


def test_of_a_script_that_fails_its_own_error_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.py").write_text("def f(:\n")
    assert main(["run", str(tmp_path / "x.py")]) == 1
    told = capsys.readouterr().err
    assert "SyntaxError" in told
    assert "no optimizer made a step" not in told


# Which model an optimizer trains.


def test_the_outermost_module_is_found_whatever_wraps_the_model() -> None:
    model = net()
    wrapped = nn.Sequential(nn.Identity(), model)
    trained = find_trained(sgd(model))
    assert trained is not None
    assert trained.model is wrapped
    compiled = torch.compile(wrapped, backend="eager")
    trained = find_trained(sgd(model))
    assert trained is not None
    assert trained.model is compiled


def test_a_copy_or_a_part_is_not_taken_for_the_model() -> None:
    model = net()
    average, part = copy.deepcopy(model), model[0]
    trained = find_trained(sgd(part))
    assert trained is not None
    assert trained.model is model
    trained = find_trained(sgd(average))
    assert trained is not None
    assert trained.model is average


def test_of_two_that_hold_it_the_one_that_holds_less_else_is_taken() -> None:
    model = net()
    both = nn.ModuleList([model, net()])
    holder = nn.Module()
    holder.model = model
    trained = find_trained(sgd(model))
    assert trained is not None
    assert trained.model is holder
    del both


def test_an_optimizer_of_several_models_watches_all_of_them() -> None:
    first, second = net(), net()
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters(), torch.ones(1, requires_grad=True)], lr=0.1)
    trained = find_trained(optimizer)
    assert trained is not None
    assert {id(module) for module in trained.model.children()} == {id(first), id(second)}


def test_two_optimizers_of_one_model_share_a_watch_and_wrappers_do_not_count() -> None:
    model = net()
    first, second = sgd(model[0]), sgd(model[1])
    twice = sgd(model)  # made before, or a wrapper
    other = sgd(net())
    with Watches(Recorder) as watches:
        train(model, first, second)
    (watch,) = watches.started
    assert watch.model is model
    assert watch.optimizers[0] is first
    assert second in watch.optimizers
    assert twice not in watch.optimizers
    assert other not in watch.optimizers
    assert watch.closed == 1


def test_two_models_have_a_watch_each() -> None:
    first, second = net(), net()
    with Watches(Recorder) as watches:
        train(first, sgd(first))
        train(second, sgd(second))
        assert [watch.closed for watch in watches.started] == [0, 0]
    assert [watch.model for watch in watches.started] == [first, second]
    assert [watch.before for watch in watches.started] == [0, 1]


def test_a_new_optimizer_begins_a_new_watch() -> None:
    model = net()
    with Watches(Recorder) as watches:
        train(model, sgd(model))
        gc.collect()
        train(model, sgd(model))
        assert [watch.closed for watch in watches.started] == [1, 0]


class Around(torch.optim.Optimizer):
    """An optimizer that lets another step, as SAM and many more do."""

    def __init__(self, inner: torch.optim.Optimizer, groups: Any = None) -> None:
        super().__init__(inner.param_groups if groups is None else groups, {})
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


class Alike:
    """What only looks like an optimizer: torch calls no hooks of it."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()

    def zero_grad(self) -> None:
        self.inner.zero_grad()


def test_an_optimizer_that_steps_within_anothers_step_is_its_part() -> None:
    model = net()
    inner = sgd(model)
    outer = Around(inner)
    with Watches(Recorder) as watches:
        for _ in range(3):
            train(model, outer)
        assert inner in watches._seen, "it is looked at no more"
    (watch,) = watches.started
    assert (watch.optimizers, watch.closed) == ((outer,), 1)


def test_within_what_is_no_optimizer_or_holds_less_it_is_its_own() -> None:
    model = net()
    inner = sgd(model)
    with Watches(Recorder) as watches:
        train(model, Alike(inner))
    assert [watch.optimizers for watch in watches.started] == [(inner,)]
    first, second = net(), net()
    every = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    with Watches(Recorder) as watches:
        train(first, Around(every, [{"params": [*first.parameters()]}]))
    assert every in watches.started[0].optimizers


def test_an_optimizer_without_a_module_is_told_and_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.sum().backward()
    with Watches(Recorder) as watches:
        optimizer.step()
    assert (watches.started, watches.failures) == ([], 1)
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    assert capsys.readouterr().err == (
        "levada run: a model could not be watched: LookupError: no module holds the parameters of SGD\n"
    )


# In a terminal, and in several processes.


def test_a_terminal_takes_in_pieces_what_it_takes_in_whole() -> None:
    letters = "gr\u00f6\u00dfer \u2500\u2588\U0001f600"
    sent = f"\x1b[1;30r\x1b7\x1b[33;1H{letters}\x1b[38;5;12m\x1b[K\x1b8\x1b[?25lsaid\r\n".encode()
    whole, pieces = Terminal(), Terminal()
    os.write(whole.slave, sent)
    whole.feed(0.05)
    for i in range(len(sent)):
        os.write(pieces.slave, sent[i : i + 1])
        pieces.feed(0.001)
    pieces.feed(0.05)
    assert (pieces.text, pieces.row, pieces.region) == (whole.text, whole.row, whole.region)
    assert letters in whole.text
    for terminal in (whole, pieces):
        terminal.close()


def test_in_a_terminal_the_view_stands_below_and_ctrl_c_leaves_all_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal(80, 40)
    (tmp_path / "train.py").write_text(
        TRAIN + "from tqdm import tqdm\n"
        "bar = tqdm(range(61), ncols=70)\n"
        "def out(text):\n    bar.update()\n    tqdm.write(text)\n"
        "train(61, 0.02, out)\n"
        "out('waiting for Ctrl-C')\n"
        "open('waiting', 'w').close()\n"
        "while True:\n    time.sleep(1.0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "levada", "run", "--max-overhead", "1", "--every", "1", "train.py"],
        stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave, cwd=tmp_path,
    )  # fmt: skip
    try:
        terminal.until("waiting for Ctrl-C", process)
        while not (tmp_path / "waiting").exists():  # tqdm is at work as long as that
            terminal.feed(0.05)
            assert process.poll() is None, terminal.text
        assert "gradient by block" in terminal.text
        process.send_signal(signal.SIGINT)
        assert terminal.ended(process) == 130
    finally:
        process.kill()
        process.wait()
    lines = [line.rstrip() for line in terminal.text.splitlines()]
    said = [int(line.split()[1]) for line in lines if line.startswith("said ")]
    assert said == list(range(61))
    assert "KeyboardInterrupt" in lines
    assert any("steps watched, 1 to 60, loss " in line for line in lines)
    assert not any("gradient by block" in line for line in lines)
    assert terminal.region == (0, 39)
    assert sum("levada/" in line and "File" in line for line in lines) == 0
    terminal.close()
    assert Run(tmp_path / "runs" / "train-1").signals().steps


def test_under_torchrun_all_processes_write_one_run_and_the_first_speaks(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "torch.distributed.init_process_group('gloo')\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))\n"
        "net = torch.nn.parallel.DistributedDataParallel(net)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "for _ in range(4):\n"
        "    optimizer.zero_grad(); net(torch.ones(2, 4)).sum().backward(); optimizer.step()\n"
        "torch.distributed.barrier()\n"
        "torch.distributed.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "levada"]
    done = subprocess.run(
        [*command, "run", "--max-overhead", "1", "--every", "1", "train.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train-1"]
    run = Run(tmp_path / "runs" / "train-1")
    assert run.ranks == (0, 1)
    assert run.signals(0).steps == run.signals(1).steps == (1, 2, 3)
    assert done.stderr.count("steps watched") == 1


TOGETHER = """
for step in range(4):
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = net(torch.ones(4, 8) + step).square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    print(loss.item())
"""


@pytest.mark.parametrize("several", [False, True])
def test_steps_have_the_numbers_that_they_have_in_the_script(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], several: bool
) -> None:
    parts = "[list(net.parameters())[::2], list(net.parameters())[1::2]]" if several else "[list(net.parameters())]"
    (tmp_path / "train.py").write_text(
        "import torch\nfrom torch import nn\nnet = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))\n"
        f"optimizers = [torch.optim.SGD(part, lr=0.1) for part in {parts}]\n" + TOGETHER
    )
    assert main(["run", "--quiet", "--run", str(tmp_path / "run"), str(tmp_path / "train.py")]) == 0
    losses = [float(line) for line in capfd.readouterr().out.split()]
    assert dict(Run(tmp_path / "run").losses()) == pytest.approx(dict(list(enumerate(losses))[1:]))


def test_where_a_step_is_kept_the_terminal_names_it_and_how_to_run_it_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(
        TRAIN.replace("torch.ones(4, 8)", "torch.ones(4, 8) / (step != 5)") + "train(9)\n"
    )
    run = tmp_path / "run"
    assert main(["run", "--plain", "--run", str(run), str(tmp_path / "train.py")]) == 0
    lines = [line.strip() for line in capfd.readouterr().err.splitlines()]
    kept = run / "bundles" / "step-000005-numerical_overflow"
    assert kept.is_dir()
    assert lines[-3:] == [
        "1 step is kept; run it again, where NAME builds the Sequential:",
        f"levada replay {kept} --model FILE.py:NAME",
        f"levada report {run} -o report.html",
    ]
    assert not any("rank" in line for line in lines), "there is one process"
