"""A run in Weights & Biases."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fwlight.run.files import write_atomically


class WeightsAndBiases(WandbLogger):
    """Lightning's logger, which a resumed run goes on with: the run's folder keeps its id.

    Args:
        save_dir: Folder of its files and of the id, below the run's.
        project: None: that of the environment, or fwlight.
        name: None: that of the run's folder.
        entity: A user or team; None: one's own.
        group: Of runs that belong together.
        tags: Of the run.
        notes: A text about the run.
        offline: Whether nothing is sent; `wandb sync` does that later.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(
        self,
        *,
        save_dir: Path,
        project: str | None = None,
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__(
            save_dir=save_dir.parent,  # where wandb makes a folder wandb/
            project=project or os.environ.get("WANDB_PROJECT", "fwlight"),
            name=name or save_dir.parent.name,
            id=_run_id(save_dir / "id"),
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
            mode="offline" if offline else None,
            settings={"console": "off"},  # standard output is the run's own
        )
        self._exit_code = 0

    @rank_zero_only
    def show_text(self, tag: str, text: str, step: int) -> None:
        """Show text as it is."""
        self.log_text(tag, columns=["text"], data=[[text]], step=step)

    @rank_zero_only
    def show_figure(self, tag: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure."""
        self.log_image(tag, [figure], step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Take note of how it ends; the test comes after training and logs on."""
        self._exit_code = int(status != "success")

    @rank_zero_only
    def close(self) -> None:
        """Send what is left, and end the run."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=self._exit_code)
            self._experiment = None


def _run_id(path: Path) -> str | None:
    """Return the id that a file keeps; rank zero makes one where there is none."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    if not path.exists():
        new = secrets.token_hex(4)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(new.encode()))
    return path.read_text(encoding="utf-8").strip()
