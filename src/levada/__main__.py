"""`python -m levada` is the command line."""

import sys

from levada.cli import main

if __name__ == "__main__":
    sys.exit(main())
