"""Whether this machine has room for a network, asked before it is built: else the system ends the process."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from levada._errors import MeasurementError

__all__ = ["machine_memory", "require_room"]

# Of version 2 of Linux's control groups, and of version 1; a container has its limit there.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def require_room(build: Callable[[], nn.Module], copies: int, what: str, *, limit: float | None = None) -> None:
    """Count the bytes of a network's parameters on the meta device, where it takes no memory, and refuse too many.

    A network that cannot be built there is left to the one that is built in earnest.

    Args:
        build: builds it.
        copies: how many of each number will be in this machine's memory at least.
        what: the copies, as a sentence says it.
        limit: bytes there are; those of the machine if left out.

    Raises:
        MeasurementError: if they cannot fit.

    Example:
        >>> require_room(lambda: nn.Linear(100, 100), 4, "weights, gradients and the optimizer's state", limit=1e3)
        Traceback (most recent call last):
        levada._errors.MeasurementError: train: there is not enough memory: weights, gradients and the optimizer's ...
    """
    most = machine_memory() if limit is None else limit
    taken = 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal taken
        if parameter is not None:
            taken += copies * parameter.numel() * parameter.element_size()
        if taken > most:  # a million layers need not be built to know
            raise MeasurementError(
                f"train: there is not enough memory: {what} take more than {taken / 1e9:.3g} GB, of the "
                f"{most / 1e9:.3g} GB that this machine has. Make model.dim or model.depth smaller."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build()
    except MeasurementError:
        raise
    except Exception:  # an option that does not fit, or values that meta has none of
        return
    finally:
        handle.remove()


def machine_memory() -> float:
    """Return the bytes that this process could have: of the machine, or of its container; infinity where unknown.

    Example:
        >>> machine_memory() > 1e8
        True
    """
    known = [math.inf]
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, StopIteration, ValueError):  # what is swapped out counts too
        lines = Path("/proc/meminfo").read_text().splitlines()
        known[-1] += 1024 * int(next(line for line in lines if line.startswith("SwapTotal")).split()[1])
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            known.append(int(Path(path).read_text()))
    return min(known)
