"""A training step of the retrieval task against the token loop, and what its batch costs.

    python -m benchmarks.retrieval_step

Delta rule, DPFP-1, S = 200 keys, sequences of 400, batch 32; both sides in one process, in turn.
The token loop writes one value of size S after the other (`backend="recurrent"`), then reads once.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from fwlight.feature_maps import DPFPFeatureMap
from fwlight.mixers import FastWeights
from fwlight.models import Retriever
from fwlight.ops import delta_rule
from fwlight.run import keep_freed_memory
from fwlight.types import RetrievalBatch
from tasks.retrieval import RetrievalDataModule

REPEATS = 7


def step(model: Retriever, optimizer: torch.optim.Optimizer, batch: RetrievalBatch) -> None:
    """Make one update."""
    y = model(batch.keys, batch.values, batch.queries)
    loss = (y - F.one_hot(batch.targets, y.shape[-1])).square().sum() / 2 / len(y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def token_loop(q, k, ids, gates, *, memory: FastWeights):
    """Take the place of `FastWeights.recall`."""
    v = F.one_hot(ids, memory.d_value).to(k.dtype)[:, None]
    return memory.read(q[:, :, None], memory.write(k, v, gates)).squeeze(2)


def build(backend: str) -> tuple[Retriever, torch.optim.Optimizer]:
    """Return a model and its optimiser; the same weights for every back end."""
    torch.manual_seed(0)
    memory = partial(
        FastWeights,
        feature_map=DPFPFeatureMap,
        update_rule=partial(delta_rule, backend=backend),
        key_norm="sum",
    )
    model = Retriever(n_keys=200, memory=memory)
    if backend == "recurrent":
        model.memory.recall = partial(token_loop, memory=model.memory)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Time a call."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Print medians, ranges and the two ratios."""
    keep_freed_memory()
    data = RetrievalDataModule(setting="update", n_keys=200)
    ours, loop = build("auto"), build("recurrent")
    times: dict[str, list[float]] = {"step": [], "token loop": [], "batch": []}
    for n in range(REPEATS + 1):
        batch = data.training_batch(n)
        measured = {
            "step": statistics.median(seconds(step, *ours, batch) for _ in range(10)),
            "token loop": seconds(step, *loop, batch),
            "batch": statistics.median(seconds(data.training_batch, n) for _ in range(10)),
        }
        if n:  # the first round builds and warms up
            for name, value in measured.items():
                times[name].append(value)
    for name, values in times.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:12} {middle * 1e3:9.2f} ms  ({low * 1e3:.2f} to {high * 1e3:.2f})")
    ratios = [a / b for a, b in zip(times["token loop"], times["step"], strict=True)]
    print(
        f"token loop / step   {statistics.median(ratios):.1f}  ({min(ratios):.1f} to "
        f"{max(ratios):.1f})"
    )
    shares = [a / b for a, b in zip(times["batch"], times["step"], strict=True)]
    print(f"batch / step        {statistics.median(shares):.1%}  (up to {max(shares):.1%})")
    print(f"{torch.get_num_threads()} threads, {REPEATS} rounds in one process")


if __name__ == "__main__":
    main()
