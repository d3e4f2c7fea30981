"""What every key may hold: types, ranges and choices, checked before torch is imported.

A dataclass field is a key. A key that a YAML file does not have is not asked for, except in a
`WholeSection`, all of whose keys are read somewhere; a key that its dataclass does not have is
refused, except in an `OpenSection`, whose YAML files may bring keys of their own (the class they
configure checks those). What a key is beside its type stands beside it: `Annotated[type, Kind...]`.
"""

from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from cli.checks import (
    OpenSection,
    PartsSection,
    Range,
    Section,
    WholeSection,
    because,
    metadata,
)
from cli.kinds import ONE_OF, Kind
from cli.launcher_schema import Launcher
from cli.model_schema import Count, Model, Natural, NonNegative, Probability, Size
from cli.optimizer_schema import Optimizer
from cli.task_schema import Task
from cli.trainer_schema import Trainer

Temperature = Annotated[float, Range(low=1e-6, high=1e30, or_zero=True)]
TopP = Annotated[float, Range(low=1e-6, high=1)]
OfAStart = Annotated[str | None, Kind.TEXT, Kind.OF_A_START]


@dataclass
class Checkpoint(WholeSection):
    """callbacks.checkpoint."""

    every_n_train_steps: Count
    keep_every_n_train_steps: Count | None
    save_best: bool
    keep_best: Count
    monitor: str
    average_last: Count | None


@dataclass
class Diagnostics(WholeSection):
    """diagnostics: when and at how much the callbacks and action=diagnose look."""

    every_n_steps: Count
    sequences: Count | None
    report_sequences: Count
    intervention_sequences: Natural
    capacity_draws: Natural
    scalars: Annotated[Literal["main", "all"], Kind.NO_RESULT]


@dataclass
class TextSamples(OpenSection):
    """callbacks.text_samples."""

    prompts: list[str] | None
    max_new_tokens: Count
    temperature: Temperature
    top_k: Natural
    top_p: TopP
    seed: Natural


@dataclass
class EarlyStopping(OpenSection):
    """callbacks.early_stopping, whose class looks at no value before the first evaluation."""

    monitor: str
    min_delta: Annotated[float, Range(low=-1e30, high=1e30)]
    stopping_threshold: Annotated[float, Range(low=-1e30, high=1e30)] | None
    patience: Natural
    check_finite: bool


@dataclass
class Callbacks(PartsSection):
    """callbacks=: one node per callback; null switches it off."""

    checkpoint: Checkpoint
    text_samples: TextSamples | None
    early_stopping: EarlyStopping | None
    progress: Annotated[dict | None, Kind.NO_RESULT]
    throughput: Annotated[dict | None, Kind.NO_RESULT]


@dataclass
class Logger(PartsSection):
    """logger=: one node per logger; null switches it off."""


@dataclass
class Generate(OpenSection, WholeSection):
    """How text is sampled."""

    max_new_tokens: Count
    temperature: Temperature
    top_k: Natural
    top_p: TopP


@dataclass
class Translate(OpenSection, WholeSection):
    """How a translation is searched for."""

    beam: Count
    length_penalty: Annotated[float, Range(low=0, high=100)]
    batch_size: Count


@dataclass
class Diagnose(OpenSection):
    """What action=diagnose is given of `diagnostics`."""

    sequences: Count
    draws: Natural
    interventions: Natural


@dataclass
class Robustness(OpenSection, WholeSection):
    """What action=robustness measures."""

    against: Annotated[str | None, Kind.TEXT]
    images: Count
    attacked: Count
    holes: list[Annotated[float, Range(above=0, below=1)]]
    eps: list[Annotated[float, Range(above=0, high=1)]]
    output: Annotated[str | None, Kind.TEXT, Kind.NO_RESULT]
    seed: Natural


@dataclass
class Loss(Section):
    """What is minimised."""

    label_smoothing: Annotated[float, Range(low=0, below=1)]
    discount: Annotated[float, Range(low=0, high=1)]
    value_weight: NonNegative
    entropy_weight: NonNegative
    entropy: Literal["shannon", "simpson"]
    activation_weight: NonNegative
    temporal_activation_weight: NonNegative


@dataclass
class LockedDropout(Section):
    """locked_dropout: what a language model drops for whole rows."""

    words: Probability
    input: Probability
    hidden: Probability
    output: Probability


@dataclass
class Test(WholeSection):
    """How action=test evaluates."""

    temperature: Annotated[float, Range(low=1e-6, high=1e30)] | Literal["valid"]


@dataclass
class Config(Section):
    """Everything."""

    task: Annotated[Task, Kind.DATA]
    model: Annotated[Model, Kind.ARCHITECTURE]
    encoder: Annotated[Model, Kind.ARCHITECTURE]
    decoder: Annotated[Model, Kind.ARCHITECTURE]
    cross: Annotated[Model, Kind.ARCHITECTURE]
    alternate: Annotated[Model, Kind.ARCHITECTURE]
    loss: Annotated[Loss, Kind.TRAINING]
    locked_dropout: Annotated[LockedDropout, Kind.TRAINING]
    size: Annotated[Size, Kind.ARCHITECTURE]
    optimizer: Annotated[Optimizer, Kind.TRAINING]
    trainer: Annotated[Trainer, Kind.OF_A_START]
    diagnostics: Annotated[Diagnostics, Kind.OF_A_START]
    callbacks: Annotated[Callbacks, Kind.OF_A_START, Kind.SEVERAL]
    logger: Annotated[Logger, Kind.OF_A_START, Kind.NO_RESULT, Kind.SEVERAL]
    launcher: Annotated[Launcher, Kind.OF_A_START, Kind.NO_RESULT]
    network: Annotated[dict, Kind.ARCHITECTURE, Kind.DERIVED]
    module: Annotated[dict, Kind.DERIVED]
    action: Annotated[str, Kind.OF_A_START]
    seed: Annotated[int, Range(low=0, high=2**32 - 1), Kind.TRAINING]
    compile: Annotated[bool, Kind.OF_A_START]
    run_dir: Annotated[OfAStart, Kind.NO_RESULT]
    resume: Annotated[str, Kind.TEXT, Kind.OF_A_START, Kind.NO_RESULT]
    ckpt: OfAStart
    against: OfAStart
    prompt: OfAStart
    input: OfAStart
    output: Annotated[OfAStart, Kind.NO_RESULT]
    rank_timeout: Annotated[float, Range(low=1e-3, high=1e9), Kind.OF_A_START, Kind.NO_RESULT]
    diagnose: Annotated[Diagnose, Kind.OF_A_START]
    test: Annotated[Test, Kind.OF_A_START]
    generate: Annotated[Generate, Kind.OF_A_START]
    translate: Annotated[Translate, Kind.OF_A_START]
    robustness: Annotated[Robustness, Kind.OF_A_START]
    row: str | None
    sweep: Annotated[dict, Kind.DERIVED, Kind.NO_RESULT]
    report: Annotated[dict | None, Kind.DERIVED, Kind.NO_RESULT]


_WITHOUT_SECTION = {"debug": frozenset({Kind.OF_A_START, Kind.SEVERAL})}
"""Groups whose options fill sections of others."""


@cache
def kinds_of(key: str) -> frozenset[Kind]:
    """Return what a key is, or the section that a group fills; what is no key is nothing."""
    section: type[Section] | None = Config
    found = _WITHOUT_SECTION.get(key, frozenset())
    for part in key.replace("/", ".").split("."):
        hints = _hints(section) if section else {}
        if part not in hints:
            break
        section, kinds = metadata(hints[part])
        found = (found - ONE_OF if kinds & ONE_OF else found) | kinds
    return found


def why_refused(key: str) -> str | None:
    """Return why a key that is known all the same takes no value, or only its own."""
    section: type[Section] | None = Config
    hint: Any = None
    for part in key.split("."):
        hint = _hints(section).get(part) if section else None
        section, _ = metadata(hint)
    return because(hint)


@cache
def _hints(section: type[Section]) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def filled_sections(groups: Container[str]) -> list[str]:
    """Return the sections that options of these groups fill, or other keys."""
    found = []
    for name, hint in get_type_hints(Config).items():
        is_section = hint is dict or (isinstance(hint, type) and issubclass(hint, Section))
        if is_section and (name in groups or Kind.DERIVED in kinds_of(name)):
            found.append(name)
    return found
