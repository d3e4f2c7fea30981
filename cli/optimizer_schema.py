"""What the keys below optimizer may hold; see `cli.schema`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cli.checks import OpenSection, Range, Section
from cli.kinds import Kind
from cli.model_schema import Count, Natural, NonNegative, Positive


@dataclass
class Algorithm(OpenSection):
    """optimizer.algorithm: the class checks its own options."""

    _target_: Annotated[str, Kind.DATA]  # the state is of no use to another


@dataclass
class Group(OpenSection):
    """Options of a kind of parameters; null: that of all."""

    lr: Positive | None
    weight_decay: NonNegative | None


@dataclass
class Groups(Section):
    """optimizer.groups: the kinds of `fwlight.training.groups`."""

    matrices: Group
    embeddings: Group
    others: Group
    vectors: Group
    gates: Group


@dataclass
class Optimizer(Section):
    """optimizer=."""

    lr: Positive
    betas: list[Annotated[float, Range(low=0, below=1)]]
    eps: Annotated[float, Range(low=1e-30, high=1e30)]  # smaller ones are 0 in float32
    weight_decay: NonNegative
    warmup_steps: Natural
    max_skipped_updates: Natural
    schedule: Literal["cosine", "cosine_reference", "linear", "wsd", "inverse_sqrt", "constant"]
    decay_steps: Count | None
    ema_decay: Annotated[float, Range(above=0, below=1)] | None
    average_from: Count | Literal["stalled"] | None
    average_patience: Count
    algorithm: Algorithm | None
    groups: Groups
