"""Which process of a run this is, and where the run writes, known before torch is imported."""

import hashlib
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path

from cli.composition import Composition
from fwlight.errors import ConfigError

_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
_SIZES = ("WORLD_SIZE", "SLURM_NTASKS")
_STEP = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
_ANOTHER_RUN = 60.0
"""Seconds after which the same line is that of a later run: a step of srun may be a script."""
_RUN_DIR = "FWLIGHT_RUN_DIR"


def first_process() -> bool:
    """Say whether this is the only process of a run, or the first."""
    return all(int(os.environ.get(name) or 0) == 0 for name in _RANKS)


def first_to_tell(line: str) -> bool:
    """Say whether no other process of a run on this machine has told this very line.

    Of launchers that leave their processes no place in common nothing is known.
    """
    if (told := _place_for(line)) is None:
        return True
    try:
        if told.exists() and time.time() - told.stat().st_mtime > _ANOTHER_RUN:
            told.unlink()
        told.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _place_for(line: str) -> Path | None:
    """Return the file that says a line was told.

    torchrun gives each process a file for its error, two folders below one that they share and that
    goes with the run. The tasks of srun share the numbers of their job and step.
    """
    name = f"told-{hashlib.sha256(line.encode()).hexdigest()}"
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        return Path(file).parent.parent / name
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    step = ".".join(os.environ.get(key, "0") for key in _STEP)
    return Path(tempfile.gettempdir(), f"fwlight-{step}-{name}")


def run_dir(composition: Composition) -> str:
    """Return the run's folder: the one asked for, or a new `runs/<task>_<model>/<date>-<time>`.

    The time differs between processes, so the first hands its choice to those it starts by an
    environment variable.

    Raises:
        ConfigError: If a launcher started several processes and none was asked for.
    """
    if composition.config["run_dir"] is not None:
        return composition.config["run_dir"]
    if not first_process() and _RUN_DIR in os.environ:
        return os.environ[_RUN_DIR]
    if not first_process() or any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
        raise ConfigError("processes started by a launcher need one run_dir=PATH for all of them")
    name = "{task}_{model}".format(**composition.choices)
    path = Path("runs", name, datetime.now().strftime("%Y%m%d-%H%M%S")).resolve()
    os.environ[_RUN_DIR] = str(path)
    return str(path)
