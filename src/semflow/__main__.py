"""`python -m semflow`, the same as the command `semflow`."""

import sys

from semflow.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
