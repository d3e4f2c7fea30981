"""Time per generated token against the length so far: `python -m benchmarks.generate`.

Language models of `size=demo` with random weights decode one token at a time after contexts of up
to 65,536 tokens: the delta network and the Linear Transformer, whose state has a constant size,
after reading that many tokens; softmax attention with a cache of that many random keys and values,
as its own reading would take time that grows with the square of the length. Appending to the cache
copies it, as `fwlight.mixers.KeyValues` does. Medians over the steps of all turns; the
lengths take turns within a model.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from cli.building import build
from cli.composition import compose_config
from fwlight.mixers import KeyValueCache, overwriting_states
from fwlight.models import DecoderLM, LMState, map_state

LENGTHS = (16, 256, 1024, 4096, 16_384, 65_536)
MODELS = ("delta_linear", "delta_dpfp", "linear", "softmax")
VOCAB, SEGMENT = 5000, 4096


def network_of(model: str) -> DecoderLM:
    """Return a model without positions, in evaluation mode."""
    config = compose_config([f"model={model}", "model.positions=none", "size=demo"]).config
    torch.manual_seed(0)
    return build("network", config["network"], vocab_size=VOCAB).eval()


def state_after(network: DecoderLM, length: int) -> LMState:
    """Return the state after a text of random words."""
    generator = torch.Generator().manual_seed(length)
    if network.state_size is None:
        attention: Any = network.blocks[0].attention
        shape = (1, attention.n_heads, length, attention.d_head)
        layers = tuple(
            KeyValueCache(
                torch.randn(shape, generator=generator),
                torch.randn(shape, generator=generator),
                None,
            )
            for _ in network.blocks
        )
        return LMState(layers, length)
    state = None
    for start in range(0, length, SEGMENT):
        size = (1, min(SEGMENT, length - start))
        _, state = network.features(
            torch.randint(VOCAB, size, generator=generator), initial_state=state
        )
    assert state is not None
    return state


def seconds_per_token(network: DecoderLM, state: LMState, steps: int) -> list[float]:
    """Return the seconds of each of some decoding steps: logits, likeliest word, new state."""
    token, found = torch.zeros(1, 1, dtype=torch.int64), []
    with overwriting_states():
        for _ in range(steps):
            start = time.perf_counter()
            hidden, state = network.features(token, initial_state=state)
            token = network.output(hidden[:, -1]).argmax(-1, keepdim=True)
            found.append(time.perf_counter() - start)
    return found[1:]


@torch.no_grad()
def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="tokens of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads; milliseconds per token\n")
    print("| model | numbers carried at the end | " + " | ".join(f"{n:,}" for n in LENGTHS) + " |")
    print("|---|---|" + "---|" * len(LENGTHS), flush=True)
    for model in MODELS:
        network = network_of(model)
        states = {length: state_after(network, length) for length in LENGTHS}
        found: dict[int, list[float]] = {length: [] for length in LENGTHS}
        for _ in range(options.turns):
            for length, state in states.items():
                found[length] += seconds_per_token(network, state, options.steps + 1)
        sizes: list[int] = []
        map_state(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], states[LENGTHS[-1]])
        cells = [f"{1e3 * statistics.median(found[length]):.2f}" for length in LENGTHS]
        print(f"| `{model}` | {sum(sizes):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
