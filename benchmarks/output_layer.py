"""The adaptive softmax against the dense one: `python -m benchmarks.output_layer`.

Forward and backward of the output layer alone, `DecoderLM.nll` to the hidden states and every
parameter, as in a training step of the paper's small model on WikiText-103: 8 sequences of 256,
d_model 128, 267,735 words, targets by Zipf's law p(w) ~ 1 / (w + 1). Both take turns in one
process; reported are medians, and the peak of resident memory during a step above what was resident
before it, which Linux counts (`VmHWM`, set back by way of `/proc/self/clear_refs` before every
step). Freed memory goes back to the system, so that the peak can be seen: the times hold the faults
of getting it anew, which `train.py` avoids.

Needs about 8 GB.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from torch import Tensor

from benchmarks.measuring import forget_peak, resident
from fwlight.mixers import KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM

VOCAB, WIDTH, BATCH, LENGTH = 267_735, 128, 8, 256
CUTOFFS = (20_000, 40_000, 200_000)


def build(output: str) -> DecoderLM:
    """Return a language model of which the output layer alone is used."""
    torch.manual_seed(0)
    return DecoderLM(
        vocab_size=VOCAB,
        d_model=WIDTH,
        n_layers=1,
        n_heads=1,
        d_head=1,
        d_ff=1,
        dropout=0.0,
        attention=partial(MultiHeadAttention, memory=KeyValues),
        output=output,
        cutoffs=CUTOFFS,
    )


def inputs() -> tuple[Tensor, Tensor]:
    """Hidden states as after a LayerNorm, and targets by Zipf's law."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(BATCH, LENGTH, WIDTH, generator=generator).requires_grad_()
    law = 1 / torch.arange(1, VOCAB + 1)
    targets = torch.multinomial(law, BATCH * LENGTH, replacement=True, generator=generator)
    return hidden, targets.view(BATCH, LENGTH)


def step(model: DecoderLM, hidden: Tensor, targets: Tensor) -> tuple[float, int]:
    """Return the seconds and the bytes at peak of one forward and backward pass."""
    model.zero_grad()
    hidden.grad = None
    forget_peak()
    before, start = resident("VmRSS"), time.perf_counter()
    model.nll(hidden, targets).mean().backward()
    return time.perf_counter() - start, resident("VmHWM") - before


def ratio(a: float, b: float) -> str:
    """Return a / b, if b was seen: a small step fits memory that is resident already."""
    return f"{a / b:.2f}" if b > 0 else "-"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.output_layer", description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hidden, targets = inputs()
    models = {output: build(output) for output in ("adaptive", "dense")}
    found: dict[str, list[tuple[float, int]]] = {output: [] for output in models}
    for _ in range(options.steps):
        for output, model in models.items():
            seconds, peak = step(model, hidden, targets)
            found[output].append((seconds, peak))
            print(f"{output}: {seconds:.3f} s, {peak / 1e6:.0f} MB", flush=True)
            model.zero_grad()
    parts = torch.bucketize(targets, torch.tensor(CUTOFFS), right=True).flatten().bincount()
    print(f"\ntorch {torch.__version__}, {options.threads} threads, {targets.numel()} targets:")
    print(f"{parts.tolist()} in the head and the clusters\n")
    print("| | seconds | peak MB | x adaptive, time | memory |\n|---|---|---|---|---|")
    medians = {
        output: [statistics.median(values) for values in zip(*rows, strict=True)]
        for output, rows in found.items()
    }
    for output, (seconds, peak) in medians.items():
        slower, larger = ratio(seconds, medians["adaptive"][0]), ratio(peak, medians["adaptive"][1])
        print(f"| {output} | {seconds:.3f} | {peak / 1e6:.0f} | {slower} | {larger} |")


if __name__ == "__main__":
    main()
