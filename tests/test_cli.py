"""The command line: exit codes, one sentence for what cannot be used, and nothing but JSON where JSON was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from levada import cli, commands, parsing
from levada._errors import UsageError
from levada.cli import main
from levada.commands.listing import KINDS, _cost
from levada.runs import RunWriter
from levada.targets import line_of

TARGETS = """
import torch
from torch import nn

module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
number = 3


def healthy():
    torch.nn.init.orthogonal_(module[0].weight)
    return module


def sick():
    layers = [m for _ in range(50) for m in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(nn.Linear(4, 16), *layers, nn.Linear(16, 2))


def batch():
    torch.manual_seed(1)
    return torch.randn(32, 4), torch.arange(32) % 2


def wrong_shape():
    return torch.randn(32, 5), torch.arange(32) % 2


def empty():
    return torch.randn(0, 4), torch.zeros(0, dtype=torch.long)


def with_nan():
    return torch.full((32, 4), float("nan")), torch.arange(32) % 2


def raises():
    raise RuntimeError("no weights here\\nsecond line")


def needs(argument):
    return module


def not_scalar(outputs, targets):
    return outputs


def parameterless():
    return nn.Sequential(nn.ReLU())


def leaves():
    raise SystemExit(0)


class Leaving(nn.Linear):
    def forward(self, x):
        raise SystemExit(0)


def leaving():
    return Leaving(4, 2)


def chatty():
    print("building")
    return module


class Holder:
    module = module
"""


@pytest.fixture
def targets(tmp_path, monkeypatch):
    file = tmp_path / "nets.py"
    file.write_text(TARGETS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    return file


def check(capsys, *words):
    code = main(["check", *words])
    return code, capsys.readouterr()


def test_a_healthy_model_exits_with_0(targets, capsys):
    code, out = check(capsys, "nets.py:healthy", "--batch", "nets.py:batch")
    assert code == 0, out
    assert "healthy" in out.out


def test_a_sick_model_exits_with_1_unless_told_otherwise(targets, capsys):
    words = ("nets.py:sick", "--batch", "nets.py:batch", "--optimizer", "SGD", "--lr", "0.1")
    code, out = check(capsys, *words)
    assert code == 1
    assert "vanish" in out.out
    assert check(capsys, *words, "--fail-on", "never")[0] == 0


def test_json_on_standard_output_is_alone(targets, capsys):
    _, out = check(capsys, "nets:healthy", "--batch", "nets:batch", "--json", "-")
    told = json.loads(out.out)
    assert told["schema"] == 1
    assert told["model"] == "nets:healthy"
    assert told["verdict"] == "healthy"


def test_what_the_users_code_prints_does_not_get_into_the_json(targets, capsys):
    _, out = check(capsys, "nets:chatty", "--batch", "nets:batch", "--json", "-")
    assert json.loads(out.out)["verdict"]
    assert "building" in out.err


def test_a_file_is_imported_once_for_all_its_targets(targets, capsys):
    targets.write_text("print('imported')" + TARGETS)
    _, out = check(capsys, "nets.py:healthy", "--batch", "nets.py:batch")
    assert out.err.count("imported") == 1


def test_every_file_that_was_asked_for_is_written(targets, capsys, tmp_path):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "sarif", "html")}
    words = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    code, _ = check(capsys, "nets:sick", "--batch", "nets:batch", "--run", "kept", "--fail-on", "never", *words)
    assert code == 0
    assert json.loads(files["json"].read_text())["findings"]
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
    assert "<html" in files["html"].read_text()
    assert main(["report", "kept", "-o", "page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "page.html")
    assert main(["doctor", "kept"]) == 0


@pytest.mark.parametrize(
    ("name", "begins"), [("sick", "def sick():"), ("Leaving", "class Leaving"), ("module", "module =")]
)
def test_sarif_points_to_the_line_where_the_model_is_made(name, begins, targets, capsys):
    line = line_of(f"nets.py:{name}")
    assert TARGETS.splitlines()[line - 1].startswith(begins)
    assert line_of("nets:sick") is None
    assert line_of("nets.py:nothing") is None
    assert TARGETS.splitlines()[line_of("nets.py:Holder.module") - 1] == "    module = module"
    if name == "sick":
        check(capsys, "nets.py:sick", "--batch", "nets.py:batch", "--sarif", "out.sarif")
        (run,) = json.loads(Path("out.sarif").read_text())["runs"]
        assert run["results"]
        assert {
            place["physicalLocation"]["region"]["startLine"] for one in run["results"] for place in one["locations"]
        } == {line}


def test_the_doctor_prints_any_name_as_it_is_and_in_one_line(capsys, tmp_path):
    name = "[/red] :smile: " + "long " * 30
    RunWriter.create(tmp_path / name, kind="check", name="first").close()
    assert main(["doctor", str(tmp_path / name)]) == 0
    assert str(tmp_path / name) in capsys.readouterr().out
    RunWriter.create(tmp_path / "colour\x1b[31m", kind="check", name="first").close()
    assert main(["doctor", str(tmp_path / "colour\x1b[31m")]) == 0
    out = capsys.readouterr().out
    assert "colour?[31m" in out
    assert "\x1b" not in out


def test_a_run_that_cannot_be_read_is_told_and_the_others_are_reported(capsys, tmp_path):
    for name in ("bad", "good"):
        with RunWriter.create(tmp_path / name, kind="check", name=f"the {name} run") as writer:
            writer.append("report", report={"verdict": "healthy", "blocks": [], "findings": []})
    (tmp_path / "bad" / "run.json").write_bytes(b"{")
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "-o", str(page)]) == 1
    said = capsys.readouterr()
    assert said.out == f"{page}\n"
    assert str(tmp_path / "bad") in said.err
    assert len(said.err.splitlines()) == 1
    assert "the good run" in page.read_text()
    page.unlink()
    assert main(["report", str(tmp_path / "bad"), "-o", str(page)]) == 2
    assert not page.exists()


def test_a_run_folder_is_not_written_over(targets, capsys):
    words = ("nets:healthy", "--batch", "nets:batch", "--run", "kept")
    assert check(capsys, *words)[0] == 0
    code, out = check(capsys, *words)
    assert code == 2
    assert "kept" in out.err


UNUSABLE = {
    "no colon": (["nets.py"], "path/to/file.py:name"),
    "a folder": (["sub:build"], "of a folder. Name a file in it"),
    "no file": (["nowhere.py:build"], "no file 'nowhere.py'"),
    "no module": (["no_such_package:build"], "no module 'no_such_package'"),
    "no name": (["nets.py:heathy"], "Did you mean 'healthy'"),
    "not a module": (["nets.py:number"], "int"),
    "raises": (["nets.py:raises"], "RuntimeError: no weights here."),
    "leaves": (["nets.py:leaves"], "SystemExit"),
    "leaves while it runs": (["nets.py:leaving", "--batch", "nets.py:batch"], "sys.exit"),
    "nowhere to write": (["nets.py:healthy", "--json", "no/such/folder/x"], "--json"),
    "a folder to write": (["nets.py:healthy", "--html", "."], "--html"),
    "too large a seed": (["nets.py:healthy", "--seed", "99999999999999999999999"], "--seed"),
    "needs an argument": (["nets.py:needs"], "without arguments"),
    "parameterless": (["nets.py:parameterless", "--batch", "nets.py:batch"], "parameter"),
    "wrong shape": (["nets.py:healthy", "--batch", "nets.py:wrong_shape"], "shape|mat1"),
    "empty batch": (["nets.py:healthy", "--batch", "nets.py:empty"], "empty"),
    "batch raises": (["nets.py:healthy", "--batch", "nets.py:raises"], "nets.py:raises"),
    "NaN in the batch": (["nets.py:healthy", "--batch", "nets.py:with_nan"], "NaN"),
    "loss not scalar": (["nets.py:healthy", "--batch", "nets.py:batch", "--loss", "nets.py:not_scalar"], "scalar"),
    "unknown loss": (["nets.py:healthy", "--batch", "nets.py:batch", "--loss", "crossentropy"], "cross_entropy"),
    "unknown optimizer": (["nets.py:healthy", "--batch", "nets.py:batch", "--optimizer", "Adamm"], "Adam"),
    "learning rate": (["nets.py:healthy", "--batch", "nets.py:batch", "--lr", "-1"], "lr"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(case, targets, capsys):
    words, said = UNUSABLE[case]
    code, out = check(capsys, *words)
    assert code == 2, out
    assert out.out == ""
    assert "Traceback" not in out.err
    assert len(out.err.strip().splitlines()) == 1
    import re

    assert re.search(said, out.err), out.err


BEFORE_TORCH = [
    ["--help"],
    ["check", "--help"],
    ["list"],
    ["list", "things"],
    *(["list", kind] for kind in KINDS),
    ["--version"],
    ["doctor", "kept"],
    ["report", "kept"],
    ["check", "nosuch.py:build"],
    ["check", "no_such_package:build"],
    ["check", "nets.py"],
    ["check", "nets.py:healthy", "--batch", "nosuch.py:batch"],
    ["check", "nets.py:healthy", "--loss", "crossentropy"],
    ["check", "nets.py:healthy", "--optimizer", "nosuch.py:sgd"],
    ["check", "nets.py:healthy", "--lr", "-1"],
    ["check", "nets.py:healthy", "--json", "no/such/folder/x"],
    ["fix", "nosuch.py:build"],
    ["fix", "nets.py:healthy", "--steps", "3"],
    ["fix", "nets.py:healthy", "--budget", "0"],
    ["run", "nosuch.py"],
    ["run", "-m", "no_such_package.train"],
    ["run", "--run", "nets.py", "nets.py"],
    ["train", "nosuch.toml"],
    ["train", "wrong.toml"],
    ["train", "train.toml", "--set", "modle.depth=3"],
    ["replay", "nosuch"],
    ["replay", "kept"],
    ["study", "R99"],
    ["study", "R1", "--seeds", "0"],
    ["study", "R1", "--out", "nets.py"],
    ["export", "nosuch", "--to", "wandb"],
    ["bench", "nosuch"],
]


def test_what_needs_no_torch_is_answered_without_it(targets):
    RunWriter.create("kept", kind="check", name="first").close()
    Path("wrong.toml").write_text("[modle]\ndepth = 2\n")
    Path("train.toml").write_text("[run]\nsteps = 2\n")
    code = (
        "import contextlib, io, json, sys\n"
        "from levada.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        code = main(words)\n"
        "    if code not in (0, 2) or 'torch' in sys.modules:\n"
        "        print(words, code, 'torch' in sys.modules, said.getvalue())\n"
    )
    words = [sys.executable, "-c", code, json.dumps(BEFORE_TORCH)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert run.stdout == "", (
        "each line: the words of a command, its exit code, whether torch was imported, what it said"
    )


def test_a_dotted_name_and_a_module_itself_are_targets(targets, capsys):
    assert check(capsys, "nets:Holder.module", "--batch", "nets:batch")[0] == 0


def test_debug_shows_where_it_came_from(targets):
    with pytest.raises(ValueError, match="no weights here"):
        main(["check", "nets.py:raises", "--debug"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a command is needed"),
        (["--foo"], "--foo"),
        (["chek"], "chek"),
        (["study", "R1", "--scale", "smoke", "--out", "nets.py"], "nets.py"),
        (["check"], "MODEL"),
        (["check", "a:b", "--fail-on", "always"], "always"),
        (["study", "R999"], "R999"),
        (["study", "R1", "--set", "depth"], "--set takes KEY=VALUE"),
        (["study", "R1", "--executor-set", "foo"], "--executor-set takes KEY=VALUE"),
        (["report", "nowhere"], "nowhere"),
        (["doctor", "nowhere"], "nowhere"),
        (["list", "things"], "things"),
    ],
)
def test_every_command_answers_a_wrong_word_in_one_line(words, said, targets, capsys):
    code = main(words)
    out = capsys.readouterr()
    assert code == 2
    assert said in out.err
    assert len(out.err.strip().splitlines()) == 1


@pytest.mark.parametrize("change", ["depth=0", "batch_size=0", "dim=-3"])
def test_a_study_of_nothing_is_refused_before_it_runs(change, targets, capsys):
    name, value = change.split("=")
    assert main(["study", "R1", "--scale", "smoke", "--set", change, "--out", "out"]) == 2
    assert capsys.readouterr().err.strip() == f"levada study: study R1: {name} must be above 0, got {value}."
    assert not Path("out").exists()


@pytest.mark.parametrize("words", [["--seeds", "100000000000"], ["--set", "seeds=100000000000"]])
def test_a_study_without_end_is_refused_at_once(words, targets, capsys):
    assert main(["study", "R1", "--scale", "smoke", "--out", "out", *words]) == 2
    told = "seeds must be at most 10000, a thousand times the largest of its scales, got 100000000000."
    assert capsys.readouterr().err.strip() == f"levada study: study R1: {told}"
    assert not Path("out").exists()


def test_more_processes_than_a_machine_starts_are_refused(targets, capsys):
    assert main(["train", "missing.toml", "--processes", "100000000000"]) == 2
    assert "--processes must be in [1, 1024], got 100000000000. torchrun starts more" in capsys.readouterr().err


def test_a_study_that_fails_says_so(targets, capsys, monkeypatch):
    sweeping = import_module("levada.study.sweep")
    monkeypatch.setattr(sweeping, "process_pool", ThreadPoolExecutor)  # no process imports torch anew
    assert main(["study", "R19", "--scale", "smoke", "--set", "device=nope", "--out", "out"]) in {2, 3}
    assert "failed" in capsys.readouterr().err


@pytest.fixture
def two_studies(targets, monkeypatch):
    """Two studies of one cheap cell each, one of which fails."""
    from levada import studies
    from levada.study import Cell, Claim, Cost, Study

    def run(config, seeds):
        if config["name"] == "R2":
            raise ArithmeticError("no such data. Run: pip install data")
        return [{"y": 1.0} for _ in seeds]

    def made(name, **costs):
        claim = Claim("one", f"It is one in {name}.", "y = 1", "", lambda r: (True, {"y": r.column("y")}, None))
        return Study(
            name, name.lower(), f"Study {name}", "Why?", (), {"seeds": 5},
            lambda settings, seeds: [Cell({"name": name}, seeds)], run, lambda settings: [claim], lambda found: [],
            costs=costs,
        )  # fmt: skip

    full = Cost(9, "one H100")
    known = {"R1": made("R1", small=Cost(0.05, measured=True), full=full), "R2": made("R2")}
    monkeypatch.setattr(studies, "STUDIES", known)
    sweeping = import_module("levada.study.sweep")
    monkeypatch.setattr(sweeping, "process_pool", ThreadPoolExecutor)  # no process imports torch anew


def test_all_studies_run_though_one_fails_and_are_summed_up(two_studies, capsys):
    assert main(["study", "all", "--out", "out"]) == 3
    told = capsys.readouterr()
    lines = [line.split() for line in told.out.splitlines()]
    assert ["R1", "✓", "held", "one"] in lines or ["R1", "+", "held", "one"] in lines
    assert ["R2", "?", "not", "decided", "one"] in lines
    assert "2 claims of 2 studies: 1 held; 1 not decided" in told.out
    assert "It is one in R1" not in told.out, "the report says more"
    assert "5 results of R2 failed, the first with: ArithmeticError: no such data. Run: pip install data" in told.err
    assert "2/2 studies" in told.err
    assert "takes" not in told.err
    assert {path.name for path in Path("out").iterdir()} == {"R1-small", "R2-small"}


def test_studies_that_are_named_are_told_each_once_and_summed_up(two_studies, capsys):
    assert main(["study", "R1", "r2", "R1", "--out", "out"]) == 3
    told = capsys.readouterr().out
    assert told.count("It is one in R1.") == 1
    assert told.count("It is one in R2.") == 1
    assert "2 claims of 2 studies" in told
    assert main(["study", "R1", "--out", "out"]) == 0
    assert "of 1 study" not in capsys.readouterr().out


def test_the_scale_full_says_first_what_it_takes(two_studies, capsys):
    assert main(["study", "R1", "R2", "--scale", "full", "--out", "out"]) == 3
    told = capsys.readouterr().err
    assert "R1   about 9 hours on one H100 (estimated)" in told
    assert "R2   not known" in told
    assert told.index("about 9 hours") < told.index("results of R2 failed")


def test_the_list_of_studies_says_what_each_scale_takes(capsys):
    from levada.studies import STUDIES
    from levada.study import Cost

    assert main(["list", "studies"]) == 0
    rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [(name, study.title) for name, study in STUDIES.items()]
    for name, *costs, _ in rows:
        known = STUDIES[name].costs
        assert costs == [_cost(known.get(scale), scale) for scale in ("smoke", "small", "full")]
    assert ["R17", "smoke ~5 s", "small 4 min", "full ~42 min on one H100", "A hierarchy of features"] in rows
    assert _cost(None, "full") == "full -"
    assert _cost(Cost(0.05, measured=True), "small") == "small 3 min"


def test_rules_remedies_and_initialisations_are_listed_as_they_are(capsys):
    from levada.diagnose import DIAGNOSTICS, REMEDIES
    from levada.initialise import INITIALISATIONS

    for kind, known in (
        ("diagnostics", {name: rule.__doc__ for name, rule in DIAGNOSTICS.items()}),
        ("remedies", {name: remedy.sentence for name, remedy in REMEDIES.items()}),
        ("initialisations", {name: function.__doc__ for name, function in INITIALISATIONS.items()}),
    ):
        assert main(["list", kind]) == 0
        rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        assert [name for name, _ in rows] == [*known]
        for name, sentence in rows:
            assert known[name].strip().replace("`", "").replace("$", "").startswith(sentence[:-1]), name


def test_claims_that_cannot_be_decided_are_told(two_studies, capsys, monkeypatch):
    from dataclasses import replace

    from levada import studies

    def broken(settings):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setitem(studies.STUDIES, "R1", replace(studies.STUDIES["R1"], claims=broken))
    assert main(["study", "R1", "--out", "out"]) == 3
    assert "the claims or figures of R1 failed with: ZeroDivisionError: of nothing" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["connections", "cells", "diagnostics", "remedies", "studies", "initialisations"])
def test_lists_name_something_and_say_what_it_is(kind, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines
    assert all(len(line.split(maxsplit=1)) == 2 or line.startswith(" ") for line in lines)


def test_connections_are_listed_one_a_line_with_how_they_start(capsys):
    from levada import connections

    assert main(["list", "connections"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [re.split(r" {2,}", line) for line in lines]
    classes = {name: c for name, c in vars(connections).items() if isinstance(c, type)}
    assert [name for name, _, _ in found] == sorted(classes)
    for name, start, text in found:
        known = {"exact": "can start as residual", "normalised": "nearly as residual", "none": "-"}
        assert start == known[classes[name].residual_start]
        assert classes[name].__doc__.startswith(text)
        assert text.endswith(".")


def test_without_a_kind_the_kinds_are_listed(capsys):
    assert main(["list"]) == 0
    kinds = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert kinds == list(KINDS)
    assert all(main(["list", kind]) == 0 for kind in kinds)


def test_a_constant_is_that_of_the_nearest_class_that_has_it():
    from levada.commands.sources import derived

    found = {one.name: one for one in derived("levada.connections", "Connection")}
    assert found["ReZero"].constant("residual_start") == "exact"
    assert found["Momentum"].constant("residual_start") == "none"  # the protocol's
    assert found["ReZero"].constant("no_such") is None


def test_cells_are_listed_by_name(capsys):
    from levada import cells

    assert main(["list", "cells"]) == 0
    told = capsys.readouterr().out
    names = [line.split()[0] for line in told.splitlines()]
    known = [n for n, c in vars(cells).items() if isinstance(c, type) and issubclass(c, cells.Cell) and n != "Cell"]
    assert names == sorted(known)
    assert "GRU" in names
    assert not {"$", "\\"} & set(told)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("watch", "levada run SCRIPT"),
        ("Explain", "levada check MODEL"),
        ("view", "levada report RUN"),
        ("train.py", "perhaps: levada run train.py."),
        ("train.toml", "perhaps: levada train train.toml."),
        ("net.py:build", "perhaps: levada check net.py:build."),
        ("chek", "Did you mean 'check'?"),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_the_one_that_is(word, told, capsys):
    assert main([word, "x"]) == 2
    assert told in capsys.readouterr().err


def test_words_that_are_tried_are_no_commands_and_lead_to_some(capsys):
    assert not set(parsing.TRIED) & set(commands.COMMANDS)
    named = {name for told in parsing.TRIED.values() for name in re.findall(r"levada ([a-z]+)", told)}
    assert named <= set(commands.COMMANDS)


def test_the_installed_command_runs(targets):
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "levada", "check", "nets.py:healthy", "--batch", "nets.py:batch"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_no_site_at_all_is_refused_before_anything_is_exported(capsys):
    assert main(["export", "no/such/run", "--to", "tensorboard", "--sites", "0"]) == 2
    said = "levada export: --sites must be at least 1, got 0. Try: levada export --help\n"
    assert capsys.readouterr().err == said


def numeric_options():
    """Every option of every command that takes a number."""
    parsers = cli._parser()._subparsers._group_actions[0].choices
    for command, parser in parsers.items():
        for action in parser._actions:
            if action.type is not None:
                yield command, action.option_strings[-1]


def test_every_numeric_option_is_looked_at():
    found = [f"{command} {option}" for command, option in numeric_options()]
    assert {
        "check --lr",
        "fix --budget",
        "run --every",
        "train --processes",
        "study --seeds",
        "serve --port",
        "export --sites",
    } <= {*found}
    assert len(found) == 15


@pytest.mark.parametrize("came", ["-1e-3", "-.5", "-1", "-2.5E+7", "-inf", "-nan", "nan", "1e-3x", "--", "-x", ""])
def test_of_a_number_that_cannot_be_the_rule_is_told_with_what_came(came, capsys):
    for command, option in numeric_options():
        assert main([command, option, came]) == 2
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1
        if came in ("--", "-x"):
            what = f"{option} takes a value, got none" if came == "--" else "there is no option -x"
            assert told == f"levada {command}: {what}. Try: levada {command} --help\n"
            continue
        assert told.startswith(f"levada {command}: {option} must be ")
        assert re.search(rf", got '?{re.escape(came)}'?\. ", told), told


def test_the_least_numbers_of_a_fix_are_the_librarys(capsys):
    from levada.diagnose.fix import LEAST_STEPS
    from levada.diagnose.rounds import LEAST_TRIALS

    for option, least in (("--steps", LEAST_STEPS), ("--trials", LEAST_TRIALS)):
        assert main(["fix", "net.py:build", option, str(least - 1)]) == 2
        assert f"{option} must be at least {least}, got {least - 1}." in capsys.readouterr().err


def test_an_unknown_option_points_to_the_help_of_its_command(capsys):
    assert main(["run", "--runn", "x", "script.py"]) == 2
    assert capsys.readouterr().err.endswith("Try: levada run --help\n")


def test_a_folder_that_is_taken_is_told_to_the_user_of_a_command_in_words_of_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(  # another process takes the folder while the model is looked at
        "from torch import nn\nfrom levada.runs import RunWriter\n"
        "def model():\n"
        "    RunWriter.create('kept', kind='check', name='other').close()\n"
        "    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))\n"
        "def batch():\n    import torch\n    return torch.ones(4, 2), torch.ones(4, 1)\n"
    )
    words = ["check", "mine.py:model", "--batch", "mine.py:batch", "--loss", "mse", "--budget", "1", "--run", "kept"]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    rule = "kept: a new run needs a folder without one, and this holds a run."
    assert said == f"levada check: {rule} Name another folder with --run."
    with pytest.raises(UsageError, match=r"Choose another folder, or continue the run with RunWriter\.open\.$"):
        RunWriter.create("kept", kind="check", name="mine")
    (tmp_path / "train.toml").write_text("[run]\nsteps = 2\nfolder = 'kept'\n")
    assert main(["train", "train.toml"]) == 2
    assert "holds a run of kind 'check'. Name another folder." in capsys.readouterr().err, "--resume would not help"


def test_of_a_run_without_its_manifest_every_command_says_how_to_get_that_back(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunWriter.create("kept", kind="train", name="first") as writer:
        writer.append("losses", first=0, loss=[2.0])
    (tmp_path / "kept" / "run.json").unlink()
    (tmp_path / "train.toml").write_text("[run]\nsteps = 2\nfolder = 'kept'\n")
    assert main(["train", "train.toml", "--resume"]) == 2
    said = capsys.readouterr().err
    assert "this holds a run that lost its run.json" in said
    assert said.endswith("levada doctor --reseal kept\n")
    assert "RunWriter" not in said
