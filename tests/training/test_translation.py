from functools import partial

import lightning
import pytest
import sacrebleu
import torch

from fwlight.mixers import KeyValues, MultiHeadAttention
from fwlight.models import EncoderDecoder
from fwlight.training.optim import OptimizerConfig
from fwlight.training.translation import TranslationModule, score
from fwlight.types import IGNORE_INDEX, TranslationBatch
from tasks.pairs import EncodedPairs, EvalPairs, TrainPairs

SPECIAL = {"pad": 0, "bos": 1, "eos": 2}
WORDS = ["<pad>", "<s>", "</s>", "the", "old", "dog", "sees", "a", "house", "here"]


def pairs(n: int = 12) -> EncodedPairs:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 8, (n,), generator=generator)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(3, 10, (int(ends[-1]),), generator=generator, dtype=torch.int32)
    return EncodedPairs(ids, ends, ids, ends)


class Data(lightning.LightningDataModule):
    """Copying as a translation."""

    special_ids = {"bos_id": 1, "eos_id": 2}  # noqa: RUF012

    def __init__(self, batch_tokens: int = 40) -> None:
        super().__init__()
        self.batch_tokens = batch_tokens

    def train_dataloader(self):
        return TrainPairs(pairs(), batch_tokens=self.batch_tokens, seed=1, special=SPECIAL)

    def val_dataloader(self):
        return EvalPairs(pairs(), batch_tokens=self.batch_tokens, special=SPECIAL)

    test_dataloader = val_dataloader

    def decode(self, ids) -> str:
        return " ".join(WORDS[i] for i in ids if i > 2)

    def sentences(self, split: str):
        data = pairs()
        texts = [self.decode(data.batch(torch.tensor([i]), **SPECIAL).source[0].tolist())
                 for i in range(len(data))]  # fmt: skip
        return texts, texts


def make(**changes) -> TranslationModule:
    torch.manual_seed(0)
    attention = partial(MultiHeadAttention, memory=KeyValues)
    network = EncoderDecoder(
        vocab_size=10, pad_id=0, d_model=16, n_layers=1, n_heads=2, d_head=8, d_ff=32, dropout=0.0,
        encoder=attention, decoder=attention, cross=attention,
    )  # fmt: skip
    config = OptimizerConfig(lr=1e-2, schedule="constant")
    return TranslationModule(network, optimizer=config, max_steps=150, **changes)


def trainer(**changes) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, **changes,
    )  # fmt: skip


def test_smoothed_loss_is_its_formula() -> None:
    module = make()
    hidden = torch.randn(5, 16)
    targets = torch.tensor([3, 2, 9, 4, 4])
    log_p = module.network.output(hidden).log_softmax(-1)
    for s in (0.0, 0.1):
        expected = -(1 - s) * log_p[torch.arange(5), targets] - s * log_p.mean(-1)
        found = module.network.nll(hidden, targets, label_smoothing=s)
        torch.testing.assert_close(found, expected)


def test_loss_ignores_rows_and_places_without_target() -> None:
    module, data = make(label_smoothing=0.1), pairs()
    batch = data.batch(torch.tensor([0, 3, -1]), **SPECIAL)
    nll = module(batch)
    assert nll.shape == batch.targets.shape
    assert (nll[batch.targets == IGNORE_INDEX] == 0).all()
    for row in (0, 1):
        alone = data.batch(batch.numbers[row : row + 1], **SPECIAL)
        torch.testing.assert_close(nll[row].sum(), module(alone).sum())


def test_training_learns_to_copy_and_every_score_is_reported() -> None:
    module, data = make(label_smoothing=0.1), Data(200)
    run = trainer(max_steps=300, val_check_interval=300, check_val_every_n_epoch=None)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    latest = module.latest
    assert latest["val/bleu"] > 90
    assert latest["test/exact_match"] > 0.9
    assert latest["test/bleu"] > 90
    assert latest["test/chrf"] > 90
    assert 0 < latest["test/loss"] < latest["train/loss"]  # without and with smoothing
    assert latest["test/ppl"] == pytest.approx(torch.tensor(latest["test/loss"]).exp().item())
    assert module.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a")


def test_scores_do_not_depend_on_batches() -> None:
    results = []
    for tokens in (8, 200):
        module = make(beam=2)
        trainer().test(module, datamodule=Data(tokens), verbose=False)
        results.append((module.latest, module.translations))
    assert results[0][1] == results[1][1]
    assert results[0][0] == pytest.approx(results[1][0])


def test_validation_bleu_is_that_of_sacrebleu() -> None:
    module, data = make(), Data()
    run = trainer(max_steps=40, val_check_interval=40, check_val_every_n_epoch=None)
    run.fit(module, datamodule=data)
    found = [module.translations[i] for i in range(12)]
    expected = sacrebleu.corpus_bleu(found, [data.sentences("valid")[1]]).score
    assert 0 < expected < 100
    assert module.latest["val/bleu"] == pytest.approx(expected, rel=1e-4)


def test_score_is_what_sacrebleu_says() -> None:
    references = ["The cat sat on the mat .", "Ein Hund, der bellt."]
    hypotheses = ["the cat sat on a mat .", "Ein Hund, der bellt."]
    scores, signature = score(hypotheses, references)
    assert scores["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    lower = sacrebleu.corpus_bleu(
        [h.lower() for h in hypotheses], [[r.lower() for r in references]]
    )
    assert scores["bleu_lowercase"] == pytest.approx(lower.score)
    assert scores["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert scores["exact_match"] == 0.5
    assert "tok:13a" in signature


def test_smoothing_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0"):
        make(label_smoothing=1.0)


def test_batch_without_targets_gives_no_gradient() -> None:
    module = make(label_smoothing=0.1)
    empty: TranslationBatch = pairs().batch(torch.tensor([-1]), **SPECIAL)
    loss = module._loss(empty, label_smoothing=0.1).sum()
    loss.backward()
    assert loss.item() == 0
    grads = [p.grad for p in module.parameters()]
    assert all(g is None or not g.any() for g in grads)
