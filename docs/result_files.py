"""What is kept of a run of a study in `docs/results`: one small JSON file a study, from which its page is made.

```sh
levada study all --scale small --out runs
python -m docs.result_files runs/*-small
```

A file is written from a whole run of committed code, and from nothing else. Of figures it holds what can be seen; the
numbers of the claims are the run's. It holds a check as well: the values of one cheap configuration of the scale smoke,
by which a test compares the code of today.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.result_checks import check_of
from docs.result_code import claim_code

from levada._errors import UsageError
from levada._numbers import json_ready, restore_numbers, sampled
from levada.runs import Run
from levada.studies import find
from levada.study import Study, claims, failures, figures

__all__ = ["FOLDER", "grid_hash", "read", "result_of", "stale", "write"]

FOLDER = Path(__file__).resolve().parent / "results"
SCHEMA = 1
USUAL_BYTES, MOST_BYTES = 100_000, 300_000
NUM_POINTS = (200, 100, 50)  # of a line, where its study's file would else be larger than usual
# What a claim says, apart from what was measured.
TOLD = ("statement", "criterion", "source", "paper_value", "correction")


def grid_hash(study: Study, scale: str, seeds: Iterable[int]) -> str:
    """Return the hash of a study's settings at a scale and of every configuration and seed that these give.

    Args:
        study: the study.
        scale: "smoke", "small" or "full".
        seeds: the seeds.
    """
    counted = sorted(seeds)
    settings = study.resolve(scale, {"seeds": len(counted)})
    keys = sorted({cell.key(seed) for cell in study.configurations(settings, counted) for seed in cell.seeds})
    text = json.dumps([settings, keys], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def result_of(run: Run) -> dict[str, Any]:
    """Return what a file keeps of a run, without the check.

    Args:
        run: a run of a study.

    Raises:
        UsageError: if results failed or are missing, settings were changed, or the code was not committed or is
            another by now.
    """
    events = list(run.events())
    told = next((event for event in reversed(events) if event["type"] == "study"), None)
    if run.manifest.kind != "study" or told is None:
        raise UsageError(f"{run.path}: a result is written from a run of a study, and this is none.")
    study, settings = find(told["name"]), told["settings"]
    found = {event["key"]: event for event in events if event["type"] == "result"}
    seeds = sorted({event["seed"] for event in found.values()})
    _require_whole(run, study, told, found, seeds)
    calls = [event for event in events if event["type"] == "study"]
    seconds = [event["seconds"] for event in found.values() if "seconds" in event]
    result = {
        "schema": SCHEMA,
        **{key: told[key] for key in ("name", "title", "question", "method", "sources", "notes", "scale")},
        "settings": settings,
        "configuration": grid_hash(study, told["scale"], seeds),
        "seeds": seeds,
        "results": len(found),
        "seconds": round(sum(seconds), 1) if len(seconds) == len(found) else None,
        "created": run.manifest.created,
        "versions": dict(run.manifest.versions),
        "machine": told["machine"],
        "claim_code": claim_code(study, study.resolve(told["scale"], {"seeds": len(seeds)})),
        "commits": list(dict.fromkeys(call["commit"] for call in calls)),
        "claims": [_without(event, "type") for event in claims(run).values()],
        "figures": [_without(event, "type") for event in figures(run).values()],
    }
    changed = stale(result)
    if changed:
        raise UsageError(f"{run.path}: the study is another by now: {'; '.join(changed)}. Run it again.")
    return result


def _require_whole(run: Run, study: Study, told: Mapping[str, Any], found: Mapping[str, Any], seeds: list[int]) -> None:
    for call in run.events("study"):
        if not call.get("commit") or call.get("dirty"):
            said = "from files that differ from their commit" if call.get("dirty") else "by code of no known commit"
            raise UsageError(f"{run.path}: it was computed {said}. Commit, and run the study into a new folder.")
    missing = failures(run)
    if missing:
        raise UsageError(f"{run.path}: {len(missing)} results failed. Run it again; what is there is kept.")
    settings = study.resolve(told["scale"], {"seeds": len(seeds)})
    if json.loads(json.dumps(settings)) != {**told["settings"], "seeds": len(seeds)}:
        raise UsageError(f"{run.path}: its settings are not those of the scale {told['scale']}.")
    wanted = {cell.key(seed) for cell in study.configurations(settings, seeds) for seed in cell.seeds}
    if wanted - found.keys():
        raise UsageError(f"{run.path}: {len(wanted - found.keys())} results are missing. Run it again.")


def _without(event: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in keys}


def stale(result: Mapping[str, Any]) -> list[str]:
    """Say what a study has changed since a result: its configurations, texts or claims, or the code that decides them.

    Args:
        result: as `read` returns it.

    Returns:
        What changed, in words; nothing if all is the same. Code is compared where the file has its hash.
    """
    study = find(result["name"])
    changed = []
    if grid_hash(study, result["scale"], result["seeds"]) != result["configuration"]:
        changed.append("its configurations")
    settings = study.resolve(result["scale"], {"seeds": len(result["seeds"])})
    notes = study.notes(settings) if callable(study.notes) else study.notes
    for key, text in (("question", study.question), ("method", study.method), ("notes", list(notes))):
        if text != result[key]:
            changed.append(f"its {key}")
    code = claim_code(study, settings)
    then_code = result.get("claim_code", code)
    changed += [f"the code of {file}" for file in code | then_code if code.get(file) != then_code.get(file)]
    now = {claim.name: claim for claim in study.claims(settings)}
    then = {claim["name"]: claim for claim in result["claims"]}
    for name in [*then, *(name for name in now if name not in then)]:
        if name not in now or name not in then:
            changed.append(f"the claim {name!r} is {'new' if name in now else 'gone'}")
        elif differ := [key for key in TOLD if getattr(now[name], key) != then[name][key]]:
            changed.append(f"the {', '.join(differ)} of the claim {name!r}")
    return changed


def write(result: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write a result as `NAME.json`, figures rounded to what can be seen; return the path.

    Args:
        result: what `result_of` gave, with its check.
        folder: where to.

    Raises:
        UsageError: if the file would be larger than 300 kB.
    """
    path = folder / f"{result['name']}.json"
    text = _text(result)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _text(result: Mapping[str, Any]) -> str:
    drawn = [_rounded(figure) for figure in result["figures"]]
    text = _laid_out({**result, "figures": drawn})
    for most in NUM_POINTS:
        if _plot_bytes(drawn) and len(text.encode()) - _picture_bytes(drawn) > USUAL_BYTES:
            drawn = [_thinned(figure, most) for figure in drawn]
            text = _laid_out({**result, "figures": drawn})
    if len(text.encode()) > MOST_BYTES and _picture_bytes(drawn):
        drawn = [_pictureless(figure) for figure in drawn]
        text = _laid_out({**result, "figures": drawn})
    if len(text.encode()) > MOST_BYTES:
        raise UsageError(
            f"{result['name']}: a result takes at most {MOST_BYTES:,} bytes, got {len(text.encode()):,}: draw less."
        )
    return text


def _picture_bytes(drawn: Iterable[Mapping[str, Any]]) -> int:
    return sum(len(image["png"]) for figure in drawn for image in figure.get("images", ()))


def _plot_bytes(drawn: Iterable[Mapping[str, Any]]) -> int:
    return sum(len(json.dumps(figure["series"])) for figure in drawn if "series" in figure)


def _pictureless(figure: Mapping[str, Any]) -> dict[str, Any]:
    if "images" not in figure:
        return dict(figure)
    return {**_without(figure, "images"), "missing": "Its images are too large for this page: see a run's report."}


def _rounded(figure: Mapping[str, Any]) -> dict[str, Any]:
    if "series" not in figure:
        return dict(figure)
    series = []
    for one in figure["series"]:
        kept = {key: value for key, value in one.items() if value is not None}
        digits = {"x": 6, "y": 4, "low": 4, "high": 4}
        series.append({k: [_digits(v, digits[k]) for v in kept[k]] if k in digits else kept[k] for k in kept})
    return {**figure, "series": series}


def _digits(value: Any, digits: int) -> Any:
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 10**digits else short


def _thinned(figure: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Keep at most so many points of a line, evenly, both ends among them."""
    if "series" not in figure or max((len(one["x"]) for one in figure["series"]), default=0) <= most:
        return dict(figure)
    series = []
    for one in figure["series"]:
        kept = sampled(len(one["x"]), most)
        series.append(
            {key: [value[i] for i in kept] if isinstance(value, list) else value for key, value in one.items()}
        )
    return {**figure, "series": series, "thinned": most}


def _laid_out(result: Mapping[str, Any]) -> str:
    """Write JSON with a line for each field, claim and series, so that changes can be read."""
    return "{\n" + ",\n".join(_fields(json_ready(result))) + "\n}\n"


def _fields(result: Mapping[str, Any]) -> Iterator[str]:
    for key, value in result.items():
        if key == "figures":
            yield f"{json.dumps(key)}: [{','.join(map(_figure, value))}]"
        elif key == "claims":
            yield f"{json.dumps(key)}: [\n" + ",\n".join(map(_compact, value)) + "\n]"
        else:
            yield f"{json.dumps(key)}: {_compact(value)}"


def _figure(figure: Mapping[str, Any]) -> str:
    head = _compact({key: value for key, value in figure.items() if key != "series"})
    if "series" not in figure:
        return f"\n{head}"
    return f'\n{head[:-1]},"series":[\n' + ",\n".join(map(_compact, figure["series"])) + "\n]}"


_compact = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """Return a study's result; None if there is none.

    Args:
        name: the study's.
        folder: where the files are.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    for key in ("claims", "figures"):
        for one in result[key]:
            one.update(
                {field: restore_numbers(one[field]) for field in ("numbers", "statistic", "series") if field in one}
            )
    return result


def main() -> int:
    """Write the results of runs, and say where they are."""
    parser = argparse.ArgumentParser(prog="python -m docs.result_files", description="Keep the results of runs.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders of studies")
    parser.add_argument("--out", metavar="DIR", type=Path, default=FOLDER, help="where the files go (docs/results)")
    options = parser.parse_args()
    code = 0
    for folder in options.runs:
        try:
            result = result_of(Run(folder))
            print(write({**result, "check": check_of(find(result["name"]))}, options.out))  # noqa: T201
        except UsageError as error:
            code = 2
            sys.stderr.write(f"{error}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
