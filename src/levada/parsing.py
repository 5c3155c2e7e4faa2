"""Parsing of the command line: what is wrong with its words is said in one sentence, with the rule and what to do."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from levada._names import meant

__all__ = ["TRIED", "UNUSABLE", "Parser", "at_least", "number"]

UNUSABLE: Final = 2  # the exit code

# Words that are tried where a command has another name -> what to give.
TRIED: Final = {
    word: told
    for words, told in (
        ("watch monitor trace record", "A training script is watched by: levada run SCRIPT"),
        ("explain inspect diagnose analyse analyze lint test verify", "A model is looked at by: levada check MODEL"),
        ("repair patch heal remedy", "What repairs a model is found by: levada fix MODEL"),
        ("view show open page html plot summary compare", "Runs are shown by: levada report RUN"),
        ("fit resume continue", "A configuration is trained, and goes on, by: levada train CONFIG.toml --resume"),
        ("reproduce prove claim claims studies", "A paper's claim is tested by: levada study NAME"),
        ("sweep grid search", "A grid is computed by: levada study NAME; docs/studies.md has one of your own"),
        ("benchmark benchmarks", "Benchmarks are run by: levada bench NAME"),
        ("tensorboard wandb mlflow trackio log", "A run goes to a tracker by: levada export RUN --to NAME"),
        ("fsck damage reseal recover", "A run's files are checked, and mended, by: levada doctor RUN --reseal"),
        ("debug rerun reply", "A kept step is run again by: levada replay BUNDLE --model MODEL"),
        ("convert", "A model's connections are replaced in Python: levada.convert(model, levada.HyperConnection)"),
        ("ls names connections cells remedies rules", "What the library holds is named by: levada list KIND"),
        ("version", "The version is said by: levada --version"),
    )
    for word in words.split()
}


def _tried(word: str) -> str:
    """Say what is given in the place of a word that is no command; "" where that is not known."""
    for ending, command in ((".py", "run"), (".toml", "train")):
        if word.endswith(ending):
            return f"It is a file; perhaps: levada {command} {word}"
    if ".py:" in word:
        return f"It is a target; perhaps: levada check {word}"
    return TRIED.get(word.lower(), "")


def number(
    rule: str, fits: Callable[[float], bool], advice: str = "", *, kind: Callable[[str], float] = float
) -> Callable[[str], float]:
    """Return what reads a number that an option takes, and refuses others with the rule and what was typed.

    Args:
        rule: what it must be.
        fits: whether a number is so.
        advice: one more sentence, what to do instead.
        kind: `int` for what is counted.

    Example:
        >>> number("must be positive", lambda value: value > 0)("1e-3")
        0.001
        >>> number("must be at least 1", lambda value: value >= 1, kind=int)("1e3")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: must be a whole number, got '1e3'
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{rule}, got {text}.{f' {advice}' if advice else ''}".removesuffix("."))
        return value

    return read


def at_least(least: int, advice: str = "") -> Callable[[str], float]:
    """Return what reads a whole number of a least size.

    Args:
        least: the smallest one.
        advice: what to do instead.
    """
    return number(f"must be at least {least}", lambda value: value >= least, advice, kind=int)


# What argparse says of one option, in words of this command line.
_WORDS: Final = (
    (r"^argument (\S+?)(/\S+)?: expected (?:one|at least one) argument$", r"\1 takes a value, got none"),
    (r"^argument (\S+?)(/\S+)?: ignored explicit argument (.*)$", r"\1 takes no value, got \3"),
    (r"^argument (\S+?)(/\S+)?: not allowed with argument (\S+)$", r"\1 cannot be given together with \3"),
    (r"^argument (\S+?)(/\S+)?: ", r"\1 "),
    (r"^the following arguments are required: (.*)$", r"\1 must be given"),
)


_MISSING: Final = ("must be given", "takes a value, got none")
_NEGATIVE: Final = re.compile(r"^-(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$|^-(inf(inity)?|nan)$", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the words of a command in one sentence: the rule, what came, what to do."""

    _came: Sequence[str] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # half of `--reseal` must not write
        # Python 3.11 takes -1e-3 for an option, so that what is wrong with the number is not said.
        self._negative_number_matcher = _NEGATIVE

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the words, for what is said of them."""
        self._came = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(one) for one in action.choices]
            hint = _tried(value) if isinstance(action, argparse._SubParsersAction) else ""
            near = f" {hint}" if hint else meant(str(value), known)
            told = f"must be one of {', '.join(known)}, got {value!r}.{near}"
            raise argparse.ArgumentError(action, told.removesuffix("."))

    def error(self, message: str) -> NoReturn:
        """End with one sentence in words of this command line.

        Args:
            message: argparse's.
        """
        for pattern, words in _WORDS:
            message = re.sub(pattern, words, message)
        if message.endswith(_MISSING) and (wrong := self._unknown(self._came)):
            message = wrong  # which may be why it is missing
        end = "" if message.endswith("?") else "."
        sys.stderr.write(f"{self.prog}: {message}{end} Try: {self.prog} --help\n")
        sys.exit(UNUSABLE)

    def unrecognized(self, words: Sequence[str]) -> NoReturn:
        """End with what is said of words that no argument takes.

        Args:
            words: those words.
        """
        self.error(self._unknown(words) or f"there is no place for {' '.join(map(repr, words))}")

    def _unknown(self, words: Sequence[str]) -> str:
        """Say which option there is not; "" if all are known."""
        own = [name for name in self._option_string_actions if name.startswith("--")]
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                break
            if name.startswith("--") and name not in own:
                return f"there is no option {name}.{meant(name, own)}".removesuffix(".")
            known = name in self._option_string_actions or self._negative_number_matcher.match(name)
            if name.startswith("-") and not name.startswith("--") and not known:
                return f"there is no option {name}"
        return ""
