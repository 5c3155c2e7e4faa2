"""The process that computes for a page, `python -m levada.web.computing`: the rules of `levada check` on one network.

The network comes as JSON on the standard input, what the rules say goes to the standard output.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from levada.report.check import COLUMNS, check_view
from levada.web.child import limit_memory
from levada.web.network import Checked, CheckOf
from levada.web.shapes import plain, told
from levada.web.summary import facts_of, findings_of, table_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["MEMORY", "SECONDS", "batches", "build", "checked", "optimizer_of"]

SECONDS: Final = 20.0
"""Time for repeated measurements, as of `levada check --budget`."""
MEMORY: Final = 2 * 2**30
_CPU: Final = 120  # seconds of processor time, at which the system ends the process
_BATCHES: Final = 4
_NAMES: Final = {
    "plain": "Plain",
    "residual": "Residual",
    "post_norm": "PostNorm",
    "highway": "Highway",
    "dense": "Dense",
    "hyper": "HyperConnection",
    "manifold": "ManifoldHyperConnection",
    "identity": "IdentityHyperConnection",
    "attention": "AttentionResidual",
}


def build(asked: CheckOf) -> nn.Module:
    """Build a network as it is described, with the weights that the explorer's page draws for it.

    What "Copy as PyTorch" writes (`web/src/explorer/pytorch.ts`) makes the same network.

    Args:
        asked: the description.

    Example:
        >>> type(build(CheckOf(depth=3, width=8, connection={"name": "residual"})).stack.layers[0].connection).__name__
        'Residual'
    """
    import torch
    from torch import nn

    import levada
    from levada.blocks import FullyConnected
    from levada.theory.activation import as_activation
    from levada.web.draws import precision, start

    class Elementwise(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.function = as_activation(name).function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x)

    modules = {"linear": nn.Identity, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid}
    modules |= {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish, "softplus": nn.Softplus}
    modules |= {"elu": nn.ELU, "selu": nn.SELU, "hardtanh": nn.Hardtanh}
    norms: dict[str, Any] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d, "none": None}

    def made(name: str) -> Any:
        return modules.get(name) or (lambda: Elementwise(name))

    options = asked.connection.model_dump(exclude={"name"}, exclude_unset=True)
    if options.get("activation"):
        options["activation"] = made(options["activation"])()
    if "norm" in options and asked.connection.name == "post_norm":
        options["norm"] = norms[options["norm"]]
    growth = options.get("growth", asked.width)
    arguments = {"norm": norms[asked.norm], "bias": asked.bias, "pre_activation": asked.pre_activation}

    def branch(dim: int) -> nn.Module:
        return FullyConnected(dim, made(asked.activation), dim_out=growth, **arguments)

    torch.manual_seed(asked.seed)
    kind = getattr(levada, _NAMES[asked.connection.name])
    given = {name: value for name, value in options.items() if value is not None}
    with precision(getattr(torch, asked.precision)):
        stack = levada.Stack(branch, kind, dim=asked.width, depth=asked.depth, **given)
        first, last = nn.Linear(asked.inputs or asked.width, asked.width), nn.Linear(stack.dim_out, asked.classes)
    network = nn.Sequential(OrderedDict([("first", first), ("stack", stack), ("last", last)]))
    init = asked.init
    scales = {"weight_variance": init.weight_variance, "bias_variance": init.bias_variance}
    return start(network, asked.seed, init.name, gain=init.gain, **scales)


def batches(asked: CheckOf) -> list[Any]:
    """Draw batches that can be learned: Gaussian inputs, and as class the largest of so many random maps of them.

    Args:
        asked: the description of what they are for.

    Example:
        >>> [labels.shape[0] for _, labels in batches(CheckOf(depth=3, width=8, batch=6))]
        [6, 6, 6, 6]
    """
    import torch

    generator = torch.Generator().manual_seed(asked.seed)
    shape = (_BATCHES * asked.batch, asked.inputs or asked.width)
    inputs: Any = torch.randn(shape, generator=generator, dtype=getattr(torch, asked.precision))
    maps = torch.randn((shape[1], asked.classes), generator=generator, dtype=inputs.dtype)
    return list(zip(inputs.split(asked.batch), (inputs @ maps).argmax(1).split(asked.batch), strict=True))


def optimizer_of(asked: CheckOf) -> Callable[[Any], Any]:
    """Say what makes the optimizer of a network's parameters.

    Args:
        asked: the description.

    Example:
        >>> import torch
        >>> optimizer_of(CheckOf(depth=3, width=8))([torch.nn.Parameter(torch.ones(2))]).defaults["lr"]
        0.01
    """
    import torch

    chosen = asked.optimizer

    def made(parameters: Any) -> Any:
        if chosen.name == "adamw":
            return torch.optim.AdamW(parameters, lr=chosen.lr, weight_decay=chosen.weight_decay)
        momentum, decay = chosen.momentum, chosen.weight_decay
        return torch.optim.SGD(parameters, lr=chosen.lr, momentum=momentum, weight_decay=decay)

    return made


def checked(asked: CheckOf, seconds: float = SECONDS) -> Checked:
    """Say what the rules of `levada check` say of a network.

    Args:
        asked: its description.
        seconds: for repeated measurements.
    """
    import levada

    network, optimizer = build(asked), optimizer_of(asked)
    report = levada.check(network, batches(asked), optimizer=optimizer, seed=asked.seed, budget=seconds).to_dict()
    view = check_view(report)
    blocks = report["blocks"]
    names = [name for name in COLUMNS if any(block.get(name) is not None for block in blocks)]
    return Checked(
        verdict=report["verdict"],
        headline=plain(view["headline"]),
        claim=plain(str(view["claim"] or "")),
        facts=facts_of(view),
        findings=findings_of(report, view),
        notes=[plain(note) for note in view["notes"]],
        sites=[plain(str(block["site"])) for block in blocks],
        signals={name: [told(block.get(name)) for block in blocks] for name in names},
        table=table_of(view["table"]),
        seconds=report["seconds"],
    )


def main() -> None:
    """Compute once."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed gets into the answer
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_CPU, _CPU))
        os.nice(10)
    import torch

    torch.set_num_threads(1)
    limit_memory(MEMORY)
    asked = CheckOf.model_validate_json(sys.stdin.buffer.read())
    answers.write(checked(asked).model_dump_json().encode())
    answers.flush()


if __name__ == "__main__":
    main()
