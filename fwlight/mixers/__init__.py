"""Attention: projections and heads around a memory, a fast weight matrix or a key-value cache."""

from fwlight.mixers.base import Mixer
from fwlight.mixers.fast_weights import FastWeights, MemoryState
from fwlight.mixers.heads import ConvState, MultiHeadAttention
from fwlight.mixers.key_values import KeyValueCache, KeyValues
from fwlight.mixers.short_conv import ShortConv
from fwlight.ops import overwriting_states

__all__ = [
    "ConvState",
    "FastWeights",
    "KeyValueCache",
    "KeyValues",
    "MemoryState",
    "Mixer",
    "MultiHeadAttention",
    "ShortConv",
    "overwriting_states",
]
