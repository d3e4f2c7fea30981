"""Several processes of one run: all start with the same arguments, data and version."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fwlight.errors import ConfigError

_MAY_DIFFER = (
    *("run_dir", "resume", "ckpt", "against", "input", "output", "task.num_workers"),
    *("task.path", "task.train", "task.valid", "task.test"),
)
"""Of a machine, not of a run: what paths lead to is compared, not where it lies."""
_MOST_SHOWN = 80
_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where launchers say how many processes they started."""


class SameStart(Callback):
    """Compares over all processes what they are about to do, and ends them if they differ.

    Ranks that trained different things would go on without a word: gradients are averaged, and
    metrics added, whatever they are of.

    Args:
        identity: What is trained or tested: `config` and `version`, as checkpoints store it.
        step: The step of the checkpoint to go on from, or to test; None without one.
    """

    def __init__(self, *, identity: Mapping[str, Any], step: int | None) -> None:
        self._known = {
            "the version": f"{identity.get('version')} (torch {torch.__version__})",
            **{k: v for k, v in _leaves(identity.get("config", {})) if k not in _MAY_DIFFER},
            # A folder without a checkpoint looks old to those who come after the first process.
            "the checkpoint's step": step or 0,
        }
        self._compared = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, before anything is distributed.

        Raises:
            ConfigError: In all processes, with the first difference; or a launcher started others,
                and this trainer knows nothing of them.
        """
        started = max(int(os.environ.get(name) or 1) for name in _SIZES)
        if started > 1 and trainer.world_size != started:
            raise ConfigError(
                f"a launcher started {started} processes, but this trainer is for "
                f"{trainer.world_size}, so that each would train by itself: set trainer=ddp, and "
                "trainer.devices and trainer.num_nodes as they were started"
            )
        if self._compared or trainer.world_size == 1:
            return
        self._compared = True
        # Lightning sets it where pyright does not see it.
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        of_data = sorted(data.state_dict().items(), key=lambda item: item[0] != "fingerprint")
        known = {**self._known, **{f"the data's {key}": value for key, value in of_data}}
        shown = {key: _shown(value) for key, value in known.items()}
        everywhere: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, shown)
        if (difference := _first_difference(everywhere)) is not None:
            raise ConfigError(
                f"{difference}: all processes of a run need the same arguments, data and version"
            )


def _first_difference(everywhere: list[dict[str, str]]) -> str | None:
    first = everywhere[0]
    for rank, other in enumerate(everywhere):
        for key in {**first, **other}:
            one, two = first.get(key), other.get(key)
            if one != two:
                return f"{key}={one} in rank 0, but {key}={two} in rank {rank}"
    return None


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _shown(value: Any) -> str:
    """Return a short text that differs where values do."""
    text = str(value)
    if len(text) <= _MOST_SHOWN:
        return text
    return f"(sha256 {hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]})"
