"""The processes of a training: who this one is, and what all of them agree on."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist

from levada._errors import MeasurementError, UsageError
from levada.training.config import Config
from levada.training.files import devices

__all__ = ["Processes", "SaidError", "claim", "join", "launch", "meet"]

T = TypeVar("T")


class SaidError(Exception):
    """An error that every process raises, so that only the first need say it."""


@final
class SaidUsageError(SaidError, UsageError):
    """What the first process refuses, in another."""


@final
class SaidMeasurementError(SaidError, MeasurementError):
    """What could not be measured in the first process, in another."""


@final
@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number.
        size: how many there are.
        device: where it computes.
        saving: the group that checkpoints are coordinated in, beside the training's own messages; None for one process
            without a group.
    """

    rank: int
    size: int
    device: torch.device
    saving: Any = None

    def agree(self, ask: Callable[[], T]) -> T:
        """Ask the first process, and give all of them its answer; if it raises, all of them do.

        Args:
            ask: what the first process calls; its answer must be picklable.

        Raises:
            SaidError: in the other processes, if `ask` raised anything in the first; a `UsageError` where that is one,
                else a `MeasurementError`.
        """
        if self.size == 1:
            return ask()
        answer: list[Any] = [None, None]
        raised: Exception | None = None
        if self.rank == 0:
            try:
                answer[0] = ask()
            except Exception as error:
                raised, answer[1] = (
                    error,
                    (SaidUsageError if isinstance(error, UsageError) else SaidMeasurementError, str(error)),
                )
        dist.broadcast_object_list(answer, group=self.saving)
        if answer[1] is not None:
            kind, told = answer[1]
            raise raised or kind(told)
        found: T = answer[0]
        return found

    def any(self, here: bool) -> bool:
        """Return whether something is so in any process.

        Args:
            here: whether it is so in this one.
        """
        if self.size == 1:
            return here
        anywhere = torch.tensor(float(here))
        dist.all_reduce(anywhere, dist.ReduceOp.MAX, group=self.saving)
        return bool(anywhere)


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one; leave them at the end.

    A process group that exists already is used, and stays.

    Args:
        config: says how the network is spread, and over which devices.

    Raises:
        UsageError: if there are several processes and nothing to spread, or no such device.
    """
    kind, size = config.parallel.kind, int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_available() and dist.is_initialized():
        size = dist.get_world_size()
    if kind == "none" and size > 1:
        raise UsageError(
            f'train: parallel.kind "none" is for one process, got {size}: each would train the same network by itself. '
            "Use ddp, fsdp or pipeline."
        )
    device = _device(config.run.device)
    begun = kind != "none" and not dist.is_initialized()
    if begun:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, size = _rendezvous()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        if kind == "none":
            yield Processes(0, 1, device)
        else:
            # Messages of a checkpoint that is written meanwhile must not mix with those of the training.
            saving = dist.new_group(backend="gloo")
            yield Processes(dist.get_rank(), dist.get_world_size(), device, saving)
    finally:
        if begun:
            dist.destroy_process_group()


def _rendezvous() -> tuple[Any, int, int]:
    """Return where the processes find each other, this one's rank and their number."""
    found: Any = dist
    if "RANK" not in os.environ:  # one process, started without torchrun
        return found.HashStore(), 0, 1
    store, rank, size = next(found.rendezvous("env://"))
    return found.PrefixStore(f"levada/{meet(store, rank, size)}", store), rank, size


def meet(store: Any, rank: int, size: int) -> str:
    """Return a name that the processes that are alive share, and that none before them had.

    torchrun keeps its store when it restarts workers, and what dead ones wrote there, such as their addresses, must not
    be read; restarts are counted by each machine for itself, so that their number is no such name. The first process
    makes one up and answers every greeting with it, of the dead and of the living, until all of the living are heard.

    Args:
        store: where they meet.
        rank: this process.
        size: number of processes.

    Source: the reason is pytorch/pytorch issue 135712.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"levada/greeting/{rank}", own)
        name: str = store.get(f"levada/answer/{own}").decode()  # waits for it
        store.set(f"levada/heard/{name}/{rank}", "")
        return name
    waiting, deadline = set(range(1, size)), time.monotonic() + store.timeout.total_seconds()
    while waiting:
        for other in list(waiting):
            if store.check([f"levada/heard/{own}/{other}"]):
                waiting.remove(other)
            elif store.check([f"levada/greeting/{other}"]):
                store.set(f"levada/answer/{store.get(f'levada/greeting/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(waiting)} of {size} did not come")
        time.sleep(0.01)
    return own


def launch() -> str:
    """Return a name of the torchrun that started this process, the same after it restarted it; "" without torchrun.

    `TORCHELASTIC_RUN_ID` alone is "none" where the user gives none, and may be that of an earlier launch. torchrun's
    store lives as long as torchrun, so that what is written there first stays the launch's.
    """
    store = _launchers_store()
    if store is None:
        return ""
    name: bytes = store.compare_set("levada/launch", "", uuid.uuid4().hex)
    return name.decode()


def claim(told: str) -> bool:
    """Say whether this process is the first of those that torchrun started together to have something to say.

    What all of them refuse one of them says. Which of them comes to it first, and how long the others live afterwards,
    hangs on how busy the machine is. Without torchrun nothing is known of the others, and each is the first.

    Args:
        told: the sentence.
    """
    try:
        store = _launchers_store(timeout=timedelta(seconds=5))
        if store is None:
            return True
        key = f"levada/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{told}"
        own = uuid.uuid4().hex
        first: bytes = store.compare_set(key, "", own)
        return first.decode() == own
    except (RuntimeError, OSError):  # torchrun is gone; better twice than not at all
        return True


def _launchers_store(**options: Any) -> Any:
    """Return the store of the torchrun that started this process; None without one that outlives this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    found: Any = dist
    store, _, _ = next(found.rendezvous("env://", **options))
    return store


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(
            f"train: run.device must be one that this machine has, got 'cuda'. PyTorch has here: {devices()}."
        )
    if name == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
