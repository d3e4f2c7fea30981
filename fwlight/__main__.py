"""`fwlight key=value ...` and `python -m fwlight key=value ...`: train.py, from anywhere."""

import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run train.py as `python train.py` does; other processes of the run start that file, too."""
    installed = _HERE / "program"  # else this is a checkout
    program = installed if installed.is_dir() else _HERE.parent
    sys.path.insert(0, str(program))
    runpy.run_path(str(program / "train.py"), run_name="__main__")


if __name__ == "__main__":
    main()
