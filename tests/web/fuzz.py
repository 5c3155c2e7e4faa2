"""Fuzz what reads runs: `python tests/web/fuzz.py FOLDER -runs=10000`. FOLDER keeps the inputs.

The first byte of an input says which file of which small run it replaces, and how: as it is, or with right checksums,
so that what stands behind them is reached. No reader may raise more than a `UsageError`, and every question has an
answer.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import atheris

with atheris.instrument_imports(include=["levada.runs", "levada.web", "levada.report", "levada._numbers"]):
    from levada._errors import UsageError
    from levada.runs import Run, RunWriter, SignalWriter
    from levada.runs.codes import encode
    from levada.runs.frames import MAGIC, frame
    from levada.runs.segments import sealed_name
    from levada.runs.tail import TAIL_MAGIC, pack
    from levada.web.child import answer
    from levada.web.opened import forget
    from levada.web.questions import QUESTIONS as ANSWERED

RANK = Path("signals") / "rank-00000"
MEMORY = 2**31
QUESTIONS: dict[str, dict[str, Any]] = {
    "row": {"id": "a" * 20},
    "summary": {"id": "a" * 20},
    "loss": {"asked": {}},
    "heat": {"asked": {"signal": "gradient_rms"}},
    "mixing": {"asked": {}},
    "gates": {"asked": {}},
    "memory": {},
    "drawings": {},
}
CURVES = {"steps_back": [0, 1], "memory": [1.0, 0.1], "steps": [0], "gradient": [1.0], "memory_predicted": [1.0, 0.2]}
REPORT = {
    "blocks": [{"site": "a", "composite_forward_gain": 1.0, "composite_backward_gain": "inf"}],
    "findings": [{"rule": "short_memory", "where": {"first": "a"}, "evidence": {"curves": CURVES}}],
    "summary": {
        "mixing": {"matrices": {"a": [[1.0, 0.5], [0.0, 1.0]]}, "chains": [{"layers": ["a"]}]},
        "memory_horizon": {"value": 8.0, "low": 7.0, "high": 9.0, "steps": 20},
    },
}
BLOCKS = [{"site": f"layers.{i}", "order": i, "gradient_rms": 0.5**i, "gradient_predicted": 0.25**i} for i in range(3)]
LINES = [{"label": "a", "group": "a", "style": "measured", "seed": 0, "x": [1, 2], "y": [1.0, 0.5]}]
LINES += [{"label": "b", "group": "a", "style": "band", "x": [1, 2], "y": [1, 1], "low": [0.5, 0.5], "high": [2, 2]}]
AXES = {"x": {"label": "depth", "scale": "linear"}, "y": {"label": "size", "scale": "log"}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
IMAGES = [{"label": "a", "alternative": "a pixel", "png": PIXEL}]
STUDY: list[dict[str, Any]] = [
    {"type": "study", "name": "R1", "title": "How fast?", "question": "?", "sources": ["a"], "notes": ""},
    {"type": "figure", "id": "a", "title": "Decay", "caption": "By depth.", **AXES, "series": LINES},
    {"type": "figure", "kind": "picture", "id": "b", "title": "Edges", "caption": "", "images": IMAGES},
    {"type": "claim", "name": "decays", "statement": "It does.", "criterion": "by 3 %", "status": "held"}
    | {"numbers": {"slope": {"value": 0.5, "low": 0.4, "high": 0.6}}, "seeds": [0], "reason": "It fell."},
]


def parts(data: bytes) -> list[bytes]:
    """Cut bytes at each newline, as the payloads of frames."""
    return [part for part in data.split(b"\n") if part]


def manifest(data: bytes) -> bytes:
    """Give a manifest whatever its checksum should be."""
    try:
        values = json.loads(data)
        others = {key: value for key, value in values.items() if key != "crc32"}
        digest = zlib.crc32(json.dumps(others, sort_keys=True, separators=(",", ":")).encode())
        return json.dumps({**others, "crc32": digest}).encode()
    except (ValueError, AttributeError, RecursionError, TypeError):
        return data


def table(data: bytes) -> bytes:
    """Give a site table with its checksum."""
    try:
        canonical = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        canonical = data
    return b'{"crc32":%d,"table":%s}\n' % (zlib.crc32(canonical), canonical)


def inflated(data: bytes) -> bytes:
    """Give a sealed file of frames that hold these payloads, compressed."""
    held = [pack(b"Z" + struct.pack("<I", i) + zlib.compress(part)) for i, part in enumerate(parts(data))]
    return TAIL_MAGIC + b"".join(held)


def sealed(level: str, suffix: str, make: Callable[[bytes], bytes] = bytes) -> Callable[[Path, bytes], None]:
    """Make what puts a sealed file of a level in the place of all of that level."""

    def put(run: Path, data: bytes) -> None:
        for path in (run / RANK).glob(f"{level}-*"):
            path.unlink()
        content = make(data)
        (run / RANK / sealed_name(level, 1, content, suffix)).write_bytes(content)

    return put


def plain(name: str, make: Callable[[bytes], bytes] = bytes) -> Callable[[Path, bytes], None]:
    """Make what replaces a file."""

    def put(run: Path, data: bytes) -> None:
        (run / name).write_bytes(make(data))

    return put


def said(data: bytes) -> bytes:
    """Give a log of events with their checksums."""
    return MAGIC + b"".join(map(frame, parts(data)))


PLACES: list[Callable[[Path, bytes], None]] = [
    plain("events.log"),
    plain("events.log", said),
    plain("run.json", manifest),
    plain(f"{RANK}/sites-000.json", table),
    plain(f"{RANK}/tail-000002.log"),
    plain(f"{RANK}/tail-000002.log", lambda data: TAIL_MAGIC + b"".join(map(pack, parts(data)))),
    *(sealed(level, "parquet") for level in ("samples", "full", "by16")),
    sealed("samples", "frames", inflated),
    sealed("full", "frames"),
    sealed("full", "frames", inflated),
    plain(f"{RANK}/mixing/sites-000.json", table),
    plain(f"{RANK}/mixing/tail-000002.log", lambda data: TAIL_MAGIC + b"".join(map(pack, parts(data)))),
    plain(f"{RANK}/gates/sites-000.json", table),
    plain("events.log", said),
    plain("events.log", said),
]
OTHERS = {len(PLACES) - 2: "checked", len(PLACES) - 1: "studied"}
"""Places that are of another run than the watched one."""


def write(folder: Path) -> None:
    """Write a run whose every kind of file is small."""
    finding = {"rule": "loss_spike", "severity": "warn", "claim": "", "where": {"first": "a"}, "evidence": {"x": 1.0}}
    with RunWriter.create(folder, kind="watch", name="small", config={"lr": 0.1}) as writer:
        writer.append("loss", steps=[0, 1], values=[2.0, 1.0])
        writer.append("finding", step=1, case="a", finding=finding)
        writer.append("judged", rules=["loss_spike"], unjudged={"dead_units": "none"}, waiting=[], few=[], first=0)
        writer.append("report", title="", report=REPORT)
        writer.append("end", steps=2)
    sites = [{"name": "a", "order": 0, "kind": "Linear", "shape": [2], "parameters": []}]
    with SignalWriter(folder, sites=sites, signals=["gradient_rms", "gradient_nonfinite"]) as samples:
        for step in range(20):
            samples.append(step, 0.0, encode([0.5, 0.0]), {"loss": 1.0, "overhead": 0.01})
    mixed, entries = [{"name": "a", "shape": [2, 2], "chain": 0}], ["mix_0_0", "mix_0_1", "mix_1_0", "mix_1_1"]
    with SignalWriter(folder, sites=mixed, signals=entries, part="mixing") as samples:
        samples.append(0, 0.0, encode([0.75, 0.25, 0.25, 0.75]))
    gates = ["gate_mean", "gate_low", "gate_high", "gate_horizon"]
    with SignalWriter(folder, sites=[{"name": "a", "gate": "forget gate"}], signals=gates, part="gates") as samples:
        samples.append(0, 0.0, encode([0.5, 0.25, 0.75, 10.0]))


def write_drawn(home: Path) -> None:
    """Write a check and a study, of which figures are drawn."""
    with RunWriter.create(home / "checked", kind="check", name="small") as writer:
        writer.append("report", title="", report={"schema": 1, "verdict": "warn", **REPORT, "blocks": BLOCKS})
    with RunWriter.create(home / "studied", kind="study", name="R1") as writer:
        for one in STUDY:
            writer.append(**one)


def payloads(run: Path) -> bytes:
    """Give what a run says, an event in each line."""
    return b"\n".join(json.dumps(event).encode() for event in Run(run).events())


def seeds(home: Path, folder: Path) -> None:
    """Give the inputs that the search begins with: of each place what stands there."""
    run = home / "whole"
    rank = run / RANK
    held = [(run / "events.log").read_bytes(), payloads(run), (run / "run.json").read_bytes()]
    held.append(json.dumps(json.loads((rank / "sites-000.json").read_bytes())["table"]).encode())
    sample = b"S" + struct.pack("<qdII", 30, 0.0, 0, 2) + b"{}" + encode([0.5, 0.0])
    held += [TAIL_MAGIC + pack(b'H{"schema": 1, "sites": 0}') + pack(sample), b'H{"schema": 1, "sites": 0}\n' + sample]
    held += [next(rank.glob(f"{level}-*")).read_bytes() for level in ("samples", "full", "by16")]
    times = [0.0] * 20
    about = {"schema": 1, "sites": 0, "steps": list(range(20)), "times": times, "scalars": [{}] * 20, "marks": [3]}
    held += [
        json.dumps(about).encode(),
        TAIL_MAGIC + pack(b"Z" + struct.pack("<I", 0) + zlib.compress(bytes(40))),
        bytes(40),
        json.dumps(json.loads((rank / "mixing" / "sites-000.json").read_bytes())["table"]).encode(),
        b'H{"schema": 1, "sites": 0}\nS'
        + struct.pack("<qdII", 30, 0.0, 0, 2)
        + b"{}"
        + encode([0.75, 0.25, 0.25, 0.75]),
        json.dumps(json.loads((rank / "gates" / "sites-000.json").read_bytes())["table"]).encode(),
        *(payloads(home / name) for name in OTHERS.values()),
    ]
    assert len(held) == len(PLACES)
    for number, content in enumerate(held):
        (folder / f"seed-{number:02d}").write_bytes(bytes([number]) + content)


STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    -0.5,
    "",
    "nan",
    "inf",
    "\ud800",
    "</script>",
    [],
    {},
    [[]],
    [{}],
]


def changed(value: Any, chance: random.Random) -> Any:
    """Put something strange in one place of a value, leave the place out, or put it there twice."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(STRANGE)
    places = list(value) if isinstance(value, dict) else range(len(value))
    place = chance.choice(places)
    if chance.random() < 0.1:
        return {key: value[key] for key in places if key != place} if isinstance(value, dict) else value[:place]
    if isinstance(value, list) and chance.random() < 0.1:
        return [*value, value[place]]
    if isinstance(value, dict):
        return {**value, place: changed(value[place], chance)}
    return [*value[:place], changed(value[place], chance), *value[place + 1 :]]


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Change bytes, or in one half a value in a line of JSON: what is no JSON any more is given up at once."""
    chance = random.Random(seed)
    lines = data[1:].split(b"\n")
    at = chance.randrange(len(lines))
    if chance.random() < 0.5:
        try:
            lines[at] = json.dumps(changed(json.loads(lines[at]), chance)).encode()
        except (ValueError, RecursionError):
            return bytes(atheris.Mutate(data, most))
        return (data[:1] + b"\n".join(lines))[:most]
    return bytes(atheris.Mutate(data, most))


def main() -> None:
    """Search until libFuzzer is told to stop, with no more memory than a reader may need."""
    # libFuzzer's own limit is of the peak that getrusage tells, which a process inherits from the one that started it.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    home = Path(tempfile.mkdtemp())
    write(home / "whole")
    write_drawn(home)
    seeds(home, Path(sys.argv[1]))
    for name, values in QUESTIONS.items():  # of what is whole, each has an answer: the search begins behind it
        for run in OTHERS.values() if name == "drawings" else ("whole",):
            status, body = answer(home, json.dumps({"ask": name, "run": run, **values}).encode())
            assert status == 200, body

    def one(data: bytes) -> None:
        run, place = home / "run", data[0] % len(PLACES) if data else 0
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(home / OTHERS.get(place, "whole"), run)
        PLACES[place](run, data[1:])
        forget()
        with mock.patch("time.sleep"):  # between looks for what a writer may be sealing
            read(run)
            for name, values in QUESTIONS.items():
                status, body = answer(home, json.dumps({"ask": name, "run": "run", **values}).encode())
                assert status in (200, 404, 409)
                json.loads(body)

    assert QUESTIONS.keys() == ANSWERED.keys()
    atheris.Setup([*sys.argv, "-rss_limit_mb=0"], one, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def read(run: Path) -> None:
    """Read all of a run."""
    try:
        found = Run(run)
    except UsageError:
        return
    list(found.events())
    found.losses()
    for rank in found.ranks:
        signals = found.signals(rank)
        signals.lost()
        for name in signals.names:
            signals.read(name)
            list(signals.planes(name, 0, 2**62, 16))
        for name in signals.scalar_names:
            signals.scalars(name)


if __name__ == "__main__":
    main()
