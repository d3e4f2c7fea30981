"""Attention: projections and heads around a memory, a fast weight matrix or a key-value cache."""

from fwlight.attention.heads import MultiHeadAttention
from fwlight.attention.memory import FastWeightMemory, MemoryState
from fwlight.attention.softmax import KeyValueCache, KeyValueMemory

__all__ = [
    "FastWeightMemory",
    "KeyValueCache",
    "KeyValueMemory",
    "MemoryState",
    "MultiHeadAttention",
]
