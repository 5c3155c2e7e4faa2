"""SIGTERM to one of several processes, which may wait for each other: its record is closed before it ends by it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from levada import _termination
from levada.runs import Run, doctor
from levada.runs.standing import Standing
from levada.watching.record.recording import Recording


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("asked", [False, True])
def test_a_process_that_waits_for_others_closes_its_record_before_sigterm_ends_it(tmp_path: Path, asked: bool) -> None:
    # Its main thread waits in C for a process that never comes, and runs no handler of python's.
    (tmp_path / "train.py").write_text(
        "import os, signal, sys, time, torch\n"
        "from pathlib import Path\n"
        "rank = int(os.environ['RANK'])\n"
        "torch.distributed.init_process_group('gloo')\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))\n"
        "net = torch.nn.parallel.DistributedDataParallel(net)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.01)\n"
        "for _ in range(14):\n"
        "    optimizer.zero_grad(); net(torch.ones(2, 4)).square().sum().backward(); optimizer.step()\n"
        "if 'handled' in sys.argv:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n"
        "begun = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.write(begun[1], b'1')\n"
        "    time.sleep(300)\n"
        "os.read(begun[0], 1)\n"
        "os.kill(child, signal.SIGTERM)\n"  # which is no matter of its parent
        "ended = os.waitpid(child, 0)[1]\n"
        "Path(f'ready-{rank}').write_text(str(ended))\n"
        "if rank == 0:\n"
        "    torch.distributed.barrier()\n"
        "while True:\n"
        "    time.sleep(0.1)\n"
    )
    words = [sys.executable, "-m", "levada", "run", "--max-overhead", "1", "--every", "1", "--quiet", "--run", "kept"]
    words += ["train.py", *(["handled"] if asked else [])]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(words, cwd=tmp_path, env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        until = time.monotonic() + 180
        while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
            assert time.monotonic() < until
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        time.sleep(0.5)  # it comes to the barrier
        if asked:  # a handler of the script's is its own
            processes[1].terminate()
            assert processes[1].wait(300) == 7
            return
        for process in processes:
            process.terminate()
            assert process.wait(300) == -signal.SIGTERM
    finally:
        for process in processes:
            process.kill()
            process.wait()
    run = Run(tmp_path / "kept")
    *_, end = run.events()
    assert (end["type"], end["steps"], end["problem"]) == ("end", 14, None)
    assert [len(list(run.events("judged", rank=rank))) > 0 for rank in range(2)] == [True, True]
    assert doctor(tmp_path / "kept").healthy
    assert {(tmp_path / f"ready-{rank}").read_text() for rank in range(2)} == {str(int(signal.SIGTERM))}


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_child_that_is_ended_at_once_ends_and_its_parent_does_not(processes: str) -> None:
    text = (
        "import os, signal, time\n"
        "from levada._termination import terminable\n"
        "with terminable():\n"
        "    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL\n"
        "    for _ in range(50):\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            time.sleep(60)\n"
        "            os._exit(1)\n"
        "        os.kill(child, signal.SIGTERM)\n"
        "        assert os.waitpid(child, 0)[1] == signal.SIGTERM\n"
        "    time.sleep(0.2)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "WORLD_SIZE": processes}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="needs Linux")
def test_what_is_to_be_done_before_the_end_has_so_many_seconds() -> None:
    text = (
        "import os, signal, sys, time\n"
        "import levada._termination as termination\n"
        "class Acts:\n"
        "    def fails(self): raise ValueError\n"
        "    def tells(self): print('told', flush=True)\n"
        "    def hangs(self): time.sleep(300)\n"
        "acts, gone = Acts(), Acts()\n"
        "termination.PATIENCE = 2.0\n"
        "for act in (acts.fails, gone.hangs, acts.tells, acts.hangs): termination.before_end(act)\n"
        "del act, gone\n"
        "with termination.terminable():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "WORLD_SIZE": "2"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "told\n"), done.stderr
    assert time.monotonic() - begun < 60


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="needs Linux")
def test_a_process_that_comes_to_its_end_waits_for_what_is_done_before() -> None:
    text = (
        "import os, signal, time\n"
        "import levada._termination as termination\n"
        "termination._HELD = 0.1\n"
        "class Acts:\n"
        "    def slow(self): time.sleep(1.5); print('told', flush=True)\n"
        "acts = Acts()\n"
        "termination.before_end(acts.slow)\n"
        "with termination.terminable():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "WORLD_SIZE": "2"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "told\n"), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_handler_that_calls_the_one_before_it_ends_the_process(processes: str) -> None:
    text = (
        "import os, signal, time\n"
        "from levada._termination import terminable\n"
        "with terminable():\n"
        "    before = signal.getsignal(signal.SIGTERM)\n"
        "    signal.signal(signal.SIGTERM, lambda *given: (print('theirs', flush=True), before(*given)))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "    print('goes on', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "WORLD_SIZE": processes}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (_termination.TERMINATED, "theirs\n"), done.stderr


def test_a_record_that_the_loop_is_closing_is_waited_for(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        sites, findings, overhead, steps = (), (), 0.0, 3

        @property
        def standing(self) -> Standing:
            begun.set()
            assert go_on.wait(300)
            return Standing()

    recording = Recording(tmp_path, Slow())
    acts = [act() for act in _termination._acts]
    (ends,) = [act for act in acts if act is not None and act.__self__ is recording]
    loop, beside = threading.Thread(target=recording.close), threading.Thread(target=ends)
    loop.start()
    assert begun.wait(300)
    beside.start()
    beside.join(0.3)
    assert beside.is_alive(), "the process would end before its record"
    go_on.set()
    beside.join(300)
    assert [event["type"] for event in Run(tmp_path).events()][-1] == "end"
    loop.join()
