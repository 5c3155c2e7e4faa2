"""Cells whose gates decide what is kept: LSTM and GRU."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.cells.affine import AffineCell
from levada.cells.cell import State, require_finite
from levada.initialise import chrono as set_chrono

__all__ = ["GRU", "LSTM"]


class _Default(float):
    """A number that was not given."""


_ONE = _Default(1.0)


@final
class LSTM(AffineCell):
    r"""Long short-term memory: a cell $c$ that is added to, and gates that decide what stays, enters and leaves.

    $$(i, f, g, o) = W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}, \qquad
    c_t = \sigma(f)\, c_{t-1} + \sigma(i) \tanh g, \qquad h_t = \sigma(o) \tanh c_t$$

    Along the cell a gradient is multiplied by $\sigma(f)$ alone: a residual connection in time, with a gate. The
    forget gate's bias is how long that lasts, $-1/\ln\sigma(b)$ steps: 1.4 at 0, 3.2 at 1, 20.6 at 3.

    Parameters have the names, shapes and, but for the forget gate's bias, the start of `torch.nn.LSTMCell`, so that
    state dicts fit.

    Args:
        dim_in: width of the input.
        dim: width of h and of c.
        bias: whether there are biases.
        forget_bias: where the forget gate's bias starts, in one of the two vectors, the other being zero; None leaves
            what `torch.nn` draws, about 0. It is 1 if neither this nor `chrono` is given.
        chrono: start with memories of 1 to so many steps instead, as `levada.initialise.chrono` does.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is h and c, each `(batch, dim)`.

    Cost:
        `4 dim (dim_in + dim + 2)` parameters. Sequences run in the kernel of `torch.nn.LSTM`.

    Raises:
        UsageError: if both starts are given, or one and no bias; if one is no finite number, or `chrono` not above 2.

    Example:
        >>> cell = LSTM(3, 5, forget_bias=3.0)
        >>> outputs, (h, c) = cell.run(torch.randn(7, 2, 3))
        >>> outputs.shape, torch.equal(outputs[-1], h)
        (torch.Size([7, 2, 5]), True)

    Source: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (forget gate); Jozefowicz, Zaremba and
    Sutskever 2015 (bias of 1); Tallec and Ollivier 2018, arXiv 1804.11188 (chrono).
    """

    blocks: ClassVar[int] = 4
    gate = "forget gate"

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        bias: bool = True,
        forget_bias: float | None = _ONE,
        chrono: float | None = None,
    ) -> None:
        super().__init__(dim_in, dim, bias)
        given = forget_bias is not None and not isinstance(forget_bias, _Default)
        if given:
            self.require_bias("forget_bias")
            require_finite("LSTM", "forget_bias", forget_bias)
        if chrono is not None:
            if given:
                raise UsageError(
                    "LSTM: forget_bias and chrono are two starts of the same biases, got "
                    f"forget_bias={forget_bias} and chrono={chrono}. Leave one of them out."
                )
            self.require_bias("chrono")
            set_chrono(self, chrono)
        elif forget_bias is not None:
            self.set_biases({1: float(forget_bias)})

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of h and c."""
        return (self.dim,), (self.dim,)

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next h and c."""
        h, c = state
        i, f, g, o = (projected + nn.functional.linear(h, self.weight_hh, self.bias_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def kernel(self, x: Tensor, first: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Call the kernel of `torch.nn.LSTM`."""
        return torch.lstm(x, first, weights, self.bias, 1, 0.0, self.training, False, False)

    def carry(self, projected: Tensor, state: State) -> Tensor:
        """Return the forget gate."""
        return self.gate_at(1, projected, state[0])

    def carry_bias(self, logit: Tensor) -> bool:
        """Set the forget gate's bias, and the input gate's to its negative."""
        return self.set_biases({0: -logit, 1: logit})


@final
class GRU(AffineCell):
    r"""The gated recurrent unit: one gate that keeps and takes, one that lets the candidate see the past.

    $$r = \sigma(r_x + r_h), \quad z = \sigma(z_x + z_h), \quad n = \tanh(n_x + r\, n_h), \quad
    h_t = (1 - z)\, n + z\, h_{t-1}$$

    with $(r_x, z_x, n_x) = W_{ih} x_t + b_{ih}$ and $(r_h, z_h, n_h) = W_{hh} h_{t-1} + b_{hh}$. Where $z$ is near 1,
    h is carried.

    Parameters have the names, shapes and start of `torch.nn.GRUCell`, so that state dicts fit.

    Args:
        dim_in: width of the input.
        dim: width of h.
        bias: whether there are biases.
        chrono: start with memories of 1 to so many steps, as `levada.initialise.chrono` does.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is h, `(batch, dim)`.

    Cost:
        `3 dim (dim_in + dim + 2)` parameters. Sequences run in the kernel of `torch.nn.GRU`.

    Raises:
        UsageError: if `chrono` is given and there is no bias, or it is not above 2 or not finite.

    Example:
        >>> cell = GRU(3, 5, chrono=100.0)
        >>> outputs, (h,) = cell.run(torch.randn(7, 2, 3))
        >>> outputs.shape, torch.equal(outputs[-1], h)
        (torch.Size([7, 2, 5]), True)

    Source: Cho et al. 2014, arXiv 1406.1078.
    """

    blocks: ClassVar[int] = 3
    gate = "update gate"

    def __init__(self, dim_in: int, dim: int, *, bias: bool = True, chrono: float | None = None) -> None:
        super().__init__(dim_in, dim, bias)
        if chrono is not None:
            self.require_bias("chrono")
            set_chrono(self, chrono)

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next h."""
        (h,) = state
        fed = nn.functional.linear(h, self.weight_hh, self.bias_hh)
        # each in two pieces: the gradients of slices would be filled up with zeros and added
        (rz_x, n_x), (rz_h, n_h) = (torch.split(t, [2 * self.dim, self.dim], -1) for t in (projected, fed))
        r, z = (rz_x + rz_h).sigmoid().chunk(2, -1)
        n = torch.addcmul(n_x, r, n_h).tanh()
        return (torch.lerp(n, h, z) if n.dtype == h.dtype else n + z * (h - n),)

    def kernel(self, x: Tensor, first: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Call the kernel of `torch.nn.GRU`."""
        return torch.gru(x, first[0], weights, self.bias, 1, 0.0, self.training, False, False)

    def carry(self, projected: Tensor, state: State) -> Tensor:
        """Return the update gate."""
        return self.gate_at(1, projected, state[0])

    def carry_bias(self, logit: Tensor) -> bool:
        """Set the update gate's bias."""
        return self.set_biases({1: logit})
