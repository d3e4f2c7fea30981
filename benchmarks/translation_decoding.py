"""Beam search with a carried state against rereading: `python -m benchmarks.translation_decoding`.

Both find translations of the same sentences with the same model, sentence order, width and length
penalty: once `fwlight.models.beam_search`, whose decoder carries its state from token to token, and
once with a model that runs the whole decoder over all tokens so far at every step. They take turns
in one process, and must agree. Models are untrained, of the size of
`experiment=translation_multi30k`, and hardly ever end a sentence: translations are as long as their
sources, whose mean length is that of Multi30k's German side. A batch has about as many sentences as
one of that experiment's test.
"""

import argparse
import time
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from cli.building import build
from cli.composition import compose_config
from fwlight.models import DecoderState, EncoderDecoder, beam_search

VOCAB, IDS = 4000, {"bos_id": 1, "eos_id": 2}


class Rereading(nn.Module):
    """An `EncoderDecoder` whose state is all tokens so far, read anew at every step."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model, self.pad_id, self.output = model, model.pad_id, model.output

    def encode(self, source: Tensor) -> DecoderState:
        """Return the sources' memory; what is written once stays written once."""
        return self.model.encode(source)._replace(layers=(None,))

    def decode(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read all tokens."""
        (before,) = state.layers
        history = tokens if before is None else torch.cat([before, tokens], dim=1)
        empty = state._replace(layers=(None,) * len(self.model.decoder), position=0)
        hidden, _ = self.model.decode(history, empty)
        return hidden, state._replace(layers=(history,), position=history.shape[1])


def untrained(model: str, length: int) -> tuple[EncoderDecoder, list[Tensor]]:
    """Return a model and sentences of about the lengths of Multi30k's."""
    torch.manual_seed(0)
    arguments = ["experiment=translation_multi30k", f"model={model}"]
    config = compose_config(arguments).config
    network = cast(EncoderDecoder, build("network", config["network"], vocab_size=VOCAB, pad_id=0))
    generator = torch.Generator().manual_seed(1)
    lengths = (torch.randn(1000, generator=generator) * 4 + length).clamp(min=4).long()
    return network, [torch.randint(4, VOCAB, (int(n),), generator=generator) for n in lengths]


def batches(sentences: list[Tensor], size: int) -> list[Tensor]:
    """Pad sentences of similar lengths together."""
    ordered = sorted(sentences, key=len)
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return [pad(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.translation_decoding", description=__doc__
    )
    parser.add_argument("--models", nargs="+", default=["softmax", "delta_dpfp"])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--length", type=int, default=17, help="mean tokens of a sentence")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | ms a sentence, carried | reread | ratio |\n|---|---|---|---|")
    for name in options.models:
        network, sentences = untrained(name, options.length)
        step = -(-len(sentences) // options.sentences)
        parts = batches(sorted(sentences, key=len)[::step], options.batch)
        search: Any = partial(beam_search, width=options.width, **IDS)
        search(network, parts[0], max_length=parts[0].new_full((len(parts[0]),), 2))  # kernels
        seconds = {"carried": 0.0, "reread": 0.0}
        for source in parts:
            limit = (source != 0).sum(1) + 1
            found = []
            for kind, model in (("carried", network), ("reread", Rereading(network))):
                start = time.perf_counter()
                found.append(search(model, source, max_length=limit))
                seconds[kind] += time.perf_counter() - start
            different = sum(a != b for a, b in zip(*found, strict=True))
            if different > len(source) // 20:  # float32 may decide a tie otherwise
                raise SystemExit(f"{name}: {different} translations of a batch differ")
        n = sum(len(part) for part in parts)
        carried, reread = (1000 * seconds[kind] / n for kind in ("carried", "reread"))
        print(f"| {name} | {carried:.1f} | {reread:.1f} | {reread / carried:.2f} |", flush=True)
    print(f"torch {torch.__version__}, {options.threads} threads, width {options.width}")


if __name__ == "__main__":
    main()
