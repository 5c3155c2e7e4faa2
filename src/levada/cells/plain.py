"""The plain recurrent cell."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from levada._errors import UsageError
from levada.cells.affine import AffineCell
from levada.cells.cell import State
from levada.initialise import orthogonal_recurrence

__all__ = ["RNN"]


@final
class RNN(AffineCell):
    r"""The plain recurrence: $h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})$.

    Over $k$ steps a gradient is multiplied by $k$ matrices $\operatorname{diag}(\phi') W_{hh}$. At PyTorch's start it
    is down to 1/1000 after a dozen steps; with an orthogonal $W_{hh}$, or the identity under a rectifier (IRNN), it
    starts by keeping its norm; with `constrained=True`, $W_{hh}$ stays orthogonal in training too.

    Parameters have the names, shapes and start of `torch.nn.RNNCell`, so that state dicts fit.

    Args:
        dim_in: width of the input.
        dim: width of h.
        nonlinearity: $\phi$, "tanh" or "relu".
        bias: whether there are biases.
        start: "uniform" as `torch.nn` draws; "orthogonal" for an orthogonal $W_{hh}$, the identity under a rectifier,
            and biases of zero.
        constrained: keep $W_{hh}$ orthogonal, by `torch.nn.utils.parametrizations.orthogonal`.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is h, `(batch, dim)`.

    Cost:
        `dim (dim_in + dim + 2)` parameters. Sequences run in the kernel of `torch.nn.RNN`.

    Raises:
        UsageError: if an option is unknown.

    Example:
        >>> cell = RNN(3, 5, nonlinearity="relu", start="orthogonal")
        >>> torch.equal(cell.weight_hh, torch.eye(5))
        True
        >>> outputs, (h,) = cell.run(torch.randn(7, 2, 3))
        >>> torch.equal(outputs[-1], h)
        True

    Source: Elman 1990; Le, Jaitly and Hinton 2015, arXiv 1504.00941 (IRNN); Arjovsky, Shah and Bengio 2016, arXiv
    1511.06464 (unitary recurrence).
    """

    blocks: ClassVar[int] = 1

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        start: Literal["uniform", "orthogonal"] = "uniform",
        constrained: bool = False,
    ) -> None:
        super().__init__(dim_in, dim, bias)
        if nonlinearity not in ("tanh", "relu"):
            raise UsageError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}.")
        if start not in ("uniform", "orthogonal"):
            raise UsageError(f"RNN: start must be 'uniform' or 'orthogonal', got {start!r}.")
        self.nonlinearity = nonlinearity
        self.constrained = constrained
        if start == "orthogonal":
            orthogonal_recurrence(self)
        if constrained:
            parametrizations.orthogonal(self, "weight_hh")

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next h."""
        added = projected + nn.functional.linear(state[0], self.weight_hh, self.bias_hh)
        return (added.tanh() if self.nonlinearity == "tanh" else added.relu(),)

    def kernel(self, x: Tensor, first: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Call the kernel of `torch.nn.RNN`."""
        kernel = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        return kernel(x, first[0], weights, self.bias, 1, 0.0, self.training, False, False)

    def carry(self, projected: Tensor, state: State) -> Tensor:
        r"""Return $\lVert W_{hh}\rVert_F / \sqrt{dim}$ times the root mean square of the slopes, as if independent."""
        h = self.step(projected, state)[0]
        slope = 1 - h.square() if self.nonlinearity == "tanh" else (h > 0).to(h.dtype)
        gain = self.weight_hh.square().sum() / self.dim * slope.square().mean(-1, keepdim=True)
        return gain.sqrt().expand_as(slope)
