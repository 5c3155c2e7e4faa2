"""The Python file that the explorer's page gives: in PyTorch it has the page's numbers, and it is judged as there."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from levada.cli import main
from levada.web.computing import batches, build, checked, optimizer_of
from levada.web.draws import INITIALISATIONS, normal, start, uniform
from levada.web.network import Activation, CheckOf
from levada.web.shapes import plain

WEB = Path(__file__).parents[2] / "web"
ESBUILD, NODE = WEB / "node_modules/.bin/esbuild", shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not ESBUILD.exists(), reason="the page's code is run by Node.js: cd web && npm ci"
)

ALL = "plain,residual,highway,dense,hyper,manifold"
SOME = "post_norm,identity,attention"
EXACT = [  # in float64: each connection, activation, initialisation, normalisation and optimizer, with gains
    "",
    "activation=relu&init=pytorch_default&gain=1.7&depth=30&optimizer=momentum&lr=0.03",
    "activation=erf&init=gaussian&weightVariance=1.5&biasVariance=0.05&gain=0.8&depth=12&seed=7",
    f"activation=tanh&init=orthogonal&gain=1.3&norm=layer&preActivation=1&connections={ALL}&depth=10&width=17&rows=9",
    f"activation=tanh&init=he&gain=1.3&norm=layer&connections={SOME}&depth=10&width=17&rows=9&blocks=3&alpha=1.5",
    f"activation=gelu&init=he&gain=0.6&connections={ALL}&growth=4&depth=8&width=16&gateBias=1.5&optimizer=adamw",
    f"activation=mish&init=orthogonal&gain=0.6&norm=rms&connections={SOME}&depth=8&width=16&blocks=8&optimizer=adamw",
    f"activation=silu&init=pytorch_default&gain=2&norm=batch&bias=0&connections={ALL}&streams=3&depth=9&width=15",
    f"activation=leaky_relu&init=glorot&gain=2&connections={SOME}&streams=3&depth=9&width=15&seed=123456",
    "activation=linear&gain=0.9&norm=rms&preActivation=1&connections=manifold&iterations=2&depth=9&width=16",
    "activation=hardtanh&init=gaussian&gain=1.2&bias=0&depth=7&width=9&rows=3",
    "activation=softplus&init=orthogonal&gain=0.5&connections=dense&growth=23&depth=6&width=16",
    "activation=elu&norm=layer&gain=3&connections=residual&depth=40",
    "activation=selu&norm=batch&preActivation=1&gain=0.01&connections=residual&depth=40",
]
OVERFLOWING = [  # units that a sum's order makes infinite or NaN decide what all layers before them get
    "activation=relu&gain=2&depth=300&connections=plain",
    "activation=relu&gain=8&depth=50&connections=residual,manifold",
]
UNDERFLOWING = [  # below float32's normal numbers: gradients of sigmoids, and the signal
    "depth=200&connections=plain",
    "activation=relu&init=he&gain=0.5&depth=200&connections=plain",
]
LINKS = [
    *(f"{link}&precision=float64" for link in EXACT),
    "activation=relu&gain=1.5&depth=20&seed=3&connections=" + ALL,
    *UNDERFLOWING,
    *OVERFLOWING,
]
STEP = 2.0**-149  # of float32 next to zero
IN_ORDER = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
GONE = "depth=400&precision=float64&connections=plain"  # a gradient of 1e-251: its square is no number of float64


@pytest.fixture(scope="module")
def emit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make the files of links, and say what the page shows for each."""
    bundle = tmp_path_factory.mktemp("bundle") / "emit.mjs"
    command = [ESBUILD, WEB / "test/emit.ts", "--bundle", "--platform=node", "--format=esm", f"--outfile={bundle}"]
    subprocess.run([*map(str, command), "--log-level=error"], check=True)

    def emitted(links: list[str]) -> list[dict[str, Any]]:
        given = json.dumps(links)
        run = subprocess.run([str(NODE), str(bundle)], input=given, capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    return emitted


@pytest.fixture(scope="module")
def answers(emit: Any) -> list[dict[str, Any]]:
    return emit([*LINKS, GONE])


def ran(code: str, folder: Path) -> dict[str, Any]:
    """Run a file in this process, without printing; return its names."""
    file = folder / "explorer.py"
    file.write_text(code)
    return runpy.run_path(str(file))


@pytest.mark.parametrize("place", range(len(LINKS) + 1), ids=[*LINKS, GONE])
def test_pytorch_has_the_numbers_of_the_figures(place: int, answers: list[Any], tmp_path: Path) -> None:
    code = answers[place]["code"]
    file = ran(code, tmp_path)
    tolerance, step = (1e-10, 0.0) if "torch.float64" in code else (3e-5, STEP)
    overflows = [*LINKS, GONE][place] in OVERFLOWING
    if overflows and not IN_ORDER:
        tolerance = 0.1
    assert list(file["CONNECTIONS"]) == list(answers[place]["connections"])
    for name, shown in answers[place]["connections"].items():
        for quantity, found in zip(("signal", "gradient", "update"), file["by_layer"](name), strict=True):
            assert len(found) == file["DEPTH"] + (quantity != "update")
            numbers = [float(one) for one in shown[quantity]]
            assert [float(one) for one in found] == pytest.approx(numbers, rel=tolerance, abs=step, nan_ok=True), (
                name,
                quantity,
            )
            if overflows and quantity == "gradient":
                assert not all(map(math.isfinite, numbers))


def test_the_links_have_all_that_can_be_chosen(answers: list[Any]) -> None:
    asked = [shown["asked"] for answer in answers for shown in answer["connections"].values()]
    assert {one["activation"] for one in asked} == {*get_args(Activation)}
    assert {one["init"]["name"] for one in asked} == {*INITIALISATIONS}
    assert {one["norm"] for one in asked} == {"none", "layer", "rms", "batch"}
    for name in (ALL + "," + SOME).split(","):
        own = [one for one in asked if one["connection"]["name"] == name]
        assert {one["init"].get("gain", 1) != 1 for one in own if one["norm"] == "none"} >= {True}, name
        assert {one["norm"] != "none" for one in own} == {True, False}, name


def test_what_it_prints_are_these_numbers(answers: list[Any], tmp_path: Path) -> None:
    place = LINKS.index(f"{EXACT[1]}&precision=float64")
    file = tmp_path / "explorer.py"
    file.write_text(answers[place]["code"])
    run = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    tables = re.findall(r"^(\w+)\nlayer +signal +gradient +first update\n((?: .*\n)+)", run.stdout, re.M)
    assert [name for name, _ in tables] == list(answers[place]["connections"])
    for name, table in tables:
        shown = answers[place]["connections"][name]
        columns = [[float(row.split()[at]) for row in table.splitlines()[at > 2 :]] for at in (1, 2, 3)]
        for quantity, column in zip(("signal", "gradient", "update"), columns, strict=True):
            assert column == pytest.approx(shown[quantity], rel=5.1e-4), quantity


@pytest.mark.parametrize("place", range(len(LINKS) - len(OVERFLOWING)), ids=LINKS[: -len(OVERFLOWING)])
def test_the_server_builds_what_the_file_does(place: int, answers: list[Any], tmp_path: Path) -> None:
    file = ran(answers[place]["code"], tmp_path)
    for name, shown in answers[place]["connections"].items():
        asked = CheckOf.model_validate(shown["asked"])
        own, served = file[name](), build(asked)
        (weights, others) = own.state_dict(), served.state_dict()
        assert weights.keys() == others.keys()
        assert all(weights[key].equal(others[key]) for key in weights), name
        given = file["batches"]()
        assert all(
            a.equal(b) for one, two in zip(given, batches(asked), strict=True) for a, b in zip(one, two, strict=True)
        )
        assert own(given[0][0]).equal(served(given[0][0])), name
        steps = [
            make(list(network.parameters()))
            for make, network in ((file["optimizer"], own), (optimizer_of(asked), served))
        ]
        assert type(steps[0]) is type(steps[1])
        assert steps[0].defaults == steps[1].defaults


JUDGED = {  # a link with one connection, and the verdict
    "connections=plain&depth=40": "error",
    "connections=residual&depth=12&activation=relu&init=he&norm=layer&preActivation=1&lr=0.03": "healthy",
    "connections=plain&depth=30&activation=relu&init=he&gain=3": "error",
    "connections=highway&depth=12&width=16&activation=tanh&seed=5": "warn",
    "connections=manifold&depth=4&activation=relu&init=he&norm=rms&preActivation=1&optimizer=adamw&lr=0.001": "healthy",
    "connections=plain&depth=16&activation=erf&init=orthogonal&gain=1.1&precision=float64": "healthy",
    "connections=residual&depth=24&activation=relu&init=he&optimizer=momentum": "error",
}


def test_open_in_check_says_what_the_command_says(emit: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command puts the file's folder there
    for place, (answer, expected) in enumerate(zip(emit(list(JUDGED)), JUDGED.values(), strict=True)):
        (tmp_path / str(place)).mkdir()
        monkeypatch.chdir(tmp_path / str(place))
        ((_, shown),) = answer["connections"].items()
        Path("explorer.py").write_text(answer["code"])
        command = re.search(r"^Check: levada (.*)$", answer["code"], re.M)
        assert command is not None
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main([*command[1].split(), "--budget", "60", "--json", "-"])
        told = json.loads(out.getvalue())
        page = checked(CheckOf.model_validate(shown["asked"]), seconds=60.0)
        assert (page.verdict, told["verdict"]) == (expected, expected)
        found = [(one.rule, one.severity, one.status, one.claim) for one in page.findings]
        said = [(one["rule"], one["severity"], one["status"], plain(one["claim"])) for one in told["findings"]]
        assert sorted(found) == sorted(said)


def test_the_file_is_formatted_as_this_library_is(answers: list[Any], tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    for place, answer in enumerate(answers):
        (tmp_path / f"explorer_{place}.py").write_text(answer["code"])
    for job in (["check"], ["format", "--diff"]):
        command = [ruff, *job, "--isolated", "--line-length=120", str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout


def test_a_sequence_is_that_of_its_seed_and_name() -> None:
    assert normal(0, "batches", 7).equal(normal(0, "batches", 12)[:7])
    assert not uniform(0, "batches", 4).equal(uniform(2**32, "batches", 4))
    assert not uniform(0, "batches", 4).equal(uniform(0, "batch", 4))
    assert uniform(0, "batches", 0).shape == (0,)
    with pytest.raises(ValueError, match="init must be one of pytorch_default, he"):
        start(torch.nn.Module(), 0, "xavier")
