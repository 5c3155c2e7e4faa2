"""A bundle whose entries are of other forms than were written, and one at an address: said in a sentence."""

import contextlib
import hashlib
import json

import pytest
import torch
from torch import nn

from levada._errors import MeasurementError, UsageError
from levada.cli import main
from levada.runs import doctor
from levada.runs.bundles import checksum_of
from levada.watching.rerun.replay import replay
from levada.watching.verdict.bundle import read_bundle
from levada.watching.watch import watch

OTHERS = (None, True, 3, "x", [1], {"a": 1}, {"tensor": "args.0"}, {"value": 3}, {"mapping": []})
NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
"""


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return a bundle of everything that one holds, and its table."""
    run = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer, run=run, every=1, max_overhead=1.0) as watched:
        for step in range(45):
            inputs, targets = torch.randn(8, 6), torch.randint(3, (8,))
            watched.note(targets=targets, indices=[step], checkpoint="5.pt")
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(inputs * 300 if step == 44 else inputs)
                loss = nn.functional.cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
    (folder,) = watched.judge.keeper.folders
    return folder, json.loads((folder / "bundle.json").read_text())


@pytest.fixture
def bundle(kept, tmp_path):
    """Return the bundle, and what writes another table of it, with its checksum."""
    folder, table = kept

    def write(changed):
        own = {key: value for key, value in changed.items() if key != "crc32"}
        (folder / "bundle.json").write_text(json.dumps({**own, "crc32": checksum_of(own)}))

    tensors = (folder / "tensors.pt").read_bytes()
    yield folder, table, write
    (folder / "tensors.pt").write_bytes(tensors)
    write(table)


def places(value, most, place=()):
    """Yield the places in a table, down to a depth."""
    if place:
        yield place
    if len(place) < most and isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], most, (*place, key))


def changed(table, place, value):
    table = json.loads(json.dumps(table))
    inner = table
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return table


def test_every_entry_of_another_form_is_refused_or_does_no_harm(bundle):
    folder, table, write = bundle
    read, refused = 0, 0
    for place in places(table, 5):
        if place[0] in ("sha256", "crc32"):
            continue
        for value in (..., *OTHERS):
            write(changed(table, place, value))
            try:
                found = read_bundle(folder)
            except UsageError:
                refused += 1
                continue
            read += 1
            if len(place) < 4:
                with contextlib.suppress(UsageError, MeasurementError):
                    replay(found, build(), "cross_entropy")
    assert refused > 300
    assert read > 50  # names, numbers and reasons may be others


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("facts", "autocast"), 3, "its entry facts.autocast must be a mapping of names to names, got 3"),
        (("facts", "pass"), "x", "its entry facts.pass must be a number of passes, got 'x'"),
        (("missing",), ..., "it has no entry missing"),
        (("training", ""), 1, "its entry training must be a mapping of modules to true or false, got {'': 1}"),
        (("values", "weights"), {"tuple": []}, "its entry values.weights must be tensors by name, got {'tuple': []}"),
        (
            ("values", "random_state"),
            {"list": []},
            "its entry values.random_state must be tensors by device, got {'list': []}",
        ),
        (("values", "other"), 1, "its entry values.other must be a nest of tensors, numbers and texts, got 1"),
        (("finding", "evidence"), [1], "its entry finding.evidence must be a mapping, with numbers for rates, got [1]"),
    ],
)
def test_an_entry_of_another_form_is_named_by_the_command_and_by_doctor(place, value, told, bundle, capsys):
    folder, table, write = bundle
    write(changed(table, place, value))
    assert main(["replay", str(folder), "--model", "net.py:build"]) == 2
    shown = capsys.readouterr().err
    assert f"bundle.json is damaged: {told}" in shown
    assert len(shown.splitlines()) == 1
    assert f"bundle.json is damaged: {told}" in str(doctor(folder.parents[1]))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "must hold dense tensors by name"),
        ("x", "must hold dense tensors by name"),
        (torch.zeros(8, device="meta"), "must hold dense tensors by name"),
        (torch.zeros(2, 2).to_sparse(), "must hold dense tensors by name"),
        (..., "lacks 'random_state.cpu', which bundle.json names"),
        (torch.zeros(8, dtype=torch.uint8), "random state of cpu must be one of this PyTorch's generator"),
        (torch.zeros(8), "random state of cpu must be one of this PyTorch's generator"),
    ],
)
def test_tensors_of_another_kind_are_refused(value, told, bundle):
    folder, table, write = bundle
    tensors = torch.load(folder / "tensors.pt")
    held = {**tensors, "random_state.cpu": value}
    if value is ...:
        del held["random_state.cpu"]
    torch.save(held, folder / "tensors.pt")
    write(table | {"sha256": hashlib.sha256((folder / "tensors.pt").read_bytes()).hexdigest()})
    with pytest.raises(UsageError, match=told):
        replay(folder, build(), "cross_entropy")


def test_a_precision_that_is_none_is_refused(bundle):
    folder, table, write = bundle
    for name in ("x", "int32", "nn"):
        write(changed(table, ("facts", "autocast"), {"cpu": name}))
        with pytest.raises(UsageError, match=rf"must name floating types of PyTorch, as bfloat16, got '{name}'"):
            replay(folder, build(), "cross_entropy")


def test_a_bundle_that_was_copied_out_of_its_run_says_what_is_damaged(bundle, tmp_path, capsys):
    folder, table, write = bundle
    write(changed(table, ("step",), "x"))
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert main(["replay", str(copied), "--model", "net.py:build"]) == 2
    assert "which is damaged: bundle.json is damaged: its entry step must be" in capsys.readouterr().err


def test_a_later_schema_is_no_damage_whatever_it_holds(bundle, capsys):
    folder, _, write = bundle
    write({"schema": 2, "sha256": "", "new": True})
    assert main(["replay", str(folder), "--model", "net.py:build"]) == 2
    assert capsys.readouterr().err == "levada replay: this version reads bundles of schema 1, got 2. Update levada.\n"


def test_a_bundle_at_an_address_is_replayed(bundle, tmp_path, monkeypatch, capsys):
    fsspec = pytest.importorskip("fsspec")
    folder, _, _ = bundle
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NET)
    address = "memory://replayed/run/bundles/step"
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe_file(f"/replayed/run/bundles/step/{path.name}", path.read_bytes())
    words = ["--model", f"{tmp_path}/net.py:build", "--fail-on", "never", "--json"]
    assert main(["replay", address, *words, str(tmp_path / "there.json")]) == 0, capsys.readouterr().err
    assert main(["replay", str(folder), *words, str(tmp_path / "here.json")]) == 0
    there, here = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("there", "here"))
    assert there["blocks"] == here["blocks"]
    assert read_bundle(address).step == 44
    assert main(["replay", "memory://replayed/nothing", *words, "-"]) == 2
    told = "memory://replayed/nothing: there is nothing at this address. Check it."
    assert capsys.readouterr().err.splitlines()[-1] == f"levada replay: {told}"
