"""Site tables: which signals and sites the numbers of a sample belong to, and a checksum of that.

    sites-NNN.json, and sites-NNN.copy in case that the first is damaged:
    {"crc32": checksum, "table": {"schema": 1, "signals": [name, ...], "sites": [{"name", ...}, ...]}}

The checksum is that of `table` as JSON with sorted keys, no spaces and escapes for all that is not ASCII. A run that
goes on with other sites (a pipeline cut elsewhere) gets another table; tails and sealed files say which is theirs.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from levada._errors import UsageError
from levada._numbers import json_ready
from levada.runs.frames import Damage
from levada.runs.manifest import write_atomically
from levada.runs.tail import SCHEMA

__all__ = ["Table", "keep_table", "mend_tables", "read_tables"]

_NAME: Final = re.compile(r"sites-(\d{3,9})\.(?:json|copy)")
# Ten thousand sites of a hundred parameters each are about 50 MB.
_MAX_TABLE: Final = 2**28


@dataclass(frozen=True, slots=True)
class Table:
    """Signals and sites, in the order of the codes."""

    signals: tuple[str, ...]
    sites: tuple[Mapping[str, Any], ...]

    @property
    def width(self) -> int:
        """Number of codes of a sample."""
        return len(self.signals) * len(self.sites)


def _canonical(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def keep_table(folder: Path, signals: Sequence[str], sites: Sequence[Mapping[str, Any]]) -> int:
    """Write a table, unless the newest one is the same; give its number.

    Raises:
        UsageError: if a site has no name, a name comes twice or has no UTF-8, an order is no integer of 32 bits, or
            something is not JSON.
    """
    for what, names in (("signal", list(signals)), ("site", [site.get("name") for site in sites])):
        if not all(map(_is_name, names)) or len(set(names)) < len(names):
            raise UsageError(f"SignalWriter: every {what} has a name of its own, in UTF-8, got {names[:20]!r}.")
    orders = [site["order"] for site in sites if "order" in site]
    if wrong := [order for order in orders if not _is_order(order)]:
        raise UsageError(
            f"SignalWriter: a site's order is an integer of 32 bits, got {wrong[0]!r}. Leave it out, or count."
        )
    table = {"schema": SCHEMA, "signals": list(signals), "sites": json_ready(list(sites), "sites")}
    values = _canonical(table)
    numbers = [int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    newest = max(numbers, default=-1)
    if newest >= 0 and table in [_read(folder / name) for name in _names(newest)]:
        mend_table(folder, newest)
        return newest
    text = b'{"crc32":%d,"table":%s}\n' % (zlib.crc32(values), values)
    for name in _names(newest + 1):
        write_atomically(folder / name, text)
    return newest + 1


def _is_name(name: Any) -> bool:
    """Whether it can be a column of Parquet, which holds UTF-8: a lone surrogate has none."""
    return isinstance(name, str) and bool(name) and name == name.encode("utf-8", "ignore").decode()


def _is_order(order: Any) -> bool:
    return isinstance(order, int) and not isinstance(order, bool) and -(2**31) <= order < 2**31


def _names(number: int) -> tuple[str, str]:
    """Give the names of a table and of its copy, which comes first: where there is a table, there is a copy."""
    return f"sites-{number:03d}.copy", f"sites-{number:03d}.json"


def _read(path: Path) -> dict[str, Any] | str:
    """Give the table, or the reason why the file holds none."""
    try:
        if path.stat().st_size > _MAX_TABLE:
            return f"it is longer than {_MAX_TABLE:,} bytes"
        values = json.loads(path.read_bytes())
        table = values["table"]
        if zlib.crc32(_canonical(table)) != values["crc32"]:
            return "its checksum differs"
        if table["schema"] > SCHEMA:
            return f"it is of schema {table['schema']}, and this levada reads {SCHEMA}; update levada"
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        return f"it is no site table ({error!r})"
    if wrong := _malformed(table):
        return wrong
    found: dict[str, Any] = table
    return found


def _malformed(table: Mapping[str, Any]) -> str:
    """Say what keeps a table with a right checksum from being one; nothing if it is."""
    signals, sites = table.get("signals"), table.get("sites")
    if not isinstance(signals, list) or not isinstance(sites, list):
        return "it holds no lists of signals and sites"
    if not all(isinstance(site, dict) for site in sites):
        return "a site is no object"
    for what, names in (("signal", signals), ("site", [site.get("name") for site in sites])):
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            return f"a {what} has no name of its own"
    return ""


def read_tables(folder: Path) -> tuple[dict[int, Table], list[Damage]]:
    """Read all tables of a rank, by number, and say which cannot be read."""
    tables, damages = dict[int, Table](), []
    numbers = {int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    for number in sorted(numbers):
        good = b""
        for path in (folder / name for name in reversed(_names(number))):
            if good and path.is_file() and path.read_bytes() == good:
                continue
            if path.suffix == ".json" and not path.exists() and not isinstance(_read(path.with_suffix(".copy")), str):
                continue  # its writer was killed when it had written the copy, and nothing is lost
            table = _read(path)
            if isinstance(table, str):
                size = path.stat().st_size if path.exists() else 0
                damages.append(Damage("file", 0, size, f"{path.name} cannot be read: {table}", file=path.name))
            elif number not in tables:
                tables[number] = Table(tuple(table["signals"]), tuple(table["sites"]))
                good = path.read_bytes()
    return tables, damages


def mend_tables(folder: Path) -> list[str]:
    """Write a damaged table again from its copy, or the copy from the table; give the names of what was written."""
    return [name for number in read_tables(folder)[0] for name in mend_table(folder, number)]


def mend_table(folder: Path, number: int) -> list[str]:
    """Write whichever of a table and its copy is damaged or missing; give its name."""
    mended = []
    paths = [folder / name for name in _names(number)]
    good = next(path.read_bytes() for path in paths if not isinstance(_read(path), str))
    for path in paths:
        if isinstance(_read(path), str):
            write_atomically(path, good)
            mended.append(path.name)
    return mended
