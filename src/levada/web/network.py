"""The shapes of what is computed: a network as the explorer describes one, and what the rules say of it."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from levada.web.shapes import Fact, Found, Number, Shape, Table, Verdict

__all__ = ["MAX_VALUES", "MAX_WEIGHTS", "CheckOf", "Checked", "Connection", "Initialisation", "Optimizer"]

MAX_VALUES: Final = 2**22
"""Largest depth x width x batch: with a bound on the time, one on what is computed."""
MAX_WEIGHTS: Final = 2**24

Activation: TypeAlias = Literal[
    "linear",
    "relu",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "erf",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "elu",
    "selu",
    "hardtanh",
]
Streams: TypeAlias = Annotated[int, Field(ge=2, le=16)]
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class Option(Shape):
    """Names as the explorer writes them: `blockSize`."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Single(Option):
    """`levada.Plain` and `levada.Residual`."""

    name: Literal["plain", "residual"]
    activation: Activation | None = None


class PostNorm(Option):
    """`levada.PostNorm`."""

    name: Literal["post_norm"]
    alpha: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    norm: Literal["layer", "rms"] = "layer"


class Highway(Option):
    """`levada.Highway`."""

    name: Literal["highway"]
    coupled: bool = True
    bias: float = Field(default=-2.0, ge=-100, le=100)


class Dense(Option):
    """`levada.Dense`."""

    name: Literal["dense"]
    growth: int = Field(ge=1, le=64)


class Hyper(Option):
    """`levada.HyperConnection`."""

    name: Literal["hyper"]
    streams: Streams = 4
    dynamic: bool = True
    head: Literal["sum", "mean"] = "sum"
    norm: Literal["layer", "rms"] = "layer"


class Manifold(Option):
    """`levada.ManifoldHyperConnection`."""

    name: Literal["manifold"]
    streams: Streams = 4
    iterations: int = Field(default=20, ge=1, le=100)


class Identity(Option):
    """`levada.IdentityHyperConnection`."""

    name: Literal["identity"]
    streams: Streams = 4
    head: Literal["learned", "mean"] = "learned"


class Attention(Option):
    """`levada.AttentionResidual`."""

    name: Literal["attention"]
    block_size: int = Field(default=1, ge=1, le=1000)
    scale: Literal["mean", "sum"] = "mean"


Connection: TypeAlias = Annotated[
    Single | PostNorm | Highway | Dense | Hyper | Manifold | Identity | Attention, Field(discriminator="name")
]


class Initialisation(Option):
    """`levada.initialise`: from what the weights start."""

    name: Literal["pytorch_default", "he", "glorot", "orthogonal", "gaussian"] = "pytorch_default"
    gain: Positive = 1.0
    weight_variance: float = Field(default=1.0, ge=0, le=1e6, description="Times fan_in; of gaussian.")
    bias_variance: float = Field(default=0.0, ge=0, le=1e6, description="Of gaussian.")


class Optimizer(Option):
    """Whose first step is looked at."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: Share = 0.0
    weight_decay: float = Field(default=0.0, ge=0, le=1e3)


class CheckOf(Option):
    """The explorer's description of a stack of `levada.blocks.FullyConnected`, and how it would be trained."""

    depth: int = Field(ge=1, le=1000)
    width: int = Field(ge=1, le=512)
    activation: Activation = "relu"
    norm: Literal["none", "layer", "rms", "batch"] = "none"
    pre_activation: bool = False
    bias: bool = True
    connection: Connection = Single(name="plain")
    init: Initialisation = Initialisation()
    optimizer: Optimizer = Optimizer()
    precision: Literal["float32", "float64"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)
    inputs: int | None = Field(default=None, ge=1, le=4096, description="Features that come in; the width if left out.")
    classes: int = Field(default=10, ge=2, le=1000)
    batch: int = Field(default=32, ge=2, le=256)

    @property
    def excess(self) -> str:
        """Why it is too large, in a sentence; empty if it is not."""
        values = self.depth * self.width * self.batch
        if values > MAX_VALUES:
            return f"depth x width x batch must be at most {MAX_VALUES:,}, got {values:,}. Make one of them smaller."
        wide = self.depth * self.connection.growth if isinstance(self.connection, Dense) else 0
        out = self.connection.growth if isinstance(self.connection, Dense) else self.width
        weights = self.depth * (self.width + wide // 2) * out
        if weights > MAX_WEIGHTS:
            return f"A network has at most {MAX_WEIGHTS:,} weights here, got {weights:,}. Make it smaller."
        return ""


class Checked(Shape):
    """What `levada check` says of it."""

    verdict: Verdict
    headline: str
    claim: str
    facts: list[Fact]
    findings: list[Found]
    notes: list[str]
    sites: list[str]
    signals: dict[str, list[Number]] = Field(description="By name, a number for each site.")
    table: Table | None
    seconds: float
