"""The explorer's one file in a browser: opened by a link, without requests, and with nothing said on the console."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.web.visiting import Visit, browser, needs_browser, visits

import levada

__all__ = [
    "AXE",
    "PAGE",
    "Visit",
    "browser",
    "changes",
    "link",
    "needs_page",
    "numbers",
    "picture",
    "sentences",
    "settled",
    "use",
    "violations",
    "violations_by_scheme",
    "visit",
]

PAGE = Path(levada.__file__).parent / "web/static/single/explore.html"
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
COLOURS = ("color-contrast", "link-in-text-block")
"""The rules of axe-core that look at colours, of those that it runs unasked."""

needs_page = [needs_browser, pytest.mark.skipif(not PAGE.exists(), reason="the pages are not built: make web")]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open the page by a link, in any of its tabs."""
    with visits(browser, PAGE.as_uri(), "[role=tabpanel]") as opened:
        yield opened


def link(page: Any) -> str:
    """What the address says."""
    return str(page.evaluate("location.hash"))


def picture(page: Any) -> str:
    """Everything that is drawn."""
    return str(page.eval_on_selector_all(".plot .line", "all => all.map(one => one.getAttribute('d')).join('|')"))


def changes(page: Any, act: Callable[[], Any]) -> None:
    """Wait until what is drawn is another picture than before."""
    before = picture(page)
    act()
    page.wait_for_function(
        "before => [...document.querySelectorAll('.plot .line')].map(one => one.getAttribute('d')).join('|') != before",
        arg=before,
    )


def use(page: Any, label: str, value: Any) -> None:
    """Set a control by its label."""
    control = page.get_by_label(label, exact=True)
    if isinstance(value, bool):
        control.set_checked(value)
    elif isinstance(value, str):
        control.select_option(value)
    else:
        control.fill(str(value))


def settled(page: Any, key: str) -> None:
    """Wait until the address says so."""
    page.wait_for_function("key => location.hash.includes(key)", arg=key)


def sentences(page: Any) -> list[str]:
    """What the page reads out of its figures."""
    return list(page.locator(".reading").all_inner_texts())


def numbers(text: str) -> list[float]:
    """Every number of a sentence, also such as 2.0×10⁻⁵."""
    plain = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")).replace("×10", "e")
    return [float(found) for found in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", plain)]


def violations(page: Any, rules: Sequence[str] = ()) -> str:
    """What axe-core finds wrong by all of its rules, or by some, as text; nothing if all is well."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))  # which no policy of the page forbids
    # What passes is not listed node by node, which takes as long as finding what does not.
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = page.evaluate("options => axe.run(options).then(found => found.violations)", options)
    return "\n".join(json.dumps([one["id"], [node["html"][:160] for node in one["nodes"]]]) for one in found)


def violations_by_scheme(page: Any) -> dict[str, str]:
    """What axe-core finds wrong in the light scheme, and in the dark one, where nothing but colours is another."""
    found = {}
    for scheme, rules in (("light", ()), ("dark", COLOURS)):
        page.emulate_media(color_scheme=scheme)
        found[scheme] = violations(page, rules)
    return {scheme: text for scheme, text in found.items() if text}
