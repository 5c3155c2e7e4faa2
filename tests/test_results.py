"""The results that are committed, the pages that are made of them, and how they are written."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape

import pytest
from docs import result_checks, result_code, result_files, result_pages
from docs.result_checks import check_of, deviation, recompute
from docs.result_code import claim_code
from docs.result_files import FOLDER, read, result_of, stale, write
from docs.verdicts import style

import levada.studies
from levada._errors import UsageError
from levada.report.claim import claim_view
from levada.runs import Run, RunWriter
from levada.studies import STUDIES
from levada.study import Axis, Cell, Claim, Cost, Figure, Image, Picture, Series, Statistic, Study, execute

COMMITTED = sorted(path.stem for path in FOLDER.glob("*.json"))
ANGLE = "Is 1 < 2 & <b>so</b> on?"
CODE = {"commit": "a" * 40, "dirty": False, "machine": {"cpu": "a processor", "cores": 2}}


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_result_is_of_the_study_as_it_is(name):
    result = read(name)
    assert stale(result) == []
    assert len(result["seeds"]) >= 5
    assert (FOLDER / f"{name}.json").stat().st_size <= result_files.MOST_BYTES
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in result["commits"])


@pytest.mark.parametrize("name", COMMITTED)
def test_a_row_of_a_committed_result_is_computed_again(name):
    result = read(name)
    assert recompute(result) <= result["check"]["tolerance"] <= result_checks.CHECK_TOLERANCE
    assert result["check"]["seconds"] <= result_checks.CHECK_SECONDS


def test_every_result_is_of_a_known_study():
    assert set(COMMITTED) <= STUDIES.keys()


def test_every_study_has_a_result_that_answers_its_question_and_is_discussed():
    assert sorted(STUDIES) == COMMITTED
    assert [name for name, study in STUDIES.items() if not study.answer] == []
    assert [name for name in STUDIES if not (result_pages.DISCUSSIONS / f"{name}.md").exists()] == []


def test_the_readme_counts_the_claims_as_they_are():
    claims = [claim_view(claim)["status"] for name in COMMITTED for claim in read(name)["claims"]]
    held, corrected = claims.count("held"), claims.count("not held, corrected")
    undecided = claims.count("not decided")
    told = f"of {len(claims)} claims of {len(COMMITTED)} studies {held} held, {len(claims) - held - undecided} did not "
    told += f"({corrected} of them with what is true instead) and {undecided} are not decided"
    assert told in " ".join((FOLDER.parents[1] / "README.md").read_text(encoding="utf-8").split())


def measure(config, seeds):
    points = [1 / (i + 3) for i in range(config["points"])]
    return [{"y": config["x"] + seed / 7, "curve": points, "steps": 3} for seed in seeds]


def made(**changes):
    """A study that is nobody's, with a claim that holds, one that does not and one that is corrected."""

    def configurations(settings, seeds):
        return [Cell({"x": x, "points": settings["points"]}, seeds) for x in (2, 1)]

    def drawn(found):
        lines = [
            Series(f"seed {seed}", "measured", list(range(len(values["curve"]))), values["curve"], "curve", seed=seed)
            for seed, values in found.where(x=1)
        ]
        return [
            Figure("lines", "Lines <of> it", "One a seed.", Axis("step"), Axis("y", "log"), tuple(lines)),
            Picture("none", "Nothing", "What is not there.", missing="There is none."),
        ]

    def column(found):
        return {"y": found.column("y", x=1), "limit": math.inf}

    def claims(settings):
        return [
            Claim("holds", "It <holds>.", "y >= 1", "Someone 2020", lambda r: (True, column(r), Statistic("s", 1.0))),
            Claim("fails", "It fails.", "y < 0", "", lambda r: (False, column(r), None), paper_value="0.5 in theirs"),
            Claim("mended", "It is.", "y < 0", "", lambda r: (False, {}, None), correction="It is & was not."),
        ]

    fields = {
        "name": "R1", "slug": "made_up", "title": "Made up", "question": ANGLE, "sources": ("nobody, arXiv 1",),
        "settings": {"seeds": 5, "points": 4}, "configurations": configurations, "run": measure, "claims": claims,
        "figures": drawn, "scales": {"smoke": {"seeds": 2}}, "notes": ("Note <this>.",), "method": "So. And so. Thus.",
        "costs": {"small": Cost(0.1, measured=True)}, "answer": "Yes < no.",
    }  # fmt: skip
    return Study(**{**fields, **changes})


@pytest.fixture
def known(monkeypatch):
    """Make a study known by the name R1, and say what commit and machine compute; other processes do not know it."""
    monkeypatch.setattr(result_checks, "_elsewhere", lambda study, config: result_checks.compute(study, config, 0))
    monkeypatch.setattr("levada.study.execution.provenance", lambda: CODE)

    def know(study, **code):
        if code:
            monkeypatch.setattr("levada.study.execution.provenance", lambda: {**CODE, **code})
        monkeypatch.setitem(levada.studies.STUDIES, "R1", study)
        return study

    return know


def run_of(study, folder, **options):
    with ThreadPoolExecutor(1) as pool:
        return execute(study, out=folder, executor=pool, **options)


def kept(study, folder):
    """The result of a run, written and read."""
    write({**result_of(run_of(study, folder)), "check": check_of(study)}, folder / "results")
    return read("R1", folder / "results")


def test_a_result_round_trips_with_its_claims_exact_and_its_figures_rounded(tmp_path, known):
    found = kept(known(made()), tmp_path)
    (holds, fails, mended) = found["claims"]
    assert holds["numbers"] == {"y": [1 + seed / 7 for seed in range(5)], "limit": math.inf}
    assert holds["statistic"] == {"name": "s", "value": 1.0}
    assert (holds["status"], fails["status"], mended["status"]) == ("held", "not held", "not held")
    lines, none = found["figures"]
    assert [one["y"] for one in lines["series"]] == [[0.3333, 0.25, 0.2, 0.1667]] * 5
    assert [one["seed"] for one in lines["series"]] == [0, 1, 2, 3, 4]
    assert none["missing"] == "There is none."
    assert found["commits"] == [CODE["commit"]]
    assert found["machine"] == CODE["machine"]
    assert (found["scale"], found["seeds"], found["results"]) == ("small", [0, 1, 2, 3, 4], 10)
    assert found["check"]["config"] == {"x": 1, "points": 4}
    assert recompute(found) == 0
    assert stale(found) == []
    assert str(tmp_path) not in (tmp_path / "results" / "R1.json").read_text()


def test_a_changed_study_makes_its_result_stale(tmp_path, known):
    found = kept(known(made()), tmp_path)
    known(made(settings={"seeds": 5, "points": 6}))
    assert stale(found) == ["its configurations"]
    claims = made().claims

    def renamed(settings):
        first, second, _ = claims(settings)
        stricter = Claim(second.name, second.statement, "y < -1", "", second.decide, paper_value=second.paper_value)
        return [first, stricter, Claim("new", "", "", "", first.decide)]

    known(made(question="Is it?", method="So. And so. Then.", notes=("Note <that>.",)))
    assert stale(found) == ["its question", "its method", "its notes"]
    known(made(notes=lambda settings: ["Note <this>."]))
    assert stale(found) == []
    known(made(claims=renamed))
    assert stale(found) == [
        "the criterion of the claim 'fails'", "the claim 'mended' is gone", "the claim 'new' is new",
    ]  # fmt: skip
    page = unescape(result_pages.study_page(STUDIES["R1"], found))
    assert "This result is stale" in page
    assert "the criterion of the claim 'fails'" in page


def test_a_result_names_the_files_that_decide_its_claims_and_is_stale_where_they_change(tmp_path, known):
    found = kept(known(made()), tmp_path)
    assert list(found["claim_code"]) == [f"{__name__.replace('.', '/')}.py"]
    old = {**found, "claim_code": {"elsewhere.py": "0", **dict.fromkeys(found["claim_code"], "1")}}
    changed = [f"the code of {file}" for file in (*found["claim_code"], "elsewhere.py")]
    assert stale(old) == changed
    del old["claim_code"]
    assert stale(old) == [], "a file of before hashes were kept"


def test_the_files_of_claims_are_those_of_what_decides_them():
    study = STUDIES["R17"]
    assert list(claim_code(study, study.resolve("small"))) == [
        "levada/studies/feature_hierarchy.py", "levada/studies/feature_hierarchy_claims.py",
    ]  # fmt: skip
    study = STUDIES["R1"]
    assert list(claim_code(study, study.resolve("small"))) == ["levada/studies/gradient_decay.py"]


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('"""Other."""\nX = 1\n\n\n# why\ndef f(x):\n    return   x + X\n\nSTUDY = 2', True),
        ('"""Doc."""\nX = 1\ndef f(x):\n    return x - X\nSTUDY = 1', False),
        ('"""Doc."""\nX = 2\ndef f(x):\n    return x + X\nSTUDY = 1', False),
    ],
)
def test_what_decides_is_hashed_and_not_how_it_is_laid_out_or_what_the_study_says(source, same):
    known = result_code._hash('"""Doc."""\nX = 1\ndef f(x):\n    return x + X\nSTUDY = 1')
    assert (result_code._hash(source) == known) == same


def test_another_outcome_is_not_what_the_file_says(tmp_path, known):
    study = known(made())
    found = kept(study, tmp_path)
    known(made(run=lambda config, seeds: [{**one, "y": one["y"] * 1.001} for one in measure(config, seeds)]))
    assert recompute(found) == pytest.approx(1e-3, rel=0.01)
    assert recompute(found) > found["check"]["tolerance"]
    known(made(run=lambda config, seeds: [{**one, "steps": 4} for one in measure(config, seeds)]))
    assert recompute(found) == math.inf


@pytest.mark.parametrize(
    ("expected", "found", "apart"),
    [
        (1.0, 1.5, 1 / 3), (1.0, 1, math.inf), (1, 2, math.inf), ("inf", "inf", 0.0), ("a", "b", math.inf),
        ([1.0, 2.0], [1.0, 2.0, 3.0], math.inf), ({"a": 1.0}, {"b": 1.0}, math.inf), (True, 1, math.inf),
        ([0.0, [-1.0]], [0.0, [1.0]], 2.0), (None, None, 0.0),
    ],
)  # fmt: skip
def test_floats_deviate_and_all_else_is_the_same_or_not(expected, found, apart):
    assert deviation(expected, found) == pytest.approx(apart)


@pytest.mark.parametrize(("apart", "tolerance"), [(0.0, 1e-6), (3e-8, 1e-6), (2e-6, 2e-5)])
def test_the_tolerance_of_a_check_comes_from_other_instructions(apart, tolerance, known, monkeypatch):
    study = known(made())

    def elsewhere(study, config):
        values = result_checks.compute(study, config, 0)
        return {**values, "y": values["y"] * (1 + (0.1 if apart and config["x"] == 1 else apart))}

    monkeypatch.setattr(result_checks, "_elsewhere", elsewhere)
    check = check_of(study)
    # The cheapest does not repeat, so that the next is taken.
    assert check["config"]["x"] == (2 if apart else 1)
    assert check["tolerance"] == pytest.approx(tolerance, rel=0.01)
    monkeypatch.setattr(result_checks, "_elsewhere", lambda study, config: {})
    with pytest.raises(UsageError, match="no configuration of the scale smoke"):
        check_of(study)


def test_a_study_names_the_configuration_of_its_check(known):
    assert check_of(known(made()))["config"]["x"] == 1
    assert check_of(known(made(check={"x": 2})))["config"]["x"] == 2


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_the_check_that_a_study_names_is_in_its_smoke_scale(study):
    cells = study.configurations(study.resolve("smoke"), [0])
    assert any(cell.config.items() >= study.check.items() for cell in cells)


def test_elsewhere_is_another_process_with_the_least_of_instructions():
    study = STUDIES["R19"]
    cells = study.configurations(study.resolve("smoke"), [0])
    config = next(cell.config for cell in cells if cell.config["measures"] == "drift")
    assert deviation(result_checks.compute(study, config, 0), result_checks._elsewhere(study, config)) < 1e-9


def test_no_result_is_written_of_code_that_is_not_committed(tmp_path, known):
    study = known(made(), dirty=True)
    with pytest.raises(UsageError, match="files that differ from their commit"):
        result_of(run_of(study, tmp_path / "dirty"))
    known(study, commit="")
    with pytest.raises(UsageError, match="code of no known commit"):
        result_of(run_of(study, tmp_path / "installed"))
    # Once dirty, always dirty: what was computed then is in the folder.
    known(study, dirty=False)
    with pytest.raises(UsageError, match="files that differ"):
        result_of(run_of(study, tmp_path / "dirty"))


def test_no_result_is_written_of_half_a_run(tmp_path, known):
    def broken(config, seeds):
        if config["x"] == 1:
            raise ArithmeticError("no")
        return measure(config, seeds)

    with pytest.warns(UserWarning, match="5 results of R1 failed"):
        failed = run_of(known(made(run=broken)), tmp_path / "failed")
    with pytest.raises(UsageError, match="5 results failed"):
        result_of(failed)
    study = known(made())
    with pytest.raises(UsageError, match="settings are not those of the scale small"):
        result_of(run_of(study, tmp_path / "changed", settings={"points": 5}))
    with RunWriter.open(run_of(study, tmp_path / "more").path) as writer:
        told = next(iter(Run(writer.path).events("study")))
        writer.append("result", key="k", config={}, seed=5, values={}, seconds=0.0)
        writer.append("study", **{key: value for key, value in told.items() if key != "type"})
    with pytest.raises(UsageError, match="2 results are missing"):
        result_of(Run(tmp_path / "more" / "R1-small"))


def test_long_lines_are_thinned_and_large_files_refused(tmp_path, known):
    known(made(settings={"seeds": 5, "points": 4000}))
    found = {**result_of(run_of(STUDIES["R1"], tmp_path)), "check": {}}
    assert write(found, tmp_path).stat().st_size < result_files.USUAL_BYTES
    (lines, _) = read("R1", tmp_path)["figures"]
    assert lines["thinned"] == len(lines["series"][0]["x"]) == 200
    assert [lines["series"][0]["x"][i] for i in (0, -1)] == [0, 3999]
    with pytest.raises(UsageError, match="at most 300,000 bytes"):
        write({**found, "notes": ["x" * 300_000]}, tmp_path)


def test_pictures_that_are_too_large_are_left_out_and_it_is_said(tmp_path, known):
    def drawn(found):
        return [Picture("p", "Picture", "c", (Image("l", "alternative", b"x" * size),)) for size in (300_000,)]

    found = {**result_of(run_of(known(made(figures=drawn)), tmp_path)), "check": {}}
    write(found, tmp_path)
    (picture,) = read("R1", tmp_path)["figures"]
    assert "images" not in picture
    assert "too large" in picture["missing"]


def test_the_page_of_a_study_shows_all_of_it(tmp_path, known):
    study = known(made())
    page = result_pages.study_page(study, kept(study, tmp_path), "It says *more*.")
    assert page.startswith("# R1: Made up\n")
    assert "## What it says, and what it does not\n\nIt says *more*.\n\n## Notes" in page
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    shown = (
        ANGLE, "Yes < no.", "So. And so. Thus.", "It <holds>.", "It fails.", "It is.", "y ≥ 1", "0.5 in theirs",
        "It is & was not.", "✓ held", "✕ not held", "≠ not held, corrected", "Someone 2020", "Lines <of> it",
        "There is none.", "Note <this>.", "nobody, arXiv 1", "levada study R1 --scale small",
        "6 minutes on one CPU core", "seeds 0, 1, 2, 3, 4", "a processor, 2 cores", CODE["commit"][:12],
        "seed 4: 1.571", "limit: ∞",
    )  # fmt: skip
    for words in shown:
        assert words in text, words
    assert "<svg" in page
    assert "<b>" not in page, "what a study says is no HTML"
    assert all(f'id="claim-{number}"' in page for number in (1, 2, 3))
    assert "\n\n" not in page[page.index("<table") : page.index("</table>")], "a block of HTML ends at an empty line"


def test_a_study_without_a_result_is_listed_as_not_run(tmp_path, known):
    study = known(made())
    assert "it was not run" in result_pages.study_page(study, None)
    assert "What it says" not in result_pages.study_page(study, kept(study, tmp_path))
    index = result_pages.index_page({"R1": None, "R4": None})
    assert index.count(">not run<") == 2
    assert "**0 claims of 0 studies**: none yet" in index
    assert study.answer not in unescape(index), "an answer is a run's"


def test_the_index_counts_and_links_every_claim(tmp_path, known):
    study = known(made())
    index = result_pages.index_page({"R1": kept(study, tmp_path), "R4": None})
    assert "**3 claims of 1 study**: 1 held; 1 not held; 1 not held, corrected" in index
    assert all(f'href="R1.html#claim-{number}"' in index for number in (1, 2, 3))
    assert "Yes &lt; no." in index
    assert "R1\nR4\n```" in index


def test_statements_are_shown_with_what_shows_them(tmp_path, known):
    results = {name: read(name) for name in STUDIES}
    page = result_pages.statements_page(results)
    for one in result_pages.STATEMENTS:
        assert f'<td data-label="">{one.name}</td>' in page
    assert page.count('class="said ') == len(result_pages.STATEMENTS)
    (row,) = [line for line in page.split("\n") if ">T16<" in line]
    assert 'href="R1.html#claim-2"' in row
    assert "≠ not held, corrected" in row


def test_pages_are_written_once_and_old_ones_removed(tmp_path, known):
    (tmp_path / "R99.md").write_text("gone")
    result_pages.write_pages(tmp_path)
    names = {path.name for path in tmp_path.glob("*.md")}
    assert names == {"index.md", "statements.md", *(f"{name}.md" for name in STUDIES)}
    before = (tmp_path / "index.md").stat().st_mtime_ns
    result_pages.write_pages(tmp_path)
    assert (tmp_path / "index.md").stat().st_mtime_ns == before


def test_the_command_writes_what_it_can_and_says_what_it_cannot(tmp_path, known, monkeypatch, capsys):
    run = run_of(known(made()), tmp_path)
    other = run_of(known(STUDIES["R1"], dirty=True), tmp_path / "dirty")
    monkeypatch.setattr("sys.argv", ["result_files", str(other.path), str(run.path), "--out", str(tmp_path / "there")])
    assert result_files.main() == 2
    out = capsys.readouterr()
    assert out.out.strip() == str(tmp_path / "there" / "R1.json")
    assert "differ from their commit" in out.err
    assert json.loads((tmp_path / "there" / "R1.json").read_text())["schema"] == 1


def test_figures_follow_the_theme_that_a_reader_chose():
    sheet = style()
    colours = {
        theme: re.search(rf'body\[data-theme="{theme}"\] .levada-figure {{(.*?)}}', sheet)[1]
        for theme in ("light", "dark")
    }
    assert "--c0: #0b6a8c" in colours["light"]
    assert "--c0: #63c1e0" in colours["dark"]
