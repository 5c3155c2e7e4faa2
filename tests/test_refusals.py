"""What every command says of words that it cannot use: the rule, what came, what to do; one line, exit code 2."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import levada
from levada import cli
from levada._errors import UsageError
from levada.cli import main
from levada.commands import COMMANDS
from levada.runs import Run, RunWriter
from levada.watching.verdict.bundle import Bundle, write_bundle

KEPT = "step-000007-loss_spike"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that kept a step, a folder of runs, one without any, a script, a configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "many/a", "many/b"):
        RunWriter.create(name, kind="watch", name=name).close()
    write_bundle(Path("run"), Bundle(7, "loss_spike", "why", values={"args": (torch.ones(2),)}, facts={"model": "Net"}))
    Path("empty").mkdir()
    Path("net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(2, 2)\n")
    Path("built.py").write_text("from torch import nn, relu\n\nnet = nn.Linear(2, 2)\n")
    Path("parses.py").write_text("raise SystemExit(2)\n")
    Path("train.toml").write_text("[run]\nsteps = 1\nfolder = 'new'\n")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str]:
    code = main(words.split())
    said = capsys.readouterr()
    assert said.out == "", "nothing was done"
    return code, said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # Words that are spelt wrongly, or in another case.
        ("chek", "COMMAND must be one of check, fix, run, train, replay, study, report, serve, explore, export"),
        ("chek", "Did you mean 'check'? Try: levada --help"),
        ("Report", "Did you mean 'report'?"),
        ("list Studies", "Did you mean 'studies'?"),
        ("study R1 --scale Small", "--scale must be one of smoke, small, full, got 'Small'. Did you mean 'small'?"),
        ("study gradient_decai", "'gradient_decai' is not known. Did you mean 'gradient_decay'?"),
        ("study R1 --set Depth=3 --scale smoke", "it has: batch_size, depth, dim, seeds. Did you mean 'depth'?"),
        ("study R15 --set recurrent=gru --scale smoke", "must be one of GRU, LSTM, got 'gru'. Did you mean 'GRU'?"),
        ("check net.py:Build", "net.py has no name 'Build'. Did you mean 'build'?"),
        ("check net.py:zz", "net.py has no name 'zz'. It defines build."),
        ("check built.py:zz", "built.py has no name 'zz'. It defines net."),  # a model, and not what it is of
        ("check parses.py:net", "raised SystemExit: 2; put what it runs as a script behind if __name__ == '__main__'."),
        ("check net.py:build --loss MSE", "got 'MSE'. Did you mean 'mse'?"),
        ("train train.toml --set run.FOLDER=x", "run.FOLDER is not a key; did you mean run.folder?"),
        ("train train.toml --set model.options.activation=relu", "'relu' is not known; did you mean 'ReLU'?"),
        ("run --every x net.py", "--every must be a whole number, got 'x'. Try: levada run --help"),
        ("check net.py:build --lr x", "--lr must be a number, got 'x'. Try: levada check --help"),
        ("run --live --quiet net.py", "--quiet cannot be given together with --live"),
        ("doctor run --reseal=3", "--reseal takes no value, got '3'"),
        ("report run -o", "-o takes a value, got none"),
        ("doctor run run", "there is no place for 'run'"),
        ("doctor run --resea", "there is no option --resea. Did you mean '--reseal'?"),  # which would write
        ("train train.toml --res", "there is no option --res."),
        ("train train.toml --set run.steps=sixty", "got 'sixty'. Leave it out for the default, 1000."),
        ("train train.toml --set optimizer.lr=-1", "at least 0.0, got -1.0. Leave it out for the default, 0.001."),
        ("train train.toml --set watch.enabled=1", "got 1. Write enabled = true, or = false"),
        ("check --lr 1", "MODEL must be given"),
        ("replay --modl x", "there is no option --modl. Did you mean '--model'?"),
        # A folder where a script is wanted, a run where it is not.
        ("run empty", "a folder with a __main__.py, got 'empty', a folder without one. Give a file in it."),
        ("run run", "which is a run. Look at it by levada report run"),
        ("run train.toml", "To train as that says: levada train train.toml"),
        ("run -m net.py", "Leave out .py."),
        ("train net.py", "A script is run by: levada run net.py"),
        ("check empty", "got 'empty', a folder."),
        ("study R1 --out run", "which is a run itself. Name the folder above it: --out ."),
        # What is there already, or is a file.
        ("run --run run net.py", "got 'run'. Name another, or look at the one that is there: levada report run"),
        ("run --run many net.py", "got 'many', which holds"),
        ("run --run net.py net.py", "net.py' is a file. Name another."),
        ("check net.py:build --run run", "which is a run. Name another, or look at that one: levada report run"),
        ("check net.py:build --run net.py", "got 'net.py', which is a file. Name another."),
        ("check net.py:build --run net.py/x", "net.py' is a file. Name another."),
        ("check net.py:build --json net.py/x", "--json must name a file in a folder that can be written to"),
        ("fix net.py:build --out empty", "got 'empty', which is a folder. Give the path of a file in it."),
        ("study R1 --out net.py", "net.py is a file. Name a folder."),
        ("export run --to tensorboard --out net.py", "--out must name a folder, got 'net.py', which is a file."),
        ("train train.toml --set run.folder=net.py/x", "net.py/x: a run is a folder, and net.py is a file."),
        ("train train.toml --set run.folder=many", "got 'many', which holds many/a, many/b. Name a folder in it."),
        # A folder of runs, or a part of one, where one is wanted.
        ("export many --to tensorboard", "this is a folder that holds many/a, many/b. Give one."),
        ("export net.py --to tensorboard", "a run is a folder, and this is a file."),
        ("doctor run/bundles", "this is a part of one. Give the run: "),
        ("doctor net.py", "runs are looked for in a folder, and this is a file."),
        ("check net.py:build --run -", "got '-', and no run is written to standard output. Give a path."),
        ("report run -o -", "-o must name a file, got '-', and no page is written to standard output. Give a path."),
        ("explore --out -", "--out must name a file, got '-', and nothing is written to standard output. Give a path."),
        ("report net.py", "runs are looked for in a folder, and this is a file."),
        # Of a run, the step that is to be run again.
        ("replay run", f"There is: run/bundles/{KEPT}"),
        ("replay run --model net.py:build", f"There is: run/bundles/{KEPT}"),
        ("replay run/bundles", f"There is: run/bundles/{KEPT}"),
        ("replay .", f"There is: run/bundles/{KEPT}"),
        ("replay many/a", "which is a run that kept no step."),
        ("replay empty", "which is a folder without any."),
        ("replay nowhere", "which does not exist. Check the path."),
        (f"replay run/bundles/{KEPT}/bundle.json", f"which is a file. Give the folder: run/bundles/{KEPT}"),
        (f"replay run/bundles/{KEPT}", "--model must name what builds the Net of the bundle: --model FILE.py:NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_answered_in_one_line_with_what_to_do(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = answer(capsys, words)
    assert code == 2, told
    assert said in told
    assert len(told.splitlines()) == 1
    assert not Path("new").exists()


def test_an_option_that_there_is_not_is_answered_by_the_nearest_of_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parsers = cli._parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert parsers is not None
    assert set(parsers) == set(COMMANDS)
    for name, parser in parsers.items():
        own = [
            one for one in parser._option_string_actions if one.startswith("--") and one not in ("--help", "--debug")
        ]
        for option in own:
            code, told = answer(capsys, f"{name} {option[:-1]}_{option[-1]}")
            assert (code, told) == (
                2,
                f"levada {name}: there is no option {option[:-1]}_{option[-1]}. Did you mean '{option}'? Try: "
                f"levada {name} --help\n",
            )


@pytest.mark.parametrize("what", ["tensors", "table", "both"])
def test_of_a_damaged_step_it_is_said_what_is_left(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("run/bundles") / KEPT
    if what != "table":
        (folder / "tensors.pt").write_bytes(b"\0")
    if what != "tensors":
        (folder / "bundle.json").write_bytes(b"{")
    code, told = answer(capsys, f"replay {folder} --model net.py:build")
    left = {
        "tensors": "comes to step 7 again",
        "table": f"torch.load('{folder}/tensors.pt', weights_only=True)",
        "both": "Nothing of it can be used",
    }
    assert code == 2
    assert left[what] in told
    assert "damaged" in told


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": "\xff"}'])
def test_a_damaged_manifest_is_told_in_plain_words_with_the_doctor(
    content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run/run.json").write_bytes(content.encode("latin-1"))
    code, told = answer(capsys, "export run --to tensorboard")
    assert code == 2
    assert "the manifest is damaged (" in told
    assert "`levada doctor run`" in told
    assert not any(word in told for word in ("Expecting", "char", "codec"))


@pytest.mark.parametrize("name", ["config.toml", "watch"])
def test_a_training_takes_no_name_that_something_else_has(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new").mkdir()
    (Path("new") / name).write_text("# mine\n")
    code = main(["train", "train.toml"])
    told = capsys.readouterr().err
    assert code == 2
    assert f"got 'new', which holds {name}. Name another folder, or move that." in told
    assert (Path("new") / name).read_text() == "# mine\n"
    assert not (Path("new") / "run.json").exists()


def test_a_folder_of_runs_is_no_run_also_in_a_program() -> None:
    with pytest.raises(ValueError, match="one run is asked for, and this is a folder that holds many/a, many/b"):
        Run("many")


def test_an_empty_word_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for words, name in (
        (["doctor", "--reseal", ""], "RUN"),
        (["report", "run", ""], "RUN"),
        (["report", "run", "-o", ""], "--output"),
        (["export", "run", "--to", "tensorboard", "--out", ""], "--out"),
        (["check", ""], "MODEL"),
        (["run", ""], "SCRIPT"),
        (["run", "--run", "", "net.py"], "--run"),
        (["study", "R1", "--out", ""], "--out"),
        (["train", "train.toml", "--set", ""], "--set"),
    ):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert told == f"levada {words[0]}: {name} must not be empty. Is a variable of the shell not set?\n"
    Path("ends.py").write_text("import sys\nsys.exit(len(sys.argv[1:]))\n")
    assert main(["run", "ends.py", "", ""]) == 2, "words of the script may be empty"
    assert "must not be empty" not in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "run", "run/exports"])
def test_no_export_goes_into_a_run(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with RunWriter.open("run") as writer:
        writer.append("loss", steps=[0], values=[1.0])
    before = sorted(Path("run").rglob("*"))
    code, told = answer(capsys, f"export run --to tensorboard --out {out}")
    assert code == 2
    assert f"do not go into the folder of a run, and with the folder '{out}' they come into" in told
    assert sorted(Path("run").rglob("*")) == before


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda net: levada.watch(net, None, evry=3), "watch: there is no argument 'evry'. Did you mean 'every'?"),
        (
            lambda net: levada.check(net, optimiser="SGD"),
            "check: there is no argument 'optimiser'. Did you mean 'optimi",
        ),
        (
            lambda net: levada.check(net, zzz=1),
            "check: there is no argument 'zzz'. It takes model, batch, loss, optimi",
        ),
        (lambda net: levada.fix(net, trails=3), "fix: there is no argument 'trails'. Did you mean 'trials'?"),
    ],
)
def test_an_argument_that_there_is_not_is_answered_by_the_nearest(call: Any, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)) as caught:
        call(torch.nn.Linear(2, 2))
    assert isinstance(caught.value, TypeError)
    assert list(inspect.signature(levada.watch).parameters)[:3] == ["model", "optimizer", "run"]
