"""Targets that stood in the context already, against a count by loops; in processes as a script."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning import Trainer
from torch import nn
from torch.multiprocessing.spawn import start_processes

from fwlight.training.ar_hits import HitLoss
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, CarriedBatch, LMBatch, PackedBatch
from tasks.contexts import CarriedLanes, SlidingWindows
from tasks.lanes import EvalLanes
from tasks.lm import LanguageModelingDataModule
from tasks.text.bigrams import TrainingBigrams

ROOT = Path(__file__).resolve().parents[2]
N_IDS = 5


def octave(n):
    return 1 << (n - 1).bit_length()


def decade(n):
    return 0 if n == 0 else 10 ** len(str(n)) - 1


def by_loops(rows, train=None):
    """Return what `HitLoss` does of rows (tokens so far, target, nll), all that is seen of each."""
    found = {}
    for seen, target, nll in rows:
        bigram = (seen[-1], target)
        places = [s for s in range(len(seen) - 1) if (seen[s], seen[s + 1]) == bigram]
        names = ["loss_ar_hit" if places else "loss_other"]
        if places:
            names.append(f"ar_hit_distance_{octave(len(seen) - 1 - places[-1])}")
            names.append(f"ar_hit_between_{octave(len({*seen[places[-1] + 1 :]}))}")
        if train is not None:
            n = sum(bigram == (a, b) for a, b in pairwise(train))
            names.append(f"{'ar_hit' if places else 'other'}_count_{decade(n)}")
        for name in names:
            found.setdefault(name, []).append(nll)
    means = {name: sum(x) / len(x) for name, x in found.items()}
    hits, others = (len(found.get(f"loss_{x}", [])) for x in ("ar_hit", "other"))
    return means | {"ar_hits": hits / (hits + others)}


def values(metric):
    metric.finish()
    main, curves = metric.compute()
    return main | curves


def draw(*shape, seed=0):
    return torch.randint(N_IDS, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_hits_of_random_tokens_are_those_of_a_count_by_loops(length, documents, carried):
    tokens, train = draw(3, length + 1), draw(80, seed=1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[draw(3, length, seed=2) == 0] = IGNORE_INDEX
    targets[0, 0] = tokens[0, 1]
    nll = torch.rand(3, length, generator=torch.Generator().manual_seed(3))
    starts = draw(3, length, seed=4) == 0
    metric = HitLoss()
    metric.counts = TrainingBigrams()({"train": train, "valid": tokens.flatten()}, "valid", N_IDS)
    cuts = [slice(0, 7), slice(7, 8), slice(8, length)] if carried else [slice(None)]
    cuts = [x for x in cuts if inputs[:, x].numel()]
    for i, x in enumerate(cuts):
        batch = LMBatch(inputs[:, x], targets[:, x])
        if carried:
            more = (i == 0, i + 1 < len(cuts), starts[:, x] if documents else None)
            batch = CarriedBatch(*batch, *more)
        elif documents:
            batch = PackedBatch(*batch, starts)
        metric.update(nll[:, x], batch)
    rows = []
    for row in range(3):
        for t in range(length):
            if targets[row, t] != IGNORE_INDEX:
                begins = [s for s in range(t + 1) if starts[row, s]] if documents else []
                seen = inputs[row, max([0, *begins]) : t + 1].tolist()
                rows.append((seen, int(targets[row, t]), nll[row, t].item()))
    expected = by_loops(rows, train.tolist())
    assert values(metric) == pytest.approx(expected, rel=1e-12)


def test_nothing_asked_is_nothing_logged_and_a_reset_forgets_what_was_kept():
    metric, batch = HitLoss(), LMBatch(draw(2, 4), torch.full((2, 4), IGNORE_INDEX))
    metric.update(torch.ones(2, 4), batch)
    assert values(metric) == {}
    metric.update(torch.ones(2, 4), LMBatch(draw(2, 4), draw(2, 4)))
    metric.reset()
    metric.update(torch.ones(2, 4), batch)
    assert values(metric) == {}


def loader(kind, stream, rank, world_size):
    shares = {"seq_len": 9, "rank": rank, "world_size": world_size}
    if kind == "carried":
        return CarriedLanes(stream, n_lanes=6, **shares)
    if kind == "sliding":
        return SlidingWindows(stream, batch_size=6, stride=4, **shares)
    return EvalLanes(stream, batch_size=6, **shares)


def share(metric, kind, rank, world_size):
    """Give a metric one process's share of an evaluation, whose losses are those of the tokens."""
    stream, metric.counts = draw(200, seed=5), None
    table = torch.rand(N_IDS, N_IDS, generator=torch.Generator().manual_seed(6))
    for batch in loader(kind, stream, rank, world_size):
        metric.update(table[batch.inputs, batch.targets.clamp(min=0)], batch)
    return metric


@pytest.mark.parametrize("kind", ["segment", "sliding", "carried"])
def test_shares_of_processes_add_up(kind):
    whole = share(HitLoss(), kind, 0, 1)
    expected = values(whole)
    assert len(expected) > 8
    for world_size in (2, 3):
        shares = [share(HitLoss(), kind, rank, world_size) for rank in range(world_size)]
        for one in shares:
            one.finish()
        joined = HitLoss()
        joined.sums += torch.stack([one.sums for one in shares]).sum(0)
        assert values(joined) == pytest.approx(expected, rel=1e-9)


class Bigram(nn.Module):
    """A table, with a state of constant size that holds nothing."""

    state_size, positions = 0, None

    def __init__(self, n):
        super().__init__()
        self.table = nn.Embedding(n, n, dtype=torch.float64)

    def features(self, tokens, *, initial_state=None, starts=None):
        return self.table(tokens), (tokens[:, :0],)

    def nll(self, hidden, targets):
        return -hidden.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


@pytest.mark.parametrize("tokenizer", ["words", "chars", "bytes"])
@pytest.mark.parametrize("mode", ["segment", "sliding", "carried"])
def test_every_evaluation_of_a_text_logs_its_hits(tmp_path, tokenizer, mode):
    words = ["ab", "ba", "bab", "c"]
    lines = [" ".join(words[i % 4] for i in row) for row in draw(60, 5, seed=7).tolist()]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    data = LanguageModelingDataModule(
        data="text", path=tmp_path / "text.txt", tokenizer=tokenizer, min_count=1, seq_len=8,
        eval=mode, eval_stride=3, eval_batch_size=2,
    )  # fmt: skip
    data.setup()
    module = LanguageModelingModule(
        Bigram(len(data.tokens)), optimizer=OptimizerConfig(), max_steps=1
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, precision="64-true", **quiet
    )
    trainer.validate(module, datamodule=data, verbose=False)
    stream, n = data.streams["valid"].tolist(), len(data.streams["valid"]) - 1
    log_p = module.network.table.weight.log_softmax(-1)
    lane = -(-n // 2)
    begins = {
        "segment": lambda i: i - i % 8,
        "sliding": lambda i: 0 if i < 8 else i - 7 + (-(i - 7) % 3),
        "carried": lambda i: i - i % lane,
    }[mode]
    rows = [
        (stream[begins(i) : i + 1], stream[i + 1], -log_p[stream[i], stream[i + 1]].item())
        for i in range(n)
    ]
    expected = by_loops(rows, data.streams["train"].tolist())
    share = expected["ar_hits"]
    main = {f"val/{x}": expected.pop(x) for x in ("loss_ar_hit", "loss_other")}
    logged = {
        k: v for k, v in (module.latest | module.details).items() if "ar_hit" in k or "other" in k
    }
    expected = main | {f"val/recall/{name}": x for name, x in expected.items()}
    assert logged == pytest.approx(expected, rel=1e-9)
    total = module.latest["val/loss"]
    parts = share * main["val/loss_ar_hit"] + (1 - share) * main["val/loss_other"]
    assert parts == pytest.approx(total, rel=1e-9)


@pytest.mark.full
def test_three_processes_report_what_one_does(tmp_path, free_port):
    command = [sys.executable, "-m", "tests.training.test_ar_hits", str(free_port), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    for kind in ("segment", "sliding", "carried"):
        expected = values(share(HitLoss(), kind, 0, 1))
        for rank in range(3):
            found = torch.load(tmp_path / f"{rank}.pt")[kind]
            assert found == pytest.approx(expected, rel=1e-9)


def work(rank, port, path):
    """Join as one of three processes."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=3, rank=rank)
    kinds = ("segment", "sliding", "carried")
    found = {kind: values(share(HitLoss(), kind, rank, 3)) for kind in kinds}
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    start_processes(work, (int(sys.argv[1]), sys.argv[2]), nprocs=3, start_method="fork")
