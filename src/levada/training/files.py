"""A configuration as TOML: read, changed, written, and known by its content."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from levada._errors import UsageError
from levada._names import meant, nearest
from levada.training.config import FIXED, FREE, Config, left_out, unread

__all__ = [
    "content_hash",
    "devices",
    "differences",
    "fitting",
    "read",
    "read_tables",
    "resolve",
    "settings",
    "to_dict",
    "to_toml",
]


def read(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration from a TOML file.

    In the `config.toml` of a run stands what an earlier levada took: of what the run began with, a key that nothing
    reads is left out, and a path with a `~` is that of a folder which is called so.

    Args:
        path: the file.
        changes: each `table.key=value`, as the command line takes them; a value that is not TOML is a text.

    Raises:
        UsageError: if the file cannot be read, or a key is not known or its value not possible; the message names the
            key's path, what came and, where one is near, the name that was meant.
    """
    file = Path(path)
    filled = _filled(read_tables(file), changes)
    if file.name == "config.toml" and (file.parent / "run.json").is_file():
        _take_as_began(filled, file.parent)
    made: Config = _build(Config, filled, "")
    return made


def read_tables(path: str | Path) -> dict[str, Any]:
    """Read the tables of a TOML file, whatever they hold.

    Args:
        path: the file.

    Raises:
        UsageError: if the file cannot be read or is not TOML.
    """
    file = Path(path)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors of Windows begin files with a mark
    except OSError as error:
        own = file / "config.toml"
        advice = f"Of a run, give the file in it: {own}" if own.is_file() else "Give a TOML file."
        raise UsageError(f"train: {str(file)!r} cannot be read: {error.strerror}. {advice}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        advice = f" A script is run by: levada run {file}" if file.suffix == ".py" else ""
        why = {UnicodeDecodeError: "it holds bytes that are no text", RecursionError: "it is nested too deep"}.get(
            type(error), str(error)
        )
        raise UsageError(f"train: {str(file)!r} is not TOML: {why}.{advice}") from error


def resolve(tables: Mapping[str, Any], changes: Sequence[str] = ()) -> Config:
    """Make a configuration of the tables of a TOML file; what they leave out has its default.

    Args:
        tables: such as `{"model": {"depth": 4}}`.
        changes: as for `read`.

    Raises:
        UsageError: as `read`.

    Example:
        >>> resolve({"model": {"depth": 4}}, ["model.dim=16"]).model.dim
        16
        >>> resolve({"model": {"dept": 4}})
        Traceback (most recent call last):
        levada._errors.UsageError: train: model.dept is not a key; did you mean model.depth?
    """
    made: Config = _build(Config, _filled(tables, changes), "")
    return made


def _filled(tables: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    filled = {name: dict(t) if isinstance(t, Mapping) else t for name, t in tables.items()}
    for change in changes:
        _change(filled, change)
    return filled


def _take_as_began(filled: dict[str, Any], folder: Path) -> None:
    """Make what a run began with, and its own file says, such as it is written today."""
    from levada.runs.manifest import read_manifest

    try:
        began = _flat(read_manifest(folder).config)
    except UsageError:  # of a damaged run, whoever opens it says that
        return
    flat = _flat(filled)
    known = {**_flat(to_dict(Config())), **flat}
    kept = {path for path, value in flat.items() if path in began and began[path] == value}
    for path in kept.intersection(unread(known.get)):
        table, key = path.split(".")
        del filled[table][key]
    for table, key in (("run", "folder"), ("data", "path")):
        if f"{table}.{key}" in kept and str(filled[table][key]).startswith("~"):
            filled[table][key] = f"./{filled[table][key]}"


def _change(tables: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UsageError(f"train: --set takes table.key=value, got {change!r}. So as in: --set run.steps=100")
    inner: Any = tables
    for key in keys[:-1]:
        inner[key] = dict(inner[key]) if isinstance(inner.get(key), Mapping) else {}
        inner = inner[key]
    inner[keys[-1]] = _value(text.strip(), text_wanted=_is_text(keys))


def _value(text: str, *, text_wanted: bool) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return text if text_wanted and not isinstance(value, str) else value


def _is_text(keys: Sequence[str]) -> bool:
    """Whether a text belongs at this path, so that `run.folder=2024` needs no quotes."""
    table = get_type_hints(Config).get(keys[0])
    return len(keys) == 2 and dataclasses.is_dataclass(table) and get_type_hints(table).get(keys[1]) is str


def _build(kind: Any, given: Any, path: str) -> Any:
    """Make a dataclass of a table, and of its tables."""
    if not isinstance(given, Mapping):
        raise UsageError(f"train: {path} must be a table, got {given!r}.")
    kinds = get_type_hints(kind)
    values = {}
    for key, value in given.items():
        place = f"{path}.{key}" if path else key
        if key not in kinds:
            raise UsageError(f"train: {place} is not a {'key' if path else 'table'}; {_nearest(key, kinds, path)}")
        inside = dataclasses.is_dataclass(kinds[key])
        values[key] = _build(kinds[key], value, place) if inside else fitting(value, kinds[key], place)
    try:
        return kind(**values)
    except UsageError as error:
        if str(error).startswith("train: "):
            raise
        told = str(error).partition(": ")[2]  # behind the name of the class, which nobody wrote
        raise UsageError(f"train: {path}.{told}") from error


def _nearest(key: str, known: Mapping[str, Any], path: str) -> str:
    if near := nearest(key, known):
        return f"did you mean {f'{path}.' if path else ''}{near}?"
    return f"there {'are' if len(known) > 1 else 'is'}: {', '.join(known)}."


def fitting(value: Any, kind: Any, path: str) -> Any:
    """Return a value as its field's type, or say what it must be.

    Args:
        value: what came.
        kind: the type, as an annotation says it.
        path: the key's path, for the error.

    Raises:
        UsageError: if it is of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in arguments and type(value) is type(arguments[arguments.index(value)]):
            return value
        hint = meant(str(value), [choice for choice in arguments if isinstance(choice, str)])
        if path == "run.device":
            hint = f" PyTorch has here: {devices()}."
        raise UsageError(f"train: {path} must be one of {', '.join(map(repr, arguments))}, got {value!r}.{hint}")
    if origin in (types.UnionType, typing.Union):
        for choice in arguments:
            try:
                return fitting(value, choice, path)
            except UsageError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        one = arguments[-1] is Ellipsis
        if one or len(value) == len(arguments):
            inner = [arguments[0]] * len(value) if one else arguments
            return tuple(fitting(v, k, f"{path}[{i}]") for i, (v, k) in enumerate(zip(value, inner, strict=True)))
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif origin is Mapping and isinstance(value, Mapping):
        return dict(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise UsageError(f"train: {path} must be {_words(kind)}, got {value!r}.{_advice(value, kind, path)}")


def _advice(value: Any, kind: Any, path: str) -> str:
    """Say what to do about a value of another type than its key's."""
    if isinstance(value, str) and kind in (int, float):
        try:
            return f" Leave out the quotes: {path.rpartition('.')[2]} = {kind(value)!r}"
        except ValueError:
            return left_out(path)
    if kind is str and not isinstance(value, list | Mapping):
        return f' Put it in quotes: {path.rpartition(".")[2]} = "{value}"'
    if kind is bool:
        return f" Write {path.rpartition('.')[2]} = true, or = false"
    return left_out(path)


def devices() -> str:
    """Name what of this machine a training can compute on."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"'cpu' and 'cuda' ({count} GPU{'s' if count > 1 else ''})" if count else "'cpu' alone, and no GPU"


def _words(kind: Any) -> str:
    """Say a type as a reader of TOML knows it."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if kind in names:
        return names[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return f"a list of {'numbers' if arguments[-1] is Ellipsis else f'{len(arguments)} numbers'}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(choice) for choice in arguments)
    return "a table"


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return a configuration as tables of what TOML and JSON hold.

    Args:
        config: the configuration.
    """
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def to_toml(config: Config) -> str:
    """Write a configuration, every default of it, as TOML; `read` gives the same one back.

    Args:
        config: the configuration.

    Example:
        >>> print(to_toml(Config()).splitlines()[:3])
        ['[model]', 'network = "mlp"', 'depth = 8']
    """
    lines = []
    for name, table in to_dict(config).items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items() if value is not None), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of tables by path; what is no table is left out."""
    inner = {name: table for name, table in tables.items() if isinstance(table, Mapping)}
    return {f"{name}.{key}": value for name, table in inner.items() for key, value in table.items()}


def _fixed(config: Config) -> dict[str, Any]:
    """Return what says what a step computes, by path."""
    flat = _flat(to_dict(config))
    free = {path for path in flat if path not in FIXED and (path in FREE or path.split(".")[0] in FREE)}
    return {path: value for path, value in flat.items() if path not in free}


def content_hash(config: Config) -> str:
    """Return 16 hexadecimal digits that are equal where every step computes the same; see `FREE`.

    Args:
        config: the configuration.

    Example:
        >>> first, longer, other = (resolve({"run": run}) for run in ({}, {"steps": 20}, {"seed": 1}))
        >>> content_hash(first) == content_hash(longer), content_hash(first) == content_hash(other)
        (True, False)
    """
    return hashlib.sha256(json.dumps(_fixed(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Config) -> dict[str, tuple[Any, Any]]:
    """Return what must not change between a run and its continuation, and does: by path, what it was and what came.

    Args:
        before: the tables that the run began with. They may be of an earlier levada: they are compared as they are, a
            key that it did not know had its default, and one that nothing reads may have been anything.
        now: the configuration of the continuation.

    Example:
        >>> differences({"run": {"seed": 1}}, Config())
        {'run.seed': (1, 0)}
    """
    after, was = _fixed(now), {**_fixed(Config()), **_flat(before)}
    same = unread(_flat(to_dict(now)).get)
    if was["data.path"] and after["data.path"] and Path(str(was["data.path"])) == Path(after["data.path"]):
        same.append("data.path")  # ./~/texts is ~/texts of before
    return {path: (was[path], after[path]) for path in after if was[path] != after[path] and path not in same}


def settings(kind: Any) -> list[tuple[str, str, str]]:
    """Return every key of a table with its default and its meaning, which the documentation's tables are made of.

    Args:
        kind: a dataclass, such as `Model`.
    """
    text = inspect.getdoc(kind) or ""
    about = re.split(r"^(?:Attributes|Args):\n", text, flags=re.MULTILINE)[1].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", about + "\n", flags=re.MULTILINE | re.DOTALL)
    meanings = {name: " ".join(words.split()) for name, words in entries}
    defaults = json.loads(json.dumps(dataclasses.asdict(kind())))
    return [(f.name, _toml(defaults[f.name]), meanings[f.name]) for f in dataclasses.fields(kind)]
