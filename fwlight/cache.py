"""Where files are kept that can be made anew: compiled kernels, downloads, encoded text."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return the folder that the environment names, which need not be there; None if it does not.

    It is $FWLIGHT_CACHE, $XDG_CACHE_HOME/fwlight or $HOME/.cache/fwlight, the first that is set.
    """
    if folder := os.environ.get("FWLIGHT_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "fwlight"
    if folder := os.environ.get("HOME"):
        return Path(folder) / ".cache" / "fwlight"
    return None
