"""What must hold of every page: no sideways scrolling, all reached by keys, a table beside each figure, no motion."""

from __future__ import annotations

from typing import Any

from levada.report.palette import palette

__all__ = ["colours", "moving", "unreached", "untold", "wide"]

# What Tab must reach: of tabs, blocks and radio buttons one, as arrows lead to the others.
_MARK = """() => {
  const able = 'a[href], button, select, input, textarea, summary, [tabindex="0"]';
  const all = [...document.querySelectorAll(able)].filter(
    one => !one.disabled && one.tabIndex >= 0 && one.checkVisibility());
  const groups = new Map();
  const whole = all.filter(one => one.type !== 'radio' || one.checked || (!groups.has(one.name) && !all.some(
    other => other.type === 'radio' && other.name === one.name && other.checked) && groups.set(one.name, 1)));
  whole.forEach((one, at) => { one.dataset.reach = at });
  return whole.map(one => one.outerHTML.slice(0, 120));
}"""


def unreached(page: Any) -> list[str]:
    """Press Tab through the page, and give what cannot be reached, or is not seen to have the focus."""
    marked = page.evaluate(_MARK)
    page.evaluate("document.activeElement.blur()")
    left = dict(enumerate(marked))
    for _ in range(len(marked) + 10):
        page.keyboard.press("Tab")
        at, outline = page.evaluate(
            "[document.activeElement.dataset.reach, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if at is not None and outline != "none":
            left.pop(int(at), None)
    return list(left.values())


def untold(page: Any) -> list[str]:
    """Give the figures that show something and have no table, which may be made when it is opened."""
    return list(
        page.locator("figure").evaluate_all(
            """all => all.filter(one => !one.querySelector('details, table') && !one.parentElement.closest('figure'))
              .filter(one => one.querySelector('svg, canvas') && one.checkVisibility())
              .map(one => one.getAttribute('aria-label') ?? one.innerText.slice(0, 60))"""
        )
    )


def moving(page: Any) -> list[str]:
    """Give what moves, or would when it changes."""
    return list(
        page.evaluate(
            """() => [...document.getAnimations().map(String), ...[...document.querySelectorAll('*')].filter(one => {
              const style = getComputedStyle(one);
              return [style.transitionDuration, style.animationDuration].some(all => all.split(',').some(
                time => parseFloat(time) > 0)) || style.scrollBehavior === 'smooth';
            }).map(one => one.outerHTML.slice(0, 120))]"""
        )
    )


def wide(page: Any) -> int:
    """Give how many pixels of the page lie beside the window."""
    beside: int = page.evaluate("Math.max(document.documentElement.scrollWidth - innerWidth, 0)")
    return beside


def colours(page: Any) -> dict[str, str]:
    """Give the page's colours by name."""
    found: dict[str, str] = page.evaluate(
        """names => Object.fromEntries(names.map(name => [name,
          getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()]))""",
        list(palette()["light"]),
    )
    return found
