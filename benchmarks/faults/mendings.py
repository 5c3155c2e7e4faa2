"""The trials of a log's mending: of logs cut and flipped, and killed while it is under way."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.faults import small
from levada.runs import Run, doctor, reseal

__all__ = ["kill_mendings", "killed_mendings", "mended_logs"]


def mended_logs(*, stride: int = 1) -> dict[str, int]:
    """Cut a log at every byte, and flip a bit of every byte, or of every so many; seal again, and see what is kept.

    A cut may cost what it cuts, a flip the one event that it hits; what is not read any more stays in a file beside.
    """
    counted = Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        small.write_events(folder)
        log = folder / "events.log"
        content = log.read_bytes()
        ends = small.frame_ends(folder)
        cuts = [content[:length] for length in range(0, len(content), stride)]
        flips = [
            content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
            for at in range(0, len(content), stride)
        ]
        for hurt in (*cuts, *flips):
            log.write_bytes(hurt)
            told = Run(folder).damage
            reseal(folder)
            kept, health = small.events(folder), doctor(folder)
            least = sum(end <= len(hurt) for end in ends) if len(hurt) < len(content) else 5
            assert len(kept) >= least, "an event is lost that was whole"
            assert health.damage is None, "the log is still damaged"
            whole = told is None or not hurt or len(kept) == len(ends)
            assert whole == health.healthy, "what is lost is not told, or what is whole is called damaged"
            assert len(list(Run(folder).events("repaired"))) == (told is not None), "a damage is not told once"
            for path in folder.glob("events.torn-*"):
                assert path.read_bytes() == hurt[told.offset if told else 0 :], "what is damaged was not kept"
                path.unlink()
            counted["events_kept"] += len(kept)
            counted["damages"] += told is not None
    return {"trials": len(cuts) + len(flips), **counted}


_MENDED = """
import os, signal, sys
from levada.runs import reseal
folder, left = sys.argv[1], int(sys.argv[2])
def heard(event, args):
    global left
    if event in ("open", "os.chmod", "os.rename", "os.remove") and str(args[0]).startswith(folder + "/"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(heard)
reseal(folder)
"""


def killed_mendings() -> dict[str, int]:
    """Kill a mending of a log before each thing that it does to a file, and mend again: nothing more may be lost."""
    counted = Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        small.write_events(folder)
        log = folder / "events.log"
        hurt, ends = bytearray(log.read_bytes()), small.frame_ends(folder)
        for frame in (1, 3):
            hurt[ends[frame] - 9] ^= 1
        killed = True
        while killed:
            log.write_bytes(hurt)
            words = [sys.executable, "-c", _MENDED, str(folder), str(counted["trials"])]
            killed = subprocess.run(words, check=False).returncode == -signal.SIGKILL
            assert small.events(folder) in ([0], [0, 2, 4, 5]), "a log was left half mended"
            counted["left_as_it_was"] += Run(folder).damage is not None
            counted["drafts_left"] += len(list(folder.glob(".events.*")))
            reseal(folder)
            assert small.events(folder) == [0, 2, 4, 5], "an event is lost that was whole"
            assert len(list(Run(folder).events("repaired"))) == 2, "a damage is not told once"
            (torn,) = folder.glob("events.torn-*")
            assert torn.read_bytes() == hurt[ends[0] :], "what is damaged was not kept"
            assert not list(folder.glob(".events.*")), "a draft stays"
            torn.unlink()
            counted["trials"] += 1
    return dict(counted)


_FORKED = """
import os, signal, sys, time
from levada.runs import RunWriter, reseal
print("ready", flush=True)
for line in sys.stdin:
    how, wait, folder = line[:-1].split(" ", 2)
    child = os.fork()
    if not child:
        reseal(folder) if how == "reseal" else RunWriter.open(folder).close()
        os._exit(0)
    if wait:
        time.sleep(float(wait))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def kill_mendings(trials: int, *, seed: int = 0, count: int = 400) -> dict[str, int]:
    """Kill at a random moment what mends a log, the doctor or a writer that opens the run; the other mends it again."""
    draw, counted = random.Random(seed), Counter[str]()
    words = [sys.executable, "-c", _FORKED]
    with (
        tempfile.TemporaryDirectory() as root,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()

        def mend(how: str, wait: float | None = None) -> int:
            print(how, "" if wait is None else wait, folder, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        folder = Path(root) / "run"
        small.write_events(folder, count)
        log, bad = folder / "events.log", (count // 4, count // 2)
        hurt, ends = bytearray(log.read_bytes()), small.frame_ends(folder)
        for frame in bad:
            hurt[ends[frame] - 9] ^= 1
        before, good = list(range(bad[0])), [i for i in range(count) if i not in bad]
        longest = 0.01
        for trial in range(trials):
            log.write_bytes(hurt)
            first, second = draw.sample(("reseal", "open"), 2)
            counted["killed"] += mend(first, draw.random() * longest) == -signal.SIGKILL
            assert small.events(folder) in (before, good), "a log was left half mended"
            counted["left_as_it_was"] += Run(folder).damage is not None
            counted["drafts_left"] += len(list(folder.glob(".events.*")))
            start = time.perf_counter()
            assert mend(second) == 0, "what was killed cannot be mended"
            longest = max(longest, time.perf_counter() - start) if trial < 8 else longest
            assert small.events(folder) == good, "an event is lost that was whole"
            assert len(list(Run(folder).events("repaired"))) == len(bad), "a damage is not told once"
            (torn,) = folder.glob("events.torn-*")
            assert torn.read_bytes() == hurt[ends[bad[0] - 1] :], "what is damaged was not kept"
            assert not list(folder.glob(".events.*")), "a draft stays"
            torn.unlink()
        process.stdin.close()
    return {"trials": trials, **counted}
