"""Which process of a run this is, and where the run writes, known before torch is imported."""

import hashlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwlight.errors import ConfigError

if TYPE_CHECKING:
    from cli.composition import Composition

_RANKS = ("NODE_RANK", "LOCAL_RANK")
_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_STEP = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
_ANOTHER_RUN = 60.0
"""Seconds after which the same line is that of a later run: a step of srun may be a script."""
_RUN_DIR = "FWLIGHT_RUN_DIR"
LOCAL = "cli.launchers.local.run"
"""The launcher that makes runs on this machine."""


def first_process() -> bool:
    """Say whether this is the only process of a run, or the first."""
    # torchrun may be started by srun, and ranks its processes itself.
    ranks = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID",) if of_srun() else _RANKS
    return all(int(os.environ.get(name) or 0) == 0 for name in ranks)


def cores() -> int:
    """Return how many cores this process may use; not every system bounds that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_launched(trainer: Mapping[str, Any]) -> None:
    """Check that the processes of a run were started as the trainer expects, and can meet.

    Args:
        trainer: Its section of the configuration.

    Raises:
        ConfigError: They were not; with what to write instead.
    """
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    devices = len(devices) if isinstance(devices, list) else devices
    if "RANK" in os.environ:
        _check_torchrun()
    elif of_srun():
        _check_srun(devices, nodes)
        where = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        os.environ.setdefault("MASTER_ADDR", _first_node(where))
    elif nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but only this one process was started: put `srun "
            f"--nodes={nodes} --ntasks-per-node={devices}` before python, or use torchrun"
        )
    several = "RANK" in os.environ or of_srun() or nodes > 1 or devices not in (1, "auto")
    if several and (address := os.environ.get("MASTER_ADDR")) is not None:
        _check_address(address)


def of_srun() -> bool:
    """Say whether srun started this process as one of several; an allocation may hold more."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1


def _check_srun(devices: int | str, nodes: int) -> None:
    tasks, places = (int(os.environ.get(f"SLURM_STEP_NUM_{x}") or 1) for x in ("TASKS", "NODES"))
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"srun started {tasks} processes wherever there was room: say how many a node gets, "
            f"with --nodes={nodes} --ntasks-per-node={devices} instead of --ntasks={tasks}"
        )
    if places != nodes or devices not in (tasks // places, "auto"):
        raise ConfigError(
            f"srun started {tasks} processes on {places} node{'s' * (places > 1)}, but "
            f"trainer.num_nodes={nodes} trainer.devices={devices}: use `srun --nodes={nodes} "
            f"--ntasks-per-node={devices}`, or trainer=ddp trainer.num_nodes={places} "
            f"trainer.devices={tasks // places}"
        )


def _check_torchrun() -> None:
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    # Gloo finds the addresses of the processes that are gone: PyTorch's issues 135712 and 167288.
    if restarted and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            "torchrun cannot start processes again that meet in its own store; start it as "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun ... train.py ... resume=auto"
        )


def _first_node(listed: str) -> str:
    """Return the first name in SLURM's short form, such as `node[03-05,09],other`."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", listed).split(",")[0]


def _check_address(address: str) -> None:
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:  # torch would try for several times rank_timeout
        raise ConfigError(
            f"MASTER_ADDR={address}, where the processes of the run meet, is no name that this "
            f"machine knows ({error.strerror or error}); put an address of the first node into "
            "the environment as MASTER_ADDR"
        ) from error


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
    if not of_srun():
        return None
    step = ".".join(os.environ.get(key, "0") for key in _STEP)
    return Path(tempfile.gettempdir(), f"fwlight-{step}-{name}")


def run_dir(composition: "Composition") -> str:
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
