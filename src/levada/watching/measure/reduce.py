"""One sampled step of several processes, added up to that of one."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.watching.loop.telling import warn

__all__ = ["Message", "Peers", "Reduced", "Reduction", "find_peers"]

_LOSSES: Final = 512  # steps since the last sample whose losses are averaged; a fixed number: see `Reduction`
_PATIENCE: Final = timedelta(seconds=30)  # they meet right after training itself has made them meet
_GOODBYE: Final = timedelta(seconds=5)
_left_behind: Final[list[Any]] = []  # groups with a message that nobody came for: to delete one waits for it
_opened: Final[dict[tuple[int, ...], int]] = {}


@final
@dataclass(frozen=True, slots=True)
class Peers:
    """The processes that train copies or shards of one model.

    Attributes:
        ranks: their global ranks; numbers are added up over these.
        width: over how many different parts of the batch the gradient is averaged; less than the ranks where some
            of them compute the same (tensor parallelism).
    """

    ranks: tuple[int, ...]
    width: int


def find_peers(model: nn.Module) -> Peers | None:
    """Return the processes to add up over; None if this one is alone, as a stage of a pipeline is without copies.

    `DistributedDataParallel` tells its group, also if the model is what it wraps. Of sharded parameters, the mesh
    tells: gradients are averaged over all its dimensions except those with "tp" or "tensor" in their name, over which
    parts of the batch do not differ.

    Args:
        model: after it was wrapped or sharded.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return None
    module = sys.modules.get("torch.distributed.tensor")  # if nothing has imported it, nothing is sharded
    sharded = [] if module is None else [p for p in model.parameters() if isinstance(p, module.DTensor)]
    meshes: list[Any] = [p.device_mesh for p in sharded]
    if meshes:
        mesh = max(meshes, key=lambda mesh: int(mesh.size()))
        names = mesh.mesh_dim_names or ("",) * mesh.ndim
        data = [size for size, name in zip(mesh.shape, names, strict=True) if "tp" not in name and "tensor" not in name]
        averaged = any(hasattr(m, "set_requires_gradient_sync") for m in model.modules())  # fully_shard was called
        peers = Peers(tuple(mesh.mesh.flatten().tolist()), math.prod(data) if averaged else 1)
    else:
        ranks = next(_groups_of_copies(model), ())
        peers = Peers(ranks, len(ranks))
    return peers if len(peers.ranks) > 1 else None


def _groups_of_copies(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Give the ranks of each `DistributedDataParallel` in the model, then of those around it."""
    import torch.distributed as dist

    kind = nn.parallel.DistributedDataParallel
    found = [module for module in model.modules() if isinstance(module, kind)]
    # A trainer hands its callbacks the module inside, and no module knows what wraps it.
    for one in found or [one for one in gc.get_objects() if issubclass(type(one), kind)]:
        with contextlib.suppress(AttributeError, KeyError, ValueError):  # half made, or its group was destroyed
            if found or any(module is model for module in one.modules()):
                yield tuple(dist.get_process_group_ranks(one.process_group))


@final
@dataclass(frozen=True, slots=True)
class Reduced:
    """A sampled step of all processes.

    Attributes:
        sums: as given, added up.
        losses: steps, and the means over the processes that saw a loss.
        distance: largest of the wanted distances to the next sample.
        marks: what each process said of itself alone, in the order of `Peers.ranks`.
        complete: whether all processes are in it; else it is this one's alone.
    """

    sums: Tensor
    losses: tuple[tuple[int, float], ...]
    distance: int
    marks: tuple[tuple[float, ...], ...]
    complete: bool


@final
class Reduction:
    """Adds up one vector per sampled step, in the background, and never stops training for good.

    Numbers go over a group of their own between the hosts, whatever training uses: nothing gets in the way of its
    collectives, and what does not arrive raises an error here instead of ending the process. All ranks must sample the
    same steps, so each says which step it means and how far it wants to go; the largest distance is for all. If they do
    not agree, if one has left or does not answer within 30 s, this process warns once and goes on with its own numbers.
    A message has the same length each time: one that does not fit would end the process that receives it.

    Args:
        peers: from `find_peers`; None if there is nobody to ask.
        marks: how many numbers a process says of itself.
    """

    def __init__(self, peers: Peers | None, *, marks: int = 0) -> None:
        self.peers = peers
        self.width = 1 if peers is None else peers.width
        self._several = peers is not None
        self._marks = marks
        self._group: Any = None
        self._rank = self._size = 0
        self._works: list[tuple[Any, Tensor]] = []
        self._sent: Message | None = None

    @property
    def pending(self) -> bool:
        """Whether something was sent that was not collected."""
        return self._sent is not None

    @property
    def processes(self) -> int:
        """Over how many processes sums are taken."""
        return 1 if self.peers is None else len(self.peers.ranks)

    def send(self, message: Message, form: str) -> None:
        """Begin to add up; what was sent before must have been collected.

        Args:
            message: what this process measured.
            form: what its sums stand for: the same in all processes, or they cannot be added up.
        """
        self._sent = message
        if self.peers is None:
            return
        try:
            if self._group is None:
                self._open(message, form)
            self._begin(message)
        except Exception as error:  # whatever it is, training goes on
            self._give_up(error)

    def collect(self, seconds: float = _PATIENCE.total_seconds()) -> Reduced | None:
        """Return what was sent, of all processes if they answered, else of this one; None if nothing was sent.

        Args:
            seconds: how long to wait for the others; 0 leaves for later what has not arrived, and returns None.
        """
        sent = self._sent
        if sent is None:
            return None
        reduced = None
        if self._works:
            work, total = self._works[0]
            if not seconds and not work.is_completed():
                return None
            try:
                work.wait(timedelta(seconds=seconds or 1.0))
                reduced = sent.unpack(total, self.processes)
            except Exception as error:  # as above
                self._give_up(error)
            self._works.clear()
        self._sent = None
        return reduced or Reduced(sent.sums, sent.losses, sent.distance, (sent.marks,), not self._several)

    def close(self, *, patient: bool = True) -> None:
        """Say goodbye, so that nobody waits for this process; again is harmless.

        Args:
            patient: whether the others are probably about to leave too, and worth a moment.
        """
        if self._group is None:
            return
        try:
            self._begin(Message(-1, torch.zeros(self._size, dtype=torch.float64), 0, (), (0.0,) * self._marks))
            for work, _ in self._works if patient else ():
                work.wait(_GOODBYE)
        except Exception:  # the others went without a word, or are busy
            pass
        self._leave()

    def _open(self, message: Message, form: str) -> None:
        import torch.distributed as dist

        ranks = self.peers.ranks if self.peers is not None else ()
        # Not `dist.new_group`: in a name that was used before it finds who is gone, and it counts on all ranks' calls.
        number = _opened[ranks] = _opened.get(ranks, 0) + 1
        store: Any = dist.distributed_c10d._get_default_store()  # private: without it, this process is alone
        store = dist.distributed_c10d.PrefixStore(f"levada/{'-'.join(map(str, ranks))}/{number}/", store)
        self._rank = ranks.index(dist.get_rank())
        self._group = dist.ProcessGroupGloo(store, self._rank, len(ranks), timeout=_PATIENCE)
        self._size = message.sums.numel()
        digest = hashlib.sha1(f"{form} {self._size} {self._marks}".encode(), usedforsecurity=False).digest()
        own = torch.tensor([int.from_bytes(digest[:7])])
        found = [torch.empty_like(own) for _ in ranks]
        self._group.allgather([found], [own]).wait()
        if any(int(other) != int(own) for other in found):
            raise RuntimeError("they do not have the same blocks")

    def _begin(self, message: Message) -> None:
        total = message.pack(self._rank, self.processes)
        self._works.append((self._group.allreduce([total]), total))

    def _give_up(self, error: Exception) -> None:
        first = str(error).strip().splitlines()[:1]
        warn(
            f"watch: the processes that train this model do not add up their numbers any more: {''.join(first)}. "
            "What is shown from now on is of this process alone; training goes on.",
            stacklevel=2,
        )
        self.peers = None
        self._leave()

    def _leave(self) -> None:
        """Delete the group, unless a message is under way in it: deleting would wait for that."""
        if not all(work.is_completed() for work, _ in self._works):
            _left_behind.append((self._group, self._works))
        self._group, self._works = None, []


@final
@dataclass(frozen=True, slots=True)
class Message:
    """What one process says of a sampled step.

    Attributes:
        step: its number; -1 says that this process leaves.
        sums: float64, on the host, of the same length each time.
        distance: to the next sample, as this process wants it.
        losses: steps and losses, of steps up to this one.
        marks: what it says of itself alone.
    """

    step: int
    sums: Tensor
    distance: int
    losses: tuple[tuple[int, float], ...] = ()
    marks: tuple[float, ...] = ()

    def pack(self, rank: int, processes: int) -> Tensor:
        """Return it as one vector, to be added to those of the others."""
        losses = torch.zeros(2, _LOSSES, dtype=torch.float64)
        for step, loss in self.losses:
            if 0 <= self.step - step < _LOSSES:
                losses[:, self.step - step] = torch.tensor([loss, 1.0], dtype=torch.float64)
        own = torch.zeros(processes, 2 + len(self.marks), dtype=torch.float64)
        own[rank] = torch.tensor([self.step + 1.0, self.distance, *self.marks], dtype=torch.float64)
        return torch.cat([self.sums, losses.flatten(), own.flatten()])

    def unpack(self, total: Tensor, processes: int) -> Reduced:
        """Return what all said.

        Raises:
            RuntimeError: if they do not mean the same step.
        """
        sums, losses, own = torch.split(total, [len(self.sums), 2 * _LOSSES, processes * (2 + len(self.marks))])
        steps, distances, *_ = own.view(processes, -1).unbind(1)
        if (steps == 0).any():
            raise RuntimeError(f"process {int((steps == 0).nonzero()[0])} of {processes} has stopped to watch")
        if (steps != self.step + 1).any():
            raise RuntimeError(f"they are at different steps: {(steps - 1).int().tolist()}")
        total_loss, seen = losses.view(2, -1)
        means = tuple(
            (self.step - back, float(total_loss[back] / seen[back]))
            for back in reversed(seen.nonzero().flatten().tolist())
        )
        marks = tuple(tuple(row) for row in own.view(processes, -1)[:, 2:].tolist())
        return Reduced(sums, means, int(distances.max()), marks, True)
