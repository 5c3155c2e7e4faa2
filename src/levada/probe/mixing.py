"""What the mixing of streams does to signal and gradient, layer by layer and over depth: closed forms of matrices."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from levada.probe.chains import Chain, chains_of
from levada.probe.streams import Sample
from levada.probe.trace import Signal, Site

__all__ = ["MIXING_SIGNALS", "in_passes", "mixing_signals", "site_of"]

MIXING_SIGNALS: Mapping[str, Signal] = {
    s.name: s
    for s in (
        Signal("mixing_row_deviation", "1", "largest |row sum - 1| of the layer's mixing matrix, over rows and tokens"),
        Signal(
            "mixing_column_deviation", "1", "largest |column sum - 1| of the mixing matrix, over columns and tokens"
        ),
        Signal("mixing_forward_gain", "1", "largest |row sum| of the mixing matrix's mean over tokens"),
        Signal("mixing_backward_gain", "1", "largest |column sum| of the mixing matrix's mean over tokens"),
        Signal(
            "composite_forward_gain",
            "1",
            "largest |row sum| of the product of the mixing matrices from the first layer to this one, made for each "
            "token and then averaged over tokens: what the mixing alone does to equal streams",
        ),
        Signal(
            "composite_backward_gain",
            "1",
            "largest |column sum| of the product from this layer to the last, made for each token and then averaged: "
            "what the mixing alone does to a gradient that is equal in all streams",
        ),
        Signal(
            "composite_log_column_sum",
            "nat",
            "largest |log(column sum)| of the same product, which shows attenuation too; Inf where a column sum is "
            "zero or negative, that is where what the streams pass back cancels or changes its sign",
        ),
        Signal(
            "composite_column_norm",
            "1",
            "smallest norm of a column of the same product, root mean square over tokens: what the mixing alone leaves "
            "to one stream of a gradient that points anywhere, 1 where it is orthogonal; NaN where the tokens change "
            "on the way",
        ),
        Signal(
            "second_eigenvalue",
            "1",
            "second largest modulus of an eigenvalue of the mean product from the first layer to this one",
        ),
        Signal("smallest_singular_value", "1", "smallest singular value of the same mean product"),
        Signal(
            "effective_rank",
            "streams",
            "exp of the entropy of the same product's singular values, divided by their sum",
        ),
        Signal(
            "mixing_entropy",
            "nat",
            "entropy of a row of the mixing matrix divided by its sum, mean over rows and tokens; NaN where an entry "
            "is negative",
        ),
        Signal("mixing_diagonal", "1", "share of |diagonal| in a row of the mixing matrix, mean over rows and tokens"),
        Signal("read_share", "1", "largest share of a stream in |read weight|, averaged over tokens and elements"),
        Signal("write_share", "1", "largest share of a stream in |write weight|, averaged over tokens"),
        Signal("stream_cosine", "1", "cosine between two streams that enter the layer, mean over pairs and tokens"),
        Signal("stream_rms_ratio", "1", "largest over smallest root mean square of a stream that enters the layer"),
        Signal(
            "coefficient_rounding",
            "1",
            "relative error, in the Frobenius norm, of weights that are made in bfloat16 throughout, with parameters "
            "and streams in it; the largest of those of read, mix and write; NaN where they cannot be made twice",
        ),
    )
}

# Where several layers with streams lie in one block, the block shows the worst of them, or their mean.
_LEAST = frozenset({"smallest_singular_value", "effective_rank", "composite_column_norm"})
_MEAN = frozenset({"mixing_entropy", "mixing_diagonal", "stream_cosine"})


def mixing_signals(samples: Sequence[Sample]) -> list[dict[str, float]]:
    """Return the signals of `MIXING_SIGNALS` of each layer of one pass.

    Args:
        samples: the layers in the order in which they were called, in float64 on the host; `chains_of` says which
            follow one another.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)[None]
        >>> one = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> samples = [Sample("", i, 2 * eye, one, one, eye, torch.zeros(1)) for i in range(3)]
        >>> [row["composite_backward_gain"] for row in mixing_signals(samples)]
        [8.0, 4.0, 2.0]
    """
    return _rows(chains_of(samples))


def _rows(chains: Sequence[Chain]) -> list[dict[str, float]]:
    """Return the signals of each layer, in the order of the calls."""
    rows: dict[int, dict[str, float]] = {}
    for chain in chains:
        before, after, whole = _products(chain.samples)
        for place, sample, forward, backward in zip(chain.places, chain.samples, before, after, strict=True):
            energy = backward.square().sum(-2).mean(0).amin().sqrt() if whole else torch.tensor(math.nan)
            rows[place] = {
                **_of_layer(sample),
                **_of_products(forward.mean(0), backward.mean(0)),
                "composite_column_norm": float(energy),
            }
    return [rows[place] for place in sorted(rows)]


def _products(chain: Sequence[Sample]) -> tuple[list[Tensor], list[Tensor], bool]:
    """Return for each layer the product from the first to it and from it to the last, and whether token by token."""
    matrices = [sample.matrices() for sample in chain]
    whole = len({len(m) for m in matrices} - {1}) <= 1
    if not whole:  # pooled in between: no token is the same before and after
        matrices = [m.mean(0, keepdim=True) for m in matrices]
    before = list(itertools.accumulate(matrices, lambda product, m: m @ product))
    after = list(itertools.accumulate(reversed(matrices), lambda product, m: product @ m))
    return before, after[::-1], whole


def _of_layer(sample: Sample) -> dict[str, float]:
    m = sample.matrices()
    mean, size = m.mean(0), m.abs()
    shares = m / m.sum(-1, keepdim=True)
    entropy = torch.special.entr(shares).sum(-1).mean() if bool((m >= 0).all()) else torch.tensor(math.nan)
    squares = sample.gram.diagonal(dim1=-2, dim2=-1)
    norms = squares.sqrt()
    cosines = sample.gram / (norms.unsqueeze(-1) * norms.unsqueeze(-2))
    upper = torch.triu_indices(cosines.shape[-1], cosines.shape[-1], 1)
    sizes = squares.mean(0).sqrt()
    numbers = {
        "mixing_row_deviation": (m.sum(-1) - 1).abs().amax(),
        "mixing_column_deviation": (m.sum(-2) - 1).abs().amax(),
        "mixing_forward_gain": mean.sum(-1).abs().amax(),
        "mixing_backward_gain": mean.sum(-2).abs().amax(),
        "mixing_entropy": entropy,
        "mixing_diagonal": (size.diagonal(dim1=-2, dim2=-1) / size.sum(-1)).nanmean(),
        "read_share": _shares(sample.read).amax(),
        "write_share": _shares(sample.write).amax(),
        "stream_cosine": cosines[..., upper[0], upper[1]].nanmean(),
        "stream_rms_ratio": sizes.amax() / sizes.amin(),
        "coefficient_rounding": sample.rounding.amax(),
    }
    return {name: float(value) for name, value in numbers.items()}


def _shares(weights: Tensor) -> Tensor:
    mean = weights.mean(0)
    return mean / mean.sum()


def _of_products(forward: Tensor, backward: Tensor) -> dict[str, float]:
    columns = backward.sum(-2)
    logs = torch.where(columns > 0, columns.log().abs(), math.inf)
    numbers = {
        "composite_forward_gain": float(forward.sum(-1).abs().amax()),
        "composite_backward_gain": float(columns.abs().amax()),
        "composite_log_column_sum": math.nan if bool(columns.isnan().any()) else float(logs.amax()),
    }
    names = ("second_eigenvalue", "smallest_singular_value", "effective_rank")
    if not bool(forward.isfinite().all()):
        return {**numbers, **dict.fromkeys(names, math.nan)}
    modulus = torch.linalg.eigvals(forward).abs().sort(descending=True).values
    singular = torch.linalg.svdvals(forward)
    rank = torch.special.entr(singular / singular.sum()).sum().exp()
    second = float(modulus[1]) if len(modulus) > 1 else math.nan
    return {**numbers, **dict(zip(names, (second, float(singular[-1]), float(rank)), strict=True))}


def site_of(name: str, sites: Sequence[Site], *, ahead: bool = False) -> int | None:
    """Return which block a connection belongs to: the one that holds it, that has its parameters, or lies beside it.

    Where a loop in the model's own forward adds, a block ends with what is made to read for the next one: the
    connection belongs to that.

    Args:
        name: qualified name of the connection.
        sites: the blocks.
        ahead: whether the connection reads for the next layer, so that its coefficients follow its branch.
    """
    held = _holding(name, sites)
    if held is not None:
        return held.order
    own = [site for site in sites if any(p.startswith(f"{name}.") for p in site.parameters)]
    if own and not ahead and not own[0].parameters[0].startswith(f"{name}.") and own[0] is not sites[-1]:
        return sites[list(sites).index(own[0]) + 1].order
    beside = f"{name.rpartition('.')[0]}."
    own = own or [site for site in sites if beside != "." and site.name.startswith(beside)]
    return own[0].order if own else None


def _holding(name: str, sites: Sequence[Site]) -> Site | None:
    held = [site for site in sites if name == site.name or name.startswith(f"{site.name}.")]
    return max(held, key=lambda site: len(site.name)) if held else None


def in_passes(samples: Sequence[tuple[int, Sample]], sites: Sequence[Site]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the signals by site, averaged over passes, and the facts for a trace's context.

    The facts are `mixing` and `stream_weights` by layer, and the `chains`: the names of their layers in order, the
    block of each, and whether layers make what the next one reads. A layer has its block's name if it is the only one
    that the block holds, else its own.

    Args:
        samples: with the number of their pass, in float64 on the host.
        sites: the blocks.
    """
    passes = [chains_of([s for _, s in group]) for _, group in itertools.groupby(samples, lambda held: held[0])]
    if not passes:
        return {}, {}
    places = {s.name: site_of(s.name, sites, ahead=s.ahead) for _, s in samples}
    columns = [_by_site(chains, places, len(sites)) for chains in passes]
    signals = {name: torch.stack([column[name] for column in columns]).nanmean(0) for name in MIXING_SIGNALS}
    counts = Counter(places.values())
    keys = {}
    for name, place in places.items():
        held = _holding(name, sites)
        keys[name] = held.name if held is not None and counts[place] == 1 else name
    chains = _joined(passes)
    mixing, weights, told = {}, {}, []
    for names in chains:
        found = [chain for held in passes for chain in held if chain.samples[0].name in names]
        for name in names:
            own = [sample for chain in found for sample in chain.samples if sample.name == name]
            mixing[keys[name]] = _mean([sample.matrices().mean(0) for sample in own])
            weights[keys[name]] = {
                "read": _mean([_shares(sample.read) for sample in own]),
                "write": _mean([_shares(sample.write) for sample in own]),
            }
        heads = [_shares(chain.head) for chain in found if chain.head is not None]
        if heads:
            weights[keys[names[-1]]]["head"] = _mean(heads)
        told.append(
            {
                "layers": [keys[name] for name in names],
                "sites": [None if (place := places[name]) is None else sites[place].name for name in names],
                "reads_ahead": bool(heads),
            }
        )
    return signals, {"mixing": mixing, "stream_weights": weights, "chains": told}


def _joined(passes: Sequence[Sequence[Chain]]) -> list[list[str]]:
    """Return the names of each chain's layers; a pass may have run some of them only."""
    joined: list[dict[str, None]] = []
    for chain in (chain for chains in passes for chain in chains):
        names = dict.fromkeys(sample.name for sample in chain.samples)
        held = next((one for one in joined if one.keys() & names.keys()), None)
        if held is None:
            joined.append(names)
        else:
            held.update(names)
    return [list(names) for names in joined]


def _mean(tensors: Sequence[Tensor]) -> Any:
    return torch.stack(list(tensors)).mean(0).tolist()


def _by_site(chains: Sequence[Chain], places: Mapping[str, int | None], count: int) -> dict[str, Tensor]:
    """Return the signals as `(sites,)` tensors; a block with several layers shows the worst of them, or their mean."""
    names = dict(sorted((p, s.name) for chain in chains for p, s in zip(chain.places, chain.samples, strict=True)))
    held: dict[int, list[Mapping[str, float]]] = {}
    for name, row in zip(names.values(), _rows(chains), strict=True):
        place = places[name]
        if place is not None:
            held.setdefault(place, []).append(row)
    result = {name: torch.full((count,), math.nan, dtype=torch.float64) for name in MIXING_SIGNALS}
    for place, found in held.items():
        for name, column in result.items():
            values = torch.tensor([row[name] for row in found if not math.isnan(row[name])], dtype=torch.float64)
            if len(values):
                worst = values.amin() if name in _LEAST else values.amax()
                column[place] = values.mean() if name in _MEAN else worst
    return result
