"""The documentation's own parts: formulas that need no script, and pages that ask no other host for one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from docs.accessibility import page
from docs.tex import tex_to_mathml

from levada.diagnose.diagnostics import DIAGNOSTICS

DOCS = Path(__file__).parents[1] / "docs"


class Asked(HTMLParser):
    """Collects what a page asks for by itself: scripts, styles, pictures, frames; links are for readers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and (given.get("rel") or "") in ("canonical", "index", "search", "next", "prev"):
            return
        if tag in ("script", "link", "img", "iframe", "source", "video", "audio"):
            self.found += [url for name in ("src", "href") if (url := given.get(name))]


def others(text: str) -> list[str]:
    """What a page asks of other hosts."""
    return [url for url in Asked(text).found if urlsplit(url).netloc]


@pytest.mark.parametrize("tex", [r"\unknown x", "x_1_2", "a}", r"\left( x", "x^"])
def test_a_formula_that_is_not_known_stops_the_build(tex: str) -> None:
    with pytest.raises(ValueError, match=f"^latex2mathml .*{re.escape(repr(tex))}"):
        tex_to_mathml(tex)


def test_formulas_are_set() -> None:
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mn>2</mn></mrow></mfrac>" in tex_to_mathml(r"\frac{a}{2}")
    assert 'display="block"' in tex_to_mathml("x", display=True)
    tex_to_mathml(r"\{a\}")  # braces that are shown


def test_what_a_page_asks_of_others_is_found() -> None:
    page = '<a href="https://a.test">a</a><script src="//cdn.test/x.js"></script><img src="images/a.webp">'
    assert others(page) == ["//cdn.test/x.js"]


def test_a_page_with_formulas_asks_for_no_script_of_another_host(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser", reason="sphinx and myst_parser are not installed")
    (tmp_path / "index.md").write_text((DOCS / "theory.md").read_text(encoding="utf-8"), encoding="utf-8")
    conf = (DOCS / "conf.py").read_text(encoding="utf-8")
    # The renderer and the extension that the documentation names, and of the rest only what its formulas need.
    renderer = re.search(r'^html_math_renderer = "\w+"', conf, re.MULTILINE)
    assert renderer is not None
    assert '"docs.tex"' in conf
    own = 'extensions = ["myst_parser", "docs.tex"]\nmyst_enable_extensions = ["dollarmath", "colon_fence"]\n'
    (tmp_path / "conf.py").write_text(f"{own}{renderer[0]}\n", encoding="utf-8")
    words = [sys.executable, "-m", "sphinx", "--quiet", str(tmp_path), str(tmp_path / "built")]
    paths = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
    page = (tmp_path / "built" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math") > 90
    assert others(page) == []


def test_no_built_page_asks_for_a_script_of_another_host() -> None:
    pages = sorted((DOCS / "_build").rglob("*.html"))
    if not pages:
        pytest.skip("the documentation is not built: make docs")
    asking = {page.name: found for page in pages if (found := others(page.read_text(encoding="utf-8")))}
    assert asking == {}


def test_every_link_of_a_built_page_leads_to_another_and_to_a_place_on_it() -> None:
    built = DOCS / "_build"
    if not built.exists():
        pytest.skip("the documentation is not built: make docs")
    pages = {one.resolve(): one.read_text(encoding="utf-8") for one in built.rglob("*.html")}
    places = {one: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for one, text in pages.items()}
    gone = set()
    for one, text in pages.items():
        for link in re.findall(r'<a\s[^>]*?href="([^":?]+)"', text):
            path, _, place = link.partition("#")
            to = (one.parent / path).resolve() if path else one
            if (to.suffix == ".html" and to not in pages) or (place and to in pages and place not in places[to]):
                gone.add((str(one.relative_to(built.resolve())), link))
    assert gone == set()


def test_the_accessibility_page_names_tests_that_are_there_and_its_tables_are_the_palette_s() -> None:
    text = (DOCS / "accessibility.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (DOCS.parent / "tests" / file).read_text(encoding="utf-8"), (file, test)
    assert all((DOCS.parent / path).exists() for path in re.findall(r"`(web/test/\w+\.test\.ts)`", text))
    made = page(text)
    assert "<!--" not in made
    assert made.count("| light | words on") == made.count("| dark | words on") == 3
    least = [float(found) for found in re.findall(r"\| ([\d.]+) \(c\d, c\d\)", made)]
    assert len(least) == 8
    assert min(least) >= 10.9


def test_the_page_of_check_has_every_rule_in_its_table_and_no_other() -> None:
    page = (DOCS / "check.md").read_text(encoding="utf-8")
    section = page[page.index("## The rules in short") : page.index("## Streams")]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    named = [rule for row in rows for rule in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(DIAGNOSTICS)
