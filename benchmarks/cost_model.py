"""A training step of a language model on n ranks, on paper: `python -m benchmarks.cost_model`.

    python -m benchmarks.cost_model task=lm model=delta_dpfp size=gpt2 task.seq_len=1024 \
        task.batch_size=512 --per-rank 8 --vocab 50257 --bandwidth 10Gbit,100Gbit

Nothing is run. The network is composed as train.py composes it and built without memory for its
weights; its parts are counted as `benchmarks.cost` says. The rates of a rank, bandwidths and the
latency are those of the command line: times are right where these are reached. In weak scaling
every rank has `--per-rank` sequences, in strong scaling all together have `task.batch_size`, which
leaves ranks beyond that without any. Left out are evaluations, checkpoints, the making of batches,
and ranks that wait for a slower one.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cost import Cost, Machine, Network, cost_of, wire_bytes
from benchmarks.measuring import markdown
from cli.building import build
from cli.composition import compose_config
from cli.folders import imported
from fwlight.errors import FwlightError
from fwlight.models import DecoderLM

_PREFIXES = {"u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BANDWIDTH = {"bit": 1 / 8, "B": 1.0}
RATE = {"FLOP": 1.0, "": 1.0}
BYTES = {"B": 1.0}
SECONDS = {"s": 1.0}


def quantity(text: str, units: dict[str, float]) -> float:
    """Return 1.25e9 for 10Gbit, with the `units` that may be.

    Raises:
        ValueError: It is none.
    """
    pattern = rf"([0-9.]+)({'|'.join(_PREFIXES)})({'|'.join(units)})(/s)?"
    found = re.fullmatch(pattern, text)
    if not found:
        raise ValueError(f"{text} is no number with one of {', '.join(units)}")
    return float(found[1]) * _PREFIXES[found[2]] * units[found[3]]


def build_network(config: dict[str, Any], vocab: int | None) -> DecoderLM:
    """Return a configuration's network; the vocabulary is that of the data where none is given.

    Raises:
        FwlightError: The configuration, or its data, does not do.
        ValueError: The network is no language model.
    """
    if imported(config["network"]["_target_"]) is not DecoderLM:
        raise ValueError("only language models are counted")
    if vocab is None:
        data = build("task", config["task"])
        data.setup("fit")
        sizes = data.network_sizes
    else:
        sizes = {"vocab_size": vocab}
    return build("network", config["network"], **sizes)


def parts_table(cost: Cost, tokens: int, machine: Machine) -> str:
    """Return operations, bytes and seconds of every part in a step of so many tokens."""
    rows = []
    for name, parts in cost.parts().items():
        seconds = [sum(x) for x in zip(*(p.seconds(tokens, machine) for p in parts), strict=True)]
        counts = [
            *(sum(p.forward.operations for p in parts), sum(p.backward.operations for p in parts)),
            4 * sum(p.forward.numbers + p.backward.numbers + 3 * p.weights / tokens for p in parts),
        ]
        rows.append([name, *(f"{x:,.0f}" for x in counts), *(f"{1e3 * x:.3g}" for x in seconds)])
    rows.append(["optimiser", "", "", "", "", f"{1e3 * cost.update(machine):.3g}"])
    header = ["part", "forward, FLOP a token", "backward", "bytes a token"]
    return markdown([*header, "forward, ms a step", "backward"], rows)


def wire_table(cost: Cost, ranks: Sequence[int]) -> str:
    """Return the bytes that a rank sends in a step."""
    rows = [
        [n, *(f"{wire_bytes(cost.gradient_bytes, n, sharded=x) / 1e6:,.1f}" for x in (False, True))]
        for n in ranks
    ]
    return markdown(["ranks", "MB a rank and step", "with sharded weights"], rows)


def ranks_table(
    cost: Cost,
    machine: Machine,
    networks: dict[str, Network],
    ranks: Sequence[int],
    *,
    own: int,
    together: int,
    length: int,
) -> str:
    """Return time of a step and efficiency by bandwidth and number of ranks.

    The efficiency is the speed of n ranks over n times that of one.

    Args:
        cost: Of the network.
        machine: Every rank's.
        networks: By name.
        ranks: Numbers of them.
        own: Sequences of every rank in weak scaling.
        together: Sequences of all ranks in strong scaling.
        length: Tokens of a sequence.
    """
    weak, strong = own * length, together * length
    nothing = Network(float("inf"), 0.0)
    alone, whole = (cost.step(x, machine, nothing, ranks=1) for x in (weak, strong))
    rows = []
    for name, network in networks.items():
        for n in ranks:
            found = [
                (alone, cost.step(weak, machine, network, ranks=n)),
                (alone, cost.step(weak, machine, network, ranks=n, overlap=False)),
                (alone, cost.sharded_step(weak, machine, network, ranks=n)),
            ]
            if n <= together:
                found.append((whole / n, cost.step(strong / n, machine, network, ranks=n)))
            cells = [x for one, it in found for x in (f"{1e3 * it:.4g}", f"{one / it:.0%}")]
            rows.append([name, n, *cells, *[""] * (8 - len(cells))])
    kinds = ("weak: ms", "weak, no overlap: ms", "weak, sharded: ms", "strong: ms")
    header = [x for kind in kinds for x in (kind, "efficiency")]
    return markdown(["bandwidth", "ranks", *header], rows)


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="as of train.py")
    parser.add_argument("--vocab", type=int, help="words; else the data is read for them")
    parser.add_argument("--ranks", type=_several(int), default="8,64,512")
    parser.add_argument("--per-rank", type=int, help="sequences; else task.batch_size")
    parser.add_argument(
        "--bandwidth", default="10Gbit,100Gbit,400Gbit", help="of a rank, both ways"
    )
    parser.add_argument("--latency", type=_unit(SECONDS), default="5us", help="of a message")
    parser.add_argument("--rate", type=_unit(RATE), default="100T", help="of products, FLOP/s")
    parser.add_argument("--copy", type=_unit(BYTES), default="2TB", help="read and written, B/s")
    options = parser.parse_intermixed_args()  # keys may stand anywhere
    names = options.bandwidth.split(",")
    try:
        bandwidths = [quantity(name, BANDWIDTH) for name in names]
        config = compose_config(["task=lm", *options.arguments]).config
        with torch.device("meta"):
            network = build_network(config, options.vocab)
        together, length = (config["task"][key] for key in ("batch_size", "seq_len"))
        own = options.per_rank or together
        cost = cost_of(network, length)
    except (FwlightError, ValueError, KeyError) as error:
        parser.error(str(error))
    machine = Machine(options.rate, options.copy)
    print(
        f"{cost.parameters:,} parameters, {cost.gradient_bytes / 1e6:,.1f} MB of gradients; "
        f"{own} sequences of {length} tokens a rank; it makes {machine.operations:.3g} FLOP/s, "
        f"moves {machine.copied:.3g} B/s; latency {options.latency:.3g} s\n"
    )
    print(parts_table(cost, own * length, machine), end="\n\n")
    print(wire_table(cost, options.ranks), end="\n\n")
    networks = {
        name: Network(bandwidth, options.latency)
        for name, bandwidth in zip(names, bandwidths, strict=True)
    }
    sizes = {"own": own, "together": together, "length": length}
    print(ranks_table(cost, machine, networks, options.ranks, **sizes))


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(x) for x in text.split(",")]


def _unit(units: dict[str, float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        return quantity(text, units)

    return number


if __name__ == "__main__":
    main()
