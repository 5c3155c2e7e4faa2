"""The page: one file, nothing loaded, everything escaped, nothing dropped in silence."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from levada._errors import UsageError
from levada._numbers import sampled
from levada.report import render_report, write_html
from levada.report.check import check_view, gradient_key
from levada.runs import Run, RunWriter

HOSTILE = "<script>alert(1)</script>\"'>&<img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags and visible text; fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def poisoned(value: Any) -> Any:
    """Put hostile text into every string, except those that decide what is shown."""
    if isinstance(value, dict):
        keep = (
            "status",
            "verdict",
            "severity",
            "style",
            "scale",
            "type",
            "first",
            "last",
            "site",
            "schema",
            "kind",
            "png",
        )
        return {key: item if key in keep else poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_a_check_says_verdict_place_rate_repair_and_what_was_tried(sick: dict[str, Any]) -> None:
    page = Page(render_report([sick]))
    words = " ".join(page.text.split())
    assert "The learning signal dies on its way back through layers.0 to layers.30." in words
    assert "from layers.49 to layers.0 the gradient shrinks from 0.0203 to 2.1×10⁻²¹, by 19.0 orders of" in words
    assert "a factor of 0.410 [0.402, 0.418] per block, where theory predicts 0.408" in words
    assert "✓ tried on this model and data" in words
    assert "expected, not verified: levada fix tries it" in words
    assert "after, measured" in words
    assert "after, predicted" in words
    assert "To show this wrong:" in words
    assert "The model has no recurrence to measure." in words
    assert "No loss was given: cross entropy was taken." in words
    assert "optimizer Adam" in words
    assert "No unit is flat" not in words  # a rule that is clear has nothing to say
    assert words.count("layers.49") >= 2


def test_theory_stands_beside_the_quantity_that_it_predicts(sick: dict[str, Any]) -> None:
    for block in sick["blocks"]:
        block["cotangent_rms"] = block["gradient_rms"]
        block["gradient_rms"] = 1e-5 * block["cotangent_rms"]
    assert gradient_key(sick["blocks"]) == "cotangent_rms"
    words = Page(render_report([sick])).text
    assert "measured, of a cotangent: a random vector of size 1, sent backwards from the output" in words
    assert "gradient of the loss" in words


def test_the_page_loads_nothing_and_its_policy_lets_nothing_in(sick: dict[str, Any], study_run: Path) -> None:
    text = render_report([sick, Run(study_run)])
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset")], tag
        # Images alone have a source, and it is in the page.
        assert ("src" in attributes) == (tag == "img"), tag
        assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", attributes.get("src") or "") or tag != "img"
        if "href" in attributes:
            assert (attributes["href"] or "").startswith(("#", "data:,"))
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_everything_from_outside_is_escaped(tmp_path: Path, study_run: Path, sick_report: Any) -> None:
    report = poisoned(sick_report(4))
    for i, block in enumerate(report["blocks"]):
        block["site"] = f"layers.{i}{HOSTILE}"
    folder = tmp_path / "hostile"
    with RunWriter.create(folder, kind="study", name=HOSTILE) as writer:
        for event in Run(study_run).events():
            event = poisoned(event)
            writer.append(event.pop("type"), **event)
    clean = Page(render_report([sick_report(4), Run(study_run)]))
    text = render_report([report, Run(folder)])
    dirty = Page(text)
    # Not one element more than without: the hostile text is text.
    assert {tag for tag, _ in dirty.tags} == {tag for tag, _ in clean.tags}
    assert "<script" not in text
    assert text.count("<img") == 5
    assert [a["src"] for tag, a in dirty.tags if tag == "img"] == [a["src"] for tag, a in clean.tags if tag == "img"]
    assert HOSTILE in dirty.text


def test_drawings_are_well_formed_and_described(sick: dict[str, Any], study_run: Path) -> None:
    sick["model"] = HOSTILE
    drawings = re.findall(r"<svg.*?</svg>", render_report([sick, Run(study_run)]), re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        root = xml.dom.minidom.parseString(drawing).documentElement
        assert root is not None
        assert root.getAttribute("aria-label") or root.getAttribute("aria-hidden") == "true"


def test_a_study_shows_claims_figures_seeds_and_where_it_comes_from(study_run: Path) -> None:
    words = " ".join(Page(render_report([Run(study_run)])).text.split())
    assert "✓ held decay_matches_theory ≠ not held, corrected twenty_layers ? not decided ten_thousand" in words
    assert "Statistic: permutation: p = 0.008" in words
    assert "10 results, seeds 0, 1, 2, 3, 4." in words
    assert "thin: each of 5 seeds; thick: their median" in words
    assert "0.4093 [0.4061, 0.4127]" in words
    assert "Correction. Highway networks of 100 layers" in words
    assert "In the plain stack the gradient falls by 0.41 per block" in words
    assert Run(study_run).manifest.created in words
    assert "Here: The largest deviation is 0.9 %." in words
    assert "✕ 1 of 11 results failed. RuntimeError: out of memory (1 result: seed=9)" in words
    assert words.index("1 of 11 results failed") < words.index("decay_matches_theory")
    assert "computed again below" not in words
    assert "400 of 800 rows, evenly spaced" in words


def test_runs_paths_and_reports_stand_on_one_page(
    sick: dict[str, Any], check_run: Path, study_run: Path, healthy_report: Any
) -> None:
    page = Page(render_report([check_run, str(study_run), healthy_report(), sick]))
    words = " ".join(page.text.split())
    for part in ("Sigmoid stack, 50 blocks", "How fast does the gradient", "The learning signal reaches every block"):
        assert part in words
    anchors = {a["href"] for tag, a in page.tags if tag == "a"}
    assert {"#part-1", "#part-2", "#part-3", "#part-4"} <= anchors
    assert {a.get("id") for _, a in page.tags} >= {"part-1", "part-2", "part-3", "part-4"}


def test_parts_with_the_same_headline_have_names_of_their_own(sick: dict[str, Any]) -> None:
    page = render_report([sick, sick])
    names = re.findall(r'<section class="part" id="part-\d" aria-label="([^"]+)"', page)
    assert [name.partition(":")[0] for name in names] == ["Part 1 of 2", "Part 2 of 2"]
    assert 'aria-labelledby="part-1-title"' in render_report([sick])


def test_a_report_survives_json_with_its_non_finite_numbers(sick: dict[str, Any]) -> None:
    sick["blocks"][0]["gradient_rms"] = "nan"
    sick["blocks"][1]["gradient_rms"] = 0.0
    sick["blocks"][2]["gradient_rms"] = "inf"
    sick["findings"][0]["evidence"]["ratio"] = "-inf"
    text = render_report([json.loads(json.dumps(sick, allow_nan=False))])
    for note in ("1 value is NaN", "1 value is exactly zero", "1 value is infinite"):
        assert note in text
    assert "It is exactly zero at 1 of 50 blocks." in text
    assert "−∞" in text


def test_a_damaged_run_says_so(check_run: Path) -> None:
    log = check_run / "events.log"
    log.write_bytes(log.read_bytes() + b"torn")
    page = render_report([check_run])
    assert "The event log: the frame at byte" in page
    assert page.index("This run is damaged") < page.index("<figure")


def test_a_report_with_next_to_nothing_is_a_page() -> None:
    text = render_report(
        [{"verdict": "unknown", "findings": [{"rule": "x", "status": "unknown", "claim": "No batch came."}]}]
    )
    assert "The check could not decide." in text
    assert "No batch came." in text
    bare = {"site": "a", "order": 0}
    assert "No gradient above zero was measured" not in render_report([{"verdict": "healthy", "blocks": [bare, bare]}])


def test_a_huge_report_stays_small_and_says_what_it_leaves_out(sick_report: Any) -> None:
    text = render_report([sick_report(10_000, 0.9999)])
    assert len(text) < 2_000_000
    assert "1,000 of 10,000 blocks, evenly spaced" in text
    assert sampled(10_000, 1000)[-1] == 9999


def test_blocks_are_shown_in_the_order_of_execution(sick: dict[str, Any]) -> None:
    shuffled = copy.deepcopy(sick)
    shuffled["blocks"].reverse()
    assert check_view(shuffled) == check_view(sick)


def test_what_cannot_be_shown_is_refused(tmp_path: Path, healthy_report: Any) -> None:
    with pytest.raises(UsageError, match="at least one report or run"):
        render_report([])
    with pytest.raises(UsageError, match="without a verdict"):
        render_report([{"model": "x"}])
    with pytest.raises(UsageError, match="got int"):
        render_report([3])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="there is nothing here"):
        render_report([tmp_path / "absent"])
    with pytest.raises(UsageError, match="reports of schema 1, got 2"):
        render_report([{"verdict": "healthy", "schema": 2}])
    with pytest.raises(UsageError, match="a folder that exists"):
        write_html([healthy_report()], tmp_path / "absent" / "page.html")


def test_writing_replaces_the_page_whole(tmp_path: Path, healthy_report: Any, sick_report: Any) -> None:
    path = write_html([healthy_report()], tmp_path / "page.html")
    assert path.read_text(encoding="utf-8").endswith("</html>\n") or path.read_text(encoding="utf-8").endswith(
        "</html>"
    )
    write_html([sick_report()], path)
    assert "dies on its way back through" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["script.py", "page.html", "run/run.json", "run/new.html", "run/watch/deep.html"])
def test_a_page_replaces_pages_and_nothing_else(tmp_path, healthy_report, name):
    target = tmp_path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    if "new" not in name and "deep" not in name:
        target.write_text("<!doctype html><title>mine</title>")
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(UsageError, match=r"into the folder of a run|replaces only a page of levada"):
        write_html([healthy_report()], target)
    assert (target.read_bytes() if target.exists() else None) == before
    again = write_html([healthy_report()], tmp_path / "again.html")
    assert write_html([healthy_report()], again).read_text() == again.read_text()
    (tmp_path / "empty.html").touch()
    assert "levada" in write_html([healthy_report()], tmp_path / "empty.html").read_text()


def test_a_page_of_several_parts_begins_with_all_verdicts_checks_first(
    tmp_path: Path, study_run: Path, sick: dict[str, Any], healthy_report: Any
) -> None:
    studies = []
    for name in ("R10", "R2"):
        with RunWriter.create(tmp_path / name, kind="study", name=name) as writer:
            writer.append("study", name=name, title=f"Study {name}")
        studies.append(tmp_path / name)
    text = render_report([*studies, study_run, sick, healthy_report()])
    glance = re.search(r'<nav aria-label="At a glance">(.*?)</nav>', text, re.DOTALL)
    assert glance is not None
    titles = re.findall(r'<a href="#part-\d">(.*?)</a>', glance[1])
    assert titles[:4] == ["mlp.py:sigmoid_stack", "mlp.py:residual_stack", "Study R2", "Study R10"]
    words = " ".join(Page(glance[1]).text.split())
    for chip in ("✕ error", "✓ healthy", "✓ 1 held ≠ 1 not held, corrected ? 1 not decided"):
        assert chip in words
    assert "<title>2 checks, 3 studies · levada</title>" in text


def test_a_spread_that_ends_in_rounding_is_not_taken_for_signal(sick: dict[str, Any], healthy_report: Any) -> None:
    for i, block in enumerate(sick["blocks"]):
        exact = 0.21 * 0.408**i
        block |= {"signal_spread": exact + 2e-9, "spread_predicted": exact}
    signal = check_view(sick)["figures"][1]
    assert "float32 rounding: 2⁻²³ of the signal" in signal["svg"]
    assert "what levels off is rounding error, not signal" in signal["caption"]
    for block in sick["blocks"]:
        block["signal_spread"] = block["spread_predicted"]  # as float64 would measure it
    signal = check_view(sick)["figures"][1]
    assert "float32 rounding" in signal["svg"]
    assert "levels off" not in signal["caption"]
    assert "float32" not in str(check_view(healthy_report())["figures"][1])


def test_every_seed_of_a_claim_is_on_the_page(tmp_path: Path) -> None:
    values = [0.1 + 0.01 * i for i in range(20)]
    with RunWriter.create(tmp_path / "run", kind="study", name="s") as writer:
        writer.append("claim", name="c", statement="2^n", status="held", numbers={"x": values}, seeds=list(range(20)))
    words = " ".join(Page(render_report([tmp_path / "run"])).text.split())
    assert "0.1 … 0.29 (median 0.195; 20 seeds)" in words
    for seed, value in enumerate(values):
        assert f"seed {seed} {value:.4g}" in words


def gradients(sick: dict[str, Any], values: list[float]) -> str:
    blocks = [{"site": f"layers.{i}", "order": i, "gradient_rms": v} for i, v in enumerate(values)]
    return str(check_view({**sick, "summary": {}, "blocks": blocks})["figures"][0]["caption"])


def test_the_caption_says_the_numbers_that_are_drawn(sick: dict[str, Any]) -> None:
    way = "On its way back from layers.2 to layers.0 the gradient"
    assert gradients(sick, [0.388, 0.7, 1.02]) == f"{way} shrinks from 1.02 to 0.388, by a factor of 2.63."
    around = gradients(sick, [1.0, 0.25, 1.0])
    assert around == f"{way} goes from 1 to 1, its largest value 4 times its smallest."
    assert gradients(sick, [1e-9, 1.0, 1e-4]).startswith(f"{way} shrinks from 1.0×10⁻⁴ to 1.0×10⁻⁹, by 5.0 orders")


def test_evidence_is_told_in_words_with_units(sick: dict[str, Any]) -> None:
    sick["findings"][0]["evidence"] = {
        "gradient_decay_per_block": {"value": 0.4, "draws": 4, "predicted": 0.41, "predicted_share": 1.0},
        "explained_by": "place",
        "parameters": [],
        "tests": {
            "optimizer_first_step": {"standing_still": 41, "of": 43, "first_gradient_over_eps": None, "lr": 0.01},
            "freeze_training": "not made",
        },
        "dead_fraction": {"layers.3": 0.945},
        "an_unknown_key": 3,
    }
    rows = check_view(sick)["findings"][0]["evidence"]
    assert rows == [
        (
            "gradient, factor per block",
            "0.4; measurements: 4; predicted 0.41; blocks that theory covers: 100 %",
        ),
        ("explained by", "its place: it happens at one block"),
        ("layers that the optimizer's first step all but leaves as they are", "41 of 43"),
        ("learning rate", "0.01"),
        ("training test with these layers frozen", "not made"),
        ("share of units that are dead", "layers.3 94.5 %"),
        ("an unknown key", "3"),
    ]


def test_a_study_that_ran_again_shows_what_was_asked_for_last(tmp_path: Path) -> None:
    config = {"scale": "small", "settings": {"depth": 20, "seeds": 2}}
    with RunWriter.create(tmp_path / "run", kind="study", name="S", config=config) as writer:
        writer.append("failure", key="a", seed=0, error="E: of an earlier call")
        writer.append("study", name="S", scale="small", settings={"depth": 20, "seeds": 5})
        for key, error in (("b", "E: x"), ("c", "E: x"), ("d", "E: y")):
            writer.append("failure", key=key, config={"depth": 20}, seed=1, error=error)
        writer.append("result", key="d", seed=1, values={})
    words = " ".join(Page(render_report([tmp_path / "run"])).text.split())
    assert "depth 20; seeds 5" in words
    assert "2 of 3 results failed. E: x (2 results: depth=20, seed=1; …)" in words
    assert "earlier call" not in words


def test_a_fact_has_its_interval_beside_it_and_its_value_once(sick: dict[str, Any]) -> None:
    number = {"value": 3.64, "low": 3.0, "high": 4.62, "predicted": 3.66}
    rate = {"value": 0.393, "low": 0.377, "high": 0.409, "blocks": 17}
    summary = {**sick["summary"], "trainable_depth": number, "signal_decay_per_block": rate}
    facts = {one["label"]: one["note"] for one in check_view({**sick, "summary": summary}, "sick")["facts"]}
    assert facts["trainable depth"] == "interval 3.00 to 4.62; theory says 3.66"
    assert facts["spread per block"] == "interval 0.377 to 0.409"
