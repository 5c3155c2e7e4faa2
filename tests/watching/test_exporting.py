"""Exporting: the numbers arrive in each tracker, chosen sites only, and a tracker that fails costs no training step."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from levada._errors import UsageError
from levada.cli import main
from levada.diagnose import Finding
from levada.probe.trace import Site
from levada.runs import RunWriter
from levada.runs.exporters import chosen, export, open_exporter, tag
from levada.runs.exporters.exporter import import_tool
from levada.runs.standing import Standing
from levada.watching import Sample
from levada.watching.record.exporting import Exporting
from levada.watching.record.news import News
from levada.watching.record.recording import Recording

COUNT = 12
SITES = tuple(Site(f"layers.{i}", i, "Linear", (4, 8), (f"layers.{i}.weight",)) for i in range(COUNT))
FINDING = Finding("vanishing_gradient", "error", "fired", "the gradient falls by 8 decades from layers.11 to layers.0")
KEPT = (0, 4, 7, 11)


def value(step, site):
    return 0.5 ** (step / 10 + site)


def samples():
    """Three samples, 10 steps apart; the second site's gradient is infinite once, update_ratio was never measured."""
    for step in (0, 10, 20):
        gradient = torch.tensor([value(step, i) for i in range(COUNT)], dtype=torch.float64)
        gradient[4] = math.inf if step == 10 else gradient[4]
        values = {"gradient_rms": gradient, "update_ratio": torch.full((COUNT,), math.nan, dtype=torch.float64)}
        losses = tuple((s, 2.0 - s / 20) for s in range(max(0, step - 9), step + 1))
        scalars = {"loss": losses[-1][1], "lr": 0.125, "gradient_norm": 3.0, "overhead": 0.00390625}
        yield Sample(step, 1.7e9 + step, values, scalars, losses)


def expected():
    """Series by tag: (step, value)."""
    found = {
        "loss": [(s, 2.0 - s / 20) for s in range(21)],
        **{
            name: [(s, v) for s in (0, 10, 20)]
            for name, v in (("lr", 0.125), ("gradient_norm", 3.0), ("overhead", 2**-8))
        },
    }
    for i in KEPT:
        rows = [(s, math.inf if (s, i) == (10, 4) else value(s, i)) for s in (0, 10, 20)]
        found[f"gradient_rms/layers.{i}"] = rows
    return found


def stored(folder):
    """The same as a run on disk; codes of 16 bits hold powers of two exactly."""
    watch = SimpleNamespace(sites=SITES, findings=[], overhead=2**-8, standing=Standing(), steps=0)
    recording = Recording(folder, watch, name="a run", config={"seed": 3})
    for sample in samples():
        if sample.step == 10:
            watch.findings.append(FINDING)
        recording.sampled(sample)
    recording.close()
    return folder


def exported(to, out):
    watch = SimpleNamespace(sites=SITES, findings=[])
    exporting = Exporting(to, out, name="a run", sites=4, config={"seed": 3, "model": {"depth": 12}}, watch=watch)
    for sample in samples():
        if sample.step == 10:
            watch.findings.append(FINDING)
        exporting.before_update(sample.step, None)
        exporting.sampled(sample)
    exporting.close()
    exporting.close()
    assert exporting.dropped == 0
    return exporting.exporter


def compare(found):
    want = expected()
    assert found.keys() == want.keys()
    for name, rows in want.items():
        assert [step for step, _ in found[name]] == [step for step, _ in rows], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in rows], rel=1e-6), name


@pytest.mark.parametrize("source", ["live", "stored"])
def test_tensorboard(tmp_path, capsys, source):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where = str(tmp_path / "a run")
    if source == "live":
        assert exported("tensorboard", tmp_path).where == where
    else:
        run = str(stored(tmp_path / "runs" / "a run"))
        assert main(["export", run, "--to", "tensorboard", "--out", str(tmp_path), "--sites", "4"]) == 0
        assert capsys.readouterr().out.splitlines() == [where, f"tensorboard --logdir {tmp_path}"]
        assert main(["export", run, "--to", "tensorboard", "--out", str(tmp_path)]) == 2  # not a second time
    events = EventAccumulator(where, size_guidance={"scalars": 0}).Reload()
    compare({name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]})
    assert events.Scalars("lr")[1].wall_time == 1.7e9 + 10
    (text,) = events.Tensors("findings/vanishing_gradient")
    assert text.step == 10
    assert FINDING.claim in text.tensor_proto.string_val[0].decode()
    assert b"seed" in events.Tensors("settings")[0].tensor_proto.string_val[0]
    with pytest.raises(UsageError, match="without event files"):
        open_exporter("tensorboard", tmp_path, name="a run", config={})


def wandb_records(path):
    """Read an offline run: after 7 bytes, blocks of 32 KiB that hold pieces of records, as LevelDB has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


WANDB = """
import socket, sys
def refuse(self, address):
    if self.family != socket.AF_UNIX and "127.0.0.1" not in str(address):
        raise SystemExit(f"asked for {address}")
    return connect(self, address)
connect, socket.socket.connect = socket.socket.connect, refuse
sys.path.insert(0, sys.argv[2])
from test_exporting import exported, stored
from levada.cli import main
print(exported("wandb", sys.argv[1] + "/live").where)
run = str(stored(sys.argv[1] + "/a run"))
assert main(["export", run, "--to", "wandb", "--out", sys.argv[1] + "/stored", "--sites", "4"]) == 0
"""


def test_weights_and_biases_offline_writes_nothing_elsewhere(tmp_path):
    homes = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    for home in homes.values():
        home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        name: str(home) for name, home in homes.items()
    }
    out, here = tmp_path / "out", str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", WANDB, str(out), here],
        env=environment,
        cwd=homes["HOME"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert not [p for home in homes.values() for p in home.rglob("*") if not p.is_dir()]
    (live,), (kept,) = ((out / kind).rglob("*.wandb") for kind in ("live", "stored"))
    assert ran.stdout.splitlines() == [str(live.parent), str(kept.parent), f"wandb sync {kept.parent}"]
    for path in (live, kept):
        found, tags, summary = {}, (), {}
        for record in wandb_records(path):
            row = {i.key or "/".join(i.nested_key): float(i.value_json) for i in record.history.item}
            for name in row.keys() - {"time", "_step", "_timestamp", "_runtime"}:
                found.setdefault(name, []).append((row["_step"], row[name]))
            tags = tuple(record.run.tags) or tags
            summary |= {i.key or "/".join(i.nested_key): i.value_json for i in record.summary.update}
        compare(found)
        assert tags == ("vanishing_gradient",)
        assert FINDING.claim in str(summary)


@pytest.mark.parametrize("source", ["live", "stored"])
def test_mlflow(tmp_path, source):
    if source == "live":
        exporter = exported("mlflow", tmp_path)
    else:
        exporter = export(stored(tmp_path / "a run"), "mlflow", tmp_path, sites=4)
    assert "mlruns" in exporter.where
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=exporter.where)
    (run,) = client.search_runs([client.get_experiment_by_name("levada").experiment_id])
    found = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    compare({name: [(m.step, m.value) for m in rows] for name, rows in found.items()})
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert run.data.params["seed"] == "3"
    assert run.data.params.get("model.depth", "12") == "12"
    assert FINDING.claim in run.data.tags["levada.vanishing_gradient.10"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    with pytest.raises(UsageError, match=r"pip install mlflow$"):
        open_exporter("mlflow", f"sqlite:///{tmp_path}/runs.db", name="x", config={})


@contextmanager
def mlflow_server(*, hangs_at=()):
    """Serve as much of MLflow as an export asks for; of what it hangs at, the questions are kept and never answered."""
    answers = {
        "get-by-name": {"experiment": {"experiment_id": "1", "name": "levada"}},
        "create": {"run": {"info": {"run_id": "abc", "experiment_id": "1"}, "data": {}}},
    }
    asked, over = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            what = self.path.split("?")[0].rsplit("/", 1)[1]
            asked.append(
                (what, *(os.environ.get(f"MLFLOW_HTTP_REQUEST_{name}") for name in ("TIMEOUT", "MAX_RETRIES")))
            )
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if what in hangs_at:
                over.wait(60)
                return
            body = json.dumps(answers.get(what, {})).encode()
            self.send_response(200 if hangs_at else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        over.set()
        server.shutdown()


@pytest.fixture
def without_pauses(monkeypatch):
    """Leave out the pauses between requests, which double: 7 retries take four minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


def test_a_server_that_does_not_serve_is_known_soon(without_pauses):
    told = r"the store http://127\S+ cannot be opened .* Is the server running\?$"
    with mlflow_server() as (address, asked), pytest.raises(UsageError, match=told):
        open_exporter("mlflow", address, name="x", config={})
    assert asked == [("get-by-name", "10", "3")] * 4
    assert not {"MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"} & os.environ.keys()


def test_a_server_that_hangs_when_it_is_opened_is_not_waited_for(without_pauses, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # what is set is kept to
    run = str(stored(tmp_path / "a run"))
    with mlflow_server(hangs_at=["get-by-name"]) as (address, asked):
        assert main(["export", run, "--to", "mlflow", "--out", address]) == 2
    assert "it gave no answer within 1 s, asked 4 times). Is the server running?" in capsys.readouterr().err
    assert asked == [("get-by-name", "1", "3")] * 4


def test_a_server_that_hangs_later_is_told_in_a_sentence_and_asked_no_more(
    without_pauses, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    run = str(stored(tmp_path / "a run"))
    with mlflow_server(hangs_at=["set-tag"]) as (address, asked):
        assert main(["export", run, "--to", "mlflow", "--out", address]) == 2
    told = capsys.readouterr().err
    assert "did not take everything (it gave no answer within 1 s, asked 2 times). Is the server still running?" in told
    assert "The run abc there has what came before" in told
    assert [what for what, *_ in asked][-2:] == ["set-tag"] * 2
    assert "log-batch" in {what for what, *_ in asked}


TRACKIO = """
import os, socket, sys
def refuse(self, address):
    if self.family != socket.AF_UNIX:
        print(f"asked for {address}", file=sys.stderr, flush=True)
        os._exit(3)  # trackio would take an exception for a bad connection, and go on
connect, socket.socket.connect = socket.socket.connect, refuse
sys.path.insert(0, sys.argv[3])
from test_exporting import FINDING, compare, exported, stored
from levada.cli import main
out = sys.argv[2] + "/out"
if sys.argv[1] == "live":
    print(exported("trackio", out).where)
else:
    run = str(stored(sys.argv[2] + "/a run"))
    assert main(["export", run, "--to", "trackio", "--out", out, "--sites", "4"]) == 0
from trackio.sqlite_storage import SQLiteStorage
found = {}
for row in SQLiteStorage.get_logs("levada", "a run"):
    for name in row.keys() - {"step", "timestamp"}:
        found.setdefault(name, []).append((row["step"], row[name]))
compare(found)
(alert,) = SQLiteStorage.get_alerts("levada")
assert (alert["step"], alert["title"], alert["level"]) == (10, "vanishing_gradient", "error"), alert
assert FINDING.claim in alert["text"]
"""


@pytest.mark.parametrize("source", ["live", "stored"])
def test_trackio_without_a_network_writes_nothing_elsewhere(tmp_path, source):
    pytest.importorskip("trackio", reason="needs trackio, which CI installs with --no-deps, as docs/export.md says")
    here, home = str(Path(__file__).parent), tmp_path / "home"
    home.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", TRACKIO, source, str(tmp_path), here],
        env={k: v for k, v in os.environ.items() if not k.startswith("TRACKIO")} | {"HOME": str(home)},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert str(tmp_path / "out") in ran.stdout.splitlines()
    assert [path.name for path in (tmp_path / "out").glob("*.db")] == ["levada.db"]
    assert not [path for path in home.rglob("*") if not path.is_dir()]


TRACKIO_OF_ONES_OWN = """
import os, sys
os.environ["TRACKIO_DIR"] = sys.argv[1]
import trackio
from levada.runs.exporters import open_exporter
trackio.init(project="mine", name="own", config={"width": 3}, embed=False, auto_log_gpu=False, auto_log_cpu=False)
trackio.log({"accuracy": 0.5}, step=0)
exporter = open_exporter("trackio", sys.argv[1], name="watched", config={"lr": 1})
for step, severity in enumerate(("info", "warn", "error", "over")):
    exporter.write(step, 0.0, {"loss": 1.0})
    exporter.tell(step, 0.0, severity, severity + " rule: it is so")
trackio.log({"accuracy": 0.75}, step=1)
assert trackio.config["width"] == 3
exporter.close()
trackio.log({"accuracy": 1.0}, step=2)
trackio.finish()
from trackio.sqlite_storage import SQLiteStorage
assert [row["accuracy"] for row in SQLiteStorage.get_logs("mine", "own")] == [0.5, 0.75, 1.0]
rows = SQLiteStorage.get_logs("levada", "watched")
assert len(rows) == 4 and all("loss" in row and "accuracy" not in row for row in rows), rows
levels = {alert["title"]: alert["level"] for alert in SQLiteStorage.get_alerts("levada")}
assert levels == {"info": "info", "warn": "warn", "error": "error", "over": "info"}, levels
"""


def test_a_run_of_trackio_that_the_loop_has_goes_on_by_itself(tmp_path):
    pytest.importorskip("trackio", reason="needs trackio, which CI installs with --no-deps, as docs/export.md says")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRACKIO")} | {"HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", TRACKIO_OF_ONES_OWN, str(tmp_path / "out")],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Run finished") == 2  # each is finished once


class Fake:
    where = hint = "fake"

    def __init__(self, fails=False):
        self.fails, self.rows, self.closed = fails, [], 0
        self.gate = threading.Event()
        self.gate.set()

    def write(self, step, time, values):
        self.gate.wait(300.0)
        if self.fails:
            raise ConnectionError("no such server")
        self.rows.append((step, dict(values)))

    def tell(self, step, time, rule, text):
        self.rows.append((step, text))

    def close(self):
        self.closed += 1


def feed(exporting):
    for sample in samples():
        exporting.sampled(sample)
    exporting.close()


def test_a_tracker_that_fails_is_one_warning_and_is_closed():
    fake = Fake(fails=True)
    exporting = Exporting(fake)
    with pytest.warns(RuntimeWarning, match="training goes on") as caught:
        feed(exporting)
    assert len(caught) == 1
    assert exporting.dropped == 21
    assert fake.closed == 1


def test_a_tracker_that_hangs_costs_numbers_not_time(monkeypatch):
    monkeypatch.setattr("levada.watching.record.exporting._PATIENCE", 0.05)
    monkeypatch.setattr("levada.watching.record.exporting._WAITING", 5)
    fake = Fake()
    fake.gate.clear()
    exporting = Exporting(fake)
    for sample in samples():
        exporting.sampled(sample)
    assert 10 < exporting.dropped <= 16  # of 21, one hangs and five wait
    with pytest.warns(RuntimeWarning, match="hangs"):
        exporting.close()
    fake.gate.set()


def test_a_finding_that_ends_is_told_again_wherever_it_stands():
    fake, watch = Fake(), SimpleNamespace(sites=(), findings=[])
    exporting = Exporting(fake, sites=0, watch=watch)
    first, other = FINDING, replace(FINDING, rule="frozen_layers")
    over = replace(FINDING, status="clear", claim="it ended at step 20")
    for sample, findings in zip(samples(), ([first], [other, first], [other, over]), strict=True):
        watch.findings[:] = findings
        exporting.sampled(sample)
    exporting.close()
    assert [row for row in fake.rows if isinstance(row[1], str)] == [
        (0, f"error vanishing_gradient: {FINDING.claim}"),
        (10, f"error frozen_layers: {FINDING.claim}"),
        (20, "clear vanishing_gradient: it ended at step 20"),
    ]


def test_steps_never_go_back_and_sites_without_names_have_numbers():
    fake = Fake()
    exporting = Exporting(fake, sites=2)
    feed(exporting)
    exporting.sampled(next(samples()))  # after the end: nothing
    steps = [step for step, _ in fake.rows]
    assert steps == list(range(21))
    assert {k for k in fake.rows[0][1] if "/" in k} == {"gradient_rms/site.0", "gradient_rms/site.11"}
    assert fake.closed == 1


def test_which_sites():
    assert chosen(list("abcdefghijkl"), 4) == list(KEPT)
    assert [chosen(list("abc"), n) for n in (0, 1, 2, 3, 9)] == [[], [0], [0, 2], [0, 1, 2], [0, 1, 2]]
    assert chosen([], 3) == []
    for count in range(2, 40):
        for number in range(2, count):
            some = chosen(list(range(count)), number)
            assert len(set(some)) == number
            assert (some[0], some[-1]) == (0, count - 1)
    assert tag("signal_rms", "a.b#2 (x)") == "signal_rms/a.b_2 _x_"


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named(to, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == to] + [to]:
        monkeypatch.setitem(sys.modules, name, None)
    package = {"mlflow": "mlflow-skinny", "trackio": "'trackio>=0.43'"}.get(to, to)
    with pytest.raises(UsageError, match=f"pip install {package}$"):
        Exporting(to, tmp_path)


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_package_that_cannot_be_imported_says_what_it_lacks(to, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == to]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / f"{to}.py").write_text("import a_part_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"needs {to}.* No module named 'a_part_of_it'.* pip install --upgrade"):
        Exporting(to, tmp_path)


def test_a_package_that_is_older_than_needed_is_refused():
    with pytest.raises(UsageError, match=r"needs torch>=9999\.0, got .* pip install --upgrade 'torch>=9999\.0'$"):
        import_tool("torch", "torch>=9999.0", "This")
    assert import_tool("torch", "torch>=1.0", "This") is torch


def test_a_run_that_never_made_a_step_is_exported_with_its_finding(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import levada

    net = torch.nn.Linear(2, 1)
    run = tmp_path / "stands still"
    with levada.watch(net, torch.optim.SGD(net.parameters(), lr=0.1), run=run):
        for _ in range(40):
            net(torch.full((4, 2), math.nan))
    began = time.time()
    where = export(run, "tensorboard", tmp_path / "out").where
    events = EventAccumulator(where).Reload()
    (text,) = events.Tensors("findings/skipped_steps")
    assert b"No update yet" in text.tensor_proto.string_val[0]
    assert abs(text.wall_time - began) < 600
    RunWriter.create(tmp_path / "empty", kind="watch", name="empty").close()
    with pytest.raises(UsageError, match="keeps no signals, losses or findings"):
        export(tmp_path / "empty", "tensorboard", tmp_path)


def test_what_cannot_be_meant(tmp_path):
    RunWriter.create(tmp_path / "check", kind="check", name="no signals").close()
    with pytest.raises(UsageError, match=r"keeps no signals\. Its page: levada report "):
        export(tmp_path / "check", "tensorboard", tmp_path)
    for number in ("2", "10"):
        RunWriter.create(tmp_path / "check" / "watch" / number, kind="watch", name=number).close()
    with pytest.raises(UsageError, match=r"It was watched, though: export .*check/watch/10\.$"):
        export(tmp_path / "check", "tensorboard", tmp_path)
    with pytest.raises(UsageError, match="one of tensorboard, wandb, mlflow, trackio"):
        Exporting("tensorbord", tmp_path)
    with pytest.raises(UsageError, match="sites"):
        Exporting("tensorboard", tmp_path, sites=-1)


@pytest.mark.parametrize("path", [".", "below/.."])
def test_a_run_is_exported_under_the_name_of_its_folder_however_that_is_written(tmp_path, monkeypatch, path):
    folder = stored(tmp_path / "a run")
    (folder / "below").mkdir()
    monkeypatch.chdir(folder)
    names = []
    told = SimpleNamespace(write=lambda *_: None, tell=lambda *_: None, close=lambda: None)
    monkeypatch.setattr(
        "levada.runs.exporters.stored.open_exporter", lambda to, out, *, name, config: names.append(name) or told
    )
    export(path, "tensorboard", tmp_path / "out")
    assert names == ["a run"]


@pytest.mark.parametrize("remote", [False, True])
def test_a_watched_run_of_a_training_is_exported_under_the_name_of_the_training_too(
    tmp_path, monkeypatch, capsys, remote
):
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "cache"))
    run = stored(tmp_path / "runs" / "train" / "watch" / "1")
    assert (
        main(["export", f"file://{run}" if remote else str(run), "--to", "tensorboard", "--out", str(tmp_path / "out")])
        == 0
    )
    where = tmp_path / "out" / "train" / "watch" / "1"
    assert capsys.readouterr().out.splitlines()[0] == str(where)
    assert list(where.glob("events.out.tfevents.*"))


def test_of_processes_that_begin_no_group_the_first_exports(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    fake = Fake()
    exporting = Exporting(fake)
    feed(exporting)
    assert (fake.rows, fake.closed) == ([], 0)
    monkeypatch.setenv("RANK", "0")
    feed(Exporting(fake := Fake()))
    assert fake.rows


def test_news_is_what_was_not_given_before_and_what_replaced_it():
    news, found = News(), [FINDING]
    assert news.of(found) == [FINDING]
    assert news.of(found) == []
    found[0] = replace(FINDING, status="ended")
    found.append(replace(FINDING))  # equal to the first, and another
    assert [finding.status for finding in news.of(found)] == ["ended", "fired"]
