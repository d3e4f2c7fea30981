"""Train, in the run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from fwlight.errors import ConfigError, StorageError
from fwlight.integrity import damaged, taking_from
from fwlight.lightning_internals import count_updates, is_restoring, leave_signals_alone
from fwlight.run.averaging import average_checkpoints
from fwlight.run.checkpoint_form import check_resumable
from fwlight.run.checkpoint_io import (
    AtomicCheckpointIO,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from fwlight.run.checkpointing import RunCheckpoint
from fwlight.run.clock import RunClock
from fwlight.run.files import write_atomically
from fwlight.run.folder import RunFolder
from fwlight.run.moving_average import MovingAverage, averaged
from fwlight.run.restoring import epochs_made, load_weights, stopped_early
from fwlight.run.text import as_json, as_text, say, warn
from fwlight.training.metrics import perplexity
from fwlight.training.module import TrainingModule


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
        complete = None if folder.resume_from is None else _go_on(trainer, module, data, folder)
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
            say(f"training was already complete at step {trainer.global_step}")
            _copy_checkpoint(folder.resume_from, checkpoint.last_path, complete)
        tested = checkpoint.last_path
        if checkpoint.average_last:
            average = average_checkpoints(checkpoint.folder, last=checkpoint.average_last)
            tested = average or checkpoint.last_path
        elif checkpoint.save_best and checkpoint.best and checkpoint.best_path.exists():
            tested = checkpoint.best_path
        elif checkpoint.save_best and not checkpoint.best:
            warn(
                f"no validation gave {checkpoint.monitor} as a number: there is no best.ckpt, the "
                "last state is tested"
            )
        if tested != checkpoint.last_path or _of_kind(trainer, MovingAverage).averages:
            load_weights(module, averaged(load_checkpoint(tested)), tested)
        trainer.test(module, datamodule=data, verbose=False)
        summary = summarise(trainer, module, tested=tested.name)
        told = as_text(summary)
        if settings is not None:
            summary["settings"] = dict(settings)
        _write_summary(folder, summary)
        say(told)
        return summary


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


def check_goes_on(trainer: Trainer, folder: RunFolder, changes: Sequence[str]) -> None:
    """Check that a run that is resumed with other settings trains with them at all.

    Args:
        trainer: That of the run.
        folder: That of the run.
        changes: What is other than in the checkpoint, nothing or one line.

    Raises:
        ConfigError: Its training is complete, and its results would pass for those of the changes.
    """
    if changes and folder.checkpoint is not None and _is_complete(trainer, folder.checkpoint):
        raise ConfigError(
            f"the training of {folder.resume_from} is complete at step {folder.resume_step}, so "
            f"that nothing is left of {changes[0]}; choose another run_dir"
        )


def _go_on(
    trainer: Trainer, module: TrainingModule, data: LightningDataModule, folder: RunFolder
) -> dict[str, Any] | None:
    """Check that a training can go on, and hand what its checkpoint holds to the trainer.

    Returns:
        That, if nothing is left to train; else nobody but the trainer holds it.
    """
    checkpoint, path = folder.take_checkpoint(), folder.resume_from
    assert checkpoint is not None
    assert path is not None
    say(f"resuming {path} after step {folder.resume_step}")
    keeps = type(data).state_dict is not LightningDataModule.state_dict
    try:
        check_resumable(checkpoint, data=type(data).__qualname__ if keeps else None)
    except ValueError as error:
        raise damaged(path, error) from error
    load_weights(module, checkpoint, path)
    if stopped_early(trainer, checkpoint):
        trainer.fit_loop.epoch_loop.max_steps = folder.resume_step or 0
    reader = trainer.strategy.checkpoint_io
    if isinstance(reader, AtomicCheckpointIO):
        reader.hand_over(checkpoint, path)
    return checkpoint if _is_complete(trainer, checkpoint) else None


def _is_complete(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    return (
        step_of(checkpoint) >= trainer.max_steps
        or 0 < (trainer.max_epochs or 0) <= epochs_made(checkpoint)
        or stopped_early(trainer, checkpoint)
    )


def _of_kind(trainer: Trainer, kind: type[Any]) -> Any:
    # Lightning sets the list where pyright does not see it.
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, kind))


@rank_zero_only
def _copy_checkpoint(path: Path, target: Path, content: dict[str, Any] | None) -> None:
    """Make a checkpoint the last one, if another or none is in its place."""
    if path != target:  # where a time limit has ended the training, it was not known to be complete
        save_checkpoint(content or load_checkpoint(path), target)


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
