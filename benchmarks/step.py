"""Whole training steps: `python -m benchmarks.step`, tokens a second and the share of each part.

Each task at its default size (retrieval: update, S = 200; translation: Multi30k's) with each model:
forward, backward, norming of the gradient, clipping and Adam, on a training batch that is at hand.
Beside it stands the same step with compiled code switched off: the chunkwise form and torch's
operators, on the same weights and batches; the losses of the two are compared over `--steps` steps
without dropout, whose compiled form drops other numbers; `--losses` compares them in float64 too,
and tells what another order of sums alone changes. All take turns in one process, each with weights
of its own. Shares are of the self times of operators in the profiler; what the matrix products
reach is their operations over their share of the time, as a part of the rate of a large one.

With `--plain`, steps of the demo's size (4 layers, 8 heads, width 128) at several B and T take
turns with those of a GPT in plain PyTorch, in float32 and under autocast to bfloat16.
"""

import argparse
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import (
    Clock,
    Work,
    add_common,
    begin,
    conditions,
    limits,
    markdown,
    measure,
    quantiles,
    write_csv,
)
from benchmarks.plain_gpt import GPT, PlainStep
from cli.building import build_parts
from cli.composition import compose_config
from fwlight.ops import native
from fwlight.training.optim import build_optimizer, lr_factor

TASKS = {
    "lm": ["task=lm"],
    "retrieval": ["task=retrieval", "task.setting=update", "task.n_keys=200"],
    # Multi30k's network and optimiser, on text that is at hand.
    "translation": ["experiment=translation_multi30k", "task.data=cldr"],
}
MODELS = (
    "delta_dpfp",
    "delta_linear",
    "delta_performer",
    "deltanet",
    "fwm",
    "sum_dpfp",
    "linear",
    "performer",
    "softmax",
)
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "update rule": ("_Rule", "native_rule", "native_read", "ChunkDelta", "ChunkSum", "attention"),
    "feature map, norm": ("dpfp", "sum_norm"),
    "dropout": ("bernoulli", "dropout"),
    "loss": ("softmax", "nll", "cross_entropy"),
    "optimiser": ("adam", "linalg_vector_norm", "foreach"),
}
PLAIN_MODELS = ("softmax", "delta_dpfp", "linear", "deltanet")
PLAIN_SHAPES = ((8, 64), (4, 256), (2, 1024))  # sequences and tokens
CLIP = 1.0  # largest norm of a gradient


class Step:
    """A network with its optimiser, batches and what an update of it does."""

    def __init__(self, arguments: list[str], batches: int) -> None:
        self.module, data = build_parts(compose_config(arguments).config)
        self.module.train()
        self.optimizer = build_optimizer(self.module, self.module.optimizer_config, fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        if hasattr(data, "training_batch"):
            self.batches: list[Any] = [data.training_batch(n) for n in range(batches)]
        else:
            self.batches = [batch for batch, _ in zip(data.train_dataloader(), range(batches))]  # noqa: B905 - as many as there are, up to so many
        self.number = 0

    def set_learning_rate(self) -> None:
        """Set what the run's schedule says of the next update."""
        config, step = self.module.optimizer_config, self.number + 1
        factor = lr_factor(config, step, max_steps=self.module.max_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def tokens(self) -> int:
        """Return the targets of the first batch."""
        return int((self.batches[0].targets >= 0).sum())

    def __call__(self) -> Tensor:
        """Make an update."""
        torch.default_generator.manual_seed(self.number)  # of dropout
        self.set_learning_rate()
        batch = self.batches[self.number % len(self.batches)]
        self.number += 1
        loss = self.module.losses(batch).sum() / (batch.targets >= 0).sum()
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in trained if p.grad is not None]
        clip_grads_with_norm_(trained, CLIP, get_total_norm(gradients))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def shares(step: Callable[[], object]) -> dict[str, float]:
    """Return the part of each group of operators in three steps."""
    with profile() as found:
        for _ in range(3):
            step()
    times = dict.fromkeys([*PARTS, "rest"], 0.0)
    for event in found.key_averages():
        part = next((p for p, names in PARTS.items() if any(n in event.key for n in names)), "rest")
        times[part] += event.self_cpu_time_total
    total = sum(times.values())
    return {part: time / total for part, time in times.items()}


def matrix_operations(step: Callable[[], object]) -> int:
    """Return the floating-point operations that the matrix products of a step make."""
    with FlopCounterMode(display=False) as counter:
        step()
    found = counter.get_flop_counts()["Global"]
    names = [name.removeprefix("aten::") for name in PARTS["matrix products"]]
    return sum(n for op, n in found.items() if str(op).split(".")[-1] in names)


def loss_difference(
    arguments: list[str], steps: int, *, double: bool = False, turned: bool = False
) -> float:
    """Return the largest relative difference that the kernels make to a loss, without dropout.

    Args:
        arguments: What is trained.
        steps: How many losses are compared.
        double: Compute in float64.
        turned: Compare with kernels on both sides, the rows of every batch the other way round on
            one: nothing but the order of sums differs.
    """
    if "task=retrieval" not in arguments:  # which has none
        arguments = [*arguments, "size.dropout=0"]
    ours, other = Step(arguments, 50), Step(arguments, 50)
    if double:
        ours.module.double()
        other.module.double()
    if turned:
        other.batches = [_turned(batch) for batch in other.batches]
    worst = 0.0
    for _ in range(steps):
        a = ours().item()
        with contextlib.nullcontext() if turned else native.switched_off():
            b = other().item()
        worst = max(worst, abs(a - b) / abs(b))
    return worst


def _turned(batch: Any) -> Any:
    return type(batch)(*(x.flip(0) if isinstance(x, Tensor) else x for x in batch))


def compare_losses(tasks: list[str], models: list[str], steps: int) -> None:
    """Print what the kernels change in float32 and float64, and another order of sums alone."""
    print("| task | model | float32 | float64 | rows turned |\n" + "| --- " * 5 + "|")
    for task, model in itertools.product(tasks, models):
        arguments = [*TASKS[task], f"model={model}"]
        kinds = ({}, {"double": True}, {"turned": True})
        found = [f"{loss_difference(arguments, steps, **kind):.0e}" for kind in kinds]
        print(f"| {task} | {model} | {' | '.join(found)} |", flush=True)


def compare(
    task: str, model: str, steps: int, seconds: float, clock: Clock, rate: float
) -> list[object]:
    """Return the numbers of one task with one model; `rate` is that of a large matrix product."""
    arguments = [*TASKS[task], f"model={model}"]
    worst = loss_difference(arguments, steps)
    ours, plain = Step(arguments, 50), Step(arguments, 50)
    before = native.switched_off()(plain)
    times = measure({"ours": ours, "before": before}, seconds, clock=clock)
    mine = quantiles(times["ours"])
    ratio = quantiles(times["before"]).median / mine.median
    parts = shares(ours)
    counted = [matrix_operations(ours) for _ in range(10)]  # batches differ in size
    operations = sum(counted) / len(counted)
    reached = operations / (parts["matrix products"] * mine.median) / rate
    speed = ours.tokens() / mine.median
    return [task, model, *mine, speed, ratio, worst, reached, *parts.values()]


def compare_plain(models: list[str], seconds: float, clock: Clock) -> list[list[object]]:
    """Print steps of `models` and of a plain GPT, in both precisions; return their numbers."""

    def in_bf16(step: Work) -> Work:
        return torch.autocast("cpu", dtype=torch.bfloat16)(step)

    rows: list[list[object]] = []
    lines: list[list[object]] = []
    for sequences, tokens in PLAIN_SHAPES:
        sizes = ["task=lm", "size=demo", f"task.batch_size={sequences}", f"task.seq_len={tokens}"]
        steps: dict[str, Work] = {}
        for precision, wrap in (("", lambda step: step), (" bf16", in_bf16)):
            ours = {model: Step([*sizes, f"model={model}"], 50) for model in models}
            first = next(iter(ours.values()))
            steps[f"plain{precision}"] = wrap(_plain(first, tokens))
            steps |= {f"{model}{precision}": wrap(step) for model, step in ours.items()}
        times = measure(steps, seconds, clock=clock)
        base = quantiles(times["plain"]).median
        for name, found in times.items():
            mine = quantiles(found)
            speed, ratio = sequences * tokens / mine.median, base / mine.median
            rows.append([f"{sequences}, {tokens}", name, *mine, speed, ratio])
            low, middle, high = (f"{1e3 * x:.4g}" for x in mine)
            lines.append([*rows[-1][:2], middle, f"{low}-{high}", f"{speed:.0f}", f"{ratio:.2f}"])
            print(" ".join(map(str, lines[-1])), flush=True)
    print(f"\n{markdown(['B, T', 'model', 'ms', 'middle half', 'tokens/s', 'x plain'], lines)}")
    return rows


def _plain(other: Step, tokens: int) -> PlainStep:
    """Return steps of a GPT on the batches of another."""
    torch.manual_seed(0)
    vocab_size = other.module.network.embedding.num_embeddings
    sizes = {"layers": 4, "heads": 8, "width": 128, "length": tokens}
    return PlainStep(GPT(vocab_size, **sizes, dropout=0.1), other.batches)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--steps", type=int, default=50, help="that must have the same losses")
    parser.add_argument("--losses", action="store_true", help="only compare losses, three ways")
    parser.add_argument("--plain", action="store_true", help="only beside a plain GPT")
    add_common(parser, seconds=10.0)
    options = parser.parse_args()
    clock = begin(options)
    rates = limits(options.seconds, clock=clock)
    print(f"{conditions()}; {rates}\n", flush=True)
    models: list[str] = options.models or list(PLAIN_MODELS if options.plain else MODELS)
    if options.losses:
        return compare_losses(options.tasks, models, options.steps)
    if options.plain:
        rows = compare_plain(models, options.seconds, clock)
        if options.csv is not None:
            header = ["b_t", "model", "q1", "median", "q3", "tokens_per_second", "x_plain"]
            write_csv(options.csv, header, rows)
        return
    header = ["task", "model", "q1", "median", "q3", "targets_per_second", "x_before"]
    header += ["loss_difference", "of_matrix", *PARTS, "rest"]
    rows = []
    for task in options.tasks:
        for model in models:
            if task == "retrieval" and model == "softmax":
                continue  # has no state to read
            rows.append(
                compare(task, model, options.steps, options.seconds, clock, rates.operations)
            )
            print(" ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in rows[-1]))
    lines = []
    for row in rows:
        shown = [f"{1e3 * row[3]:.4g}", f"{1e3 * row[2]:.4g}-{1e3 * row[4]:.4g}"]
        shown += [f"{row[5]:.0f}", f"{row[6]:.2f}", f"{row[7]:.0e}"]
        lines.append([*row[:2], *shown, *(f"{x:.0%}" for x in row[8:])])
    titles = [
        "task",
        "model",
        "ms",
        "middle half",
        "targets/s",
        "x without kernels",
        "loss differs",
        "products, of the matrix rate",
    ]
    print(f"\n{markdown([*titles, *PARTS, 'rest'], lines)}")
    if options.csv is not None:
        write_csv(options.csv, header, rows)


if __name__ == "__main__":
    main()
