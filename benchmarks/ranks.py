"""The processes of `benchmarks.scaling_out`: what each of them measures when it is told to."""

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from benchmarks.cost_model import build_network
from benchmarks.measuring import Work, measure
from cli.building import build
from cli.composition import compose_config
from fwlight.models.blocks import Block
from fwlight.models.stack import Stack
from fwlight.ops import native
from fwlight.run import keep_freed_memory
from fwlight.training.optim import build_optimizer
from fwlight.types import LMBatch

WORLDS = (1, 2, 4)
ALL_REDUCED = (1 << 12, 1 << 23)
"""Bytes."""
CLIP = 1.0  # largest norm of a gradient


class Trained(nn.Module):
    """A training module whose output is the loss of a batch, for DistributedDataParallel."""

    def __init__(self, config: dict[str, Any], vocab: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.module = build("module", config["module"], build_network(config, vocab)).train()

    def forward(self, batch: LMBatch) -> Tensor:
        """Return the mean over targets."""
        return self.module.losses(batch).mean()


class Rank:
    """One of the processes: its networks, one for every number of processes, and its batch."""

    def __init__(self, rank: int, arguments: list[str], vocab: int) -> None:
        config = compose_config(arguments).config
        size = config["task"]["batch_size"], config["task"]["seq_len"]
        generator = torch.Generator().manual_seed(rank)
        tokens = torch.randint(vocab, (size[0], size[1] + 1), generator=generator)
        self.batch = LMBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        self.groups: dict[int, Any] = {}
        self.steps: dict[int, Work] = {}
        for n in WORLDS:
            self.groups[n] = dist.new_group(list(range(n)))  # which everybody must call
            if rank < n:
                trained = Trained(config, vocab)
                optimizer = _optimizer(trained.module)
                if n > 1:
                    trained = DistributedDataParallel(trained, process_group=self.groups[n])
                self.steps[n] = partial(self._step, trained, optimizer)
        # Of a network of its own, which keeps its gradient and, nearly, its weights.
        module = Trained(config, vocab).module
        self.parts = parts(module.network, self.batch, _optimizer(module, lr=1e-12))

    def measure(self, what: str, ranks: int, count: int) -> dict[str, list[float]]:
        """Return seconds by name, of so many times."""
        if what == "parts":
            return measure(self.parts, 0.0)
        group = self.groups[ranks]
        if what == "step":
            return {"step": _times(self.steps[ranks], group, count)}
        sent = {size: torch.zeros(size // 4) for size in ALL_REDUCED}
        return {
            str(size): _times(partial(dist.all_reduce, x, group=group), group, count)
            for size, x in sent.items()
        }

    def _step(self, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        trained(self.batch).backward()
        _update(optimizer)
        optimizer.zero_grad()


def parts(network: Any, batch: LMBatch, optimizer: torch.optim.Optimizer) -> dict[str, Work]:
    """Return the passes of every part alone, of all layers, the update, and copies to buckets.

    "mixer: NAME" is a part of "mixer".
    """
    h = torch.randn(*batch.inputs.shape, network.d_model, requires_grad=True)
    outside = copy.copy(network)
    outside._modules = {**network._modules, "blocks": Stack(Block, (), n_layers=0)}
    ends = [*network.embedding.parameters(), *network.final_norm.parameters()]
    found = {"embedding": _passes(lambda: [outside.features(batch.inputs)[0]], ends)}
    layers: dict[str, list[Work]] = {}
    for block in network.blocks:
        for name, (part, weights) in _layer(block, h).items():
            layers.setdefault(name, []).append(_passes(part, weights))
    found |= {name: partial(_all, works) for name, works in layers.items()}
    found["output layer"] = _passes(
        lambda: [network.nll(h, batch.targets).mean()], [h, *network.output.parameters()]
    )
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    found["optimiser"] = partial(_update, optimizer)
    found["buckets"] = partial(_copy, weights, torch.empty(sum(p.numel() for p in weights)))
    return found


def _layer(block: Any, h: Tensor) -> dict[str, tuple[Callable[[], Sequence[Tensor]], list[Tensor]]]:
    """Return the parts of a layer and what each has gradients of."""
    attention, memory = block.attention, block.attention.memory
    heads = len(h), attention.n_heads, h.shape[1]
    q, k = (torch.randn(*heads, attention.d_head, requires_grad=True) for _ in range(2))
    v = torch.randn(*heads, attention.d_value, requires_grad=True)
    read = torch.randn(*h.shape[:2], attention.out_proj.in_features, requires_grad=True)
    norms = block.attention_norm, block.feed_forward_norm

    def project() -> Sequence[Tensor]:
        return attention.in_proj(h), attention.out_proj(read)

    def around() -> Sequence[Tensor]:
        x = block.after(h, block.dropout(block.before(h, norms[0])), norms[0])
        return [block.after(x, block.before(x, norms[1]), norms[1])]

    found: dict[str, tuple[Callable[[], Sequence[Tensor]], list[Tensor]]] = {
        "mixer": (lambda: [attention(h)[0]], [h, *attention.parameters()]),
        "feed-forward": (lambda: [block.feed_forward(h)], [h, *block.feed_forward.parameters()]),
        "norms, residuals": (around, [h, *(p for norm in norms for p in norm.parameters())]),
        "mixer: projections": (
            project,
            [h, read, attention.in_proj.weight, attention.out_proj.weight],
        ),
    }
    if memory.state_size is None:
        found["mixer: softmax"] = (lambda: [memory(q, k, v)[0]], [q, k, v])
        return found
    features = [x.detach().requires_grad_() for x in (memory.queries(q), memory.keys(k)[0])]
    written = [*features, v]
    if memory.has_beta:
        written.append(torch.rand(heads, requires_grad=True))
    found["mixer: feature map"] = (lambda: [memory.queries(q), memory.keys(k)[0]], [q, k])
    found["mixer: update rule"] = (lambda: [memory.update_rule(*written)[0]], written)
    return found


def _passes(part: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Work:
    """Return a part's forward and backward pass."""
    gradients = [torch.randn_like(x) for x in part()]
    return lambda: torch.autograd.grad(part(), inputs, gradients, allow_unused=True)


def _all(works: Sequence[Work]) -> None:
    for work in works:
        work()


def _copy(weights: Sequence[Tensor], sent: Tensor) -> None:
    """Copy the gradient to what is sent, and back."""
    for weight, place in zip(weights, sent.split([p.numel() for p in weights]), strict=True):
        assert weight.grad is not None  # they were given one
        place.copy_(weight.grad.flatten())
        weight.grad.copy_(place.view_as(weight))


def _update(optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradient and change the weights, as training does."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    clip_grads_with_norm_(weights, CLIP, get_total_norm([p.grad for p in weights]))
    optimizer.step()


def _optimizer(module: Any, **changes: float) -> torch.optim.Optimizer:
    return build_optimizer(module, replace(module.optimizer_config, **changes), fused=True)


def _times(work: Work, group: Any, count: int) -> list[float]:
    """Return the seconds of what ranks do together; the first time is not counted."""
    dist.barrier(group)
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[1:]


def work(rank: int, pipe: Connection, arguments: list[str], vocab: int, store: str) -> None:
    """Be one of the processes: measure what the pipe asks for, until it asks for nothing."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[rank % len(allowed)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    native.absence(torch.float32)  # compiles, which is no part of anybody's first call
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=max(WORLDS)
    )
    here = Rank(rank, arguments, vocab)
    pipe.send({})
    while (asked := pipe.recv()) is not None:
        pipe.send(here.measure(*asked))
    dist.destroy_process_group()
