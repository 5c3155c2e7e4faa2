"""What a training is: frozen dataclasses, one for each table of its TOML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Literal, final

from levada._errors import UsageError, require_at_least
from levada.runs.address import require_local
from levada.training.spread import Parallel

__all__ = [
    "FREE",
    "Checkpoint",
    "Config",
    "Data",
    "Model",
    "Optimizer",
    "Precision",
    "Run",
    "Schedule",
    "Watch",
    "left_out",
    "unread",
]

FREE: Final = (
    "run.steps",
    "run.folder",
    "run.evaluate_every",
    "optimizer.accumulate",
    "parallel",
    "checkpoint",
    "watch",
)
"""Tables and keys that may change when a run is continued: they do not say what one step computes, but for `FIXED`.

`run.steps` is where a schedule ends, so that a longer run has other learning rates from the continuation on.
"""

FIXED: Final = ("parallel.gather", "parallel.stacked")
"""Keys of free tables that must stay: the precision of a gathered parameter is that of the step, and an optimizer's
state is that of the stacked tensors."""

_DEEPEST: Final = 10**6  # layers; 10,000 are built in seconds, and what is far above this without end

# What a key says something about: another key, and the values of it. One that would be ignored is refused.
_BELONGS: Final = {
    "model.dim": ("model.network", ("mlp", "transformer")),
    "data.held_out": ("data.source", ("mnist1d", "mnist", "fashion_mnist", "text", "images")),
    "data.context": ("data.source", ("king_james", "text")),
    "optimizer.betas": ("optimizer.name", ("adamw",)),
    "optimizer.momentum": ("optimizer.name", ("sgd",)),
    "schedule.decay": ("schedule.name", ("stable_decay",)),
    "schedule.final": ("schedule.name", ("cosine", "stable_decay")),
}


@final
@dataclass(frozen=True, slots=True)
class Model:
    """The network: a stem, a `Stack` and a head of `levada.networks`.

    Attributes:
        network: "mlp", "cifar_resnet" or "transformer".
        depth: number of layers, as the function of this name in `levada.networks` counts them.
        dim: width of the stream of `mlp` and `transformer`; `cifar_resnet` has `options.channels`.
        connection: a name of `levada.connections`.
        connection_options: of the connection, such as `streams`.
        options: of the network, such as `heads`; activations and norms by their names in `torch.nn`, "none" for none.
        initialisation: a name of `levada.initialise.INITIALISATIONS`; "" leaves the weights as the network draws them.
        initialisation_options: of the initialisation, such as `gain`.
    """

    network: Literal["mlp", "cifar_resnet", "transformer"] = "mlp"
    depth: int = 8
    dim: int = 64
    connection: str = "Residual"
    connection_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    initialisation: str = ""
    initialisation_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _least("model.depth", self.depth, 1)
        _between("model.depth", self.depth, 1, _DEEPEST)
        _least("model.dim", self.dim, 1)


@final
@dataclass(frozen=True, slots=True)
class Data:
    """What the network learns from.

    Attributes:
        source: "mnist1d", "mnist", "fashion_mnist" or "king_james" of a package; "text" or "images" at `path`.
        path: of "text" a file, or a folder of .txt files; of "images" a folder with a folder for each class; of a
            package's data set its files' folder, if they are not where the package puts them.
        batch_size: examples of one optimizer step, of all processes and micro-batches together.
        context: tokens that a transformer sees at once.
        held_out: share of the examples that are kept for evaluation; of a text its end.
        evaluated: examples in one evaluation.
    """

    source: Literal["mnist1d", "mnist", "fashion_mnist", "king_james", "text", "images"] = "mnist1d"
    path: str = ""
    batch_size: int = 64
    context: int = 64
    held_out: float = 0.1
    evaluated: int = 512

    def __post_init__(self) -> None:
        _least("data.batch_size", self.batch_size, 1)
        _least("data.context", self.context, 1)
        _least("data.evaluated", self.evaluated, 1)
        _between("data.held_out", self.held_out, 0.0, 1.0)
        _require_whole_path("data.path", self.path)
        require_local("train: data.path must name a place on this machine", self.path, "Copy the data to it first.")
        if self.source in ("text", "images") and not self.path:
            raise UsageError(f'train: data.path must name what data.source = "{self.source}" reads, got none.')
        if self.source in ("mnist1d", "king_james") and self.path:
            raise UsageError(f"train: data.path must be left out: {self.source} comes from an installed package.")


@final
@dataclass(frozen=True, slots=True)
class Optimizer:
    """How the weights are updated.

    Attributes:
        name: "adamw" or "sgd".
        lr: the learning rate, which the schedule multiplies.
        weight_decay: of what decays, by `levada.parameter_groups`.
        betas: of AdamW.
        momentum: of SGD.
        clip: largest norm of the gradient as a whole; 0 for no clipping.
        accumulate: micro-batches of each process in one step.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9
    clip: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "momentum", "clip"):
            _least(f"optimizer.{name}", getattr(self, name), 0.0)
        _least("optimizer.accumulate", self.accumulate, 1)
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise UsageError(f"train: optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}.")


@final
@dataclass(frozen=True, slots=True)
class Schedule:
    """What the learning rate is multiplied by, from step to step.

    Attributes:
        name: "constant"; "cosine", half a cosine from 1 down; "stable_decay", 1 and then a line down.
        warmup: steps of a line up to 1, before that.
        decay: steps of the line down of "stable_decay".
        final: factor where cosine and line end, which is one step after the last: the last is a little above.
    """

    name: Literal["constant", "cosine", "stable_decay"] = "cosine"
    warmup: int = 0
    decay: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _least("schedule.warmup", self.warmup, 0)
        _least("schedule.decay", self.decay, 0)
        _between("schedule.final", self.final, 0.0, 1.0)


@final
@dataclass(frozen=True, slots=True)
class Precision:
    """In which precision the network computes; parameters and optimizer stay in float32.

    Attributes:
        compute: "bfloat16" by autocast, "float32", or "auto": bfloat16 on a GPU and float32 on a CPU.
        deterministic: whether PyTorch must use deterministic algorithms, also where they are slower.
    """

    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False


@final
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """When the state is saved.

    Attributes:
        every: steps between checkpoints; 0 for one at the end alone.
        keep: number of complete checkpoints that are kept, the newest ones.
        asynchronous: whether training goes on while a checkpoint is written.
    """

    every: int = 0
    keep: int = 2
    asynchronous: bool = True

    def __post_init__(self) -> None:
        _least("checkpoint.every", self.every, 0)
        _least("checkpoint.keep", self.keep, 1)


@final
@dataclass(frozen=True, slots=True)
class Watch:
    """Whether and how `levada.watch` looks on.

    Attributes:
        enabled: whether it looks on.
        every: smallest number of steps between samples; the first 11, which a verdict needs, come so often.
        max_overhead: largest share of the training time that it may take, once the first 11 samples, and half a second
            for the steps between them, are paid for.
        live: whether it is shown in the terminal.
    """

    enabled: bool = True
    every: int = 20
    max_overhead: float = 0.01
    live: bool = False

    def __post_init__(self) -> None:
        _least("watch.every", self.every, 1)
        if not 0 < self.max_overhead <= 1:
            rule = "train: watch.max_overhead must be a share of the training time, in (0, 1]"
            raise UsageError(f"{rule}, got {self.max_overhead}.{left_out('watch.max_overhead')}")


@final
@dataclass(frozen=True, slots=True)
class Run:
    """How long, from which seed, where to.

    Attributes:
        folder: the run's folder.
        seed: of the weights, the order of the examples and every draw.
        steps: number of optimizer steps.
        evaluate_every: steps between evaluations; 0 for one at the end alone.
        device: "cpu" or "cuda"; "auto" takes a GPU if there is one.
    """

    folder: str = "runs/train"
    seed: int = 0
    steps: int = 1000
    evaluate_every: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        _least("run.steps", self.steps, 1)
        _least("run.evaluate_every", self.evaluate_every, 0)
        _least("run.seed", self.seed, 0)
        if self.seed >= 2**64:
            raise UsageError(f"train: run.seed must be less than 2^64, got {self.seed}.")
        if not self.folder or "\0" in self.folder:
            raise UsageError(f"train: run.folder must name a folder, got {self.folder!r}.")
        _require_whole_path("run.folder", self.folder)
        advice = "Train in a folder, and copy it there when the training is over."
        require_local("train: run.folder must name a folder of this machine", self.folder, advice)


@final
@dataclass(frozen=True, slots=True)
class Config:
    """A training as a whole; `levada.training.read` makes it of a TOML file.

    Attributes:
        model: the network.
        data: what it learns from.
        optimizer: how the weights are updated.
        schedule: the learning rate from step to step.
        precision: in which precision it computes.
        parallel: how it is spread over processes.
        checkpoint: when the state is saved.
        watch: whether and how it is watched.
        run: how long, from which seed, where to.

    Raises:
        UsageError: if a value is impossible by itself, or two contradict each other.

    Example:
        >>> Config(model=Model(depth=0))
        Traceback (most recent call last):
        levada._errors.UsageError: train: model.depth must be at least 1, got 0. Leave it out for the default, 8.
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    precision: Precision = field(default_factory=Precision)
    parallel: Parallel = field(default_factory=Parallel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    watch: Watch = field(default_factory=Watch)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        _require_used(self)
        tokens = self.data.source in ("text", "king_james")
        if tokens != (self.model.network == "transformer"):
            rule = 'model.network "transformer" reads texts, and the others read examples of classes'
            raise UsageError(f"train: {rule}, got {self.model.network!r} and data.source {self.data.source!r}.")
        if self.data.batch_size % self.optimizer.accumulate:
            raise UsageError(
                f"train: data.batch_size must be a multiple of optimizer.accumulate, got {self.data.batch_size} and "
                f"{self.optimizer.accumulate}."
            )
        if self.parallel.kind == "pipeline" and self.optimizer.accumulate > 1:
            raise UsageError(
                f"train: optimizer.accumulate must be 1 in a pipeline, got {self.optimizer.accumulate}: "
                "parallel.micro_batches says into how many parts it cuts a batch."
            )
        if self.data.batch_size % self.parallel.micro_batches:
            raise UsageError(
                f"train: data.batch_size must be a multiple of parallel.micro_batches, got {self.data.batch_size} and "
                f"{self.parallel.micro_batches}."
            )
        decay = self.schedule.decay if self.schedule.name == "stable_decay" else 0
        if self.schedule.warmup + decay > self.run.steps:
            parts = f"schedule.warmup{' and schedule.decay' if decay else ''}"
            came = f"{self.schedule.warmup}{f' and {decay}' if decay else ''} in {self.run.steps}"
            raise UsageError(
                f"train: {parts} must fit in run.steps, got {came} steps. Train longer, or set schedule.warmup=0."
            )
        if self.schedule.name == "stable_decay" and not self.schedule.decay:
            raise UsageError('train: schedule.decay must be at least 1 for schedule.name "stable_decay", got 0.')


def unread(value: Callable[[str], Any]) -> list[str]:
    """Return the paths of the keys that nothing reads beside the others.

    Args:
        value: gives the value of a key's path.

    Example:
        >>> unread({"model.network": "cifar_resnet"}.get)[0]
        'model.dim'
    """
    return [path for path, (other, values) in _BELONGS.items() if value(other) not in values]


def _require_used(config: Config) -> None:
    """Raise if a key is set that nothing reads."""
    for path in unread(lambda one: attrgetter(one)(config)):
        (table, key), (other, values) = path.split("."), _BELONGS[path]
        default = type(getattr(config, table)).__dataclass_fields__[key].default
        if attrgetter(path)(config) != default:
            belongs, came = " or ".join(f'"{value}"' for value in values), attrgetter(other)(config)
            raise UsageError(f'train: {path} belongs to {other} {belongs}, and that is "{came}". Leave it out.')
    if config.precision.compute == "float32" and config.parallel.gather == "bfloat16":
        raise UsageError(
            'train: parallel.gather "bfloat16" computes in bfloat16, and precision.compute is "float32". Leave one out.'
        )


def left_out(path: str) -> str:
    """Say what a key is if it is left out; "" of one without a plain default.

    Args:
        path: of the key, as `optimizer.lr`.

    Example:
        >>> left_out("run.steps"), left_out("model.options.heads")
        (' Leave it out for the default, 1000.', '')
    """
    table, _, key = path.partition(".")
    kind: Any = getattr(Config.__dataclass_fields__.get(table), "default_factory", None)
    known = getattr(kind, "__dataclass_fields__", {}).get(key)
    value = getattr(known, "default", None)
    return f" Leave it out for the default, {value}." if type(value) in (int, float) else ""


def _least(key: str, value: float, least: float) -> None:
    require_at_least("train", key, value, least, left_out(key).strip())
    if value == float("inf"):
        raise UsageError(f"train: {key} must be finite, got inf.{left_out(key)}")


def _require_whole_path(key: str, path: str) -> None:
    """Raise for a path with a `~`, of which a shell makes a home: a file has none, and behind `=` it makes none."""
    if path.startswith("~"):
        advice = f"Write it out, or ./{path} where a folder is called so."
        raise UsageError(f"train: {key} must be a path without the shell's ~, got {path!r}. {advice}")


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"train: {key} must be in [{low}, {high}], got {value}.{left_out(key)}")
