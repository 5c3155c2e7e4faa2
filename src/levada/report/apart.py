"""Sections of one name are told apart by where their runs lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

__all__ = ["tails", "tell_apart"]


def tails(paths: Iterable[str]) -> dict[str, str]:
    """Give of each path its end, as long as it must be for no two to be the same.

    Example:
        >>> tails(["runs/a/x", "runs/b/x"])
        {'runs/a/x': 'a/x', 'runs/b/x': 'b/x'}
    """
    known = {path: PurePath(path).parts for path in dict.fromkeys(paths)}
    most = max((len(parts) for parts in known.values()), default=1)
    for count in range(1, most + 1):
        found = {path: str(PurePath(*parts[-count:])) for path, parts in known.items()}
        if len(set(found.values())) == len(known):
            return found
    return {path: path for path in known}


def tell_apart(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give for each section of a page the folder that its reader needs to know it by; "" where its title is enough.

    Args:
        sections: with their "view", which has a "title", and "path", which is "" for what is no run.
    """
    named: dict[str, list[str]] = defaultdict(list)
    for section in sections:
        named[str(section["view"]["title"])].append(str(section["path"]))
    ends = {title: tails(path for path in paths if path) for title, paths in named.items() if len(set(paths)) > 1}
    return [ends.get(str(one["view"]["title"]), {}).get(str(one["path"]), "") for one in sections]
