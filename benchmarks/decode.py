"""One decoding step of one layer: `python -m benchmarks.decode`.

The rules' state has a constant size; here it is read and written after contexts of 16, 8,192 and
65,536 tokens, beside SDPA over a cache of that many keys and values (appending to the cache is not
counted). 8 heads, batch 1. All take turns in one process. Each step goes on from the last one's
state, and writes over it as in `fwlight.models.generate`. Beside each time stands the rate of the
bytes that a step must read and write, states and caches, as a part of that of a large copy: what is
small enough stays in the processor's caches, which are faster.
"""

import argparse

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from benchmarks.measuring import (
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
from fwlight.ops import delta_rule, overwriting_states, sum_rule

CONTEXTS = (16, 8192, 65_536)
SIZES = ((128, 64), (32, 16))
HEADS = 8


def steps(d_key: int, d_value: int) -> dict[str, tuple[Work, int]]:
    """What to time, by name, and the bytes of state or cache that it reads and writes."""
    found: dict[str, tuple[Work, int]] = {}
    state = 2 * 4 * HEADS * d_key * d_value  # read and written
    q = normalize(torch.randn(1, HEADS, 1, d_key), dim=-1)
    v, beta = torch.randn(1, HEADS, 1, d_value), torch.rand(1, HEADS, 1)
    for context in CONTEXTS:
        k = normalize(torch.randn(1, HEADS, context, d_key), dim=-1)
        past, betas = torch.randn(1, HEADS, context, d_value), torch.rand(1, HEADS, context)
        _, memory = delta_rule(None, k, past, betas)

        apart = memory.clone()

        def delta(memory: torch.Tensor = memory) -> object:
            return delta_rule(q, q, v, beta, initial_state=memory)

        def plain(memory: torch.Tensor = apart) -> object:
            return sum_rule(q, q, v, initial_state=memory)

        keys = torch.randn(1, HEADS, context, d_value)

        def softmax(keys: torch.Tensor = keys, past: torch.Tensor = past) -> object:
            return scaled_dot_product_attention(v, keys, past)

        found[f"delta, after {context:,}"] = delta, state
        found[f"sum, after {context:,}"] = plain, state
        found[f"SDPA, after {context:,}"] = softmax, keys.nbytes + past.nbytes
    return found


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    add_common(parser, seconds=5.0)
    options = parser.parse_args()
    clock = begin(options)
    rates = limits(options.seconds, clock=clock)
    print(f"{conditions()}; {rates}")
    rows: list[list[object]] = []
    for d_key, d_value in SIZES:
        with torch.no_grad(), overwriting_states():
            contenders = steps(d_key, d_value)
            works = {name: work for name, (work, _) in contenders.items()}
            times = measure(works, options.seconds, clock=clock)
        first = quantiles(times[f"delta, after {CONTEXTS[0]}"]).median
        lines = []
        for name, found in times.items():
            low, middle, high = (x * 1e6 for x in quantiles(found))
            ratio = middle / first / 1e6
            half = f"{low:.3g}-{high:.3g}"
            share = contenders[name][1] / middle * 1e6 / rates.copied
            lines.append([name, f"{middle:.4g}", half, len(found), f"{ratio:.2f}", f"{share:.0%}"])
            rows.append([d_key, d_value, name, low, middle, high, len(found), ratio, share])
        header = ["", "us", "middle half", "n", "x delta, after 16", "of the copy rate"]
        print(f"\n### K {d_key}, V {d_value}\n\n{markdown(header, lines)}", flush=True)
    if options.csv is not None:
        header = [
            "d_key",
            "d_value",
            "name",
            "q1_us",
            "median_us",
            "q3_us",
            "n",
            "ratio",
            "of_copy",
        ]
        write_csv(options.csv, header, rows)


if __name__ == "__main__":
    main()
