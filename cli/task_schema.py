"""What keys of task= may hold; see `cli.schema`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cli.checks import OpenSection, Range
from cli.kinds import Kind
from cli.model_schema import Count, Natural

DataPath = Annotated[str | None, Kind.TEXT, Kind.FREE]


@dataclass
class Environment(OpenSection):
    """task.environment: where agents act; its class checks what else it has."""

    n_islands: Annotated[int, Range(low=3, high=32)]
    n_transports: Annotated[int, Range(low=3, high=32)]
    episode_length: Count
    shifted_actions: bool
    reward_input: bool
    reset_timer: bool


@dataclass
class Task(OpenSection):
    """task=: keys that tasks share; the data module checks its own."""

    data: str
    path: DataPath
    train: DataPath
    valid: DataPath
    test: DataPath
    batch_size: Count
    eval_batch_size: Annotated[Count, Kind.FREE]
    source_lang: str
    target_lang: str
    drop_blank: bool
    vocab_size: (
        Annotated[int, Range(low=1, high=10**7)] | None
    )  # its library aborts where memory ends
    batch_tokens: Count
    eval_batch_tokens: Annotated[Count, Kind.FREE]
    max_length: Count | None
    max_ratio: Annotated[float, Range(low=1)] | None
    seq_len: Count | None
    tokenizer: Annotated[str, Kind.FREE]  # a file may have moved; the vocabulary is compared
    n_pairs: list[Count]
    power: Annotated[float, Range(above=0, high=100)]
    eval_sequences: Count
    seed: Natural
    min_count: Count | None
    max_vocab_size: Count | None
    context: Literal["segment", "carried"]
    lengths: Literal["fixed", "drawn"]
    lengths_seed: Annotated[Natural, Kind.FREE]  # where it matters, the loader compares it
    packing: bool
    reset: Literal["never", "document"]
    eval: Literal["segment", "sliding", "carried"]
    eval_stride: Count
    eval_seq_len: Count | None
    test_split: Literal["test", "valid"]
    problem: str
    train_length: list[Count]
    test_lengths: list[Count]
    targets: Literal["all", "last"] | None
    grow_from: Count | None
    grow_steps: Natural
    n_train: Count | None
    noise_vocab_size: Natural | None
    noise: Annotated[float, Range(low=0, below=1)] | None
    n_copy: Count | None
    motif: Count | None
    train_targets: Literal["next", "answers"]
    n_variables: Annotated[int, Range(low=1, high=10)]
    n_statements: Annotated[int, Range(low=2)]
    conditional_assign: Literal["first_only", "always"]
    tasks: list[Annotated[int, Range(low=1, high=20)]] | None
    mode: Literal["qm", "lm"]
    n_stories: Count
    drop_last_story: bool
    valid_seed: Natural
    task_numbers: bool
    test_batch_size: Annotated[Count, Kind.FREE]
    test_statements: list[Annotated[int, Range(low=2)]] | None
    depth: Annotated[int, Range(low=1, high=19)]
    operators: list[str]
    setting: Literal["capacity", "update"]
    n_keys: Count
    eval_length: Literal["training", "n_keys"]
    max_queries: Count | None
    redraw_eval: bool
    shift: Natural
    flip: bool
    warp: Annotated[float, Range(low=0, high=0.5)]
    n_graphs: Count
    graph_seed: Annotated[int, Range(low=0, high=2**32 - 1)]
    randomize_train: bool
    environment: Environment
    num_workers: Annotated[Natural, Kind.FREE, Kind.NO_RESULT]
