"""A configuration: what is refused, and how; what is kept; what may change when a run goes on."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from levada._errors import UsageError
from levada.cli import main
from levada.training import Config, content_hash, read, resolve, to_toml
from levada.training.files import differences, settings, to_dict

DOCS = Path(__file__).parents[2] / "docs" / "train.md"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("train_*.toml"))


@pytest.mark.parametrize(
    ("table", "key", "value", "told"),
    [
        ("model", "dept", 3, r"model\.dept is not a key; did you mean model\.depth\?"),
        ("model", "zzz", 3, r"model\.zzz is not a key; there are: network, depth, "),
        ("modl", "depth", 3, r"modl is not a table; did you mean model\?"),
        ("model", "depth", 2.5, r"model\.depth must be a whole number, got 2\.5"),
        ("model", "depth", True, r"model\.depth must be a whole number, got True"),
        ("model", "depth", "3", r"model\.depth must be a whole number, got '3'\. Leave out the quotes: depth = 3"),
        ("model", "depth", 0, r"model\.depth must be at least 1, got 0"),
        ("model", "network", "transfomer", r"model\.network must be one of .*Did you mean 'transformer'\?"),
        ("model", "options", 3, r"model\.options must be a table, got 3"),
        (
            "optimizer",
            "lr",
            "fast",
            r"optimizer\.lr must be a number, got 'fast'\. Leave it out for the default, 0\.001\.",
        ),
        (
            "optimizer",
            "lr",
            -1.0,
            r"optimizer\.lr must be at least 0\.0, got -1\.0\. Leave it out for the default, 0\.001\.",
        ),
        ("optimizer", "lr", float("nan"), r"optimizer\.lr must be at least 0\.0, got nan"),
        ("optimizer", "lr", float("inf"), r"optimizer\.lr must be finite, got inf"),
        ("optimizer", "betas", [0.9], r"optimizer\.betas must be a list of 2 numbers, got \[0\.9\]"),
        ("optimizer", "betas", [0.9, "x"], r"optimizer\.betas\[1\] must be a number, got 'x'"),
        ("optimizer", "betas", [0.9, 1.0], r"optimizer\.betas must be two numbers in \[0, 1\)"),
        ("data", "held_out", 1.5, r"data\.held_out must be in \[0\.0, 1\.0\], got 1\.5"),
        ("data", "source", "text", r"data\.path must name what data\.source = \"text\" reads"),
        ("data", "path", "here", r"data\.path must be left out: mnist1d comes from an installed package"),
        ("data", "source", "king_james", r"\"transformer\" reads texts.*got 'mlp' and data\.source 'king_james'"),
        ("optimizer", "accumulate", 3, r"data\.batch_size must be a multiple of optimizer\.accumulate, got 64 and 3"),
        ("schedule", "warmup", 2000, r"schedule\.warmup must fit in run\.steps, got 2000 in 1000 steps"),
        ("schedule", "name", "stable_decay", r"schedule\.decay must be at least 1"),
        ("run", "seed", 2**64, r"run\.seed must be less than 2\^64"),
        ("run", "folder", "a\0b", r"run\.folder must name a folder"),
        ("run", "folder", "", r"run\.folder must name a folder"),
        (
            "run",
            "device",
            "tpu",
            r"run\.device must be one of 'auto', 'cpu', 'cuda', got 'tpu'\. PyTorch has here: 'cpu'",
        ),
        ("parallel", "kind", "fdsp", r"parallel\.kind must be one of .*Did you mean 'fsdp'\?"),
        ("parallel", "micro_batches", 4, r"parallel\.micro_batches belongs to kind='pipeline'"),
        ("checkpoint", "keep", 0, r"checkpoint\.keep must be at least 1, got 0"),
        ("watch", "max_overhead", 2.0, r"watch\.max_overhead must be a share of the training time, in \(0, 1\]"),
        ("watch", "max_overhead", 0.0, r"watch\.max_overhead must be a share of the training time, in \(0, 1\]"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(table, key, value, told):
    with pytest.raises(UsageError, match=f"^train: .*{told}"):
        resolve({table: {key: value}})


TEXT = ["model.network=transformer", "data.source=king_james"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.context=8"], r'data\.context belongs to data\.source "king_james" or "text", and that is "mnist1d"'),
        ([*TEXT, "data.held_out=0.2"], r"data\.held_out belongs to data\.source"),
        (["schedule.decay=3"], r'schedule\.decay belongs to schedule\.name "stable_decay", and that is "cosine"'),
        (["schedule.name=constant", "schedule.decay=3"], r"schedule\.decay belongs to"),
        (["schedule.name=constant", "schedule.final=0.1"], r"schedule\.final belongs to"),
        (["optimizer.momentum=0.5"], r'optimizer\.momentum belongs to optimizer\.name "sgd", and that is "adamw"'),
        (["optimizer.name=sgd", "optimizer.betas=[0.8, 0.9]"], r"optimizer\.betas belongs to"),
        (["parallel.checkpoint=-1"], r"checkpoint must be at least 0, got -1"),
        (
            ["parallel.kind=fsdp", "parallel.gather=bfloat16", "precision.compute=float32"],
            r"parallel\.gather \"bfloat16\" computes in bfloat16",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(changes, told):
    with pytest.raises(UsageError, match=f"^train: .*{told}"):
        resolve({}, changes)


def test_a_table_must_be_one():
    with pytest.raises(UsageError, match="model must be a table, got 3"):
        resolve({"model": 3})


def test_whole_numbers_are_numbers():
    assert resolve({"optimizer": {"lr": 1}}).optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("model.depth=12", lambda c: c.model.depth == 12),
        ("model.connection=ReZero", lambda c: c.model.connection == "ReZero"),
        ('model.connection="ReZero"', lambda c: c.model.connection == "ReZero"),
        ("run.folder=2024", lambda c: c.run.folder == "2024"),
        ("optimizer.lr=3e-4", lambda c: c.optimizer.lr == 3e-4),
        ("optimizer.betas=[0.8, 0.9]", lambda c: c.optimizer.betas == (0.8, 0.9)),
        ("model.connection_options.streams=2", lambda c: c.model.connection_options == {"streams": 2, "gain": 1}),
        ("precision.deterministic=true", lambda c: c.precision.deterministic),
    ],
)
def test_set_changes_one_setting(change, found):
    tables = {"model": {"connection_options": {"gain": 1}}}
    assert found(resolve(tables, [change]))
    assert tables == {"model": {"connection_options": {"gain": 1}}}, "what was read must stay as it was"


@pytest.mark.parametrize("change", ["model.depth", "depth=3", ".depth=3", "=3"])
def test_set_takes_a_path_and_a_value(change):
    with pytest.raises(UsageError, match=re.escape(f"--set takes table.key=value, got {change!r}")):
        resolve({}, [change])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"no\.toml' cannot be read: No such file"):
        read(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(UsageError, match=r"bad\.toml' is not TOML: .*line 1"):
        read(tmp_path / "bad.toml")


def test_the_mark_at_the_beginning_that_some_editors_write_is_no_text(tmp_path):
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf[run]\r\nsteps = 3\r\n")
    assert read(tmp_path / "marked.toml").run.steps == 3


def test_the_written_configuration_is_read_back():
    changes = ['run.folder=a "b"\\c\n\x7fü', "model.options={norm = 'none', heads = 2, \"odd key\" = [1, 2]}"]
    config = resolve({"optimizer": {"lr": 1e-05}}, changes)
    assert resolve(tomllib.loads(to_toml(config))) == config
    assert config.run.folder.endswith("\x7fü")


def test_the_hash_is_of_what_a_step_computes():
    config = resolve({})
    for free in ("run.steps=9", "run.folder=x", "checkpoint.every=3", "watch.every=7", "parallel.kind=ddp"):
        assert content_hash(resolve({}, [free])) == content_hash(config), free
        assert differences(to_dict(config), resolve({}, [free])) == {}
    gathered = resolve({}, ["parallel.kind=fsdp", "parallel.gather=bfloat16"])
    assert differences(to_dict(config), gathered) == {"parallel.gather": ("float32", "bfloat16")}
    assert content_hash(gathered) != content_hash(config)
    for fixed in ("model.depth=9", "run.seed=1", "optimizer.lr=0.1", "data.batch_size=32", "schedule.warmup=1"):
        assert content_hash(resolve({}, [fixed])) != content_hash(config), fixed
        assert list(differences(to_dict(config), resolve({}, [fixed]))) == [fixed.partition("=")[0]]


def test_the_documentation_lists_every_key_with_its_default():
    text = DOCS.read_text()
    for name, kind in get_type_hints(Config).items():
        rows = "\n".join(f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in settings(kind))
        assert f"### `[{name}]`\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n" in text, name
        assert len(settings(kind)) == len(dataclasses.fields(kind))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_configurations(path):
    assert read(path).run.steps > 0


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize(
    ("device", "gpus", "told"),
    [
        ("tpu", 0, "'cpu' alone, and no GPU"),
        ("cuda", 0, "'cpu' alone, and no GPU"),
        ("tpu", 2, "'cpu' and 'cuda' (2 GPUs)"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch, capsys, tmp_path, device, gpus, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    (tmp_path / "train.toml").write_text("[run]\nsteps = 1\n")
    folder = f"run.folder={tmp_path / 'run'}"
    assert main(["train", str(tmp_path / "train.toml"), "--set", f"run.device={device}", "--set", folder]) == 2
    said = capsys.readouterr().err
    assert f"got '{device}'. PyTorch has here: {told}.\n" in said
    assert not (tmp_path / "run").exists()
