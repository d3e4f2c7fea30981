"""A GPT in plain PyTorch, for `benchmarks.anchor` and `benchmarks.step --plain`.

Written here after the description of GPT-2 (Radford et al. 2019), with what nanoGPT
(github.com/karpathy/nanoGPT) sets where it trains from scratch: learnt positions, LayerNorm, GELU,
no biases, a tied output, weights of N(0, 0.02), AdamW without weight decay of vectors, gradients
clipped at 1. Dropout is of embeddings and of what layers add: that of attention weights, which
nanoGPT has too, would keep SDPA from its fast kernel on CPUs.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP = 1.0  # largest norm of a gradient


class Layer(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind a LayerNorm."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return `[B, T, width]` with what both add."""
        rate = self.dropout if self.training else 0.0
        qkv = self.qkv(self.norms[0](h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + F.dropout(self.merge(o.transpose(1, 2).flatten(2)), rate)
        return h + F.dropout(self.down(F.gelu(self.up(self.norms[1](h)))), rate)


class GPT(nn.Module):
    """Embeddings, layers and the tied output."""

    def __init__(
        self,
        vocab_size: int,
        *,
        layers: int,
        heads: int,
        width: int,
        length: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(length, width)
        self.dropout = dropout
        self.layers = nn.Sequential(*(Layer(heads, width, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                added = name.endswith(("merge.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if added else 0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every target `[B, T]`, ignored ones 0."""
        h = self.tokens(inputs) + self.places.weight[: inputs.shape[1]]
        h = self.layers(F.dropout(h, self.dropout, self.training))
        logits = F.linear(self.norm(h), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


class PlainStep:
    """Updates of a GPT, on batches with `inputs` and `targets` `[B, T]`."""

    def __init__(self, network: GPT, batches: list[Any], *, lr: float = 1e-3) -> None:
        matrices = [p for p in network.parameters() if p.ndim == 2]
        vectors = [p for p in network.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
        self.network, self.batches, self.number = network.train(), batches, 0

    def set_learning_rate(self, lr: float) -> None:
        """Set that of all parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def __call__(self) -> None:
        """Make an update."""
        batch = self.batches[self.number % len(self.batches)]
        self.number += 1
        self.network(batch.inputs, batch.targets).mean().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
