"""Sentences with labels on several levels, from an installed package; nothing is downloaded.

The Turkish treebanks of the package turkish-treebanks (`pip install --no-deps turkish-treebanks`) label the same tokens
with parts of speech, coarse and fine, and with their dependency relation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.study.packaged import packaged_file

__all__ = ["Sentence", "Treebank", "Vocabulary", "turkish_treebanks"]

_MD5 = {"web": "b17a8bfb67d50422f0cc858f39e239b5", "wiki": "94f5d5d86fb3aab457d41dc1f43ed652"}
LEVELS = ("upos", "xpos", "relation")


@final
@dataclass(frozen=True, slots=True)
class Sentence:
    """The tokens of a sentence, and what each is labelled with.

    Attributes:
        forms: the tokens as they are written.
        upos: their coarse part of speech.
        xpos: their fine part of speech.
        relation: the relation of each to the token that it depends on.
    """

    forms: tuple[str, ...]
    upos: tuple[str, ...]
    xpos: tuple[str, ...]
    relation: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.forms)


@final
@dataclass(frozen=True, slots=True)
class Treebank:
    """Labelled sentences in three parts.

    Attributes:
        name: the treebank's name.
        train: sentences to train on.
        validation: sentences to choose settings on.
        test: sentences to report.
    """

    name: str
    train: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]


def turkish_treebanks() -> Treebank:
    """4,851 Turkish sentences of the web and of Wikipedia: 81,370 tokens, which are inflectional groups.

    Sentences are counted from 0, the web's first: those whose number ends in 9 are the test part, those whose number
    ends in 8 the validation part, the others the training part.

    Returns:
        The treebank.

    Raises:
        UsageError: if the package turkish-treebanks is not installed.
        MeasurementError: if a file is not what its checksum says.

    Source: Kayadelen, Öztürel and Bohnet 2020, “A Gold Standard Dependency Treebank for Turkish”; package
    turkish-treebanks 1.0.0, Apache-2.0.
    """
    sentences: list[Sentence] = []
    for name, known in _MD5.items():
        path = packaged_file(
            "turkish-treebanks",
            f"data/{name}.conllu",
            known,
            what="The Turkish treebank",
            install="--no-deps turkish-treebanks",
        )
        sentences += _read_conllu(path.read_text(encoding="utf-8"))
    parts: dict[str, list[Sentence]] = {"train": [], "validation": [], "test": []}
    for number, sentence in enumerate(sentences):
        parts[{8: "validation", 9: "test"}.get(number % 10, "train")].append(sentence)
    return Treebank("turkish-treebanks", **{part: tuple(own) for part, own in parts.items()})


def _read_conllu(text: str) -> list[Sentence]:
    """Ten columns a token, a blank line after each sentence: form 2nd, parts of speech 4th and 5th, relation 8th."""
    sentences, rows = [], []
    for line in [*text.splitlines(), ""]:
        columns = line.split("\t")
        if len(columns) == 10 and columns[0].isdecimal():
            rows.append((columns[1], columns[3], columns[4], columns[7]))
        elif not line.strip() and rows:
            sentences.append(Sentence(*zip(*rows, strict=True)))
            rows = []
    return sentences


@final
class Vocabulary:
    """Numbers for what training sentences hold: each token as itself and as its last three, two and one letters.

    Letters are made small as in Turkish: "İ" becomes "i", and "I" becomes "ı".

    A form or ending that comes less than twice is number 0; so is what the training sentences do not hold. Labels that
    these lack have a number of their own after all others, so that they count as wrong.

    Args:
        sentences: the training sentences.

    Raises:
        UsageError: if there is none.

    Example:
        >>> one = Sentence(("ev", "evde"), ("NOUN", "NOUN"), ("NN", "NN"), ("nsubj", "root"))
        >>> vocabulary = Vocabulary([one, one])
        >>> vocabulary.features(one).shape, vocabulary.labels(one, "relation").tolist()
        (torch.Size([2, 4]), [0, 1])
    """

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        if not sentences:
            raise UsageError("Vocabulary: sentences must hold at least one.")
        counts = [Counter[str]() for _ in range(4)]
        for sentence in sentences:
            for form in sentence.forms:
                for counter, value in zip(counts, _spelled(form), strict=True):
                    counter[value] += 1
        frequent = [sorted(value for value, count in counter.items() if count > 1) for counter in counts]
        self._numbers = [{value: i for i, value in enumerate(values, 1)} for values in frequent]
        self._labels: Mapping[str, Mapping[str, int]] = {
            level: {label: i for i, label in enumerate(sorted({own for s in sentences for own in getattr(s, level)}))}
            for level in LEVELS
        }

    @property
    def sizes(self) -> list[int]:
        """How many numbers each of the four features has."""
        return [len(numbers) + 1 for numbers in self._numbers]

    def num_labels(self, level: str) -> int:
        """Return how many labels a level has.

        Args:
            level: "upos", "xpos" or "relation".
        """
        return len(self._labels[level])

    def features(self, sentence: Sentence) -> Tensor:
        """Return the four numbers of each token, `(tokens, 4)`.

        Args:
            sentence: any sentence.
        """
        rows = [[n.get(v, 0) for n, v in zip(self._numbers, _spelled(form), strict=True)] for form in sentence.forms]
        return torch.tensor(rows)

    def labels(self, sentence: Sentence, level: str) -> Tensor:
        """Return the number of each token's label, `(tokens,)`.

        Args:
            sentence: any sentence.
            level: "upos", "xpos" or "relation".
        """
        known = self._labels[level]
        return torch.tensor([known.get(label, len(known)) for label in getattr(sentence, level)])


def _spelled(form: str) -> tuple[str, str, str, str]:
    lower = form.replace("İ", "i").replace("I", "ı").lower()  # str.lower knows no Turkish
    return lower, lower[-3:], lower[-2:], lower[-1:]
