"""Kill a worker of a training on two processes, let torchrun restart it, and compare with a training left alone.

python -m benchmarks.restart [ddp|fsdp|pipeline|alone] [kills] [--quick]

Both trainings run under `torchrun --nproc-per-node 2` on CPUs (gloo). In one of them a worker is killed with SIGKILL in
the middle of a step, first one process, then the other; torchrun restarts both, and they continue from the newest
complete checkpoint. What is printed, and kept in results/restart.jsonl, is the largest difference between the two loss
curves, over all steps.

With "alone" it is one process that saves after every step, is killed at random moments, and is started again by hand.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import commit, machine, versions
from levada.runs import Run
from levada.training import losses
from levada.training.checkpoint import complete

CONFIG = """
[model]
depth = 4
dim = 32
connection = "StochasticDepth"
connection_options = { mode = "sample" }
[data]
batch_size = 32
evaluated = 64
[schedule]
warmup = 20
[checkpoint]
every = 10
"""


def launch(folder: Path, kind: str, steps: int, restarts: int, *more: str) -> subprocess.Popen[str]:
    (folder / "config.toml").write_text(CONFIG)
    options = ["--nproc-per-node", "2", "--max-restarts", str(restarts), "--monitor-interval", "0.1", "--standalone"]
    settings = [f"run.folder={folder / 'run'}", f"run.steps={steps}", f"parallel.kind={kind}", *more]
    settings += ["parallel.micro_batches=2"] if kind == "pipeline" else []
    command = ["-m", "torch.distributed.run", *options, "-m", "levada", "train", str(folder / "config.toml")]
    changes = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, *command, *changes],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers(launcher: int) -> list[int]:
    """Return the processes that torchrun started, in the order of their starts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            training = b"train" in (path.parent / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == launcher and training:
            found.append(int(path.parent.name))
    return sorted(found)


def kill_when(process: subprocess.Popen[str], run: Path, step: int, rank: int) -> int:
    """Kill a worker a little after the checkpoint of a step is complete; return its process's number."""
    marker = run / "checkpoints" / f"step-{step:08d}" / "complete.json"
    deadline = time.monotonic() + 40
    while not marker.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"there was no checkpoint of step {step}:\n{end(process, 5)}")
        time.sleep(0.002)
    time.sleep(0.03)
    victim = workers(process.pid)[rank]
    os.kill(victim, signal.SIGKILL)
    return victim


def end(process: subprocess.Popen[str], seconds: float = 90) -> str:
    """Return what it said; it and its workers, each of which is a session of its own, have ended then."""
    try:
        return process.communicate(timeout=seconds)[0]
    except BaseException:
        for number in (*workers(process.pid), process.pid):
            os.kill(number, signal.SIGKILL)
        raise


def compare(kind: str = "ddp", steps: int = 150, kills: int = 1) -> dict[str, object]:
    """Run both trainings and return what they differ in."""
    with tempfile.TemporaryDirectory() as home:
        alone, killed = Path(home) / "alone", Path(home) / "killed"
        for folder in (alone, killed):
            folder.mkdir()
        undisturbed = launch(alone, kind, steps, 0)
        told = end(undisturbed)
        if undisturbed.returncode:
            raise RuntimeError(told)
        process = launch(killed, kind, steps, kills)
        try:
            for number in range(kills):
                kill_when(process, killed / "run", 10 * round(steps / 10 * (number + 1) / (kills + 1.5)), number % 2)
        except BaseException:
            end(process, 0)
            raise
        told = end(process)
        if process.returncode:
            raise RuntimeError(told)
        whole, parts = losses(Run(alone / "run")), losses(Run(killed / "run"))
        resumed = [event["step"] for event in Run(killed / "run").events("resumed")]
        return {
            "kind": kind,
            "steps": (len(whole), len(parts)),
            "continued after": resumed,
            "same steps": whole.keys() == parts.keys(),
            "largest difference": max(abs(whole[step] - parts.get(step, float("inf"))) for step in whole),
        }


def alone(steps: int = 400, kills: int = 20) -> dict[str, object]:
    """Kill one process at random moments of saving, start it again, and return what its curve differs in."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "config.toml").write_text(CONFIG)
        whole, killed = Path(home) / "whole", Path(home) / "killed"

        def command(folder: Path) -> list[str]:
            settings = [f"run.folder={folder}", f"run.steps={steps}", "checkpoint.every=1", "watch.enabled=false"]
            changes = [word for setting in settings for word in ("--set", setting)]
            return [sys.executable, "-m", "levada", "train", f"{home}/config.toml", "--resume", *changes]

        subprocess.run(command(whole), check=True, capture_output=True)
        incomplete = done = 0
        for _ in range(kills):
            process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before = [step for step, _ in complete(killed / "checkpoints")[:1]]
            while process.poll() is None and [step for step, _ in complete(killed / "checkpoints")[:1]] == before:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.2))
            process.kill()
            process.wait()
            done += 1
            incomplete += len(list((killed / "checkpoints").iterdir())) > len(complete(killed / "checkpoints"))
        subprocess.run(command(killed), check=True, capture_output=True)
        one, other = losses(Run(whole)), losses(Run(killed))
        return {
            "kills": done,
            "of them while a checkpoint was half written": incomplete,
            "continued after": [event["step"] for event in Run(killed).events("resumed")],
            "same steps": one.keys() == other.keys(),
            "largest difference": max(abs(one[step] - other.get(step, float("inf"))) for step in one),
        }


def main(words: list[str]) -> None:
    quick = "--quick" in words
    kind, *rest = [word for word in words if word != "--quick"] or ["ddp"]
    number = {"kills": int(rest[0])} if rest else {}
    found = alone(**number) if kind == "alone" else compare(kind, **{"kills": 1 if quick else 2, **number})
    for name, value in found.items():
        print(f"{name}: {value}")
    if not quick:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"machine": machine(), "versions": versions(), "commit": commit(), "date": now}
        row = {"benchmark": "restart", **found, **about}
        with (Path(__file__).parent / "results" / "restart.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
