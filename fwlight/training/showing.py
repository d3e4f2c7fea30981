"""Texts, figures and layouts of charts in whatever loggers show them."""

from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_only


class ShowingModule(LightningModule):
    """A LightningModule that hands its loggers more than numbers."""

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Show text at a step in every logger that can."""
        for logger in self.loggers:
            if (show := getattr(logger, "show_text", None)) is not None:
                show(tag, text, step)

    @rank_zero_only
    def log_figure(self, tag: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure at a step in every logger that can."""
        for logger in self.loggers:
            if (show := getattr(logger, "show_figure", None)) is not None:
                show(tag, figure, step)

    @rank_zero_only
    def log_layout(self, layout: dict[str, dict[str, list[str]]]) -> None:
        """Say which scalars belong together: patterns of tags by chart and category."""
        for logger in self.loggers:
            if (show := getattr(logger, "show_layout", None)) is not None:
                show(layout)
