"""The training loop, in plain sight."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO, final

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.connections import StochasticDepth
from levada.runs import Run
from levada.training.building import arranged, bare_network, build_network, build_optimizer, learning_rate
from levada.training.checkpoint import Checkpoints
from levada.training.config import Config
from levada.training.data import Examples, Source, described, load_data, require_batch
from levada.training.engine import Engine, Staged, WholeNetwork, cross_entropy
from levada.training.parallel import parallelise, process_mesh
from levada.training.pipeline import Pipeline
from levada.training.processes import Processes, join, launch
from levada.training.record import Progress, Record
from levada.training.room import require_room
from levada.training.sampling import Order, mix, share
from levada.training.stopping import NotFiniteError, say_found, stop
from levada.watching.measure.sample import Continue
from levada.watching.watch import Watch, watch

__all__ = ["Trained", "train"]


@final
@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to.

    Attributes:
        run: its run folder.
        steps: number of steps done, in all.
        loss: of the last step.
        held_out: loss on what was held out, at the end.
        engine: holds the network.
    """

    run: Run
    steps: int
    loss: float
    held_out: float
    engine: Engine


def train(config: Config, *, resume: bool = False, stream: TextIO | None = None) -> Trained:
    """Train a network as a configuration says.

    Under torchrun each process calls it. One that was restarted continues what the same launch began, from the newest
    complete checkpoint.

    Args:
        config: the configuration.
        resume: whether to continue the run in `config.run.folder`; where none is, one begins.
        stream: where the first process shows its progress; None shows nothing.

    Raises:
        UsageError: if the configuration does not fit the data, the processes, or the run that is continued.
        MeasurementError: if the loss or the gradient is no longer finite. The run keeps every step up to that, and
            weights before the update.

    Example:
        >>> import tempfile
        >>> from levada.training import resolve
        >>> config = resolve({"model": {"depth": 2, "dim": 8}, "run": {"steps": 3, "folder": tempfile.mkdtemp()}})
        >>> trained = train(config)
        >>> trained.steps, trained.run.manifest.kind
        (3, 'train')
    """
    with join(config) as processes, _deterministic(config.precision.deterministic):
        source = load_data(config.data)
        require_batch(config.data, source)
        engine = _engine(config, source, processes)
        share(config.data.batch_size, config.optimizer.accumulate, engine.replica, engine.replicas)  # or it is refused
        record = Record()
        resume = processes.any(resume)
        restarted = processes.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)
        examples = _described(source, processes)
        open_run = partial(record.open, config, resume=resume, restarted=restarted, examples=examples)
        continued = processes.agree(lambda: open_run(launch=launch()))
        shown = stream if processes.rank == 0 else None
        if resume and not continued and shown is not None:  # the same command begins a training and goes on with it
            shown.write(f"{config.run.folder} holds no run to continue: this begins one\n")
        try:
            trained = _train(config, source, engine, processes, record, shown, continued=continued)
            record.end()
            return trained
        except BaseException as error:
            record.end(error)
            raise
        finally:
            record.close()


def _described(source: Source, processes: Processes) -> dict[str, Any]:
    """Say of the data what every process finds; raise in all of them if one finds other data."""
    here = described(source)
    if processes.any(processes.agree(lambda: here) != here):
        raise UsageError("train: the data must be the same in every process, and they are not. Copy them anew.")
    return here


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:  # without it PyTorch refuses matrix products on a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(before or wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train(
    config: Config,
    source: Source,
    engine: Engine,
    processes: Processes,
    record: Record,
    stream: TextIO | None,
    *,
    continued: bool,
) -> Trained:
    progress = Progress(config.run.steps, None if config.watch.enabled and config.watch.live else stream)
    optimizer = build_optimizer(engine.module, config.optimizer)
    checkpoints = Checkpoints(Path(config.run.folder) / "checkpoints", config.checkpoint, processes, progress.say)
    first = 0
    if continued:
        found = processes.agree(checkpoints.resumable)
        if found is not None:
            first, path = found
            checkpoints.load(path, engine.module, optimizer)
            checkpoints.saved = first
        record.event("resumed", step=first, processes=processes.size)
        progress.say(f"continuing after step {first}")

    watching: Watch | None = None
    if config.watch.enabled and first < config.run.steps:  # else nothing is left that could be seen
        watching = _watch(config, engine, optimizer, processes, record, first)
    with watching or nullcontext():
        batches = _batches(config, source, engine, first, note=watching.note if watching is not None else None)
        try:
            loss, held_out = _loop(config, source, engine, optimizer, checkpoints, record, progress, batches)
        except NotFiniteError as bad:
            raise stop(bad, config, engine, optimizer, checkpoints, record, progress, watching) from None
    checkpoints.finish()
    checkpoints.require_saved()
    if watching is not None:
        say_found(watching, progress, processes)
    return Trained(Run(config.run.folder), max(first, config.run.steps), loss, held_out, engine)


def _loop(
    config: Config,
    source: Source,
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    record: Record,
    progress: Progress,
    batches: Iterator[tuple[int, tuple[Tensor, Tensor]]],
) -> tuple[float, float]:
    """Take a step with each batch; return the last loss and the last one on what is held out.

    Raises:
        NotFiniteError: before the update of a step whose loss or gradient is not finite.
    """
    loss = held_out = math.nan
    limit = config.optimizer.clip or math.inf
    steps, device = config.run.steps, next(engine.module.parameters()).device
    for step, (inputs, targets) in batches:
        lr = learning_rate(step, config.optimizer, config.schedule, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr

        def gradient(step: int = step, inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            _seed(config.run.seed, step, engine.replica)
            optimizer.zero_grad()
            return engine.step(inputs, targets)

        loss = float(gradient())
        norm = float(engine.clip(limit))
        record.step(step, loss, norm, lr)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFiniteError(step, loss, norm, gradient)
        optimizer.step()

        done = step + 1
        if done == steps or (config.run.evaluate_every and done % config.run.evaluate_every == 0):
            held_out = _evaluate(config, source, engine, device)
            progress.evaluation = done, held_out
            record.event("evaluation", step=done, loss=held_out)
        progress.step(step, loss, norm, lr)
        if done == steps or (config.checkpoint.every and done % config.checkpoint.every == 0):
            engine.settle()
            record.flush()
            checkpoints.save(done, engine.module, optimizer)
        checkpoints.poll()
    return loss, held_out


def _watch(
    config: Config, engine: Engine, optimizer: torch.optim.Optimizer, processes: Processes, record: Record, first: int
) -> Watch:
    """Look on, and keep what is seen in a run of its own inside the run: one for each time that training begins."""
    home = Path(config.run.folder) / "watch"
    names = processes.agree(lambda: [path.name for path in home.iterdir()] if home.is_dir() else [])
    number = max((int(name) for name in names if name.isdecimal()), default=0) + 1
    # Records of before, which counted from 0 in each, do not say from where they are numbered.
    record.event("watched", path=f"watch/{number}", first=first, numbered_from=first)
    return watch(
        engine.module,
        optimizer,
        run=Continue(home / f"{number}", first),
        every=config.watch.every,
        max_overhead=config.watch.max_overhead,
        live=config.watch.live,
    )


def _seed(seed: int, step: int, replica: int) -> None:
    """Make what a network draws in a step a function of the step, so that it is drawn again if the step is.

    Processes that share layers must leave out the same ones, which is drawn on the CPU; on GPUs each has its own draws.
    """
    # `torch.manual_seed` looks for every kind of device, and keeps a traceback for each that is not in use yet.
    torch.default_generator.manual_seed(mix(seed, step))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(mix(seed, step, replica))


def _engine(config: Config, source: Source, processes: Processes) -> Engine:
    require_room(partial(bare_network, config.model, source), *_copies(config, processes))
    torch.manual_seed(config.run.seed)  # the same weights in every process
    network = build_network(config.model, source).to(processes.device).train()
    mesh = process_mesh(config.parallel, processes.device.type)
    wanted, kind = config.precision.compute, processes.device.type
    bfloat16 = wanted == "bfloat16" or (wanted == "auto" and kind == "cuda")
    if config.parallel.kind == "pipeline":
        assert mesh is not None
        return Staged(Pipeline(network, cross_entropy, mesh, config.parallel), bfloat16=bfloat16)
    drops = any(isinstance(m, StochasticDepth) and m.mode == "batch" for m in network.modules())
    if drops and config.parallel.kind == "ddp":
        raise UsageError(
            'train: parallel.kind "ddp" waits for the gradient of every layer, and StochasticDepth leaves layers out. '
            'Set model.connection_options.mode="sample", or parallel.kind="fsdp".'
        )
    model = parallelise(network, mesh, config.parallel)
    if config.parallel.stacked:  # which some connections refuse in their first pass
        inputs, _ = _taken(config, source, source.train, torch.arange(min(2, source.train.num)))
        network.eval()(inputs.to(processes.device))
        network.train()
    accumulate = config.optimizer.accumulate
    return WholeNetwork(
        model, accumulate=accumulate, bfloat16=bfloat16, replica=processes.rank, replicas=processes.size
    )


def _copies(config: Config, processes: Processes) -> tuple[int, str]:
    """Say how many copies of the weights are in this machine's memory at least, and what they are."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    each = "" if here == 1 else f" of {here} processes"
    if processes.device.type != "cpu" or config.parallel.kind not in ("none", "ddp"):
        return here, f"the weights{each}"  # each process builds the whole network, before it keeps its part
    state = {"adamw": 2, "sgd": 1 if config.optimizer.momentum else 0}[config.optimizer.name]
    return here * (2 + state), f"weights, gradients and the optimizer's state{each}"


def _batches(
    config: Config, source: Source, engine: Engine, first_step: int, *, note: Callable[..., None] | None
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Give this process's part of each step's batch; the next one is read while the step is computed.

    Who looks on is told the targets of what a network is called with last: of the last micro-batch.
    """
    size, device = config.data.batch_size, next(engine.module.parameters()).device
    order = Order(source.train.num, config.run.seed)
    first, last = share(size, config.optimizer.accumulate, engine.replica, engine.replicas)

    def read(step: int) -> tuple[Tensor, Tensor]:
        return _taken(config, source, source.train, order.examples(step * size + first, step * size + last))

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, first_step)
        for step in range(first_step, config.run.steps):
            inputs, targets = ahead.result()
            if step + 1 < config.run.steps:
                ahead = reader.submit(read, step + 1)
            inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            if note is not None and isinstance(engine, WholeNetwork):
                note(targets=targets.chunk(config.optimizer.accumulate)[-1])
            yield step, (inputs, targets)


def _taken(config: Config, source: Source, examples: Examples, index: Tensor) -> tuple[Tensor, Tensor]:
    inputs, targets = examples.take(index)
    return arranged(inputs, config.model, source), targets


def _evaluate(config: Config, source: Source, engine: Engine, device: torch.device) -> float:
    """Return the mean loss over held-out examples, the same ones at every time and however batches are divided.

    Where a batch has more than there are, each is taken about equally often.
    """
    engine.settle()
    batch_size, accumulate = config.data.batch_size, config.optimizer.accumulate
    there = source.held_out.num
    num = max(min(config.data.evaluated, there) // batch_size, 1) * batch_size
    places = (
        torch.linspace(0, there - 1, num, dtype=torch.float64).long() if num <= there else torch.arange(num) % there
    )
    size = batch_size // accumulate
    first, last = share(size, 1, engine.replica, engine.replicas)
    losses = []
    for batch in torch.split(places, size):
        inputs, targets = _taken(config, source, source.held_out, batch[first:last])
        losses.append(float(engine.evaluate(inputs.to(device), targets.to(device))))
    return math.fsum(losses) / len(losses)
