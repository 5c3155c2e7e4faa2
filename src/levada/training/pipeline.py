"""A pipeline: the layers of a network in stages on several processes, through which micro-batches pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.networks import Network
from levada.theory.scale import split_layers
from levada.training.boundary import Crossing, shapes_only
from levada.training.spread import Parallel
from levada.training.stages import Entry, Stages

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Pipeline"]

_Key: TypeAlias = tuple[Any, ...]


@final
class Pipeline:
    """A network whose layers are on several processes, and the steps that it takes there.

    What crosses from stage to stage is the connection's whole state: a stream, n streams, a pair, or all earlier
    outputs. Any connection works, on any number of stages, and gives the gradients that one process gives. What it
    costs is in `crossings`, and in closed form in `levada.theory.boundary_bytes`: n streams are n times what one is,
    and where layers read all outputs before them, all of them cross every boundary.

    Every process is given the same batch: the first reads the input, the last the targets, and each the shapes. Batches
    are cut into micro-batches of one size, so that the mean of their losses is the batch's. Gradients add up over
    steps, as in one process; weights that stem, layers and head share get the sum from all stages that have them.

    Args:
        network: stem, stack and head; the same in each process. One on the meta device stays there until `module` is
            given values, so that no process need hold all of it.
        loss: a function from output and targets to the mean loss.
        mesh: the processes, as `process_mesh` makes them.
        parallel: stages, micro-batches and schedule.
        weight: a function from targets to how many terms the loss is a mean of, where that is not the same in all
            micro-batches, such as the number of tokens that count; their losses are then weighted by it.

    Attributes:
        module: the stages that this process holds: give its parameters to an optimizer, save it, watch it. Names are
            those of the whole network.
        crossings: what leaves each stage of this process, once a step was taken.

    Raises:
        UsageError: if the kind is not `"pipeline"`; if stages, layers, processes or micro-batches do not fit each
            other; at a step, if a batch cannot be cut into equal micro-batches, or a state cannot cross.

    Example:
        >>> def train(network, mesh, batches):  # in each process
        ...     parallel = levada.training.Parallel("pipeline", micro_batches=8)
        ...     pipeline = Pipeline(network, torch.nn.functional.cross_entropy, mesh, parallel)
        ...     optimizer = torch.optim.AdamW(pipeline.module.parameters())
        ...     for x, target in batches:
        ...         loss = pipeline.step(x, target)
        ...         pipeline.clip_gradients(1.0)
        ...         optimizer.step()
        ...         optimizer.zero_grad()

    Source: the schedules are those of `torch.distributed.pipelining`: Huang et al., 2018, arXiv 1811.06965 (GPipe);
    Narayanan et al., 2021, arXiv 2104.04473 (1F1B, interleaved).
    """

    def __init__(
        self,
        network: Network,
        loss: Callable[[Any, Tensor], Tensor],
        mesh: DeviceMesh,
        parallel: Parallel,
        *,
        weight: Callable[[Tensor], Tensor | float] | None = None,
    ) -> None:
        import torch.distributed as dist

        if not isinstance(network, Network):
            raise UsageError(
                f"Pipeline: network must be a levada.networks.Network, stem, stack and head, got "
                f"{type(network).__name__}. A Stack alone becomes one with nn.Identity() before and after it."
            )
        self.group: ProcessGroup = mesh.get_group()
        self.processes, self.process = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.parallel, self.weight, self._loss = parallel, weight, loss
        self.stages = _stages(parallel, self.processes)
        layers = split_layers(len(network.stack), self.stages, parallel.split)
        self.device = torch.device(mesh.device_type)
        if self.device.type != "cpu":
            self.device = torch.device(self.device.type, torch.get_device_module(self.device).current_device())
        if parallel.compile:
            network.stack.arrange(compile=True)
        self.module = Stages(network, layers, [*self._own], parallel.checkpoint or None)
        self.shared = _shared(network, layers, self.processes, self.process)
        if not self._on_meta:
            self.module.to(self.device)
        self._groups = {
            ranks: dist.new_group([self._global(r) for r in ranks], use_local_synchronization=True)
            for ranks in sorted({ranks for ranks, _ in self.shared})
        }
        for ranks, parameter in self.shared:
            dist.broadcast(parameter.data, self._global(ranks[0]), group=self._groups[ranks])
        self._schedules: dict[bool, tuple[_Key, Any, dict[int, Crossing]]] = {}
        self._total: Tensor | float = 1.0

    @property
    def crossings(self) -> dict[int, Crossing]:
        """What leaves each stage of this process that another one follows."""
        return dict(self.module.crossings)

    @property
    def last(self) -> bool:
        """Whether this process holds the last stage."""
        return self.stages - 1 in self._own

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        """Add a batch's gradients to those of this process's parameters.

        Args:
            x: the batch, whose first axis is cut into micro-batches.
            target: what the loss compares the output with.

        Returns:
            The mean loss of the batch, the same in every process, in float64.

        Raises:
            UsageError: if the batch cannot be cut into equal micro-batches.
        """
        held = [parameter.grad for _, parameter in self.shared]
        for _, parameter in self.shared:
            parameter.grad = None
        loss = self._run(x, target, training=True)
        self._sum_shared(held)
        return loss

    @torch.no_grad()
    def evaluate(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch in every process, without gradients.

        Args:
            x: the batch.
            target: what the loss compares the output with.
        """
        return self._run(x, target, training=False)

    @torch.no_grad()
    def clip_gradients(self, largest: float) -> Tensor:
        """Scale the gradients of all stages, so that their norm together is at most `largest`.

        Args:
            largest: the norm that they may have.

        Returns:
            The norm that they had, the same in every process.
        """
        import torch.distributed as dist

        elsewhere = {id(p) for ranks, p in self.shared if ranks[0] != self.process}  # counted by the first that has it
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        counted = [p.grad for p in self.module.parameters() if p.grad is not None and id(p) not in elsewhere]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if counted:
            total += torch.stack(torch._foreach_norm(counted)).double().square().sum()
        dist.all_reduce(total, group=self.group)
        norm = total.sqrt()
        if gradients:
            torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype))
        return norm

    @property
    def _on_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.module.parameters())

    @property
    def _own(self) -> range:
        return range(self.process, self.stages, self.processes)

    def _global(self, process: int) -> int:
        import torch.distributed as dist

        return dist.get_global_rank(self.group, process)

    def _run(self, x: Tensor, target: Tensor, *, training: bool) -> Tensor:
        import torch.distributed as dist

        parts = self.parallel.micro_batches
        for name, given in (("x", x), ("target", target)):
            if not given.ndim or len(given) % parts or not len(given):
                raise UsageError(
                    f"Pipeline: a batch must be a multiple of the micro-batches, {parts}, so that they are of one size "
                    f"and the mean of their losses is the batch's, got {name} of {tuple(given.shape)}. Drop the last, "
                    "smaller batch, or change micro_batches."
                )
        if self._on_meta:
            raise UsageError(
                "Pipeline: parameters must have values before the first step, and are on the meta device. Call "
                "pipeline.module.to_empty(device=...), and load a checkpoint or a state dict."
            )
        x, target = x.to(self.device), target.to(self.device)
        schedule = self._schedule(x[: len(x) // parts], training)
        losses: list[Tensor] = []
        if self.last and self.weight is not None:
            self._total = self._terms(target)
        inputs = [x] if self.process == 0 else []
        expected = {"target": target, "losses": losses} if self.last else {}
        (schedule.step if training else schedule.eval)(*inputs, return_outputs=False, **expected)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.last:
            shares = [self._share(part) for part in target.chunk(parts)]
            loss += sum(value.detach().double() * share for value, share in zip(losses, shares, strict=True))
        dist.broadcast(loss, self._global((self.stages - 1) % self.processes), group=self.group)
        return loss

    def _share(self, target: Tensor) -> Tensor | float:
        """Return the part that a micro-batch has in the batch's mean."""
        return 1 / self.parallel.micro_batches if self.weight is None else self._terms(target) / self._total

    def _terms(self, target: Tensor) -> Tensor:
        """Return the number of terms in a mean; integers would be divided in float32."""
        assert self.weight is not None
        return torch.as_tensor(self.weight(target), dtype=torch.float64, device=self.device)

    def _micro_loss(self, output: Any, target: Tensor) -> Tensor:
        # The loss is the micro-batch's mean, for those who watch it; its gradient is that of its share in the batch's.
        return _Share.apply(self._loss(output, target), self._share(target))  # type: ignore[no-any-return, no-untyped-call]

    def _sum_shared(self, held: Sequence[Tensor | None]) -> None:
        """Add up the gradients of shared weights over the stages that have them, and what was there before."""
        import torch.distributed as dist

        for (ranks, parameter), before in zip(self.shared, held, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient, group=self._groups[ranks])
            parameter.grad = gradient if before is None else before.add_(gradient)

    def _schedule(self, x: Tensor, training: bool) -> Any:
        """Return the schedule for micro-batches such as `x`, with memory for what arrives."""
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        key = (x.shape, x.dtype, autocast)
        if training not in self._schedules or self._schedules[training][0] != key:
            self.module.crossings = {}
            self._schedules[training] = key, self._built(x, training), self.module.crossings
        _, schedule, self.module.crossings = self._schedules[training]
        return schedule

    def _built(self, x: Tensor, training: bool) -> Any:
        from torch.distributed import pipelining

        entries: list[Any] = []
        for place in self._own:
            given, came, output = self._shapes(place, x)
            if came is not None:
                self.module.crossings[place - 1] = came
            stage = pipelining.PipelineStage(
                Entry(self.module, place),
                place,
                self.stages,
                self.device,
                input_args=given,
                output_args=output,
                group=self.group,
            )
            entries.append(stage)
        options: dict[str, Any] = {"loss_fn": self._micro_loss, "scale_grads": False}
        micro_batches = self.parallel.micro_batches
        if self.parallel.schedule == "interleaved-1f1b":
            return pipelining.ScheduleInterleaved1F1B(entries, micro_batches, **options)
        alternating = training and self.parallel.schedule == "1f1b"
        kind = pipelining.Schedule1F1B if alternating else pipelining.ScheduleGPipe
        return kind(entries[0], micro_batches, **options)

    def _shapes(self, place: int, x: Tensor) -> tuple[tuple[Tensor, ...], Crossing | None, tuple[Tensor, ...]]:
        """Return what a stage is given and what it returns, on the meta device, and what the former is.

        Each process runs its own layers for shapes alone, once the one before has said what it sends.
        """
        import torch.distributed as dist

        before, after = ((place + step) % self.processes for step in (-1, 1))
        came: Crossing | None = None
        if place:
            message: list[Any] = [self.module.crossings.get(place - 1)]
            if before != self.process:
                dist.recv_object_list(
                    message, self._global(before), group=self.group, device=self.device, use_batch=True
                )
            came = message[0]
        with shapes_only(self.module):
            self.module.crossings.pop(place, None)
            given = [torch.empty(x.shape, dtype=x.dtype, device=self.device)]
            if came is not None:
                given = [
                    torch.empty(s, dtype=d, device=self.device) for s, d in zip(came.shapes, came.dtypes, strict=True)
                ]
            output, crossing = self.module.run(place, given, came)
        if crossing is not None:
            self.module.crossings[place] = crossing
            if after != self.process:
                dist.send_object_list(
                    [crossing], self._global(after), group=self.group, device=self.device, use_batch=True
                )
        outputs = output if isinstance(output, tuple) else (output,)
        return _described(given), came, _described(outputs)


def _described(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return tensors on the meta device, of which gradients come where there can be any."""
    return tuple(
        torch.empty(t.shape, dtype=t.dtype, device="meta", requires_grad=t.is_floating_point()) for t in tensors
    )


def _stages(parallel: Parallel, processes: int) -> int:
    """Return the number of stages, if it fits the processes and the micro-batches."""
    if parallel.kind != "pipeline":
        raise UsageError(f"Pipeline: kind must be 'pipeline', got {parallel.kind!r}. Use parallelise() for others.")
    interleaved = parallel.schedule == "interleaved-1f1b"
    stages = parallel.stages or len(parallel.split) or (2 * processes if interleaved else processes)
    if stages % processes or (not interleaved and stages != processes):
        rule = "a multiple of the number of processes" if interleaved else "the number of processes"
        raise UsageError(
            f"Pipeline: with schedule={parallel.schedule!r} stages must be {rule}, {processes}, got {stages}. Change "
            "stages, or start as many processes."
        )
    if parallel.schedule == "1f1b" and parallel.micro_batches < stages:
        raise UsageError(
            f"Pipeline: schedule='1f1b' needs at least as many micro-batches as stages, {stages}, got "
            f"{parallel.micro_batches}. Raise micro_batches, or use schedule='gpipe'."
        )
    if interleaved and parallel.micro_batches % processes:
        raise UsageError(
            f"Pipeline: schedule='interleaved-1f1b' needs a multiple of the {processes} processes as micro-batches, "
            f"got {parallel.micro_batches}. Change micro_batches."
        )
    return stages


def _shared(
    network: Network, layers: Sequence[range], processes: int, process: int
) -> list[tuple[tuple[int, ...], nn.Parameter]]:
    """Return the parameters that this process shares with others, and with which."""
    owners: dict[nn.Parameter, set[int]] = {}
    last = (len(layers) - 1) % processes
    parts: list[tuple[int, nn.Module]] = [(0, network.stem), (last, network.stack.output), (last, network.head)]
    parts += [(place % processes, network.stack[layer]) for place, own in enumerate(layers) for layer in own]
    for owner, part in parts:
        for parameter in part.parameters():
            owners.setdefault(parameter, set()).add(owner)
    shared = [(tuple(sorted(ranks)), p) for p, ranks in owners.items() if len(ranks) > 1 and process in ranks]
    if any(parameter.is_meta for _, parameter in shared):
        raise UsageError(
            "Pipeline: a network with tied weights must be built on a device, for on the meta device they would come "
            "apart. Leave torch.device('meta') out."
        )
    return [(ranks, parameter) for ranks, parameter in shared if parameter.requires_grad]


@final
class _Share(torch.autograd.Function):
    """A loss as it is, with the gradient of a part of it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, share: Tensor | float) -> Tensor:
        ctx.share = share
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None
