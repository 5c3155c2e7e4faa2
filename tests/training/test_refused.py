"""`levada train` with what cannot be: the rule, what came, what to do, in one line, before a run begins."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from levada.cli import main
from levada.training import resolve, train
from levada.training.building import build_network
from levada.training.config import Data, Model
from levada.training.data import load_data

BASE = """
[model]
depth = 2
dim = 8
[data]
batch_size = 16
evaluated = 16
[watch]
enabled = false
[run]
steps = 2
folder = "new"
"""
TEXT, IMAGES = "model.network=transformer data.source=text", "data.source=images"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(BASE)
    for folder in ("flat", "one/cat", "two/cat", "two/dog", "texts"):
        Path(folder).mkdir(parents=True)
    for folder in ("dangling", "moving/cat", "moving/dog"):
        Path(folder).mkdir(parents=True)
    Path("dangling/gone.txt").symlink_to("nowhere.txt")
    Path("moving/cat/1.GIF").touch()
    Path("empty.txt").touch()
    Path("texts/empty.txt").touch()
    Path("texts/none.txt").touch()
    Path("short.txt").write_text("hello")
    Path("two/cat/0.png").write_text("no image")
    return tmp_path


def refused(capsys, words):
    sets = [part for change in shlex.split(words) for part in ("--set", change)]
    code = main(["train", "base.toml", *sets])
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert not Path("new").exists(), "what is refused leaves no run in the way of the next try"
    return code, said.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # A key, or a name.
        ("model.dept=3", "model.dept is not a key; did you mean model.depth?"),
        ("modle.depth=3", "modle is not a table; did you mean model?"),
        ("model.connection=Residul", "model.connection 'Residul' is not known; did you mean 'Residual'?"),
        ("model.initialisation=hee", "model.initialisation 'hee' is not known; did you mean 'he'?"),
        ("schedule.name=cosin", "got 'cosin'. Did you mean 'cosine'?"),
        ("model.options.head=3", "model.options cannot be used: Residual takes no option 'head'; it takes: shortcut"),
        ("model.connection=ReZero model.connection_options.zzz=3", "connection_options cannot be used: ReZero takes"),
        ("model.connection=Dense", "model.connection_options cannot be used: Dense needs the option 'growth'"),
        # A value.
        ("model.depth=x", "model.depth must be a whole number, got 'x'. Leave it out for the default, 8."),
        ("model.depth=100000000000", "model.depth must be in [1, 1000000], got 100000000000. Leave it out for the def"),
        ("run.folder=~/new", "run.folder must be a path without the shell's ~, got '~/new'. Write it out, or ./~/new"),
        (f"{TEXT} data.path=~/text.txt", "data.path must be a path without the shell's ~, got '~/text.txt'."),
        ("optimizer.lr=-1e-3", "optimizer.lr must be at least 0.0, got -0.001. Leave it out for the default, 0.001."),
        ("watch.live=yes", "watch.live must be true or false, got 'yes'. Write live = true, or = false"),
        ("run.device=tpu", "run.device must be one of 'auto', 'cpu', 'cuda', got 'tpu'. PyTorch has here: 'cpu'"),
        ("model.connection=HyperConnection model.connection_options.streams=0", "streams must be at least 2, got 0."),
        # What does not go together.
        ("parallel.stages=2", "train: parallel.stages belongs to kind='pipeline', and kind is 'none'. Leave it out."),
        ("parallel.kind=pipeline parallel.split=[2,0]", "parallel.split, in each stage, must be at least 1, got 0."),
        ("data.batch_size=17 optimizer.accumulate=2", "must be a multiple of optimizer.accumulate, got 17 and 2."),
        ("parallel.kind=pipeline parallel.micro_batches=5", "a multiple of parallel.micro_batches, got 16 and 5."),
        ("parallel.kind=pipeline parallel.stages=3", "stages must be the number of processes, 1, got 3. Change stages"),
        ("parallel.kind=pipeline parallel.split=[1,1]", "stages must be the number of processes, 1, got 2."),
        ("parallel.stages=2", "stages belongs to kind='pipeline', and kind is 'none'. Leave it out."),
        ("parallel.stacked=true parallel.compile=true", "stacked cannot be together with compile. Leave one out."),
        ("parallel.stacked=true parallel.kind=pipeline", "kind='pipeline', where each layer must hold its own"),
        ("parallel.stacked=true model.connection=Reversible", "Pass recompute=False, or leave stacked out."),
        ("model.network=transformer", '"transformer" reads texts, and the others read examples of classes, got'),
        ("model.network=cifar_resnet", 'model.dim belongs to model.network "mlp" or "transformer", and that is "cifar'),
        ("model.network=cifar_resnet model.dim=64 model.depth=9", "depth must be 6 n + 2, n >= 1, for 3 stages, got"),
        ("model.network=transformer data.source=king_james model.options.heads=3", "heads must divide the width 8"),
        ("data.batch_size=100000", "must be at most the 3600 examples that are trained on, got 100000."),
        # Data that are not there, or nothing.
        ("data.source=fashion_mnist data.path=flat", "flat lacks train-images-idx3-ubyte"),
        (TEXT, 'data.path must name what data.source = "text" reads, got none.'),
        (f"{TEXT} data.path=none.txt", "'none.txt' does not exist."),
        (f"{TEXT} data.path=flat", "'flat' holds no .txt file."),
        (f"{TEXT} data.path=empty.txt", "data.path must name a text; 'empty.txt' is empty. Name another."),
        (f"{TEXT} data.path=texts", "data.path must name a text; 'texts' holds 2 .txt files, all empty. Name another."),
        (f"{TEXT} data.path=/dev/null", "a text file or a folder of .txt files; '/dev/null' is neither."),
        (f"{TEXT} data.path=dangling", "'dangling/gone.txt' cannot be used: No such file or directory."),
        (f"{TEXT} data.path=short.txt data.held_out=0", "data.held_out must leave some of a text to train on and some"),
        (f"{TEXT} data.path=short.txt data.held_out=0.3 data.context=2", "or a longer text, or hold more out."),
        (f"{TEXT} data.path=short.txt", "got 64 and no text of 65 tokens. Use a shorter context or a longer text."),
        (f"{IMAGES} data.path=none", "data.path must name a folder with a folder for each class, got 'none'."),
        (f"{IMAGES} data.path=empty.txt", "a folder for each class, got 'empty.txt'."),
        (f"{IMAGES} data.path=flat", "got 0 folders in 'flat'. Put the images of each class into a folder of its own."),
        (f"{IMAGES} data.path=one", "got no image in cat. Put the images"),
        (f"{IMAGES} data.path=two", "got no image in dog. Put the images"),
        (f"{IMAGES} data.path=moving", "be .bmp, .jpeg, .jpg, .png, .webp, got 'moving/cat/1.GIF'. Convert it"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_in_one_line(words, told, capsys):
    code, said = refused(capsys, words)
    assert (code, said.startswith("levada train: ")) == (2, True), said
    assert told in said


def test_a_file_that_is_nested_too_deep_is_no_configuration(capsys):
    Path("base.toml").write_text(f"a = {'[' * 5000}{']' * 5000}")
    assert refused(capsys, "run.steps=1") == (2, "levada train: 'base.toml' is not TOML: it is nested too deep.")


@pytest.mark.parametrize(
    ("source", "package", "advice"),
    [("mnist1d", "mnist1d", "pip install 'levada[study]'"), ("images", "PIL", "pip install pillow")],
)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(source, package, advice, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:  # an earlier test may have read it
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd()))  # which holds no signals that were made before
    code, said = refused(capsys, f"data.source={source}{' data.path=two' if source == 'images' else ''}")
    assert code == 2
    assert said.endswith(advice), said


def test_what_has_no_room_in_memory_is_no_defect(capsys):
    code, said = refused(capsys, "model.dim=1000000000")
    told = r"there is not enough memory: weights, gradients and the optimizer's state take more than [\d.e+]+ GB, of"
    assert code == 3
    assert re.match(f"levada train: {told}", said)
    told = "there is not enough memory. Use a smaller model or batch."  # PyTorch cannot count these bytes
    assert refused(capsys, "model.dim=100000000000") == (3, f"levada train: {told}")
    streams = "model.connection=HyperConnection model.connection_options.streams=100000000000"
    assert refused(capsys, streams) == (3, f"levada train: {told}")


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ("run.steps=1", 4),
        ("optimizer.name=sgd", 3),
        ("optimizer.name=sgd optimizer.momentum=0", 2),
        ("parallel.kind=ddp", 4),
        ("parallel.kind=fsdp", 1),  # each process builds the whole, and keeps a part
    ],
)
def test_a_network_that_cannot_fit_is_refused_before_it_takes_memory(changes, copies, capsys, monkeypatch):
    model = Model(depth=2, dim=8)
    size = 4 * sum(p.numel() for p in build_network(model, load_data(Data())).parameters())
    build = importlib.import_module("levada.training.loop").build_network
    built = []
    monkeypatch.setattr(importlib.import_module("levada.training.loop"), "build_network", lambda *a: built.append(a))
    room = importlib.import_module("levada.training.room")
    small = f"model.depth=2 model.dim=8 run.steps=1 {changes}"
    monkeypatch.setattr(room, "machine_memory", lambda: copies * size - 1)
    code, said = refused(capsys, small)
    assert (code, built) == (3, [])
    assert "there is not enough memory" in said
    assert said.endswith("Make model.dim or model.depth smaller.")
    monkeypatch.setattr(importlib.import_module("levada.training.loop"), "build_network", build)
    monkeypatch.setattr(room, "machine_memory", lambda: copies * size)
    config = resolve({"model": {"depth": 2, "dim": 8}, "run": {"steps": 1, "folder": "fits"}}, changes.split())
    assert train(config).steps == 1


def test_the_memory_of_a_container_is_its_limit(tmp_path, monkeypatch):
    room = importlib.import_module("levada.training.room")
    whole, limit = room.machine_memory(), tmp_path / "memory.max"
    monkeypatch.setattr(room, "_LIMITS", (str(tmp_path / "absent"), str(limit)))
    limit.write_text("max\n")
    assert room.machine_memory() >= whole
    limit.write_text("1000000\n")
    assert room.machine_memory() == 1_000_000


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "there is not enough memory. Use"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
            ": 20.00 GiB were asked",
        ),
        (RuntimeError("a size is wrong"), "levada itself failed, which is a defect: RuntimeError: a size is wrong"),
    ],
)
def test_memory_that_ran_out_is_told_from_defects(error, told, capsys, monkeypatch):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(importlib.import_module("levada.training.loop"), "build_network", fails)
    code, said = refused(capsys, "run.steps=1")
    assert code == 3
    assert told in said


def test_a_batch_that_the_processes_cannot_share_leaves_no_run(monkeypatch):
    loop = importlib.import_module("levada.training.loop")

    class Third(loop.WholeNetwork):
        replica, replicas = 0, 3

        def __init__(self, model, **options):
            super().__init__(model, **{**options, "replicas": 3})

    monkeypatch.setattr(loop, "WholeNetwork", Third)
    with pytest.raises(ValueError, match=r"times the number of processes, got 16, 1 and 3\. Try 6 times 3"):
        train(resolve({"data": {"batch_size": 16}, "run": {"folder": "new"}}))
    assert not Path("new").exists()


def test_parallel_kinds_on_one_process_say_that_nothing_is_spread(capsys):
    assert main(["train", "base.toml", "--set", "parallel.kind=fsdp"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("levada train: parallel.kind 'fsdp' on one process; --processes N starts more\n")
