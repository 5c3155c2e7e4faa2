"""Surroundings of all tests, and of the processes that they start."""

import signal
import subprocess
import sys

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As of what a shell runs in the background: programs that tests start would inherit it, and go on after Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_warning_is_missed(monkeypatch):
    """Let a warning of the watch that no test expects fail it, though it never stops a training."""

    def missed(sentence):
        raise AssertionError(sentence)

    monkeypatch.setattr("levada.watching.loop.telling._instead", missed)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """Run a file as two processes, which are given their rank and a folder; return what the first saved as found.pt."""

    def run(file):
        import torch

        folder = tmp_path_factory.mktemp("processes")
        processes = [
            subprocess.Popen(
                [sys.executable, file, str(rank), str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=600)[0] for process in processes]  # on a machine that is busy
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
        return torch.load(folder / "found.pt")

    return run
