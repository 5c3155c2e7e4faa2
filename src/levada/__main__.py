"""`levada` and `python -m levada` are the command line, which is not imported yet: Ctrl-C may come meanwhile."""

import os
import sys

INTERRUPTED = 130


def start() -> int:
    """Run the command line and return its exit code, which `levada.cli.main` explains."""
    try:
        from levada.cli import main
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") in ("", "0"):  # of several processes the first one speaks
            sys.stderr.write("levada: interrupted; nothing was written.\n")
        return INTERRUPTED
    try:
        return main()
    except KeyboardInterrupt:  # once more, while it was told
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(start())
