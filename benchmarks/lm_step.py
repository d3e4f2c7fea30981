"""A training step of the paper's small model: `python -m benchmarks.lm_step [OUTPUT ...]`.

The delta network of table 2, small, with the vocabulary of WikiText-103: 8 sequences of 256, words
by Zipf's law p(w) ~ 1 / (w + 1); forward, backward, clipping and Adam. The outputs take turns in
one process, each with a model of its own (parameters and Adam's moments: 0.5 GB); reported are
medians, and the peak of resident memory during a step above what was resident before it. Freed
memory goes back to the system, so that the peak can be seen.

Needs about 12 GB with all three.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from benchmarks.measuring import forget_peak, resident
from benchmarks.output_layer import BATCH, LENGTH, VOCAB
from cli.building import build
from cli.composition import compose_config
from fwlight.models import DecoderLM

OUTPUTS = ("adaptive", "dense", "chunked")


def build_model(output: str) -> tuple[DecoderLM, torch.optim.Optimizer]:
    """Return the network of `experiment=lm_wt103_small row=delta_linear`, and its optimiser."""
    arguments = ["experiment=lm_wt103_small", "row=delta_linear", f"model.output={output}"]
    config = compose_config([*arguments, "task.path=FOLDER"]).config
    torch.manual_seed(0)
    network = build("network", config["network"], vocab_size=VOCAB)
    return network, torch.optim.Adam(network.parameters(), lr=2.5e-4, fused=True)


def step(
    network: DecoderLM, optimizer: torch.optim.Optimizer, tokens: Tensor
) -> tuple[float, int, float]:
    """Return the seconds, the bytes at peak and the loss of one update."""
    forget_peak()
    before, start = resident("VmRSS"), time.perf_counter()
    hidden, _ = network.features(tokens[:, :-1])
    loss = network.nll(hidden, tokens[:, 1:]).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 0.25)
    optimizer.step()
    optimizer.zero_grad()
    seconds = time.perf_counter() - start
    return seconds, resident("VmHWM") - before, loss.item()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lm_step", description=__doc__)
    parser.add_argument("outputs", nargs="*", default=["adaptive", "dense"], metavar="OUTPUT")
    parser.add_argument("--steps", type=int, default=3, help="of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    for output in options.outputs:
        if output not in OUTPUTS:
            parser.error(f"{output} is none of {', '.join(OUTPUTS)}")
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(1)
    law = 1 / torch.arange(1, VOCAB + 1)
    tokens = torch.multinomial(law, BATCH * (LENGTH + 1), replacement=True, generator=generator)
    tokens = tokens.view(BATCH, LENGTH + 1)
    models = {output: build_model(output) for output in options.outputs}
    found: dict[str, list[tuple[float, int]]] = {output: [] for output in models}
    for number in range(options.steps + 1):
        for output, (network, optimizer) in models.items():
            seconds, peak, loss = step(network, optimizer, tokens)
            warm = " (to warm up)" if number == 0 else ""
            print(
                f"{output}: {seconds:.2f} s, {peak / 1e6:.0f} MB, loss {loss:.4f}{warm}", flush=True
            )
            if number:
                found[output].append((seconds, peak))
    print(f"\ntorch {torch.__version__}, {options.threads} threads\n")
    print("| output | seconds | peak MB | x first, time | memory |\n|---|---|---|---|---|")
    medians = {
        output: [statistics.median(values) for values in zip(*rows, strict=True)]
        for output, rows in found.items()
    }
    first = medians[options.outputs[0]]
    for output, (seconds, peak) in medians.items():
        ratios = f"{seconds / first[0]:.2f} | {peak / first[1]:.2f}"
        print(f"| {output} | {seconds:.2f} | {peak / 1e6:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
