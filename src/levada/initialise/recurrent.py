"""Initialisations of what carries a memory through time: gates' biases, and the recurrent weights.

A module of one's own takes part by methods: `carry_bias(logit) -> bool` sets the biases of the gate that keeps, and
says whether there is one; `recurrent_weights()` returns the square matrices from one state to the next, to be set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from levada._errors import UsageError
from levada.initialise._weights import orthogonal_matrix

__all__ = ["chrono", "orthogonal_recurrence"]

_GATED = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell
_ALL = nn.RNNBase | nn.RNNCellBase


@torch.no_grad()
def chrono(module: nn.Module, horizon: float, *, generator: Generator | None = None) -> nn.Module:
    r"""Let gated cells start with memories of 1 to `horizon` steps: $b_f = \ln U(1, T - 1)$, $b_i = -b_f$.

    A forget gate of bias $b_f$ holds $1 - 1/T$ for $b_f = \ln(T - 1)$, and the input gate, $1/T$, keeps the cell from
    growing over that time. Of a GRU the update gate gets $b_f$: torch's keeps $z$ of the old state and takes
    $1 - z$ of the new. The second bias of these gates, which torch adds, becomes zero.

    Args:
        module: changed in place: every LSTM, GRU, LSTMCell and GRUCell that has biases, and every gated cell of
            `levada.cells`.
        horizon: $T$, the longest memory wanted, in steps; above 2.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if the horizon is not above 2, or there is nothing to set.

    Example:
        >>> cell = chrono(nn.LSTMCell(2, 1000), 101.0, generator=torch.Generator().manual_seed(0))
        >>> steps = 1 + cell.bias_ih[1000:2000].exp()
        >>> round(steps.min().item()), round(steps.mean().item(), -1), round(steps.max().item())
        (2, 50.0, 101)

    Source: Tallec and Ollivier 2018, arXiv 1804.11188.
    """
    if not horizon > 2:
        raise UsageError(f"chrono: horizon must be above 2 steps, got {horizon}.")

    def drawn(like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(1.0, horizon - 1.0, generator=generator).log()

    found = [m for m in module.modules() if isinstance(m, _GATED) and m.bias]
    set_here = [_carries(m, drawn) for m in module.modules()]
    if not found and not any(set_here):
        raise UsageError(f"chrono: {type(module).__name__} must hold an LSTM or GRU with biases, and has none.")
    for one in found:
        size = one.hidden_size
        for name, bias in one.named_parameters():
            if not name.startswith("bias"):
                continue
            gates = bias.view(-1, size)
            carry, fill = gates[1], gates[0] if len(gates) == 4 else None
            carry.zero_()
            if name.startswith("bias_ih"):
                carry.copy_(drawn(carry))
            if fill is not None:
                fill.copy_(-carry)
    return module


@torch.no_grad()
def orthogonal_recurrence(module: nn.Module, *, gain: float = 1.0, generator: Generator | None = None) -> nn.Module:
    r"""Let recurrent weights keep the norm of a state: orthogonal, $W^\top W = g^2 I$; the identity for rectifiers.

    Args:
        module: changed in place: every RNN, LSTM, GRU and cell of torch and of `levada.cells`; of gated ones the block
            of each gate. Plain networks of rectifiers get $g I$. The biases of plain networks become zero.
        gain: $g$.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if there is nothing to set.

    Example:
        >>> rnn = orthogonal_recurrence(nn.RNN(2, 5))
        >>> bool(torch.allclose(rnn.weight_hh_l0 @ rnn.weight_hh_l0.T, torch.eye(5), atol=1e-5))
        True

    Source: Saxe, McClelland and Ganguli 2014, arXiv 1312.6120; Le, Jaitly and Hinton 2015, arXiv 1504.00941 (identity).
    """
    found = [m for m in module.modules() if isinstance(m, _ALL)]
    set_here = [_redrawn(m, gain, generator) for m in module.modules()]
    if not found and not any(set_here):
        raise UsageError(f"orthogonal_recurrence: {type(module).__name__} must hold a recurrent module, and has none.")
    for one in found:
        plain = isinstance(one, nn.RNN | nn.RNNCell)
        for name, value in one.named_parameters():
            if name.startswith("weight_hh"):
                for block in torch.split(value, one.hidden_size):
                    block.copy_(gain * _square(block, plain and one.nonlinearity == "relu", generator))
            elif plain and name.startswith("bias"):
                value.zero_()
    return module


def _carries(module: nn.Module, drawn: Callable[[Tensor], Tensor]) -> bool:
    """Draw the bias of a gate that keeps, of a module that says how; return whether it has one."""
    own: Any = getattr(module, "carry_bias", None)
    if not callable(own):
        return False
    width: Any = module.dim
    return bool(own(drawn(next(module.parameters()).new_empty(width))))


def _redrawn(module: nn.Module, gain: float, generator: Generator | None) -> bool:
    """Draw the recurrent matrices of a module that names them; return whether it has some."""
    own: Any = getattr(module, "recurrent_weights", None)
    blocks = list(own()) if callable(own) else []
    nonlinearity = getattr(module, "nonlinearity", None)
    for block in blocks:
        block.copy_(gain * _square(block, nonlinearity == "relu", generator))
    if blocks and nonlinearity is not None:  # a plain network
        for name, value in module.named_parameters(recurse=False):
            if name.startswith("bias"):
                value.zero_()
    return bool(blocks)


def _square(like: Tensor, identity: bool, generator: Generator | None) -> Tensor:
    if identity:
        return torch.eye(*like.shape, dtype=like.dtype, device=like.device)
    return orthogonal_matrix(len(like), like.shape[1], like, generator)
