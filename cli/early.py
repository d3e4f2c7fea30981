"""What of a run's files can be looked at before torch is imported."""

from pathlib import Path
from typing import Any

from cli.folders import imported
from fwlight.errors import ConfigError
from fwlight.integrity import Verified, check_whole

_MOST_BYTES = 1 << 28
"""Of larger checkpoints the digest is verified once, when they are loaded."""


def check_files(config: dict[str, Any]) -> Verified | None:
    """Check the checkpoint that is named, and what the task's `_check_` can say of its data.

    Returns:
        The checkpoint, if all of it was verified.

    Raises:
        CheckpointError: The checkpoint is missing, a URL or damaged.
        DataError: The data cannot be used.
        ConfigError: There is no folder for the output.
    """
    if config["output"] is not None and not Path(config["output"]).parent.is_dir():
        raise ConfigError(f"output={config['output']} is in no folder that exists")
    if config["action"] != "fit":
        # The task is the checkpoint's.
        if config["against"] is not None:
            check_whole(config["against"], most_bytes=_MOST_BYTES)
        return check_whole(config["ckpt"], most_bytes=_MOST_BYTES)
    verified = None
    if config["resume"] not in ("never", "auto"):
        verified = check_whole(config["resume"], most_bytes=_MOST_BYTES)
    if check := config["task"].get("_check_"):
        imported(check)(config["task"])
    return verified
