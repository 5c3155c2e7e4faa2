"""The layers, budgets and names that hold the library together."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import levada
import levada.connections
import levada.training

SOURCE = Path(levada.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# Top to bottom; an import goes to a lower line only. Names on one line are siblings and do not import each other.
LAYERS = [
    {"cli", "commands", "parsing", "targets"},
    {"web"},
    {"report", "integrations"},
    {"studies", "training"},
    {"study"},
    {"watching"},
    {"diagnose"},
    {"networks"},
    {"cells", "supervision"},
    {"probe", "connections", "conversion", "initialise", "blocks", "runs"},
    {"theory", "inputs", "grouping", "sharding"},
    {"stack"},
    {"stacking"},
    {"connection"},
    {"ops"},
    {"_names", "_numbers", "_ranks", "_seeding", "_termination"},
    {"_errors"},
]
# cli, commands, parsing and targets are one layer in four files.
TOGETHER = [{"cli", "commands", "parsing", "targets"}, {"conversion", "connections"}]
# Inside of the largest package it is the same; what no package holds (watch.py, engine.py, ...) is above or between.
WATCHING = ["show", "record", "rerun", "verdict", "steps", "measure", "loop"]
# `Report.to_html` is promised on an object that diagnose makes: the one import that looks up, inside the method.
LOOKS_UP = {("diagnose", "report")}


Nodes = tuple[ast.AST, ...]


@pytest.fixture(scope="module")
def nodes() -> dict[Path, Nodes]:
    """Every node of each file, which no test changes."""
    return {path: tuple(ast.walk(ast.parse(path.read_text()))) for path in FILES}


def told(nodes: dict[Path, Nodes], check: Callable[[Path, Nodes], list[str]]) -> dict[str, list[str]]:
    """What is wrong, by file: a test for each of hundreds of files took longer than what it looks at."""
    return {str(path.relative_to(SOURCE)): found for path in nodes if (found := check(path, nodes[path]))}


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(nodes: Nodes) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            module = node.module.split(".")
            if module == ["levada"]:
                names |= {alias.name for alias in node.names}
            elif module[0] == "levada":
                names.add(module[1])
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("<relative>")
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("levada.")}
    return names


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def against_the_layers(path: Path, nodes: Nodes) -> list[str]:
    here = unit(path)
    if here in {"__init__", "__main__"}:
        return []
    names = imported(nodes)
    found = ["a relative import"] if "<relative>" in names else []
    known = set().union(*LAYERS)
    for name in sorted(names & known - {here}):
        if (here, name) in LOOKS_UP or any({here, name} <= group for group in TOGETHER):
            continue
        if layer(name) <= layer(here):
            found.append(f"{here} may not import {name}")
    return found


def test_imports_run_downward(nodes):
    assert told(nodes, against_the_layers) == {}


def imported_to_run(nodes: Nodes) -> list[str]:
    """What a module imports, but for what only types need."""
    typed = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    beside = {inner for node in typed for inner in ast.walk(node)}
    return [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and n not in beside]


@pytest.mark.parametrize("name", WATCHING)
def test_imports_inside_of_watching_run_downward(name, nodes):
    above = {f"levada.watching.{other}" for other in [*WATCHING[: WATCHING.index(name)], "watch", "engine", "script"]}
    files = list((SOURCE / "watching" / name).rglob("*.py"))
    assert len(files) > 1
    for path in files:
        for module in imported_to_run(nodes[path]):
            assert ".".join(module.split(".")[:3]) not in above, f"{path.name} may not import {module}"


def test_every_module_of_watching_has_its_layer():
    packages = {path.name for path in (SOURCE / "watching").iterdir() if (path / "__init__.py").exists()}
    assert packages == set(WATCHING)


def over_budget(path: Path, nodes: Nodes) -> list[str]:
    kernel = path.name in {"triton.py", "cpu.py", "loops.py"}
    found = ["more than 400 lines"] if path.read_text().count("\n") > 400 else []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The equation, shapes, errors and example that a docstring must give are not what the budget is about.
            documented = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            lines = node.end_lineno - node.lineno + 1 - documented
            if lines > (200 if kernel else 60):
                found.append(f"{node.name} is too long: {lines} lines")
            arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in {"self", "cls"}]
            if len(arguments) > 8 and not kernel:
                found.append(f"{node.name} has {len(arguments)} parameters")
    return found


def test_budgets(nodes):
    assert len(nodes) > 700
    assert told(nodes, over_budget) == {}


def test_every_layer_is_known():
    assert {unit(p) for p in FILES} - {"__init__", "__main__"} <= set().union(*LAYERS)


def test_public_names():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    typed -= {None}
    assert typed == set(levada.__all__), "the imports for type checkers and the names that load on use must be the same"
    # One name for each paper's noun, and 40 others.
    assert len(set(levada.__all__) - set(vars(levada.connections))) <= 40
    for name in levada.__all__:
        assert getattr(levada, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Residul'"):
        _ = levada.Residul


def test_packages_that_load_on_use_give_what_type_checkers_see():
    package = SOURCE / "training" / "__init__.py"
    imports = [node for node in ast.walk(ast.parse(package.read_text())) if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: f"{node.module}" for node in imports for alias in node.names if alias.asname}
    assert sorted(typed) == list(levada.training.__all__)
    for name, module in typed.items():
        assert getattr(levada.training, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match="Did you mean 'Config'"):
        _ = levada.training.Confg


def modules_after(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import levada.report",
        "import levada.runs",
        "import levada.cli",
        "import levada.web",
        "import levada.commands.serve",
        "import levada.web.server",
        "import levada.web.child, levada.web.questions",
    ],
)
def test_reports_runs_pages_and_the_command_line_do_not_wait_for_torch(statement):
    assert "torch" not in modules_after(statement)


def test_the_library_imports_torch_alone():
    names = "; ".join(f"levada.{name}" for name in levada.__all__)
    outside = modules_after(f"import levada; {names}") - set(sys.stdlib_module_names) - {"levada"}
    # What torch itself loads on first use of a part is torch's.
    assert outside <= modules_after("import torch, torch._dynamo, torch.distributed.fsdp, torch.utils.checkpoint")


def test_help_does_not_wait_for_torch():
    code = "import sys; from levada.cli import main; sys.argv = ['levada', '--help']; main()"
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert "check" in run.stdout
    assert not {line.split("|")[-1].strip() for line in run.stderr.splitlines()} & {"torch", "rich", "jinja2"}
