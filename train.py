"""Train a model, test it or let it write: `python train.py key=value ...`; see `--help`."""

import sys

from cli.main import main

if __name__ == "__main__":
    sys.exit(main())
