"""What the keys of sizes and models may hold; see `cli.schema`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cli.checks import OpenSection, Range, Section
from cli.kinds import Kind

MOST = 2**31 - 1  # of which nothing has more, and which no library takes for something else
Count = Annotated[int, Range(low=1, high=MOST)]
Depth = Annotated[int, Range(low=1, high=10_000)]  # each takes milliseconds to build
Natural = Annotated[int, Range(low=0, high=MOST)]
Positive = Annotated[float, Range(above=0, high=1e30)]
NonNegative = Annotated[float, Range(low=0, high=1e30)]
Probability = Annotated[float, Range(low=0, high=1)]
Positions = Literal["sinusoidal", "sinusoidal_reversed", "rotary", "none"]


@dataclass
class Size(Section):
    """size=: widths and depths."""

    d_model: Count
    n_layers: Depth
    n_heads: Count
    d_head: Count
    d_ff: Count
    dropout: Annotated[Probability, Kind.TRAINING]  # it has no weights


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
    offset: NonNegative


@dataclass
class Kernel(OpenSection):
    """model/kernel=: {} is that of softmax attention."""

    scale: Positive | None
    offset: NonNegative
    eps: NonNegative


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
class Model(OpenSection):
    """model=: the slots, and what surrounds them in a block."""

    attention: Annotated[dict | None, Kind.DERIVED]
    memory: Annotated[dict, Kind.DERIVED]
    feature_map: FeatureMap
    update_rule: UpdateRule
    kernel: Kernel
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
    version: Annotated[int, Range(low=1, high=4)]
    recurrent_eps: NonNegative
    recurrent_std: NonNegative
    softmax_input: bool
    backend: Literal["auto", "native", "recurrent"]
    strength_mean: Annotated[float, Range(low=-100, high=100)]
    depth: Annotated[int, Range(low=1, high=16)]
    slow_base_weights: bool
    sizes: list[Count] | None
    reads: Annotated[int, Range(low=1, high=16)]
    write_scale: Positive | None
    act_q: Literal["identity", "tanh"]
    act_r: Literal["identity", "tanh"]
    residual: bool
    forget_bias: Annotated[float, Range(low=-100, high=100)] | None
    weight_dropout: Annotated[Probability, Kind.TRAINING]
    d_inner: Count | None
    attention_dropout: Annotated[Probability, Kind.TRAINING]
    positions: Positions
    norm: Literal["post", "pre"]
    feed_forward: Literal["relu", "gelu", "swiglu"]
    block_norm: Literal["layernorm", "rmsnorm"]
    qk_norm: Literal["none", "rmsnorm"]
    scaled_residuals: Annotated[bool, Kind.TRAINING]  # of first weights alone
    untied_output: bool
    alternate_every: Annotated[int, Range(low=2)]
    output: Literal["dense", "adaptive", "chunked"]
    recompute: Annotated[bool, Kind.FREE, Kind.NO_RESULT]
    cutoffs: list[Count]
    patch_size: Count
    pool: Literal["mean", "token"]
    directions: Literal["all", "two"]
