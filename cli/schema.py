"""What every key may hold: types, ranges and choices, checked before torch is imported.

A dataclass field is a key. A key that a YAML file does not have is not asked for, except in a
`WholeSection`, all of whose keys are read somewhere; a key that its dataclass does not have is
refused, except in an `OpenSection`, whose YAML files may bring keys of their own (the class they
configure checks those).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from cli.checks import OpenSection, Pattern, Range, Section, WholeSection

_MOST = 2**31 - 1  # of which nothing has more, and which no library takes for something else
Count = Annotated[int, Range(low=1, high=_MOST)]
Natural = Annotated[int, Range(low=0, high=_MOST)]
Positive = Annotated[float, Range(above=0, high=1e30)]
NonNegative = Annotated[float, Range(low=0, high=1e30)]
Probability = Annotated[float, Range(low=0, high=1)]
BatchLimit = Count | Annotated[float, Range(above=0, high=1)] | None
MAX_TIME = r"(?!00:00:00:00)[0-9][0-9](:[0-9][0-9]){3}"
Temperature = Annotated[float, Range(low=1e-6, high=1e30, or_zero=True)]
TopP = Annotated[float, Range(low=1e-6, high=1)]
Positions = Literal["sinusoidal", "sinusoidal_reversed", "none"]


@dataclass
class Size(Section):
    """size=: widths and depths."""

    d_model: Count
    n_layers: Count
    n_heads: Count
    d_head: Count
    d_ff: Count
    dropout: Probability


@dataclass
class FeatureMap(OpenSection):
    """model/feature_map=: hyper-parameters of the maps, each in its own YAML file."""

    nu: Count
    d_head: Count
    num_features: Count
    input_scale: Positive | None
    stabilise: bool
    kernel_eps: NonNegative
    orthogonal: Literal["features", "inputs"]
    norms: Literal["independent", "shared"]
    redraw: Literal["never", "training", "always"]


@dataclass
class UpdateRule(OpenSection):
    """model/update_rule=."""

    backend: Literal["auto", "recurrent", "chunk", "native", "fla"]


@dataclass
class Gate(OpenSection):
    """model/decay=, model/erase=, model/write=: {} is none."""

    rank: Count | None
    divisor: Positive
    maximum: Annotated[float, Range(above=0, high=2)]
    a_range: list[Positive]


@dataclass
class Model(Section):
    """model=: the slots, and what surrounds them in a block."""

    attention: dict | None
    memory: dict
    feature_map: FeatureMap
    update_rule: UpdateRule
    decay: Gate
    erase: Gate
    write: Gate
    key_norm: Literal["none", "sum", "l2", "l2_smooth"]
    read_norm: Literal["none", "output", "full"]
    out_norm: Literal["none", "layernorm", "rmsnorm"]
    out_gate: Literal["none", "silu", "sigmoid"]
    out_gate_rank: Natural
    out_gate_bias: bool
    output_scale: Positive | None
    beta_max: Annotated[float, Range(above=0, high=2)] | None
    short_conv: Literal[0] | Annotated[int, Range(low=2, high=8)]
    expand_v: Positive
    value_heads_per_key: Count
    writes: Annotated[int, Range(low=1, high=8)]
    value_skip: bool
    key_norm_eps: NonNegative
    query_norm_eps: NonNegative
    read_eps: NonNegative
    out_norm_eps: NonNegative
    attention_dropout: Probability
    positions: Positions
    norm: Literal["post", "pre"]
    alternate_every: Annotated[int, Range(low=2)]
    output: Literal["dense", "adaptive", "chunked"]
    cutoffs: list[Count]


@dataclass
class Task(OpenSection):
    """task=: keys that tasks share; the data module checks its own."""

    data: str
    path: str | None
    train: str | None
    valid: str | None
    test: str | None
    batch_size: Count
    eval_batch_size: Count
    source_lang: str
    target_lang: str
    drop_blank: bool
    vocab_size: Annotated[int, Range(low=1, high=10**7)]  # its library aborts where memory ends
    batch_tokens: Count
    eval_batch_tokens: Count
    max_length: Count | None
    max_ratio: Annotated[float, Range(low=1)] | None
    seq_len: Count | None
    n_pairs: list[Count]
    power: Annotated[float, Range(above=0, high=100)]
    eval_sequences: Count
    seed: Natural
    min_count: Count | None
    max_vocab_size: Count | None
    context: Literal["segment", "carried"]
    reset: Literal["never", "document"]
    eval: Literal["segment", "sliding", "carried"]
    eval_stride: Count
    test_split: Literal["test", "valid"]
    setting: Literal["capacity", "update"]
    n_keys: Count
    eval_length: Literal["training", "n_keys"]
    max_queries: Count | None
    redraw_eval: bool
    num_workers: Natural


@dataclass
class Optimizer(Section):
    """optimizer=."""

    lr: Positive
    betas: list[Annotated[float, Range(low=0, below=1)]]
    eps: Annotated[float, Range(low=1e-30, high=1e30)]  # smaller ones are 0 in float32
    weight_decay: NonNegative
    warmup_steps: Natural
    max_skipped_updates: Natural
    schedule: Literal["cosine", "cosine_reference", "inverse_sqrt", "constant"]


@dataclass
class Trainer(WholeSection):
    """trainer=: arguments of `lightning.Trainer`."""

    max_steps: Count
    max_time: Annotated[str, Pattern(MAX_TIME, "DD:HH:MM:SS, above 0")] | None
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Annotated[int, Range(low=1, high=4096)] | Literal["auto"] | list[Natural]
    num_nodes: Count
    strategy: str
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    gradient_clip_val: Positive | None
    accumulate_grad_batches: Count
    val_check_interval: Count
    check_val_every_n_epoch: Count | None
    limit_train_batches: BatchLimit
    limit_val_batches: Natural | Annotated[float, Range(low=0, high=1)] | None
    limit_test_batches: BatchLimit
    num_sanity_val_steps: Natural
    log_every_n_steps: Count
    deterministic: bool
    use_distributed_sampler: Literal[False]
    enable_checkpointing: bool
    enable_progress_bar: bool
    enable_model_summary: bool


@dataclass
class Checkpoint(WholeSection):
    """callbacks.checkpoint."""

    every_n_train_steps: Count
    keep_every_n_train_steps: Count | None
    save_best: bool
    keep_best: Count
    monitor: Literal["val/loss", "val/bleu"]
    average_last: Count | None


@dataclass
class Diagnostics(WholeSection):
    """diagnostics: when and at how much the callbacks and action=diagnose look."""

    every_n_steps: Count
    sequences: Count | None
    report_sequences: Count
    capacity_draws: Natural


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
class Callbacks(OpenSection):
    """callbacks=: one node per callback; null switches it off."""

    checkpoint: Checkpoint
    text_samples: TextSamples | None
    early_stopping: EarlyStopping | None


@dataclass
class Logger(WholeSection):
    """logger=."""

    tensorboard: bool


@dataclass
class Generate(WholeSection):
    """How text is sampled."""

    max_new_tokens: Count
    temperature: Temperature
    top_k: Natural
    top_p: TopP


@dataclass
class Translate(WholeSection):
    """How a translation is searched for."""

    beam: Count
    length_penalty: Annotated[float, Range(low=0, high=100)]
    batch_size: Count


@dataclass
class Loss(Section):
    """What is minimised."""

    label_smoothing: Annotated[float, Range(low=0, below=1)]


@dataclass
class Config(Section):
    """Everything."""

    task: Task
    model: Model
    encoder: Model
    decoder: Model
    cross: Model
    alternate: Model
    loss: Loss
    size: Size
    optimizer: Optimizer
    trainer: Trainer
    diagnostics: Diagnostics
    callbacks: Callbacks
    logger: Logger
    network: dict
    module: dict
    action: Literal["fit", "test", "generate", "translate", "diagnose"]
    seed: Annotated[int, Range(low=0, high=2**32 - 1)]
    compile: bool
    run_dir: str | None
    resume: str
    ckpt: str | None
    prompt: str | None
    input: str | None
    output: str | None
    rank_timeout: Annotated[float, Range(low=1e-3, high=1e9)]
    generate: Generate
    translate: Translate
    row: str | None
    sweep: dict
    report: dict | None
