"""Tasks of recall: pairs of a key and a value are read, then keys are asked for; the sequence holds the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least

__all__ = [
    "IGNORED",
    "RecallBatch",
    "induction",
    "key_value_recall",
    "multi_query_recall",
    "recall_chance",
    "recall_vocabulary",
    "slot_chance",
]

IGNORED = -100  # a target that is not asked for, as torch's cross-entropy has it


@final
@dataclass(frozen=True, slots=True)
class RecallBatch:
    """Sequences, and what is asked at which of their places.

    Attributes:
        tokens: `(batch, length)` of indices.
        targets: the answer where one is asked for, else `IGNORED`; `(batch, length)`.
        places: where in the sequence the answer stands, -1 where none is asked for; `(batch, length)`.
    """

    tokens: Tensor
    targets: Tensor
    places: Tensor


def recall_vocabulary(keys: int, values: int) -> int:
    """Return the number of tokens: a blank, which is token 0; keys, which are odd; values, which are even.

    So a small vocabulary is the beginning of a larger one, and a network may learn with few tokens first.

    Args:
        keys: number of tokens that are keys.
        values: number of tokens that are values.

    Example:
        >>> recall_vocabulary(64, 64)
        129
    """
    return 1 + max(2 * keys - 1, 2 * values)


def _distinct(batch_size: int, number: int, of: int, generator: torch.Generator) -> Tensor:
    """Draw `number` of `of` without replacement, in each row anew."""
    return torch.rand(batch_size, of, generator=generator).argsort(-1)[:, :number]


def _pairs(
    owner: str, batch_size: int, num_pairs: int, keys: int, values: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    require_at_least(owner, "batch_size", batch_size, 1)
    require_at_least(owner, "num_pairs", num_pairs, 1)
    for name, number in (("keys", keys), ("values", values)):
        require_at_least(owner, name, number, num_pairs, f"Each of the {num_pairs} pairs has one of its own.")
    key = 2 * _distinct(batch_size, num_pairs, keys, generator) + 1
    value = 2 * _distinct(batch_size, num_pairs, values, generator) + 2
    return key, value


def _slot_weights(slots: int, power: float) -> Tensor:
    """Weights of the slots, `s^(power - 1)`, in float64."""
    return torch.arange(1, slots + 1, dtype=torch.float64) ** (power - 1)


def _slots_of(num_pairs: int, length: int | None) -> int:
    wanted = 4 * num_pairs if length is None else length
    require_at_least(
        "multi_query_recall", "length", wanted, 4 * num_pairs,
        f"{num_pairs} pairs and {num_pairs} questions take two tokens each.",
    )  # fmt: skip
    return (wanted - 2 * num_pairs) // 2


def multi_query_recall(
    batch_size: int,
    num_pairs: int,
    *,
    keys: int,
    values: int,
    length: int | None = None,
    power: float = 0.01,
    generator: torch.Generator,
) -> RecallBatch:
    """Draw sequences of multi-query associative recall (MQAR): pairs, then every key once, in slots of two tokens.

    Keys are distinct within a sequence, and so are values. The i-th key is asked for in the i-th slot of a draw without
    replacement with weights `s^(power - 1)`, s = 1, 2, ... from the pairs on: as in text, most repeats come soon. What
    is in no pair and no question is blank.

    Args:
        batch_size: number of sequences.
        num_pairs: number of pairs.
        keys: number of tokens that are keys.
        values: number of tokens that are values.
        length: of a sequence; `4 num_pairs`, which leaves no slot empty, if left out.
        power: 1 draws all slots alike.
        generator: of all draws.

    Shape:
        Returns tensors of `(batch_size, length)`; the answer is asked for at the key's place.

    Raises:
        UsageError: if there are more pairs than keys or values, or the sequence is too short.

    Example:
        >>> batch = multi_query_recall(2, 3, keys=8, values=8, generator=torch.Generator().manual_seed(0))
        >>> batch.tokens.shape, (batch.targets != IGNORED).sum(-1).tolist()
        (torch.Size([2, 12]), [3, 3])
        >>> asked = batch.places >= 0
        >>> bool((batch.tokens.gather(1, batch.places.clamp_min(0))[asked] == batch.targets[asked]).all())
        True

    Source: Arora et al. 2023, arXiv 2312.04927, and the code published with it, where random tokens may stand in place
    of the blanks.
    """
    slots = _slots_of(num_pairs, length)
    key, value = _pairs("multi_query_recall", batch_size, num_pairs, keys, values, generator)
    # The order of Gumbel-perturbed log weights is that of draws one by one without replacement.
    gumbel = -torch.empty(batch_size, slots, dtype=torch.float64).exponential_(generator=generator).log()
    slot = (_slot_weights(slots, power).log() + gumbel).argsort(-1, descending=True)[:, :num_pairs]
    total = 2 * num_pairs + 2 * slots if length is None else length
    tokens = torch.zeros(batch_size, total, dtype=torch.int64)
    tokens[:, : 2 * num_pairs : 2], tokens[:, 1 : 2 * num_pairs : 2] = key, value
    at = 2 * num_pairs + 2 * slot
    return _asked(tokens.scatter(1, at, key), at, value, (2 * torch.arange(num_pairs) + 1).expand_as(at))


def _asked(tokens: Tensor, at: Tensor, answers: Tensor, where: Tensor) -> RecallBatch:
    targets = torch.full_like(tokens, IGNORED).scatter(1, at, answers)
    return RecallBatch(tokens, targets, torch.full_like(tokens, -1).scatter(1, at, where))


def key_value_recall(
    batch_size: int, num_pairs: int, *, keys: int, values: int, generator: torch.Generator
) -> RecallBatch:
    """Draw sequences of pairs with one question at the end: `k_1 v_1 ... k_P v_P k_i`, answer `v_i`.

    Keys are distinct within a sequence, and so are values; each pair is asked for equally often.

    Args:
        batch_size: number of sequences.
        num_pairs: number of pairs.
        keys: number of tokens that are keys.
        values: number of tokens that are values.
        generator: of all draws.

    Shape:
        Returns tensors of `(batch_size, 2 num_pairs + 1)`.

    Raises:
        UsageError: if there are more pairs than keys or values.

    Example:
        >>> batch = key_value_recall(5, 3, keys=8, values=8, generator=torch.Generator().manual_seed(0))
        >>> bool((batch.tokens.gather(1, batch.places[:, -1:]) == batch.targets[:, -1:]).all())
        True

    Source: the associative recall of Ba et al. 2016, arXiv 1610.06258, with tokens for keys and values.
    """
    key, value = _pairs("key_value_recall", batch_size, num_pairs, keys, values, generator)
    asked = torch.randint(num_pairs, (batch_size, 1), generator=generator)
    tokens = torch.cat([torch.stack([key, value], -1).flatten(1), key.gather(1, asked)], 1)
    at = torch.full((batch_size, 1), 2 * num_pairs)
    return _asked(tokens, at, value.gather(1, asked), 2 * asked + 1)


def induction(
    batch_size: int, num_tokens: int, *, vocabulary: int, questions: int = 1, generator: torch.Generator
) -> RecallBatch:
    """Draw sequences of distinct random tokens and then some of them again; the answer is what followed: `A B ... A`.

    Nothing but the order tells the answer: a token is before one token and after another. The tokens that are asked
    for are distinct and any but the last of the first part, so that an answer is always there, once. They come in
    random order: where a whole sequence is repeated, to look back by a fixed distance is enough, which takes one layer.

    Args:
        batch_size: number of sequences.
        num_tokens: number of distinct tokens that are read first.
        vocabulary: number of tokens.
        questions: number of tokens that are asked for.
        generator: of all draws.

    Shape:
        Returns tensors of `(batch_size, num_tokens + questions)`.

    Raises:
        UsageError: if there are more tokens to be read than the vocabulary has, fewer than two, or fewer tokens with a
            successor than questions.

    Example:
        >>> batch = induction(1, 4, vocabulary=9, questions=3, generator=torch.Generator().manual_seed(0))
        >>> read, asked = batch.tokens[0, :4].tolist(), batch.tokens[0, 4:].tolist()
        >>> [read[read.index(token) + 1] for token in asked] == batch.targets[0, 4:].tolist()
        True

    Source: Olsson et al. 2022, arXiv 2209.11895.
    """
    require_at_least("induction", "batch_size", batch_size, 1)
    require_at_least("induction", "num_tokens", num_tokens, 2, "One token alone has no successor.")
    require_at_least("induction", "vocabulary", vocabulary, num_tokens, "The tokens that are read first are distinct.")
    require_at_least("induction", "questions", questions, 1)
    if questions > num_tokens - 1:
        raise UsageError(
            f"induction: questions must be at most num_tokens - 1 = {num_tokens - 1}, the tokens that have a "
            f"successor, got {questions}."
        )
    read = _distinct(batch_size, num_tokens, vocabulary, generator)
    where = _distinct(batch_size, questions, num_tokens - 1, generator)
    tokens = torch.cat([read, read.gather(1, where)], 1)
    at = (num_tokens + torch.arange(questions)).expand_as(where)
    return _asked(tokens, at, read.gather(1, where + 1), where + 1)


def recall_chance(num_pairs: int, remembered: int = 0) -> float:
    """Return the accuracy of who knows some pairs, and of the others which values there are but not whose they are.

    `min(1, (remembered + 1) / num_pairs)`: the pairs that are known, `r / P`, and of the other `P - r` one in `P - r`.
    Of `induction` with n tokens the same with `num_pairs = n - 1`: the tokens that can be the successor of a token.

    It is exact where the place of a question tells nothing about its answer: `key_value_recall`, `induction`, and
    `multi_query_recall` with `power=1`; see `slot_chance` for other powers.

    Args:
        num_pairs: number of pairs.
        remembered: number of pairs that are known.

    Raises:
        UsageError: if more pairs are known than there are.

    Example:
        >>> recall_chance(64), recall_chance(64, 31), recall_chance(64, 64)
        (0.015625, 0.5, 1.0)
    """
    require_at_least("recall_chance", "num_pairs", num_pairs, 1)
    require_at_least("recall_chance", "remembered", remembered, 0)
    if remembered > num_pairs:
        raise UsageError(f"recall_chance: remembered must be at most num_pairs = {num_pairs}, got {remembered}.")
    return min(1.0, (remembered + 1) / num_pairs)


def slot_chance(num_pairs: int, *, length: int | None = None, power: float = 0.01) -> float:
    r"""Return the accuracy in `multi_query_recall` of who knows all values in their order and no key.

    The best such guess at slot s is the pair that is most often asked for there,

    $$ \frac{1}{P} \sum_s \max_{i \le P} \Pr[\text{s is drawn as the i-th}], $$

    with draws one by one without replacement as the order of independent exponential times of rates $w_s$: the rank of
    a slot is 1 plus a sum of independent indicators, whose law is a polynomial product, integrated over its time.

    Args:
        num_pairs: number of pairs.
        length: as in `multi_query_recall`.
        power: as in `multi_query_recall`.

    Returns:
        The accuracy, to about 1e-6.

    Raises:
        UsageError: if the sequence is too short.

    Example:
        >>> round(slot_chance(4, power=1.0), 6), round(slot_chance(2, power=0.0), 6)
        (0.25, 0.666667)
    """
    require_at_least("slot_chance", "num_pairs", num_pairs, 1)
    weights = _slot_weights(_slots_of(num_pairs, length), power)
    weights = weights / weights.sum()
    # Times on a logarithmic grid: the first of all is exponential of rate 1, the last slot has the least rate.
    steps = torch.linspace(math.log(1e-9), math.log(60 / float(weights.min())), 4000, dtype=torch.float64)
    time = steps.exp()
    come = -torch.expm1(-weights[:, None] * time)  # of each slot: whether it has come by then
    best = 0.0
    for slot, weight in enumerate(weights):
        rank = torch.zeros(num_pairs, len(time), dtype=torch.float64)
        rank[0] = 1.0
        for other, share in enumerate(come):
            if other != slot:
                rank = rank * (1 - share) + torch.cat([torch.zeros_like(rank[:1]), rank[:-1] * share])
        density = weight * torch.exp(-weight * time) * time  # by the logarithm of time
        best += float(torch.trapezoid(rank * density, steps).max())
    return best / num_pairs
