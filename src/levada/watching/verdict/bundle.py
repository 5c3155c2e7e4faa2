"""A bundle: what one step needs to be run again, in a folder of JSON and plain tensors.

`bundle.json` says the step, why it was kept, and how the values nest; `tensors.pt` is a mapping of names to tensors
that `torch.load(weights_only=True)` reads, and its checksum is in `bundle.json`, with one of that itself. Nothing in
either is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from levada._errors import UsageError
from levada._numbers import json_ready, restore_numbers
from levada.runs.address import local
from levada.runs.bundle_forms import SCHEMA
from levada.runs.bundles import BUNDLES, CHECKSUM, checksum_of, look_at, no_bundle, require_schema
from levada.runs.frames import Damage, scan
from levada.runs.manifest import LOG

__all__ = ["BUNDLES", "Bundle", "encode", "read_bundle", "write_bundle"]

_TABLE, _TENSORS = "bundle.json", "tensors.pt"


@final
@dataclass(frozen=True, slots=True)
class Bundle:
    """One kept step.

    Attributes:
        step: number of the optimizer step.
        rule: the rule that it was kept for.
        reason: why, a sentence.
        loss: the step's loss; NaN also if it was not seen.
        values: "args" and "kwargs" of the last forward pass, the "output_gradient" that arrived at the model's output,
            "random_state" by device at the start of the pass, "weights" by name, "optimizer", "targets", "indices";
            where weights are not finite, "earlier": the "step" before, whose update may have made them so, and of its
            last pass "args", "kwargs", "random_state", "indices" and "targets"; what is not there could not be kept.
        missing: name of such a value -> why.
        training: whether each module is in training mode, where it differs from its parent; "" is the model.
        checkpoint: path of the checkpoint that the user named last; None without.
        finding: the finding that it was kept for, as plain values; empty if it came later.
        facts: class of the model, versions, rank, whether autocast was on; "inputs_before", the "step" before and the
            root mean squares of its inputs by name; "lower_rate" where it is read beside a run that named one since.
    """

    step: int
    rule: str
    reason: str
    loss: float = math.nan
    values: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, bool] = field(default_factory=dict)
    checkpoint: str | None = None
    finding: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class UnkeptError(Exception):
    """A value that no safe format holds; the message is the reason, without a full stop."""


def encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return nested values as JSON, with each tensor put aside under a name.

    Args:
        value: tensors, numbers, strings, None, and tuples, lists and mappings of them.
        name: of this value.
        tensors: what is put aside.

    Raises:
        UnkeptError: if something else is in it.

    Example:
        >>> tensors = {}
        >>> encode((torch.ones(2), {"scale": 2.0}), "args", tensors), list(tensors)
        ({'tuple': [{'tensor': 'args.0'}, {'mapping': [['scale', {'value': 2.0}]]}]}, ['args.0'])
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta or hasattr(value, "placements"):
            raise UnkeptError(f"{name} is a tensor that is sharded, sparse, or holds no values")
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": json_ready(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise UnkeptError(f"{name} is a mapping with keys that are neither strings nor integers")
        return {"mapping": [[key, encode(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    raise UnkeptError(
        f"{name} is a {type(value).__name__}, and only tensors, numbers, strings and nests of them are kept"
    )


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `encode` was given.

    Args:
        value: from `encode`, through JSON.
        tensors: what was put aside.
    """
    ((kind, held),) = value.items()
    if kind == "tensor":
        if held not in tensors:
            raise ValueError(f"{_TENSORS} lacks {held!r}, which {_TABLE} names")
        return tensors[held]
    if kind == "value":
        return restore_numbers(held)
    if kind == "mapping":
        return {key: decode(item, tensors) for key, item in held}
    items = [decode(item, tensors) for item in held]
    return tuple(items) if kind == "tuple" else items


def write_bundle(run: Path, bundle: Bundle, ending: str = "") -> Path:
    """Write a bundle below the folder of a run; a reader sees all of it or nothing.

    Args:
        run: the run's folder.
        bundle: what to keep.
        ending: of the folder's name, where several processes keep one.

    Returns:
        The bundle's folder.
    """
    tensors: dict[str, Tensor] = {}
    values, missing = {}, dict(bundle.missing)
    for name, value in bundle.values.items():
        aside: dict[str, Tensor] = {}
        try:
            values[name] = encode(value, name, aside)
            tensors |= aside
        except UnkeptError as reason:
            missing[name] = str(reason)
    folder = _free(run / BUNDLES, f"step-{bundle.step:06d}-{bundle.rule}", ending)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        torch.save(tensors, draft / _TENSORS)
        table = {
            "schema": SCHEMA,
            "step": bundle.step,
            "rule": bundle.rule,
            "reason": bundle.reason,
            "loss": bundle.loss,
            "values": values,
            "missing": missing,
            "training": dict(bundle.training),
            "checkpoint": bundle.checkpoint,
            "finding": dict(bundle.finding),
            "facts": dict(bundle.facts),
            "sha256": _checksum(draft / _TENSORS),
        }
        ready = json_ready(table, "bundle")
        # Of what is read again: JSON has no integers as keys, and no tuples.
        checksum = checksum_of(json.loads(json.dumps(ready, allow_nan=False)))
        text = json.dumps({**ready, CHECKSUM: checksum}, indent=1, allow_nan=False)
        (draft / _TABLE).write_text(text + "\n", encoding="utf-8")
        for name in (_TENSORS, _TABLE):
            with (draft / name).open("rb") as file:
                os.fsync(file.fileno())
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def _free(folder: Path, name: str, ending: str) -> Path:
    """Give a folder that is not there yet: a run that goes on may come to a step that it kept before."""
    path, number = folder / f"{name}{ending}", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}{ending}"
    return path


def read_bundle(path: str | Path, *, examined: bool = False) -> Bundle:
    """Read a bundle.

    Args:
        path: its folder; or an address that fsspec knows, of which what is there is copied.
        examined: whether every byte of it has been compared with its checksums just now.

    Raises:
        UsageError: if it is none, was written by a later version, or is damaged.
    """
    folder = local(path)
    try:
        table = json.loads((folder / _TABLE).read_text(encoding="utf-8"))
        schema = table["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"replay: {no_bundle(folder)}") from error
    if not examined and (kept := look_at(folder)).damage:
        raise UsageError(f"replay: {str(folder)!r} is damaged: {kept.damage}. {kept.left}")
    require_schema(schema)
    try:
        tensors = torch.load(folder / _TENSORS, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.values())):
            raise TypeError(f"{_TENSORS} must hold dense tensors by name, and holds something else")
        values = {name: decode(value, tensors) for name, value in table["values"].items()}
        return Bundle(
            step=int(table["step"]),
            rule=str(table["rule"]),
            reason=str(table["reason"]),
            loss=float(table["loss"]),
            values=values,
            missing=table["missing"],
            training=table["training"],
            checkpoint=table["checkpoint"],
            finding=table["finding"],
            facts={**table["facts"], **_rate_told(folder, str(table["rule"]), int(table["step"]))},
        )
    except Exception as error:
        raise UsageError(f"replay: the bundle {str(folder)!r} is damaged: {type(error).__name__}: {error}.") from error


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def _rate_told(folder: Path, rule: str, step: int) -> dict[str, float]:
    """Return the "lower_rate" that the run named for this step after its bundle was kept; nothing if it named none."""
    found: dict[str, float] = {}
    if rule != "numerical_overflow" or folder.parent.name != BUNDLES:
        return found
    with suppress(OSError), (folder.parent.parent / LOG).open("rb") as file:
        for one in scan(file):
            told = {} if isinstance(one, Damage) else one.event.get("finding") or one.event
            evidence = told.get("evidence") if isinstance(told, Mapping) and told.get("rule") == rule else None
            if not isinstance(evidence, Mapping) or evidence.get("step") != step:
                continue
            blame = evidence.get("learning_rate_too_high")
            if isinstance(blame, Mapping) and isinstance(blame.get("lower"), float):
                found["lower_rate"] = blame["lower"]
    return found


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
