"""Attention: projections and heads around a memory, a fast weight matrix or a key-value cache."""

from fwlight.attention.heads import ConvState, MultiHeadAttention
from fwlight.attention.memory import FastWeightMemory, MemoryState
from fwlight.attention.short_conv import ShortConv
from fwlight.attention.softmax import KeyValueCache, KeyValueMemory
from fwlight.ops import overwriting_states

__all__ = [
    "ConvState",
    "FastWeightMemory",
    "KeyValueCache",
    "KeyValueMemory",
    "MemoryState",
    "MultiHeadAttention",
    "ShortConv",
    "overwriting_states",
]
