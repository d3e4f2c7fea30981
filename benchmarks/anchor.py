"""nanoGPT's recipe beside fwlight: `python -m benchmarks.anchor TEXT FOLDER`.

    python -m benchmarks.anchor war_and_peace.txt runs/anchor [--seeds 1 2 3]

All read the characters of TEXT, split 90/5/5, and learn with 4 layers of 4 heads, width 128, 12
sequences of 64 characters an update. One is `benchmarks.plain_gpt` with a cosine from 1e-3 to 1e-4
and segments drawn at random. The others are `train.py` with `block=modern`, queries and keys not
normed, in FOLDER: RMSNorm, a SwiGLU of 320, whose three matrices have 6 % fewer weights than the
GPT's two of 512, rotary positions in softmax attention, a cosine down to 0, lanes in their order.

It prints for every seed the loss over the whole validation split after the last update, in nats per
character and by segments of 64. Then the plain step and that of `model=softmax` take turns in this
process for `--seconds`, which gives training tokens per second and their ratio.

Runs that are finished are not repeated; their losses lie in FOLDER.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.measuring import add_common, begin, conditions, markdown, measure, quantiles
from benchmarks.plain_gpt import GPT, PlainStep
from benchmarks.step import Step
from tasks.lm import LanguageModelingDataModule

LAYERS, HEADS, WIDTH, LENGTH, ROWS = 4, 4, 128, 64, 12
GATED = 320
PEAK, LEAST, WARMUP = 1e-3, 1e-4, 100
MODELS = ("softmax", "deltanet", "gated_deltanet")
ROOT = Path(__file__).resolve().parent.parent


def rate(step: int, steps: int) -> float:
    """Return the learning rate of update `step`, from 1."""
    if step <= WARMUP:
        return PEAK * step / WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
    return LEAST + (PEAK - LEAST) * cosine


def segments(data: LanguageModelingDataModule) -> Iterator[SimpleNamespace]:
    """Draw batches without end."""
    stream = data.streams["train"].long()
    while True:
        places = torch.randint(len(stream) - LENGTH, (ROWS, 1)) + torch.arange(LENGTH + 1)
        yield SimpleNamespace(inputs=stream[places][:, :-1], targets=stream[places][:, 1:])


def new_gpt(data: LanguageModelingDataModule, seed: int) -> GPT:
    """Return a network, and set the seed."""
    torch.manual_seed(seed)
    sizes = {"layers": LAYERS, "heads": HEADS, "width": WIDTH, "length": LENGTH}
    return GPT(data.network_sizes["vocab_size"], **sizes)


def plain_loss(data: LanguageModelingDataModule, folder: Path, *, seed: int, steps: int) -> float:
    """Return the validation loss of the plain GPT after so many updates."""
    kept = folder / f"plain-{seed}-{steps}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    step = PlainStep(new_gpt(data, seed), [])
    batches = segments(data)
    for number in range(1, steps + 1):
        step.batches = [next(batches)]
        step.set_learning_rate(rate(number, steps))
        step()
    step.network.eval()
    with torch.no_grad():
        losses = (step.network(b.inputs, b.targets).double().sum() for b in data.val_dataloader())
        loss = sum(x.item() for x in losses) / (len(data.streams["valid"]) - 1)
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(loss), encoding="utf-8")
    return loss


def arguments(text: Path, model: str, *, seed: int, steps: int) -> list[str]:
    """Return the recipe as arguments of train.py."""
    return [
        *("task=lm", "task.data=text", f"task.path={text.resolve()}", "task.tokenizer=chars"),
        *(f"task.batch_size={ROWS}", f"task.seq_len={LENGTH}", f"seed={seed}"),
        *(f"model={model}", "block=modern", "model.qk_norm=none"),
        *(f"size.d_model={WIDTH}", f"size.n_layers={LAYERS}", f"size.n_heads={HEADS}"),
        *(f"size.d_head={WIDTH // HEADS}", f"size.d_ff={GATED}", "size.dropout=0"),
        *(f"optimizer.lr={PEAK}", f"optimizer.warmup_steps={min(WARMUP, steps)}"),
        *("optimizer.betas=[0.9,0.99]", "optimizer.weight_decay=0.1"),
        *(f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"),
        *("trainer.gradient_clip_val=1.0", "callbacks=none", "logger=none"),
    ]


def run_loss(text: Path, folder: Path, model: str, *, seed: int, steps: int) -> float:
    """Return the same of a run of train.py, from its summary."""
    run = folder / f"{model}-{seed}-{steps}"
    if not (run / "summary.json").exists():
        command = [sys.executable, str(ROOT / "train.py")]
        command += arguments(text, model, seed=seed, steps=steps)
        subprocess.run([*command, f"run_dir={run}", "resume=auto"], check=True)
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))["val/loss"]


def main() -> None:
    """Train all with every seed, one after the other, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchor", description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2000)
    add_common(parser, seconds=60.0)
    options = parser.parse_args()
    clock = begin(options)
    data = LanguageModelingDataModule(
        data="text", path=options.text, tokenizer="chars", batch_size=ROWS, seq_len=LENGTH
    )
    data.setup()
    of_steps, rows = {"steps": options.steps}, []
    folder = options.folder / data.fingerprint[:12]  # of this text
    for seed in options.seeds:
        found = [plain_loss(data, folder, seed=seed, **of_steps)]
        for model in options.models:
            found.append(run_loss(options.text, folder, model, seed=seed, **of_steps))
        rows.append(found)
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    lines = [
        [seed, *(f"{x:.4f}" for x in row)] for seed, row in zip(options.seeds, rows, strict=True)
    ]
    lines.append(["mean", *(f"{x:.4f}" for x in means)])
    lines.append(["of the GPT's", *(f"{x / means[0]:.3f}" for x in means)])
    print(f"\n{markdown(['seed', 'plain GPT', *options.models], lines)}\n", flush=True)

    batches = segments(data)
    plain = PlainStep(new_gpt(data, 1), [next(batches) for _ in range(50)])
    ours = Step(arguments(options.text, "softmax", seed=1, **of_steps), 50)
    times = measure({"plain GPT": plain, "softmax": ours}, options.seconds, clock=clock)
    print(f"{conditions()}, whole updates in turns\n")
    base, lines = quantiles(times["plain GPT"]).median, []
    for name, found in times.items():
        low, middle, high = quantiles(found)
        half = f"{1e3 * low:.1f}-{1e3 * high:.1f}"
        speed = f"{ROWS * LENGTH / middle:,.0f}"
        lines.append([name, f"{1e3 * middle:.1f}", half, speed, f"{base / middle:.3f}"])
    print(markdown(["", "ms", "middle half", "tokens/s", "x plain"], lines))


if __name__ == "__main__":
    main()
