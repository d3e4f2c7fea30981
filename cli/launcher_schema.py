"""What the keys of launchers may hold; see `cli.schema`."""

from dataclasses import dataclass
from typing import Annotated

from cli.checks import OpenSection, Pattern
from cli.kinds import Kind
from cli.model_schema import Count, Natural

JOB_TIME = r"(?![0:-]*$)(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})"
AsTyped = Annotated[str | None, Kind.TEXT]


@dataclass
class Launcher(OpenSection):
    """launcher=: where a run, or those of a sweep, are made."""

    partition: AsTyped
    account: AsTyped
    time: Annotated[
        Annotated[str, Pattern(JOB_TIME, "30 (minutes), 2:30:00 or 1-12, above 0")] | None,
        Kind.TEXT,
    ]
    stop_before: Natural
    cpus: Count
    gpus: AsTyped
    memory: AsTyped
    at_a_time: Count | None
    modules: list[str]
    lines: list[str]
    wait: bool
