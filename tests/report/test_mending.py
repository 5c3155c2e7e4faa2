"""The page of a repair: how the loss went with each remedy and without, seed by seed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import levada
from levada.cli import main
from levada.report import render_report, write_html
from levada.report.mending import fix_view


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 2))
    labels = torch.arange(32) % 2
    batch = (torch.randn(32, 16) + 2.0 * labels[:, None], labels)
    return levada.fix(model, batch, optimizer="SGD", lr=0.05, steps=50, budget=60.0).to_dict()


def test_each_seed_is_a_thin_line_and_their_median_a_thick_one(told):
    verified = told["trials"][0]
    seeds = len(verified["seeds"])
    assert [len(verified[side]["curves"]) for side in ("before", "after")] == [seeds, seeds]
    mean = [sum(values) / seeds for values in zip(*verified["after"]["curves"], strict=True)]
    assert verified["after"]["curve"] == pytest.approx(mean)
    view = fix_view(told)
    first = view["figures"][0]["svg"]
    wide = first[first.index('class="chart wide"') : first.index('class="chart narrow"')]
    weights = re.findall(r'class="line measured c\d (thin|thick)"', wide)
    assert (weights.count("thin"), weights.count("thick")) == (2 * seeds, 2)
    assert "with the remedy" in first
    assert "as it is" in first


def test_the_page_has_the_repair_and_both_checks(told, tmp_path):
    page = write_html([told], tmp_path / "page.html").read_text()
    assert page.count('<section class="part"') == 3
    assert page.index("The change") < page.index("as it is</code>") < page.index(f"with {told['remedy']}</code>")
    assert all(trial["name"] in page for trial in told["trials"])
    assert "badge repaired" in page
    assert "The effect is how far the loss is lower with the remedy, as a share of the largest of three losses" in page


def test_the_page_says_the_causes_what_a_remedy_does_and_by_which_loss(told):
    page = render_report([{**told, "judged": "the loss of a test"}])
    cause = told["causes"][0]
    assert f"Found: {cause} (" in page
    assert told["trials"][0]["does"].replace("'", "&#39;") in page
    assert "those of one measure: the loss of a test." in page
    assert fix_view(told)["rows"][0]["answers"].startswith(told["trials"][0]["causes"][0])


@pytest.mark.parametrize("outcome", ["healthy", "helps", "not repaired", "unknown"])
def test_a_repair_without_trials_is_a_page_too(told, outcome):
    bare = {**told, "outcome": outcome, "trials": [], "patch": "", "after": None, "notes": ["<b>a note"]}
    page = render_report([bare])
    assert "&lt;b&gt;a note" in page
    assert page.count('<section class="part"') == 2


def test_losses_that_are_not_finite_are_marked_and_not_drawn(told):
    trial = {**told["trials"][0], "before": {"loss": "inf", "losses": ["inf"], "curves": [[1.0, "inf", "inf"]]}}
    (drawn,) = fix_view({**told, "trials": [trial]})["figures"]
    assert "2 values are infinite" in drawn["svg"]


def test_the_command_writes_that_page(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    return nn.Linear(4, 2)\n\n\n"
        "def batch():\n    return torch.randn(16, 4), torch.arange(16) % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--batch", "net.py:batch", "--steps", "50", "--optimizer", "SGD", "--lr", "0.1", "--html", "fix.html"]
    assert main(["fix", "net.py:net", *words]) == 0
    page = (tmp_path / "fix.html").read_text()
    assert "badge healthy" in page
    assert "There is nothing to repair" in page
