"""What a command does, one file each; conf/action/ names them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning import Trainer

from fwlight.training.module import TrainingModule


class Restored(NamedTuple):
    """What every action but fit is given beside its own keys: a checkpoint, unpacked."""

    module: TrainingModule
    """With the checkpoint's weights."""
    data: Any
    """The data module, which has taken what the checkpoint holds for it and read nothing yet."""
    checkpoint: dict[str, Any]
    path: str
    """Of the checkpoint."""
    configuration: str
    """The one in force, as YAML."""
    trainer: Callable[[], Trainer]
    """Makes a Trainer with the configuration's callbacks and no logger."""
