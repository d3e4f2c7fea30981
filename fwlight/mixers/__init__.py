"""Attention: projections and heads around a memory, a fast weight matrix or a key-value cache."""

from fwlight.mixers.base import Mixer
from fwlight.mixers.decays import (
    ChannelDecay,
    FixedDecay,
    LogSigmoidDecay,
    ScalarDecay,
    TimeStep,
)
from fwlight.mixers.fast_weights import FastWeights, MemoryState
from fwlight.mixers.gates import Erase, Gate, Gates, Write, WriteStrength
from fwlight.mixers.heads import ConvState, MultiHeadAttention
from fwlight.mixers.key_values import KeyValueCache, KeyValues
from fwlight.mixers.short_conv import ShortConv
from fwlight.mixers.two_directions import TwoDirections
from fwlight.ops import overwriting_states

__all__ = [
    "ChannelDecay",
    "ConvState",
    "Erase",
    "FastWeights",
    "FixedDecay",
    "Gate",
    "Gates",
    "KeyValueCache",
    "KeyValues",
    "LogSigmoidDecay",
    "MemoryState",
    "Mixer",
    "MultiHeadAttention",
    "ScalarDecay",
    "ShortConv",
    "TimeStep",
    "TwoDirections",
    "Write",
    "WriteStrength",
    "overwriting_states",
]
