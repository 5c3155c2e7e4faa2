"""The healthy programs: base setups that train in about a second on one thread, and variations of each.

The data is real: digits (MNIST), signals (MNIST-1D), text (the King James Bible); four batches, standardised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.models import build_model
from benchmarks.diagnosis.program import Setup
from levada.study.data import king_james, mnist, mnist1d

__all__ = ["BASES", "Plan", "build", "healthy_plans", "new_model", "variations"]

BATCHES = 4
CONTEXT = 24
UNKNOWN = 0.15  # share of tokens that a masked language model must guess


@dataclass(frozen=True, slots=True)
class Plan:
    """What a base setup is made of.

    Attributes:
        name: unique.
        family: as in `Program`.
        depth: number of hidden layers or blocks.
        dim: width.
        activation: name.
        norm: "none", "batch", "layer", "group"; of transformers "pre" or "post".
        optimizer: "sgd" (momentum 0.9), "adam", "adamw" or "rmsprop".
        lr: learning rate.
        batch: rows in a batch.
        data: "mnist", "mnist14" (2 x 2 means), "mnist1d", "text" (the next token), "masked" (tokens left out).
        init: as in `initialise`.
        dropout: share.
        decay: weight decay.
        kind: "conv" for an autoencoder of convolutions.
        skip: whether residual blocks add.
    """

    name: str
    family: str
    depth: int
    dim: int
    activation: str = "relu"
    norm: str = "none"
    optimizer: str = "adam"
    lr: float = 2e-3
    batch: int = 32
    data: str = "mnist14"
    init: str = "default"
    dropout: float = 0.0
    decay: float = 0.0
    kind: str = ""
    skip: bool = True

    @property
    def base(self) -> str:
        """Name of the base setup that this is a variation of."""
        return self.name.split(".")[0]

    @property
    def text(self) -> bool:
        """Whether the inputs are tokens."""
        return self.data in ("text", "masked")

    @property
    def normalised(self) -> bool:
        """Whether there is a normalisation layer."""
        return self.norm != "none" or self.family in ("transformer", "vit")


BASES = (
    Plan("mlp-3-relu-sgd", "mlp", 3, 96, optimizer="sgd", lr=0.05),
    Plan("mlp-6-relu-adam", "mlp", 6, 96, lr=2e-3, init="he"),
    Plan("mlp-10-gelu-layer-adamw", "mlp", 10, 64, "gelu", "layer", "adamw", 2e-3),
    Plan("mlp-8-relu-batch-sgd", "mlp", 8, 64, "relu", "batch", "sgd", 0.05),
    Plan("mlp-5-tanh-sgd", "mlp", 5, 96, "tanh", optimizer="sgd", lr=0.05, init="xavier"),
    Plan("mlp-14-relu-he-adam", "mlp", 14, 64, lr=1e-3, init="he"),
    Plan("mlp-4-silu-signal-adam", "mlp", 4, 96, "silu", lr=3e-3, data="mnist1d", init="he"),
    Plan("cnn-3-relu-sgd", "cnn", 3, 12, optimizer="sgd", lr=0.05, data="mnist", init="he"),
    Plan("cnn-5-relu-batch-adam", "cnn", 5, 12, "relu", "batch", "adam", 3e-3, data="mnist"),
    Plan("cnn-4-gelu-adamw", "cnn", 4, 12, "gelu", "none", "adamw", 5e-3, init="he"),
    Plan("cnn-4-relu-batch-signal-sgd", "cnn", 4, 24, "relu", "batch", "sgd", 0.05, data="mnist1d"),
    Plan("cnn-8-leaky-he-adam", "cnn", 8, 12, "leaky", lr=3e-3, init="he"),
    Plan("resnet-3-batch-sgd", "resnet", 3, 12, "relu", "batch", "sgd", 0.05),
    Plan("resnet-6-batch-adamw", "resnet", 6, 8, "relu", "batch", "adamw", 3e-3),
    Plan("resnet-4-group-adam", "resnet", 4, 12, "relu", "group", "adam", 3e-3),
    Plan("resmlp-8-layer-adam", "resnet", 8, 48, "gelu", "layer", "adam", 2e-3, data="mnist1d"),
    Plan("transformer-2-causal-pre-adamw", "transformer", 2, 48, "relu", "pre", "adamw", 3e-3, data="text", batch=8),
    Plan("transformer-3-causal-post-adam", "transformer", 3, 32, "relu", "post", "adam", 3e-3, data="text", batch=8),
    Plan("transformer-4-causal-pre-adam", "transformer", 4, 32, "gelu", "pre", "adam", 3e-3, data="text", batch=8),
    Plan("transformer-2-masked-pre-adamw", "transformer", 2, 48, "gelu", "pre", "adamw", 3e-3, data="masked", batch=8),
    Plan("vit-2-pre-adamw", "vit", 2, 48, "gelu", "pre", "adamw", 2e-3, data="mnist", batch=16),
    Plan("vit-4-pre-adam", "vit", 4, 32, "relu", "pre", "adam", 2e-3, data="mnist", batch=16),
    Plan("vit-3-post-adam", "vit", 3, 32, "gelu", "post", "adam", 2e-3, data="mnist", batch=16),
    Plan("lstm-1-rows-adam", "lstm", 1, 48, lr=5e-3),
    Plan("lstm-2-rows-adamw", "lstm", 2, 32, optimizer="adamw", lr=8e-3),
    Plan("lstm-1-text-adam", "lstm", 1, 64, lr=1e-2, data="text"),
    Plan("gru-1-rows-adam", "gru", 1, 48, lr=5e-3),
    Plan("gru-2-rows-adamw", "gru", 2, 32, optimizer="adamw", lr=5e-3),
    Plan("gru-1-text-adam", "gru", 1, 64, lr=1e-2, data="text"),
    Plan("rnn-1-tanh-rows-adam", "rnn", 1, 64, "tanh", lr=2e-3),
    Plan("rnn-1-relu-identity-adam", "rnn", 1, 64, "relu", lr=2e-3, init="identity"),
    Plan("autoencoder-2-relu-adam", "autoencoder", 2, 128, lr=3e-3),
    Plan("autoencoder-3-tanh-adam", "autoencoder", 3, 128, "tanh", lr=2e-3, init="xavier"),
    Plan("autoencoder-3-gelu-batch-adamw", "autoencoder", 3, 128, "gelu", "batch", "adamw", 3e-3),
    Plan("autoencoder-2-conv-adam", "autoencoder", 2, 12, lr=5e-3, data="mnist", init="he", kind="conv"),
)

_DRAWN_AGAIN = {
    "mlp": "orthogonal",
    "cnn": "orthogonal",
    "resnet": "he",
    "transformer": "normal",
    "vit": "xavier",
    "lstm": "orthogonal",
    "gru": "orthogonal",
    "rnn": "orthogonal",
    "autoencoder": "orthogonal",
}


def variations(plan: Plan) -> list[Plan]:
    """Return a base setup and what other people might have chosen, each another by more than its seed.

    Args:
        plan: one of `BASES`.
    """
    step = 4  # heads, groups
    rate = {"sgd": ("adamw", 2e-3), "adam": ("rmsprop", 0.4 * plan.lr), "adamw": ("adam", 1.4 * plan.lr)}
    optimizer, lr = rate[plan.optimizer]
    depth = plan.depth + max(1, plan.depth // 4)
    # Dropout in each of fourteen layers hides too much; behind the convolutions of a decoder nobody puts it.
    dropout = 0.0 if plan.depth > 12 or plan.kind == "conv" else 0.1
    changed = {
        "wide": replace(plan, dim=plan.dim * 3 // 2 // step * step),
        "deep": replace(plan, depth=depth),
        "batch": replace(plan, batch=plan.batch * 2),
        "slow": replace(plan, lr=0.6 * plan.lr),
        "drawn": replace(plan, init=_DRAWN_AGAIN[plan.family]),
        "stepped": replace(plan, optimizer=optimizer, lr=lr),
        "decayed": replace(plan, decay=1e-3, dropout=dropout, batch=plan.batch * 3 // 2),
    }
    return [plan, *(replace(p, name=f"{plan.name}.{name}") for name, p in changed.items())]


def healthy_plans() -> list[Plan]:
    """Return all base setups with their variations."""
    return [plan for base in BASES for plan in variations(base)]


def build(plan: Plan, seed: int) -> Setup:
    """Build the healthy setup of a plan.

    Args:
        plan: what to build.
        seed: of weights and of which rows of the data are taken.
    """
    batches = draw_batches(plan, seed)
    criterion = functional.cross_entropy
    if plan.family == "autoencoder":
        criterion = functional.mse_loss
    elif plan.text:
        criterion = token_cross_entropy
    return Setup(new_model(plan, seed), batches, criterion, optimizer_of(plan))


def new_model(plan: Plan, seed: int) -> nn.Module:
    """Build the model alone, in training mode.

    Args:
        plan: what to build.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    return build_model(plan, len(king_james_text()[1]) + 1, CONTEXT)


def optimizer_of(plan: Plan) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Return what builds the plan's optimizer."""
    options: dict[str, Any] = {"lr": plan.lr, "weight_decay": plan.decay}
    if plan.optimizer == "sgd":
        return functools.partial(torch.optim.SGD, momentum=0.9, **options)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    return functools.partial(kinds[plan.optimizer], **options)


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy over all tokens; targets of -100 are not counted."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def draw_batches(plan: Plan, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw the batches of a plan, the same for the same seed and batch size."""
    generator = torch.Generator().manual_seed(seed)
    rows = BATCHES * plan.batch
    if plan.text:
        text, _ = king_james_text()
        at = torch.randint(len(text) - CONTEXT, (rows, 1), generator=generator)
        windows = text[at + torch.arange(CONTEXT + 1)]
        inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        if plan.data == "masked":
            hidden = torch.rand(inputs.shape, generator=generator) < UNKNOWN
            inputs, targets = inputs.masked_fill(hidden, int(text.max()) + 1), inputs.masked_fill(~hidden, -100)
    else:
        images, labels = examples(plan.data)
        at = torch.randperm(len(images), generator=generator)[:rows]
        inputs, targets = images[at], labels[at]
        if plan.family == "autoencoder":
            targets = inputs
        elif plan.family in ("lstm", "gru", "rnn"):
            inputs = inputs.squeeze(1)
        elif plan.data == "mnist1d" and plan.family == "cnn":
            inputs = inputs.unsqueeze(1)
    return list(zip(inputs.split(plan.batch), targets.split(plan.batch), strict=True))


@functools.cache
def examples(name: str) -> tuple[Tensor, Tensor]:
    """Standardised inputs and their labels; of MNIST the first 4,000."""
    if name == "mnist1d":
        data = mnist1d()
        inputs, labels = data.train_inputs, data.train_targets
    else:
        data = mnist()
        inputs, labels = data.train_inputs[:4000].unsqueeze(1).float() / 255, data.train_targets[:4000]
        inputs = functional.avg_pool2d(inputs, 2) if name == "mnist14" else inputs
    return (inputs - inputs.mean()) / inputs.std(), labels


@functools.cache
def king_james_text() -> tuple[Tensor, str]:
    """The first 200,000 characters as tokens, and the vocabulary."""
    text = king_james()
    return text.train[:200_000], text.characters
