"""The Python file that the explorer's page gives: it runs, shows what the page shows, and `levada check` takes it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parents[2] / "web"
ESBUILD, NODE = WEB / "node_modules/.bin/esbuild", shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not ESBUILD.exists(), reason="the page's code is run by Node.js: cd web && npm ci"
)

LINKS = [
    "precision=float64",
    "activation=relu&init=pytorch_default&depth=30",
    "activation=erf&init=gaussian&weightVariance=1.5&biasVariance=0.05&connections=plain&depth=12&precision=float64",
    "activation=tanh&init=orthogonal&gain=1.1&norm=layer&preActivation=1&connections=residual,highway&gateBias=-1&depth=10",
    "activation=gelu&init=he&norm=rms&connections=post_norm,dense&growth=4&alpha=1.5&depth=8&width=16",
    "activation=silu&norm=batch&bias=0&connections=hyper,identity&streams=3&depth=12&width=16",
    "activation=linear&connections=manifold,attention&iterations=5&blocks=3&depth=9&width=16&optimizer=adamw",
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    bundle = tmp_path_factory.mktemp("bundle") / "emit.mjs"
    command = [ESBUILD, WEB / "test/emit.ts", "--bundle", "--platform=node", "--format=esm", f"--outfile={bundle}"]
    subprocess.run([*map(str, command), "--log-level=error"], check=True)
    run = subprocess.run([str(NODE), str(bundle)], input=json.dumps(LINKS), capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def rates(printed: str) -> dict[str, float]:
    """Read the logarithm of the gradient's factor per layer out of what the file prints, as the page counts it."""
    found = {}
    for name, table in re.findall(r"^([a-z_]+)\nlayer +signal +gradient\n((?: .*\n)+)", printed, re.M):
        gradient = [float(row.split()[2]) for row in table.splitlines()]
        depth = len(gradient) - 1
        found[name] = (math.log(gradient[1]) - math.log(gradient[depth])) / (depth - 1)
    return found


@pytest.mark.parametrize("place", range(len(LINKS)), ids=LINKS)
def test_the_file_runs_and_shows_what_the_page_shows(place: int, answers: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "explorer.py"
    file.write_text(answers[place]["code"])
    run = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    printed = rates(run.stdout)
    assert printed.keys() == answers[place]["rates"].keys()
    for name, rate in printed.items():
        # One draw of PyTorch's among eight of the page's: five standard deviations off is another distribution.
        drawn = answers[place]["rates"][name]
        mean = sum(drawn) / len(drawn)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in drawn) / (len(drawn) - 1))
        assert abs(rate - mean) < 5 * deviation + 1e-3, (name, rate, mean, deviation)


@pytest.mark.parametrize("place", [0, 6], ids=lambda place: LINKS[place])
def test_levada_check_takes_the_file(
    place: int, answers: list[Any], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    from levada.cli import main

    monkeypatch.chdir(tmp_path)
    told = answers[place]["code"]
    Path("explorer.py").write_text(told)
    command = re.search(r"^Check: levada (.*)$", told, re.M)
    assert command is not None
    code = main([*command[1].split(), "--budget", "5", "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert code in (0, 1)
    expected = {0: "vanishing_gradient"}
    assert place not in expected or expected[place] in {finding["rule"] for finding in report["findings"]}


def test_the_file_is_formatted_as_this_library_is(answers: list[Any], tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    for place, answer in enumerate(answers):
        (tmp_path / f"explorer_{place}.py").write_text(answer["code"])
    run = subprocess.run(
        [ruff, "check", "--isolated", "--line-length=120", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    run = subprocess.run(
        [ruff, "format", "--isolated", "--line-length=120", "--diff", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
