"""Where runs are made: a launcher is a function in a file here and its keys in conf/launcher/.

It is given `points` and `progress`, and its keys by name. It returns the first exit code that is
not 0, or None if it does not wait for the runs.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cli.composition import Composition, compose_config
from cli.folders import imported
from cli.launch import LOCAL, of_srun, run_dir
from cli.points import Point
from cli.sweep_progress import SweepProgress
from fwlight.errors import ConfigError
from fwlight.runs import as_text, read_run


def launcher(composition: Composition) -> Callable[[Sequence[Point], SweepProgress], int | None]:
    """Return the launcher that a configuration chooses."""
    section = composition.config["launcher"]
    keys = {key: value for key, value in section.items() if not key.startswith("_")}
    return partial(imported(section["_target_"]), **keys)


def is_local(composition: Composition) -> bool:
    """Say whether runs are made on this machine."""
    return composition.config["launcher"]["_target_"] == LOCAL


def without_launcher(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that say what is run, and those that say where."""
    where = [x for x in arguments if x.partition("=")[0].partition(".")[0] == "launcher"]
    return [x for x in arguments if x not in where], where


def launch_alone(composition: Composition, arguments: Sequence[str]) -> int:
    """Let a launcher make the one run of a command line; return its exit code.

    Raises:
        ConfigError: It is none of training, goes on from a checkpoint elsewhere, or is one of
            several processes.
    """
    config = composition.config
    name = f"launcher={composition.choices['launcher']}"
    if "RANK" in os.environ or of_srun():
        raise ConfigError(
            f"{name} submits a job: start it as one process, without srun or torchrun"
        )
    if config["action"] != "fit":
        raise ConfigError(f"{name} is for action=fit, not for action={config['action']}")
    if config["resume"] not in ("never", "auto"):
        raise ConfigError(
            f"resume={config['resume']} with {name}, whose job may be started again: use "
            "resume=auto, with the checkpoint as checkpoints/last.ckpt in run_dir"
        )
    folder = Path(run_dir(composition)).resolve()
    what, where = without_launcher(arguments)
    what = [x for x in what if x.partition("=")[0] != "run_dir"] + [f"run_dir={folder}"]
    point = Point(folder.name, what, compose_config([*what, *where]))
    code = launcher(composition)([point], SweepProgress(1, finished=0))
    if code is not None:
        print("\n" + as_text([read_run(folder)]), end="", flush=True)
    return code or 0
