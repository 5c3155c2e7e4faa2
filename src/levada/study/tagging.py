"""A tagger of several bidirectional LSTM layers: built, trained with or without intermediate losses, and scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from levada._errors import require_at_least
from levada.study.treebank import LEVELS, Sentence, Vocabulary
from levada.supervision import Head, Supervision

__all__ = ["Tagger", "TaggingRecipe", "correct_by_sentence", "supervised_tagger", "train_tagger"]


@final
@dataclass(frozen=True, slots=True)
class TaggingRecipe:
    """How to train: Adam, a constant learning rate, gradients clipped at norm 5.

    Attributes:
        epochs: how often the sentences are gone through.
        batch_size: sentences in a batch.
        lr: the learning rate.

    Raises:
        UsageError: if `epochs` or `batch_size` is below 1, or `lr` is negative.
    """

    epochs: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        require_at_least("TaggingRecipe", "epochs", self.epochs, 1)
        require_at_least("TaggingRecipe", "batch_size", self.batch_size, 1)
        require_at_least("TaggingRecipe", "lr", self.lr, 0.0)


@final
class Tagger(nn.Module):
    """Embedded features, added; dropout; bidirectional LSTM layers; a linear map to scores.

    Args:
        sizes: how many numbers each feature has.
        num_labels: number of labels.
        dim: width of the embedding, and of both directions of a layer together.
        depth: number of layers.
        dropout: share of the embedding that is dropped.

    Shape:
        A packed sequence of features, data `(tokens, features)` -> `(tokens, num_labels)`, in packed order.

    Example:
        >>> tagger = Tagger([10, 5], 3, dim=8)
        >>> tagger(pack_sequence([torch.ones(4, 2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.int64)])).shape
        torch.Size([6, 3])
    """

    def __init__(
        self, sizes: Sequence[int], num_labels: int, *, dim: int, depth: int = 3, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(nn.LSTM(dim, dim // 2, bidirectional=True) for _ in range(depth))
        self.head = nn.Linear(dim, num_labels)

    def forward(self, features: PackedSequence) -> Tensor:
        """Return the scores of every token."""
        embedded = [table(number) for table, number in zip(self.embeddings, features.data.unbind(1), strict=True)]
        x = features._replace(data=self.dropout(torch.stack(embedded).sum(0)))
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x.data)  # type: ignore[no-any-return]


def supervised_tagger(vocabulary: Vocabulary, dim: int, site: int | None, seed: int) -> Supervision:
    """Return a tagger of relations; with a head for parts of speech at a layer, or with one whose weight is 0.

    All arms draw the same weights, so that they differ in the head's weight and place alone.

    Args:
        vocabulary: of the training sentences.
        dim: width.
        site: the layer with the head, from 0; None for no intermediate loss.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = Tagger(vocabulary.sizes, vocabulary.num_labels("relation"), dim=dim)
        own = nn.Linear(dim, vocabulary.num_labels("upos"))
    head = Head(own, weight=0.0 if site is None else 1.0, target="upos", select=lambda out: out[0].data)
    return Supervision(tagger, {f"layers.{site or 0}": head}, cross_entropy, target="relation")


def train_tagger(
    supervised: Supervision, vocabulary: Vocabulary, sentences: Sequence[Sentence], recipe: TaggingRecipe, seed: int
) -> list[float]:
    """Train a tagger.

    Args:
        supervised: what `supervised_tagger` returned.
        vocabulary: of these sentences.
        sentences: the training sentences.
        recipe: how.
        seed: of the order of the sentences and of dropout.

    Returns:
        The mean loss of the output in each epoch, in nats.

    Raises:
        UsageError: if there are fewer sentences than a batch has.
    """
    least = recipe.batch_size
    require_at_least("train_tagger", "the number of sentences", len(sentences), least, "Use a smaller batch.")
    packed = _encoded(vocabulary, sentences)
    optimizer = torch.optim.Adam(supervised.parameters(), lr=recipe.lr)
    supervised.train()
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(recipe.epochs):
            found = []
            for features, targets in _batches(packed, recipe.batch_size):
                optimizer.zero_grad()
                result = supervised(features, targets=targets)
                result.loss.backward()
                nn.utils.clip_grad_norm_(supervised.parameters(), 5.0)
                optimizer.step()
                found.append(result.losses["output"])
            losses.append(torch.stack(found).mean().item())
    return losses


@torch.no_grad()
def correct_by_sentence(tagger: nn.Module, vocabulary: Vocabulary, sentences: Sequence[Sentence]) -> list[int]:
    """Return how many tokens of each sentence get the right relation, in evaluation mode.

    Args:
        tagger: the model alone.
        vocabulary: of the training sentences.
        sentences: what to tag.
    """
    tagger.eval()
    found: list[int] = []
    for start in range(0, len(sentences), 64):
        encoded = _encoded(vocabulary, sentences[start : start + 64])
        features, targets = _packed(encoded)
        right = (tagger(features).argmax(-1) == targets["relation"]).long()
        found += pad_packed_sequence(features._replace(data=right))[0].sum(0).tolist()
    return found


def _encoded(vocabulary: Vocabulary, sentences: Sequence[Sentence]) -> list[dict[str, Tensor]]:
    return [
        {"features": vocabulary.features(s), **{level: vocabulary.labels(s, level) for level in LEVELS}}
        for s in sentences
    ]


def _batches(encoded: Sequence[dict[str, Tensor]], batch_size: int) -> Iterator[tuple[PackedSequence, dict[str, Any]]]:
    """Give batches in a random order; a rest that does not fill a batch is a batch too."""
    for index in torch.split(torch.randperm(len(encoded)), batch_size):
        yield _packed([encoded[i] for i in index.tolist()])


def _packed(encoded: Sequence[dict[str, Tensor]]) -> tuple[PackedSequence, dict[str, Any]]:
    """Return packed features, and the labels in the same order."""
    packed = {key: pack_sequence([one[key] for one in encoded], enforce_sorted=False) for key in encoded[0]}
    return packed["features"], {level: packed[level].data for level in LEVELS}
