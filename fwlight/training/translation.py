"""Training of translation models, and the scores of their translations."""

from typing import Any, cast

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor, nn
from torchmetrics.text import SacreBLEUScore

from fwlight.models import EncoderDecoder, beam_search, greedy_search
from fwlight.packing import Pieces
from fwlight.sharding import gathered
from fwlight.training.metrics import perplexity
from fwlight.training.optim import OptimizerConfig
from fwlight.training.supervised import SupervisedModule
from fwlight.types import IGNORE_INDEX, PackedPairs, Sequences, TranslationBatch

_SHOWN = 5


class TranslationModule(SupervisedModule):
    """Cross-entropy with smoothed labels; evaluation by translating.

    `val/loss` and `test/loss` are -log p per target token, the end token included, without
    smoothing; `val/bleu` is the BLEU of greedy translations by torchmetrics. The test translates
    with beams and reports what sacrebleu does: `test/bleu` (cased, detokenised, tokenised by 13a),
    `test/bleu_lowercase` (13a too), `test/chrf`, and `test/exact_match`, the share of sentences
    that equal their reference. The signature is kept in `signature`.

    The data module gives `special_ids`, `decode(ids) -> text` and `sentences(split)`.

    Args:
        network: What is trained.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        label_smoothing: Share of the target's probability that all tokens have.
        beam: Beams of the test; 1 is greedy.
        length_penalty: Exponent of a translation's length by which its log-probability is divided.
    """

    monitored = ("val/loss", "val/bleu")
    shardable = True

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        label_smoothing: float = 0.0,
        beam: int = 4,
        length_penalty: float = 0.6,
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        self.label_smoothing, self.beam, self.length_penalty = label_smoothing, beam, length_penalty
        self.bleu = SacreBLEUScore()
        self.signature = ""
        """How the last test's `test/bleu` was computed, in sacrebleu's words."""
        self.translations: dict[int, str] = {}
        """Of the last evaluation on this rank, by the number of the pair."""
        self._sentences: dict[str, tuple[list[str], list[str]]] = {}

    def forward(self, batch: TranslationBatch) -> Tensor:
        """Negative log-likelihood `[B, T]` of every target; 0 where it is `IGNORE_INDEX`."""
        real = batch.targets != IGNORE_INDEX
        nll = self._loss(batch, label_smoothing=0.0)
        return nll.new_zeros(real.shape).masked_scatter(real, nll)

    def training_step(self, batch: TranslationBatch | PackedPairs, batch_idx: int) -> Tensor:
        """Smoothed loss of one batch."""
        loss = self._loss(batch, label_smoothing=self.label_smoothing)
        return self.update_loss(
            loss.sum(dtype=torch.float64), (batch.targets != IGNORE_INDEX).sum()
        )

    def translate(
        self, source: Tensor, *, beam: int, length_penalty: float, special_ids: dict[str, int]
    ) -> list[list[int]]:
        """Ids of the translation of each padded row; one takes up to twice its length and ten."""
        network = cast(EncoderDecoder, self.network)
        limit = 2 * (source != network.pad_id).sum(1) + 10
        options = {"max_length": limit, **special_ids}
        if beam == 1:
            return greedy_search(network, source, **options)
        return beam_search(network, source, width=beam, length_penalty=length_penalty, **options)

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        super().on_validation_epoch_start()
        self.bleu.reset()
        self.translations = {}

    def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Add one batch."""
        super().validation_step(batch, batch_idx)
        _, references = self._of_split("valid")
        found = self._translated(batch, beam=1)
        self.translations |= found
        # Every rank updates, be it with nothing: the metric then reduces on all.
        self.bleu.update(list(found.values()), [[references[i]] for i in found])

    def on_validation_epoch_end(self) -> None:
        """Log what was added up, and show some translations."""
        self.record({"val/bleu": 100 * self.bleu.compute().item()}, self.trainer.global_step)
        super().on_validation_epoch_end()
        self._show("valid", "val")

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        super().on_test_epoch_start()
        self.translations = {}

    def test_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Add one batch."""
        super().test_step(batch, batch_idx)
        self.translations |= self._translated(batch, beam=self.beam)

    def on_test_epoch_end(self) -> None:
        """Score the translations of all ranks."""
        super().on_test_epoch_end()
        found = self._of_all_ranks(self.translations)
        _, references = self._of_split("test")
        numbers = sorted(found)
        scores, self.signature = score(
            [found[i] for i in numbers], [references[i] for i in numbers]
        )
        self.record({f"test/{k}": v for k, v in scores.items()}, self.trainer.global_step)
        self._show("test", "test")

    def loss_metrics(self, split: str, loss: float) -> dict[str, float]:
        """Add the perplexity of an evaluation; a smoothed loss has none."""
        metrics = super().loss_metrics(split, loss)
        return metrics if split == "train" else {**metrics, f"{split}/ppl": perplexity(loss)}

    def sequences(self, batch: TranslationBatch | PackedPairs) -> dict[str, Sequences]:
        """The sentences of both sides.

        A decoder needs no mask to train, nothing reads what comes later, but what it writes at
        padding is no part of a sentence.
        """
        pad_id = cast(EncoderDecoder, self.network).pad_id
        if isinstance(batch, PackedPairs):
            # Where all is written before it is read, every sentence has a memory of its own.
            inputs = batch.inputs == pad_id
            tokens, source = _apart(batch.source, batch.source_starts, pad_id)
            _, target = _apart(batch.inputs, batch.input_starts, pad_id)
            return {
                "encoder": Sequences(tokens, source, source),
                "decoder": Sequences(batch.inputs, inputs, inputs),
                "cross": Sequences(tokens, source, target),
            }
        source, inputs = batch.source == pad_id, batch.inputs == pad_id
        return {
            "encoder": Sequences(batch.source, source, source),
            "decoder": Sequences(batch.inputs, inputs, inputs),
            "cross": Sequences(batch.source, source, inputs),
        }

    def _loss(self, batch: TranslationBatch | PackedPairs, *, label_smoothing: float) -> Tensor:
        """Loss of the real targets, one after another; padding does not pass the output layer."""
        network = cast(EncoderDecoder, self.network)
        real, starts = batch.targets != IGNORE_INDEX, None
        if isinstance(batch, PackedPairs):
            starts = batch.source_starts, batch.input_starts
        hidden = network.features(batch.source, batch.inputs, starts=starts)[real]
        return network.nll(hidden, batch.targets[real], label_smoothing=label_smoothing)

    def _translated(self, batch: TranslationBatch, *, beam: int) -> dict[int, str]:
        rows = batch.numbers >= 0
        with gathered(self):  # every rank's translations have other lengths
            if not rows.any():
                return {}
            ids = self.translate(
                batch.source[rows],
                beam=beam,
                length_penalty=self.length_penalty,
                special_ids=self._data.special_ids,
            )
        texts = map(self._data.decode, ids)
        return dict(zip(batch.numbers[rows].tolist(), texts, strict=True))

    def _of_all_ranks(self, found: dict[int, str]) -> dict[int, str]:
        if self.trainer.world_size == 1:
            return found
        gathered: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(gathered, found)
        return {number: text for part in gathered for number, text in part.items()}

    def _of_split(self, split: str) -> tuple[list[str], list[str]]:
        if split not in self._sentences:
            self._sentences[split] = self._data.sentences(split)
        return self._sentences[split]

    def _show(self, split: str, tag: str) -> None:
        sources, references = self._of_split(split)
        for number, text in sorted(self.translations.items())[:_SHOWN]:
            shown = f"source: {sources[number]}\n\nours: {text}\n\nreference: {references[number]}"
            self.log_text(f"{tag}/translation/{number}", shown, self.trainer.global_step)

    @property
    def _data(self) -> Any:
        # Lightning sets it where pyright does not see it.
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]


def _apart(ids: Tensor, starts: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return the sentences of rows, each in a row of its own, and where that is padding."""
    pieces = Pieces(starts)
    rows = pieces.lay_out(ids[:, None]).squeeze(1).masked_fill(pieces.padding_mask, pad_id)
    return rows, rows == pad_id


def score(hypotheses: list[str], references: list[str]) -> tuple[dict[str, float], str]:
    """Score translations by sacrebleu (Post 2018, arXiv 1804.08771).

    Args:
        hypotheses: One for each sentence, detokenised.
        references: Likewise.

    Returns:
        `bleu` and `bleu_lowercase` (0 to 100, 13a tokens), `chrf` (0 to 100) and `exact_match` (0
        to 1); and the signature of `bleu`, without which it cannot be compared.
    """
    bleu = BLEU()
    scores = {
        "bleu": bleu.corpus_score(hypotheses, [references]).score,
        "bleu_lowercase": BLEU(lowercase=True).corpus_score(hypotheses, [references]).score,
        "chrf": CHRF().corpus_score(hypotheses, [references]).score,
        "exact_match": sum(map(str.__eq__, hypotheses, references)) / len(references),
    }
    return scores, str(bleu.get_signature())
