"""Training on 1, 2 and 4 processes, foretold by its parts: `python -m benchmarks.scaling_out`.

Every process makes training steps of a language model on `task.batch_size` sequences of its own
(weak scaling), one thread each, process r on core r mod the number of cores, gradients averaged by
DistributedDataParallel over gloo. Arguments are those of train.py after `task=lm size=demo
task.batch_size=8 task.seq_len=64`; tokens are random ones of `--vocab` words.

What is foretold comes from parts alone, measured in turns with the steps, in rounds, in the same
processes; reported are medians and the middle half:

    parts        forward and backward pass of the embedding, of every layer's mixer, feed-forward
                 layer and norms with residual sums, of the output layer; clipping and Adam;
                 on one core alone, and on all cores that are used, at work at once
    all-reduce   of two sizes by 2 and by 4 processes that do nothing else: a + b bytes
    buckets      the gradient copied to where it is sent from, and back

A step of n processes on c cores then takes ceil(n / c) times its parts (with min(n, c) cores at
work) and copies, and the all-reduces of its buckets after one another. Nothing overlaps: who sends
over gloo works on the core that computes.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.cost import Cost, Machine, cost_of
from benchmarks.cost_model import build_network
from benchmarks.measuring import conditions, limits, markdown, quantiles, write_csv
from benchmarks.ranks import ALL_REDUCED, WORLDS, work
from cli.composition import compose_config
from cli.launch import cores
from fwlight.errors import FwlightError

DEFAULTS = ("task=lm", "size=demo", "task.batch_size=8", "task.seq_len=64", "logger=none")
COUNTS = {"step": 4, "all-reduce": 8}
"""Of each in a turn."""
INSIDE = ("projections", "feature map", "update rule", "softmax", "heads")
"""Parts of a mixer."""

Times = dict[str, list[float]]


class Ranks:
    """Processes that measure what they are told to, together."""

    def __init__(self, arguments: Sequence[str], vocab: int, folder: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.ranks"])  # imported once, for all of them
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(max(WORLDS)):
            here, there = context.Pipe()
            given = (rank, there, list(arguments), vocab, f"{folder}/store")
            self._processes.append(context.Process(target=work, args=given, daemon=True))
            self._processes[-1].start()
            there.close()
            self._pipes.append(here)
        self._answers(max(WORLDS))

    def measure(self, what: str, ranks: int, count: int) -> dict[str, list[float]]:
        """Return seconds by name, of all ranks that took part."""
        for pipe in self._pipes[:ranks]:
            pipe.send((what, ranks, count))
        found: dict[str, list[float]] = {}
        for answer in self._answers(ranks):
            for name, times in answer.items():
                found.setdefault(name, []).extend(times)
        return found

    def close(self) -> None:
        """End them."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()

    def _answers(self, ranks: int) -> list[dict[str, list[float]]]:
        try:
            return [pipe.recv() for pipe in self._pipes[:ranks]]
        except EOFError:
            raise SystemExit("a process of the benchmark was lost") from None


def collect(ranks: Ranks, seconds: float) -> dict[str, Times]:
    """Return all times: "parts 1", "step 2" and so on, by name; at least three rounds."""
    busy = sorted({min(n, cores()) for n in WORLDS})
    turns = [("parts", n, 1) for n in busy]
    turns += [("all-reduce", n, COUNTS["all-reduce"]) for n in WORLDS if n > 1]
    turns += [("step", n, COUNTS["step"]) for n in WORLDS]
    found: dict[str, Times] = {f"{what} {n}": {} for what, n, _ in turns}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:
        for what, n, count in turns:
            for name, times in ranks.measure(what, n, count).items():
                found[f"{what} {n}"].setdefault(name, []).extend(times)
        rounds += 1
    return found


def foretell(
    parts: dict[str, float], all_reduces: dict[int, float], *, share: int, buckets: Sequence[int]
) -> float:
    """Return the seconds of a step.

    Args:
        parts: Seconds of each, all layers together.
        all_reduces: Seconds by bytes, of two sizes; none for one process.
        share: Processes of a core.
        buckets: Bytes of each.
    """
    whole = {name: seconds for name, seconds in parts.items() if ":" not in name}
    if not all_reduces:
        return sum(seconds for name, seconds in whole.items() if name != "buckets")
    (small, first), (large, second) = sorted(all_reduces.items())
    byte = max(0.0, (second - first) / (large - small))
    start = max(0.0, first - byte * small)
    return share * sum(whole.values()) + sum(start + byte * size for size in buckets)


def on_paper(cost: Cost, tokens: int, machine: Machine) -> dict[str, float]:
    """Return the seconds that parts take at the machine's rates, by their names here."""
    found = {
        name: sum(sum(part.seconds(tokens, machine)) for part in parts)
        for name, parts in cost.parts().items()
    }
    inside = {name for name in found if name in INSIDE}
    found |= {f"mixer: {name}": found[name] for name in inside}
    return {**found, "mixer": sum(found[x] for x in inside), "optimiser": cost.update(machine)}


def parts_table(found: dict[str, Times], paper: dict[str, float]) -> str:
    """Return the times of parts on one core and on all, beside those on paper."""
    alone, busy = (_medians(found[f"parts {n}"]) for n in (1, min(max(WORLDS), cores())))
    rows = [
        [name, f"{1e3 * seconds:.2f}", f"{1e3 * busy[name]:.2f}"]
        + ([f"{paper[name] / seconds:.0%}"] if name in paper else [""])
        for name, seconds in alone.items()
    ]
    return markdown(["part", "ms, alone", "ms, all cores at work", "of that on paper"], rows)


def steps_table(found: dict[str, Times], *, buckets: Sequence[int], tokens: int) -> str:
    """Return the steps of 1, 2 and 4 processes, as foretold and as measured."""
    rows = []
    for n in WORLDS:
        parts = _medians(found[f"parts {min(n, cores())}"])
        sent = {int(size): x for size, x in _medians(found.get(f"all-reduce {n}", {})).items()}
        expected = foretell(parts, sent, share=math.ceil(n / cores()), buckets=buckets)
        low, middle, high = quantiles(found[f"step {n}"]["step"])
        row = [
            n,
            f"{1e3 * expected:.1f}",
            f"{1e3 * middle:.1f}",
            f"{1e3 * low:.1f}-{1e3 * high:.1f}",
        ]
        row += [f"{expected / middle:.2f}", f"{n * tokens / middle:,.0f}"]
        rows.append([*row, " and ".join(f"{1e3 * sent[size]:.2f}" for size in sorted(sent))])
    sizes = " and ".join(f"{size / 1e6:.2g}" for size in ALL_REDUCED)
    header = ["processes", "foretold, ms", "measured, ms", "middle half", "foretold / measured"]
    return markdown([*header, "tokens/s", f"all-reduce of {sizes} MB, ms"], rows)


def _medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling_out",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="as of train.py")
    parser.add_argument("--vocab", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--csv", type=Path, help="where to write all numbers")
    options = parser.parse_intermixed_args()  # keys may stand anywhere
    arguments = [*DEFAULTS, *options.arguments]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    torch.set_num_threads(1)
    try:
        config = compose_config(arguments).config
        with torch.device("meta"):
            network = build_network(config, options.vocab)
        sequences, length = (config["task"][key] for key in ("batch_size", "seq_len"))
        cost = cost_of(network, length)
    except (FwlightError, ValueError) as error:
        parser.error(str(error))
    rates = limits(1.0, clock=time.perf_counter)
    print(
        f"{conditions()} a process, {cores()} cores; {rates}; {cost.parameters:,} parameters, "
        f"{sequences} x {length} tokens a process\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(arguments, options.vocab, folder)
        found = collect(ranks, options.seconds)
        ranks.close()
    tokens = sequences * length
    buckets = [size for size, _ in cost.buckets([0.0] * len(cost.stages))]
    print(parts_table(found, on_paper(cost, tokens, Machine(*rates))), end="\n\n")
    print(steps_table(found, buckets=buckets, tokens=tokens))
    if options.csv is not None:
        numbers = [
            [*turn.split(), name, *quantiles(times), len(times)]
            for turn, values in found.items()
            for name, times in values.items()
        ]
        header = ["what", "processes", "name", "q1", "median", "q3", "times"]
        write_csv(options.csv, header, numbers)


if __name__ == "__main__":
    main()
