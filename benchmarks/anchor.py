"""nanoGPT's recipe beside fwlight's softmax attention: `python -m benchmarks.anchor TEXT FOLDER`.

    python -m benchmarks.anchor war_and_peace.txt runs/anchor [--seeds 1 2 3] [--steps 2000]

Both read the characters of TEXT, split 90/5/5, and learn with 4 layers of 4 heads, width 128, 12
sequences of 64 characters an update. The one is a GPT in plain PyTorch, written here after the
description of GPT-2 (Radford et al. 2019), with what nanoGPT (github.com/karpathy/nanoGPT) sets for
characters on a CPU: learnt positions, LayerNorm, GELU, no biases, a tied output, AdamW, a cosine
from 1e-3 to 1e-4, segments drawn at random. The other is `train.py model=softmax block=modern` with
a GELU, in FOLDER: rotary positions, RMSNorm, a cosine down to 0, lanes in their order.

For every seed it prints the loss of both over the whole validation split after the last update, in
nats per character and by segments of 64, and training tokens per second without evaluations.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.lm import LanguageModelingDataModule

LAYERS, HEADS, WIDTH, LENGTH, ROWS = 4, 4, 128, 64, 12
PEAK, LEAST, WARMUP = 1e-3, 1e-4, 100
ROOT = Path(__file__).resolve().parent.parent


class Layer(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.merge = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return `[B, T, WIDTH]` with what both add."""
        qkv = self.qkv(self.norms[0](h)).unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.merge(o.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norms[1](h))))


class GPT(nn.Module):
    """Embeddings, layers and the tied output."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                added = name.endswith(("merge.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if added else 0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every target `[B, T]`, ignored ones 0."""
        h = self.tokens(inputs) + self.places.weight[: inputs.shape[1]]
        logits = F.linear(self.norm(self.layers(h)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


def rate(step: int, steps: int) -> float:
    """Return the learning rate of update `step`, from 1."""
    if step <= WARMUP:
        return PEAK * step / WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
    return LEAST + (PEAK - LEAST) * cosine


def train_plain(data: LanguageModelingDataModule, *, seed: int, steps: int) -> tuple[float, float]:
    """Return the validation loss of the plain GPT, and its training tokens per second."""
    torch.manual_seed(seed)
    network = GPT(data.network_sizes["vocab_size"])
    matrices = [p for p in network.parameters() if p.ndim == 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    stream = data.streams["train"].long()
    start = time.perf_counter()
    for step in range(1, steps + 1):
        places = torch.randint(len(stream) - LENGTH, (ROWS, 1)) + torch.arange(LENGTH + 1)
        rows = stream[places]
        loss = network(rows[:, :-1], rows[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        optimizer.step()
    seconds = time.perf_counter() - start
    network.eval()
    with torch.no_grad():
        losses = (network(b.inputs, b.targets).double().sum() for b in data.val_dataloader())
        total = sum(loss.item() for loss in losses)
    return total / (len(data.streams["valid"]) - 1), steps * ROWS * LENGTH / seconds


def train_fwlight(text: Path, folder: Path, *, seed: int, steps: int) -> tuple[float, float]:
    """Return the same of fwlight's softmax attention, from the summary of a run."""
    arguments = [
        *("task=lm", "task.data=text", f"task.path={text}", "task.tokenizer=chars"),
        *(f"task.batch_size={ROWS}", f"task.seq_len={LENGTH}", f"seed={seed}"),
        *("model=softmax", "block=modern", "model.feed_forward=gelu"),
        *(f"size.d_model={WIDTH}", f"size.n_layers={LAYERS}", f"size.n_heads={HEADS}"),
        *(f"size.d_head={WIDTH // HEADS}", f"size.d_ff={4 * WIDTH}", "size.dropout=0"),
        *(f"optimizer.lr={PEAK}", f"optimizer.warmup_steps={min(WARMUP, steps)}"),
        *("optimizer.betas=[0.9,0.99]", "optimizer.weight_decay=0.1"),
        *(f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"),
        *("trainer.gradient_clip_val=1.0", "callbacks=none", "logger=none"),
        *(f"run_dir={folder / f'seed-{seed}'}", "resume=auto"),
    ]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], check=True)
    summary = json.loads((folder / f"seed-{seed}" / "summary.json").read_text(encoding="utf-8"))
    return summary["val/loss"], summary["tokens_per_second"]


def main() -> None:
    """Train both with every seed, one after the other, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchor", description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    data = LanguageModelingDataModule(
        data="text", path=options.text, tokenizer="chars", batch_size=ROWS, seq_len=LENGTH
    )
    data.setup()
    rows = []
    for seed in options.seeds:
        plain = train_plain(data, seed=seed, steps=options.steps)
        own = train_fwlight(options.text, options.folder, seed=seed, steps=options.steps)
        rows.append((seed, *plain, *own))
    print("\n| seed | GPT, loss | tokens/s | fwlight, loss | tokens/s |\n|---|---|---|---|---|")
    for seed, loss, speed, own_loss, own_speed in rows:
        print(f"| {seed} | {loss:.4f} | {speed:,.0f} | {own_loss:.4f} | {own_speed:,.0f} |")


if __name__ == "__main__":
    main()
