"""Preparing a corpus of WikiText-103's size: `python -m benchmarks.corpus FOLDER`.

    python -m benchmarks.corpus /tmp/corpus && rm -r /tmp/corpus

FOLDER gets wiki.{train,valid,test}.tokens with 103,227,021 training tokens (`<eos>` included) of
267,735 types (`<unk>` and `<eos>` included), about 600 MB: invented words by a Zipf-Mandelbrot law,
in lines as long as those of WikiText. Then three processes of one thread each call `setup()` with
FOLDER/cache as the cache: the first encodes, the second and third find it encoded. Reported are
seconds without imports, and the peak of resident memory with them (`VmHWM`), pages of mapped files
included.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

TOKENS = {"train": 103_227_021, "valid": 217_646, "test": 245_569}
TYPES = 267_735
_LINE = 60  # mean words of a line
_MEASURE = """
import json, resource, sys, time
from pathlib import Path
import torch
from tasks.lm import LanguageModelingDataModule
torch.set_num_threads(1)
data = LanguageModelingDataModule(data="wikitext103", path=sys.argv[1], batch_size=96, seq_len=256)
start, cpu = time.perf_counter(), time.process_time()
data.setup()
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
batch = next(iter(data.train_dataloader()))
peak = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
print(json.dumps({
    "seconds": seconds, "cpu": cpu, "peak_mb": int(peak.split()[1]) / 1000,
    "tokens": len(data.streams["train"]), "types": len(data.vocabulary),
}))
"""


def words() -> np.ndarray:
    """Return the invented words, frequent ones short."""
    letters = np.array(list("etaoinshrdlucmfw"))
    made: list[str] = []
    for length in range(1, 8):
        grid = np.indices((len(letters),) * min(length, 5)).reshape(min(length, 5), -1)
        made += ["".join(letters[column]) + "x" * (length - 5) for column in grid.T]
        if len(made) >= TYPES:
            break
    return np.array(made[: TYPES - 2], dtype=object)


def write(folder: Path) -> None:
    """Write the three files."""
    rng = np.random.default_rng(1)
    vocabulary = words()
    law = 1 / (np.arange(len(vocabulary)) + 2.7)
    law = np.cumsum(law / law.sum())
    for split, tokens in TOKENS.items():
        n_lines = tokens // (_LINE + 1)
        left = tokens - n_lines
        with (folder / f"wiki.{split}.tokens").open("w", encoding="utf-8") as file:
            if split == "train":  # every word once, and <unk>
                file.write(" ".join(["<unk>", *vocabulary]) + "\n")
                left, n_lines = left - TYPES + 1, n_lines - 1
            while left:
                size = min(left, 1_000_000)
                ids = np.searchsorted(law, rng.random(size)).clip(max=len(vocabulary) - 1)
                text = vocabulary[ids].tolist()
                lines = min(n_lines, -(-size // _LINE)) if left > size else n_lines
                edges = np.linspace(0, size, lines + 1).astype(int)
                for start, end in pairwise(edges.tolist()):
                    file.write(f" {' '.join(text[start:end])} \n")
                left, n_lines = left - size, n_lines - lines


def main() -> None:
    """Write the corpus if it is not there, and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "wiki.test.tokens").exists():
        start = time.perf_counter()
        write(folder)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
    size = sum(path.stat().st_size for path in folder.glob("wiki.*.tokens"))
    print(f"{size / 1e6:,.0f} MB of text\n")
    print("| setup() | seconds | CPU seconds | M tokens/s | peak MB |\n|---|---|---|---|---|")
    environment = {**os.environ, "FWLIGHT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    for name in ("encodes", "from the cache", "again"):
        command = [sys.executable, "-c", _MEASURE, str(folder)]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout)
        rate = found["tokens"] / found["seconds"] / 1e6
        print(
            f"| {name} | {found['seconds']:.1f} | {found['cpu']:.1f} | {rate:.2f} | "
            f"{found['peak_mb']:,.0f} |",
            flush=True,
        )
    print(f"\n{found['tokens']:,} training tokens, {found['types']:,} types")


if __name__ == "__main__":
    main()
