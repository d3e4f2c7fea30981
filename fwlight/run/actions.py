"""What a run does: fit, test, generate."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

from fwlight.errors import CheckpointError, ConfigError, StorageError
from fwlight.integrity import damaged, taking_from
from fwlight.lightning_internals import count_updates, is_restoring, leave_signals_alone
from fwlight.models import DecoderLM
from fwlight.models import generate as generate_tokens
from fwlight.run.averaging import average_checkpoints
from fwlight.run.checkpoint_io import load_checkpoint, load_resumable, save_checkpoint
from fwlight.run.checkpointing import RunCheckpoint
from fwlight.run.clock import RunClock
from fwlight.run.files import write_atomically
from fwlight.run.folder import RunFolder
from fwlight.training.module import TrainingModule, perplexity


def fit(
    trainer: Trainer,
    module: TrainingModule,
    data: LightningDataModule,
    *,
    folder: RunFolder,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, test the best checkpoint, write summary.json and print a short summary.

    Where no best checkpoint or average is kept, the last state is tested. A training that is
    already complete is only tested. The folder is released at the end; a start that fails before
    its first update leaves nothing in it.

    Args:
        trainer: With the run's plug-ins, callbacks and loggers.
        module: What is trained.
        data: On what.
        folder: Where to, and where to go on from.
        settings: What decides the results; kept in the summary under this name.

    Returns:
        What summary.json holds; see `summarise`.
    """
    with folder:
        count_updates(trainer)
        if folder.resume_from is not None:
            _say(f"resuming {folder.resume_from} after step {folder.resume_step}")
            keeps = type(data).state_dict is not LightningDataModule.state_dict
            name = type(data).__qualname__ if keeps else None
            checkpoint = load_resumable(folder.resume_from, data=name)
            load_weights(module, checkpoint, folder.resume_from)
            if _stopped_early(trainer, checkpoint):
                trainer.fit_loop.epoch_loop.max_steps = folder.resume_step or 0
        leave_signals_alone(trainer)
        try:
            with taking_from(folder.resume_from or "", now=lambda: is_restoring(trainer)):
                trainer.fit(
                    module, datamodule=data, ckpt_path=folder.resume_from, weights_only=True
                )
        finally:
            if trainer.global_step:
                folder.keep()
        checkpoint = _of_kind(trainer, RunCheckpoint)
        if folder.resume_from is not None and trainer.global_step == folder.resume_step:
            _say(f"training was already complete at step {trainer.global_step}")
            _copy_checkpoint(folder.resume_from, checkpoint.last_path)
        tested = checkpoint.last_path
        if checkpoint.average_last:
            average = average_checkpoints(checkpoint.folder, last=checkpoint.average_last)
            tested = average or checkpoint.last_path
        elif checkpoint.save_best and checkpoint.best and checkpoint.best_path.exists():
            tested = checkpoint.best_path
        if tested != checkpoint.last_path:
            load_weights(module, load_checkpoint(tested), tested)
        trainer.test(module, datamodule=data, verbose=False)
        summary = summarise(trainer, module, tested=tested.name)
        told = _as_text(summary)
        if settings is not None:
            summary["settings"] = dict(settings)
        _write_summary(folder, summary)
        _say(told)
        return summary


def test(
    trainer: Trainer, module: TrainingModule, data: LightningDataModule, *, ckpt: str | Path
) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split.

    Returns:
        All `test/` metrics, the `global_step` of the checkpoint and, of a text, which it was.

    Raises:
        CheckpointError: It is missing, damaged or of another model.
        DataError: It was trained on another kind of data.
    """
    checkpoint = restore(module, data, ckpt)
    leave_signals_alone(trainer)
    trainer.test(module, datamodule=data, verbose=False)
    measured = {k: v for k, v in module.latest.items() if k.startswith("test/")}
    results = {**measured, "global_step": checkpoint.get("global_step")}
    if text := getattr(data, "tested_text", ""):
        results["tested_text"] = text
    _say(_as_text(results))
    return results


def generate(
    module: TrainingModule,
    data: Any,
    *,
    ckpt: str | Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> str:
    """Continue a prompt with the model of a checkpoint.

    Args:
        module: A module whose network can be sampled from.
        data: With `encode(text) -> ids` and `decode(ids) -> text` of the checkpoint's vocabulary.
        ckpt: The checkpoint.
        prompt: Text to continue.
        max_new_tokens: How many tokens to add.
        temperature: Divisor of the logits; 0 always takes the most likely token.
        top_k: Sample among the k most likely tokens only; 0 is all.
        top_p: Sample among the most likely tokens that together reach this probability.
        seed: The same seed gives the same text.

    Returns:
        Prompt and continuation as text, and a line end.
    """
    if not hasattr(data, "encode"):
        raise ConfigError("action=generate continues a text; the task of this checkpoint has none")
    restore(module, data, ckpt)
    ids = data.encode(prompt)
    if not ids:
        raise ConfigError("prompt= is empty; give some text to continue")
    tokens = generate_tokens(
        cast(DecoderLM, module.network),
        torch.tensor([ids], device=module.device),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=torch.Generator(module.device).manual_seed(seed),
    )
    return data.decode(tokens[0].tolist()) + "\n"


def summarise(trainer: Trainer, module: TrainingModule, *, tested: str) -> dict[str, Any]:
    """Return the final metrics of a run, None where there is none.

    `train/` is the last logged step, `val/` the last evaluation with all its metrics, `val/best_*`
    the best one and `test/` the checkpoint named by `tested_checkpoint`. `state_size` is what the
    network carries for one sequence, None where that grows with the length.
    """
    checkpoint = _of_kind(trainer, RunCheckpoint)
    best, of_loss = checkpoint.best, checkpoint.monitor == "val/loss"
    name = checkpoint.monitor.removeprefix("val/")
    clock = _of_kind(trainer, RunClock).state_dict()
    names = ("train/loss", "val/loss", "val/ppl", "test/loss", "test/ppl")
    measured = {k: v for k, v in module.latest.items() if k.startswith(("val/", "test/"))}
    seconds = clock["train_seconds"]
    return {
        **{name: module.latest.get(name) for name in names},
        **measured,
        f"val/best_{name}": best.get("value"),
        "val/best_ppl": perplexity(best["value"])
        if best and of_loss and "val/ppl" in module.latest
        else None,
        "val/best_step": best.get("step"),
        "tested_checkpoint": tested,
        "tokens_per_second": clock["tokens"] / seconds if seconds else None,
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "state_size": getattr(module.network, "state_size", None),
        "skipped_updates": module.skipped_updates,
        "wall_seconds": clock["wall_seconds"],
        "global_step": trainer.global_step,
    }


def as_json(values: Mapping[str, Any]) -> str:
    """Write results as JSON, null for what is no finite number: JSON has no other word for it."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return json.dumps(finite, indent=2, allow_nan=False)


def check_goes_on(trainer: Trainer, folder: RunFolder, changes: Sequence[str]) -> None:
    """Check that a run that is resumed with other settings trains with them at all.

    Args:
        trainer: That of the run.
        folder: That of the run.
        changes: What is other than in the checkpoint, nothing or one line.

    Raises:
        ConfigError: Its training is complete, and its results would pass for those of the changes.
    """
    step = folder.resume_step
    if not changes or folder.resume_from is None or step is None:
        return
    if step >= trainer.max_steps or _stopped_early(trainer, load_checkpoint(folder.resume_from)):
        raise ConfigError(
            f"the training of {folder.resume_from} is complete at step {step}, so that nothing is "
            f"left of {changes[0]}; choose another run_dir"
        )


def load_weights(module: LightningModule, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into a module.

    Raises:
        CheckpointError: They are not this model's, or infinite.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointError(
            f"the checkpoint {path} is of another model ({reason[0].strip()})"
        ) from error
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise damaged(Path(path), ValueError(f"its {name} is not finite"))


def restore(module: LightningModule, data: Any, ckpt: str | Path) -> dict[str, Any]:
    """Give a module the weights of a checkpoint, and the data module its state; return it all.

    Raises:
        CheckpointError: It is missing, damaged or of another model.
        DataError: It was trained on other data.
    """
    checkpoint = load_checkpoint(ckpt)
    state = checkpoint.get(type(data).__qualname__)
    if state is not None:  # the data compares, or takes the vocabulary
        with taking_from(ckpt):
            data.load_state_dict(state)
    load_weights(module, checkpoint, ckpt)
    return checkpoint


def _stopped_early(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    """Say whether an EarlyStopping ended the training that a checkpoint is from."""
    # Lightning sets the list where pyright does not see it.
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        state = checkpoint["callbacks"].get(callback.state_key)
        if isinstance(callback, EarlyStopping) and state is not None:
            goal, last = callback.stopping_threshold, checkpoint["metrics"].get(callback.monitor)
            reached = None not in (goal, last) and callback.monitor_op(torch.tensor(last), goal)
            if reached or state["wait_count"] >= callback.patience:
                return True
    return False


def _of_kind(trainer: Trainer, kind: type[Any]) -> Any:
    # Lightning sets the list where pyright does not see it.
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, kind))


@rank_zero_only
def _copy_checkpoint(path: Path, target: Path) -> None:
    """Make a checkpoint the last one, if another or none is in its place."""
    if path != target:
        save_checkpoint(load_checkpoint(path), target)


@rank_zero_only
def _write_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    text = as_json(summary) + "\n"
    try:
        write_atomically(folder.summary_json, lambda file: file.write(text.encode()))
    except OSError as error:
        raise StorageError(
            f"{folder.summary_json} cannot be written ({error.strerror or error}); the training is "
            "complete and saved: free some space, then resume=auto"
        ) from error


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _as_text(summary: dict[str, Any]) -> str:
    width = max(map(len, summary))
    lines = [
        f"{name:<{width}}  {value:.6g}" if isinstance(value, float) else f"{name:<{width}}  {value}"
        for name, value in summary.items()
        if value is not None
    ]
    return "\n".join(lines)
