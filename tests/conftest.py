"""Surroundings of all tests, and of the processes that they start."""

import os
import subprocess
import sys

import pytest
from benchmarks.torchvision import define_what_torchvision_lacks

# One thread, unless the environment says otherwise: the tensors are small, and on a machine that does other things too,
# threads that wait for each other took twenty times as long as one alone. Set before the first import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

define_what_torchvision_lacks()


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
            outputs = [process.communicate(timeout=240)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
        return torch.load(folder / "found.pt")

    return run
