r"""The loss of the best prediction that is the same for every input, from the targets that a loss has saved.

Of classes with shares $q_c$ it is the entropy $-\sum_c q_c \ln q_c$; of numbers $y$ under a squared error their
variance, each output about its own mean. A model whose loss is no lower has learned nothing of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor

__all__ = ["ConstantLoss"]

_CLASSES: Final = ("NllLossBackward0", "NllLoss2DBackward0")
_SQUARES: Final = "MseLossBackward0"
# What may stand between the loss and the scalar at which a backward pass begins: it changes its unit or sign alone.
_UNITS: Final = ("DivBackward0", "MulBackward0", "NegBackward0", "ToCopyBackward0", "CloneBackward0", "ViewBackward0")
_NEAR: Final = 8  # of them
_MEAN, _SUM = 1, 2  # how a loss of torch makes one number of many
_MOST: Final = 1 << 20  # numbers that are kept of the targets
# Of targets that are hardly ever other than one, no model is better than a constant.
_LEAST: Final = 1e-3
_ROUNDED: Final = 1e-5  # of the mean square: a variance below is lost in its rounding


@final
class ConstantLoss:
    """What the best constant prediction would have as its loss, over the targets of all sampled steps so far.

    The targets are those that `cross_entropy`, `nll_loss` or `mse_loss` keeps for its backward pass, if that is where
    the scalar comes from, but for its unit. Weights of classes, soft or smoothed targets, sums with other terms, what
    is compiled together with the loss, and what somebody packs (`saved_tensors_hooks`) are not read: nothing is known
    then. It is taken from the targets that it is compared with, and so is no higher than that of later ones.

    Example:
        >>> known, logits = ConstantLoss(), torch.zeros(4, 2, requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])) / 2
        >>> known.open()
        >>> known.see([loss])
        >>> known.learned()
        >>> round(float(known.of(loss.detach())), 4), round(loss.item(), 4)
        (0.3466, 0.3466)

    Attributes:
        targets: how many the last pass had, along the first dimension; None as long as it is not known.
        each: the same of each of the step's passes.
    """

    def __init__(self) -> None:
        self.targets: int | None = None
        self.each: list[int] = []
        self._on = False
        self._seen: list[tuple[Any, Tensor, Tensor, int]] | None = []  # of the backward pass that begins
        self._own: list[Tensor] = []  # the loss in its own unit, of each of the step's passes
        self._sums: Tensor | None = None  # what is kept of the targets
        self._batch: Tensor | None = None  # the same of this step's alone
        self._form: Any = None
        self._blind = False  # whether one of the step's losses was none of these

    def open(self) -> None:
        """Read the targets of the steps from now on."""
        self._on = True
        self.restart()

    def close(self) -> None:
        """Read no more of them."""
        self._on = False
        self.restart()

    def restart(self) -> None:
        """Forget the step's passes so far."""
        self._seen, self._own, self._blind, self.each, self._batch = [], [], False, [], None

    def see(self, roots: Sequence[Tensor]) -> None:
        """Look at the scalars at which a backward pass is about to begin, while its graph is there.

        Args:
            roots: the scalars.
        """
        if not self._on:
            return
        try:
            found = [_read(root) for root in roots]
        except Exception:  # what a graph keeps is the user's: it is not known, and all else goes on
            found = [None]
        self._seen = None if None in found else [one for one in found if one is not None]

    def learned(self) -> None:
        """Hear that this backward pass was the model's."""
        if not self._on:
            return
        seen, self._seen = self._seen, []
        if not seen or len(seen) > 1:
            self._blind = True
            return
        ((form, sums, own, self.targets),) = seen
        if self._form != form:
            self._form, self._sums, self._batch = form, None, None
        self._sums = sums if self._sums is None else self._sums + sums
        self._batch = sums if self._batch is None else self._batch + sums
        self._own.append(own)
        self.each.append(self.targets)

    def of(self, loss: Tensor, *, batch: bool = False) -> Tensor | None:
        """Return it in the unit of the step's loss, as a number on its device; None if it is not known.

        Args:
            loss: of the step.
            batch: over the targets of this step alone, which grow with the task. That of classes is not known: how
                mixed a batch is does not bound what a model loses on it.
        """
        sums = self._batch if batch else self._sums
        if self._blind or not self._own or sums is None or (batch and self._form[0] == "classes"):
            return None
        best, own = _best(self._form, sums), torch.stack(self._own).mean()
        return torch.where(
            best > (_LEAST if self._form[0] == "classes" else 0.0), loss.to(best.dtype) * best / own, torch.nan
        )


def _read(root: Tensor) -> tuple[Any, Tensor, Tensor, int] | None:
    """Return what is kept of the targets, the loss in its own unit, a mean over the targets, and their number."""
    node = _origin(root)
    if node is None:
        return None
    saved = getattr(node, "_raw_saved_self", None), getattr(node, "_raw_saved_target", None)
    if any(getattr(one, "unpack_hook", one) is not None for one in saved):
        return None  # what is packed must not be unpacked twice
    given, target = (one.data for one in saved)  # type: ignore[union-attr]
    if type(given) is not Tensor or type(target) is not Tensor or not target.numel():
        return None
    found = _classes(node, given, target) if node.name() in _CLASSES else _numbers(given, target)
    return None if found is None else (*found, target.shape[0] if target.dim() else 1)


def _origin(root: Tensor) -> Any:
    """Return the node of the loss that a scalar comes from, None if it is none of those that are read."""
    node: Any = root.grad_fn
    for _ in range(_NEAR):
        if node is None or node.name() in (*_CLASSES, _SQUARES):
            break
        behind = [following for following, _ in node.next_functions if following is not None]
        node = behind[0] if node.name() in _UNITS and len(behind) == 1 else None
    if node is None or node.name() not in (*_CLASSES, _SQUARES) or node._saved_reduction not in (_MEAN, _SUM):
        return None
    return node


@torch.no_grad()
def _classes(node: Any, logs: Tensor, target: Tensor) -> tuple[Any, Tensor, Tensor] | None:
    if logs.dim() < 2 or node._saved_weight is not None or logs.shape[1] > _MOST:
        return None
    wide = _wide(logs)
    ignored = node._saved_ignore_index
    ignored -= (1 << 64) if ignored >= 1 << 63 else 0  # it is told without its sign
    asked = target != ignored
    index = torch.where(asked, target, 0)
    counts = torch.zeros(logs.shape[1], dtype=wide, device=logs.device)
    counts.index_add_(0, index.flatten(), asked.flatten().to(wide))
    picked = torch.where(asked, logs.gather(1, index.unsqueeze(1)).squeeze(1), 0)
    return ("classes", logs.shape[1], logs.device), counts, -picked.sum(dtype=wide) / counts.sum()


@torch.no_grad()
def _numbers(given: Tensor, target: Tensor) -> tuple[Any, Tensor, Tensor] | None:
    each = target.numel() // target.shape[0] if target.dim() else _MOST
    if given.shape != target.shape or 3 * each > _MOST or not target.is_floating_point():
        return None
    wide, values = _wide(target), target.reshape(-1, each)
    count = torch.full((each,), float(len(values)), dtype=wide, device=target.device)
    sums = torch.stack((count, values.sum(0, dtype=wide), values.float().square().sum(0, dtype=wide)))
    return ("numbers", each, target.device), sums, (given - target).float().square().mean(dtype=wide)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _best(form: Any, sums: Tensor) -> Tensor:
    if form[0] == "classes":
        shares = sums / sums.sum()
        return -(shares * shares.log().clamp(min=-1e3)).sum()
    count, total, squares = sums.unbind(0)
    square, mean = squares / count, total / count
    variance = (square - mean.square()).mean()
    return torch.where(variance > _ROUNDED * square.mean(), variance, torch.nan)
