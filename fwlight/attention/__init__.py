"""Attention layers: a fast weight memory inside its projections, and softmax beside it."""

from fwlight.attention.fast_weight import FastWeightAttention
from fwlight.attention.heads import MultiHeadAttention
from fwlight.attention.memory import FastWeightMemory, MemoryState
from fwlight.attention.softmax import KeyValueCache, KeyValueMemory, SoftmaxAttention

__all__ = [
    "FastWeightAttention",
    "FastWeightMemory",
    "KeyValueCache",
    "KeyValueMemory",
    "MemoryState",
    "MultiHeadAttention",
    "SoftmaxAttention",
]
