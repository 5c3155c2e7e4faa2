"""What the command line says of errors that are the machine's: what came of it, and what to do."""

from __future__ import annotations

import errno

import pytest

from levada import commands
from levada.cli import main


@pytest.mark.parametrize(
    ("error", "words", "code", "told"),
    [
        (MemoryError(), ["doctor", "runs"], 3, "not enough memory. End other programs, or use another machine."),
        (MemoryError(), ["report", "runs"], 3, "not enough memory. End other programs, or use another machine."),
        (MemoryError(), ["check", "model"], 3, "not enough memory. Use a smaller model or batch."),
        (OSError(errno.ENOSPC, "No space left"), ["doctor", "runs"], 2, "disk did not take what was written: No space"),
        (OSError(errno.ENOSPC, "No space left", "a/b"), ["doctor", "runs"], 2, "disk did not take 'a/b': No space"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), ["doctor", "runs"], 2, "'a/b' cannot be used: Per"),
    ],
)  # fmt: skip
def test_the_advice_is_one_that_the_command_s_user_can_follow(error, words, code, told, capsys, monkeypatch):
    def fails(options):
        raise error

    monkeypatch.setitem(commands.COMMANDS, words[0], fails)
    assert main(words) == code
    said = capsys.readouterr().err
    assert said.startswith(f"levada {words[0]}: ")
    assert told in said
