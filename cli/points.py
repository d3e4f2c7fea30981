"""One run that a launcher is given to make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.composition import Composition
from cli.finished import is_finished
from cli.folders import own_arguments


@dataclass(frozen=True)
class Point:
    """One run, of a sweep or alone."""

    name: str
    """What the swept keys are, as a folder name."""
    arguments: list[str]
    composition: Composition
    swept: Mapping[str, str] = field(default_factory=dict)
    """Value of each swept key, as typed; of several curves, the `curve` too."""

    @property
    def command(self) -> list[str]:
        """The whole command line of the run."""
        return [*own_arguments(), *self.arguments]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.composition.config["run_dir"])

    @property
    def log(self) -> Path:
        """The file that what it prints goes to, if it does not run in this process."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def finished(self) -> bool:
        """Say whether its folder holds the summary of a run with these very settings."""
        return is_finished(self.folder, self.composition)

    def result(self, code: int) -> str:
        """Return the line that says how it ended."""
        return f"{self.name}: {f'exit code {code}' if code else 'done'} ({self.log})"
