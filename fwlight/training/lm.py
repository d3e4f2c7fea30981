"""Training of language models."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fwlight.errors import CheckpointError, ConfigError
from fwlight.integrity import damaged
from fwlight.models import (
    DecoderLM,
    lanes_of,
    map_state,
    pack_state,
    unpack_state,
)
from fwlight.training.ar_hits import HitLoss
from fwlight.training.metrics import PositionLoss, perplexity
from fwlight.training.optim import OptimizerConfig
from fwlight.training.supervised import SupervisedModule
from fwlight.types import IGNORE_INDEX, CarriedBatch, LMBatch, PackedBatch, Sequences

AnyBatch = LMBatch | PackedBatch | CarriedBatch


class LanguageModelingModule(SupervisedModule):
    """Cross-entropy training and evaluation of any language model.

    Also logs `{split}/ppl` and the number of targets that it counts, `{split}/tokens`; a test logs
    `test/loss_position_<n>` too, where sequences start from an empty memory: see `PositionLoss`.
    Where the data module has `bytes_per_target(split)`, of its text, an evaluation logs
    `{split}/bpb`: bits per byte, the loss in bits over those bytes. Where it has
    `training_bigrams(split)`, its targets are a text's, and an evaluation logs
    `{split}/{loss_ar_hit,loss_other}`, and their curves as `{split}/recall/...`, of which
    metrics.csv has all: see `HitLoss`.

    The network has `features(tokens) -> (hidden, state)`, by keyword also the state to go on from
    and the `starts` of documents where batches have those, and `nll(hidden, targets)`, as
    `fwlight.models.DecoderLM`. Other arguments as in `SupervisedModule`.

    Where the rows of batches go on from those of the last one (`CarriedBatch`), the memory's state
    is carried from segment to segment, detached: the loss of a segment has a gradient with respect
    to what reads the carried state, but none through it to what wrote it. A checkpoint holds the
    state of all lanes. A batch may ask for another learning rate (`CarriedBatch.rate`).

    Args:
        network: What is trained.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        activation_weight: What the mean square of what the output layer reads, some numbers
            dropped, is added to the loss with (AR: Merity et al. 2018, arXiv 1708.02182, sec. 4.6).
        temporal_activation_weight: Likewise of the mean square difference between the last layer's
            vectors of a token and of the next, nothing dropped (TAR).
    """

    monitored = ("val/loss", "val/bpb", "val/loss_ar_hit", "val/loss_other")
    shardable = True
    _training_state: Any = None
    _evaluation_state: Any = None
    _has_hits = False
    _temperature = 1.0

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        activation_weight: float = 0.0,
        temporal_activation_weight: float = 0.0,
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self._weights = activation_weight, temporal_activation_weight
        self._penalty: Tensor | None = None
        self._factors: list[float] = []
        self.by_position = PositionLoss()
        self.hits = HitLoss()

    def forward(self, batch: AnyBatch) -> Tensor:
        """Negative log-likelihood `[B, T]` of every target; 0 where it is `IGNORE_INDEX`.

        Every row starts from an empty memory; see `losses`.
        """
        return cast(DecoderLM, self.network).nll(self._features(batch), batch.targets)

    def training_step(self, batch: AnyBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, with what is asked of activations."""
        nll, targets = self.losses(batch).sum(dtype=torch.float64), batch.targets != IGNORE_INDEX
        penalty, self._penalty = self._penalty, None
        return self.update_loss(nll, targets.sum(), penalty=penalty)

    def on_train_batch_start(self, batch: AnyBatch, batch_idx: int) -> None:
        """Note the learning rate that a batch of the update in progress asks for."""
        if isinstance(batch, CarriedBatch):
            self._factors.append(batch.rate)

    def rate_factor(self) -> float:
        """Return the mean over the batches of the update."""
        factors, self._factors = self._factors, []
        return sum(factors) / len(factors) if factors else 1.0

    def losses(self, batch: AnyBatch) -> Tensor:
        """Return what `forward` does, rows going on where the batch says so."""
        if isinstance(batch, CarriedBatch):
            hidden = self._carry(batch)
        elif self.training:
            return self.forward(batch)
        else:
            hidden = self._features(batch)
        network, asked = cast(DecoderLM, self.network), batch.targets != IGNORE_INDEX
        # Positions without a target do not pass the output layer.
        nll = network.nll(hidden[asked][None], batch.targets[asked][None])
        return nll.new_zeros(asked.shape).masked_scatter(asked, nll)

    def loss_metrics(self, split: str, loss: float) -> dict[str, float]:
        """Add the perplexity."""
        return {**super().loss_metrics(split, loss), f"{split}/ppl": perplexity(loss)}

    def sequences(self, batch: AnyBatch) -> dict[str, Sequences]:
        """The inputs."""
        return {"": Sequences(batch.inputs)}

    def rehearse(self, batch: AnyBatch) -> None:
        """Take the losses of one batch, and drop them with the state that it leaves."""
        super().rehearse(batch)
        self._evaluation_state = None

    def padding_of(self, batch: AnyBatch) -> Tensor | None:
        """Return where a batch is padding `[B, T]`, which leaves no trace; a subclass may say."""
        return None

    def temper(self, temperature: float) -> None:
        """Divide what the output layer reads in evaluations by a temperature, not its bias."""
        self._temperature = temperature

    # Lightning's hooks

    def on_train_start(self) -> None:
        """Bring a restored state to its device."""
        super().on_train_start()
        self._training_state = map_state(lambda x: x.to(self.device), self._training_state)

    def on_validation_epoch_start(self) -> None:
        """Start from nothing; a draw that training's state depends on is put aside."""
        super().on_validation_epoch_start()
        self._begin_hits("val")
        self._evaluation_state = None
        self._buffers_of_training = [
            (module, dict(module.named_buffers(recurse=False)))
            for module in (self.network.modules() if self._training_state is not None else ())
        ]

    def on_validation_epoch_end(self) -> None:
        """Log what was added up, and take the draw back."""
        super().on_validation_epoch_end()
        for module, buffers in self._buffers_of_training:
            for name, buffer in buffers.items():
                setattr(module, name, buffer)

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        super().on_test_epoch_start()
        self._begin_hits("test")
        self.by_position.reset()
        self._evaluation_state = None

    def validation_step(self, batch: AnyBatch, batch_idx: int) -> None:
        """Add one batch."""
        self._add(batch)

    def test_step(self, batch: AnyBatch, batch_idx: int) -> None:
        """Add one batch."""
        nll = self._add(batch)
        if not isinstance(batch, CarriedBatch):
            self.by_position.update(nll, batch.targets)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of every lane, over all ranks in their order."""
        super().on_save_checkpoint(checkpoint)
        if self._training_state is None:
            return
        state = map_state(
            lambda x: _over_all_ranks(x, self.trainer.world_size), self._training_state
        )
        checkpoint["carried"] = pack_state(state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this rank's lanes back."""
        super().on_load_checkpoint(checkpoint)
        trainer = self._trainer  # none where weights alone are loaded
        if trainer is None or "carried" not in checkpoint:
            return
        rank, world_size = trainer.global_rank, trainer.world_size
        network = cast(DecoderLM, self.network)
        try:
            state = unpack_state(checkpoint["carried"], empty_state=network.empty_state)
        except ValueError as error:
            raise damaged(Path(trainer.ckpt_path or ""), error) from error
        self._training_state = map_state(lambda x: x.chunk(world_size)[rank].clone(), state)

    # Parts

    def _features(self, batch: AnyBatch) -> Tensor:
        """Read every row from an empty memory, or every document of it."""
        if isinstance(batch, PackedBatch):
            return self._read(batch.inputs, starts=batch.documents)[0]
        return self._read(batch.inputs)[0]

    def _read(self, tokens: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Return what the network's `features` does, and note in training what is asked of it."""
        network, (ar, tar) = cast(DecoderLM, self.network), self._weights
        if not self.training:
            hidden, state = network.features(tokens, **options)
            return (hidden if self._temperature == 1 else hidden / self._temperature), state
        if ar == tar == 0:
            return network.features(tokens, **options)
        last, state = network.last_layer(tokens, **options)
        hidden, steps = network.drop(last), last.diff(dim=1)
        slowness = steps.square().sum() / max(1, steps.numel())  # of one token there is none
        self._penalty = ar * hidden.square().mean() + tar * slowness
        return hidden, state

    def _carry(self, batch: CarriedBatch) -> Tensor:
        """Read a batch from the state that the last one left, and keep what it leaves."""
        network = cast(DecoderLM, self.network)
        if network.state_size is None:
            raise ConfigError(
                "what is carried on (task.context=carried, task.eval=carried, rows that are read "
                "on and on) needs a memory of constant size; that of softmax attention grows with "
                "the text: use segment or sliding, or another model"
            )
        if batch.documents is not None and network.positions is not None:
            raise ConfigError(
                "documents that begin within a carried segment need model.positions=none: the "
                "positions of the rows would differ"
            )
        name = "_training_state" if self.training else "_evaluation_state"
        state = None if batch.begins else getattr(self, name)
        if state is None and not batch.begins:
            raise CheckpointError(
                "the checkpoint holds no carried state, which task.context=carried goes on from; "
                "start anew in another run_dir"
            )
        rows, lanes = len(batch.inputs), lanes_of(state)
        if lanes not in (None, rows):  # only where it came out of a checkpoint
            error = ValueError(f"it carries the state of {lanes} lanes, where there are {rows}")
            raise damaged(Path(self.trainer.ckpt_path or ""), error)
        padding = self.padding_of(batch)
        masks = {"starts": batch.documents}
        masks |= {} if padding is None else {"padding_mask": padding}
        hidden, state = self._read(batch.inputs, initial_state=state, **masks)
        setattr(self, name, map_state(Tensor.detach, state) if batch.continues else None)
        return hidden

    def _add(self, batch: AnyBatch) -> Tensor:
        nll = self.losses(batch)
        self.evaluation.update(nll, batch.targets)
        if self._has_hits:
            self.hits.update(nll, batch)
        return nll

    def _begin_hits(self, split: str) -> None:
        """Start from nothing, and take from the data how often training has its bigrams."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self.hits.reset()
        self.hits.counts = None
        self._has_hits = hasattr(data, "training_bigrams")
        if self._has_hits and (known := data.training_bigrams(split)) is not None:
            codes, counts, base = known
            self.hits.counts = codes.to(self.device), counts.to(self.device), base

    def _report(self, split: str) -> None:
        evaluated = self.evaluation.compute()
        measured = {f"{split}/tokens": evaluated["tokens"].item()}
        data: Any = getattr(self.trainer, "datamodule", None)  # loaders may be given without
        if hasattr(data, "bytes_per_target"):
            bits = evaluated["loss"].item() / math.log(2)
            measured[f"{split}/bpb"] = bits / data.bytes_per_target(split)
        self.record(measured, self.trainer.global_step)
        if self._has_hits:
            self.hits.finish()
            main, curves = self.hits.compute()
            self.record({f"{split}/{k}": x for k, x in main.items()}, self.trainer.global_step)
            named = {f"{split}/recall/{k}": x for k, x in curves.items()}
            self.record(named, self.trainer.global_step, main=False)
        if split == "test" and self.by_position.update_called:
            found = {f"test/{k}": v.item() for k, v in self.by_position.compute().items()}
            self.record(found, self.trainer.global_step)
        super()._report(split)


def _over_all_ranks(x: Tensor, world_size: int) -> Tensor:
    """Return the rows of all ranks, in their order, on the CPU."""
    if world_size == 1:
        return x.cpu()
    parts = [torch.empty_like(x) for _ in range(world_size)]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts).cpu()
