"""`levada train` on a GPU: in bfloat16, compiled, recomputing, cut off and resumed, in shards over NCCL."""

import math
import subprocess
import sys

import pytest
import torch

from levada.runs import Run
from levada.training import losses, resolve, train

# What is compiled in full precision is meant to be, and the compiler looks at `.grad` of what has none.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"),
]
SMALL = {
    "model": {"depth": 4, "dim": 32},
    "data": {"batch_size": 32, "evaluated": 64},
    "optimizer": {"lr": 0.01},
    "schedule": {"name": "constant"},
    "run": {"steps": 10},
}


def trained(folder, *changes, **options):
    return train(resolve(SMALL, [f"run.folder={folder}", "watch.enabled=false", *changes]), **options)


def curve(result):
    return list(losses(result.run).values())


def test_it_takes_the_gpu_and_learns_in_bfloat16(tmp_path):
    result = trained(tmp_path / "run", "run.steps=200")
    assert next(result.engine.module.parameters()).is_cuda
    assert result.held_out < 0.8 * math.log(10)


def test_in_float32_the_losses_are_those_of_a_cpu(tmp_path):
    there = curve(trained(tmp_path / "gpu", "precision.compute=float32"))
    here = curve(trained(tmp_path / "cpu", "precision.compute=float32", "run.device=cpu"))
    assert there == pytest.approx(here, rel=2e-3)


@pytest.mark.parametrize("change", ["parallel.checkpoint=true", "parallel.compile=true"])
def test_recomputing_and_compiling_change_nothing(change, tmp_path):
    torch.compiler.reset()
    plain = curve(trained(tmp_path / "plain", "precision.compute=float32"))
    assert curve(trained(tmp_path / "other", "precision.compute=float32", change)) == pytest.approx(plain, rel=2e-3)


def test_a_continued_run_is_the_run(tmp_path):
    exact = "precision.deterministic=true"
    whole = trained(tmp_path / "whole", exact)
    trained(tmp_path / "parts", exact, "run.steps=6")
    parts = trained(tmp_path / "parts", exact, resume=True)
    assert curve(parts) == curve(whole)
    assert parts.held_out == whole.held_out


def test_shards_and_watching_under_torchrun(tmp_path):
    """One process: collectives of NCCL, sharded parameters, asynchronous checkpoints."""
    (tmp_path / "config.toml").write_text("[model]\ndepth = 4\ndim = 32\n")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    words = [*launched, "-m", "levada", "train", str(tmp_path / "config.toml")]
    settings = {"parallel.kind": "fsdp", "run.steps": 30, "watch.every": 5, "checkpoint.every": 10}
    given = [f"--set={key}={value}" for key, value in {**settings, "run.folder": tmp_path / "run"}.items()]
    done = subprocess.run([*words, *given], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(Run(tmp_path / "run"))) == 30
