"""Do what `action` says: from a composed configuration to a result."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from cli.composition import Composition
from cli.finished import drop_other_summary, settings
from cli.launch import first_process, run_dir
from fwlight import __version__
from fwlight.errors import ConfigError, StorageError, one_line
from fwlight.integrity import Verified


def act(
    composition: Composition, arguments: Sequence[str] = (), *, verified: Verified | None = None
) -> dict[str, Any]:
    """Do what `action` says; return metrics, or {"text": ...} of what it wrote.

    Args:
        composition: From `compose_config`.
        arguments: The command line, which goes last over what a checkpoint was made with.
        verified: What `check_files` said of the checkpoint.
    """
    import fwlight.ops.native  # noqa: F401 - a wrong FWLIGHT_NATIVE is told before anything is made
    from fwlight import run

    run.quiet()
    run.keep_freed_memory()
    with run.flushing_denormals(), run.listening(before_exit=run.end_at_once):
        if composition.config["action"] == "fit":
            return train(composition, verified)
        return use(composition, arguments, verified)


def use(
    composition: Composition, arguments: Sequence[str], verified: Verified | None
) -> dict[str, Any]:
    """Do something with the model and the data of a checkpoint, or of two."""
    from cli.building import bound

    given = composition.config
    composition, of = _restored(given["ckpt"], arguments, verified)
    action, options = bound(composition.config[given["action"]]), {}
    if given["against"] is not None:
        other, options["against"] = _restored(given["against"], arguments, None)
        tasks = [x.choices["task"] for x in (composition, other)]
        if tasks[0] != tasks[1]:
            raise ConfigError(
                f"against={given['against']} is of task={tasks[1]}, ckpt={given['ckpt']} of "
                f"task={tasks[0]}: models of one task are compared"
            )
    return action(of, **options)


def _restored(
    path: str, arguments: Sequence[str], verified: Verified | None
) -> tuple[Composition, Any]:
    """Return what a checkpoint was made with, and what an action is given of it."""
    from cli.building import build, build_callbacks, build_parts
    from cli.stored import recompose
    from fwlight import run

    checkpoint = run.load_checkpoint(path, verified=verified)
    composition = recompose(checkpoint.get("fwlight"), arguments)
    _warn(composition.warnings)
    config = composition.config
    module, data = build_parts({**config, "ckpt": path}, checkpoint=checkpoint)
    run.load_weights(module, run.averaged(checkpoint), path)

    def trainer() -> Any:
        identity = {**composition.record(), "version": __version__}
        same = run.SameStart(identity=identity, step=checkpoint.get("global_step"))
        return build(
            "trainer",
            config["trainer"],
            callbacks=[same, *build_callbacks(config)],
            logger=False,
            plugins=run.environment(),
            strategy=run.strategy(config["trainer"], timeout=config["rank_timeout"]),
        )

    restored = run.Restored(module, data, checkpoint, path, composition.yaml(), trainer)
    return composition, restored


def train(composition: Composition, verified: Verified | None) -> dict[str, Any]:
    """Train, or go on training, in the run's folder; return the summary."""
    from cli.building import bound, build, build_callbacks, build_parts, logger_makers
    from cli.stored import check_resume
    from fwlight import run

    config = composition.config
    identity = {**composition.record(), "version": __version__}
    with run.RunFolder.open(
        run_dir(composition),
        resume=config["resume"],
        is_rank_zero=first_process(),
        verified=verified,
    ) as folder:
        changes: list[str] = []
        if folder.checkpoint is not None:
            changes = check_resume(folder.checkpoint.get("fwlight"), composition)
            composition.warnings.extend(changes)
        if first_process():
            print(f"run_dir={folder.path}", flush=True)
        _warn(composition.warnings)
        module, data = build_parts(config)
        monitor = config["callbacks"]["checkpoint"]["monitor"]
        if monitor not in module.monitored:
            raise ConfigError(
                f"callbacks.checkpoint.monitor={monitor} is no metric of this task, which has "
                + ", ".join(module.monitored)
            )
        callbacks = build_callbacks(config) + run.run_callbacks(
            folder, seed=config["seed"], identity=identity, **config["callbacks"]["checkpoint"]
        )
        loggers = run.build_loggers(
            folder,
            hyperparameters=composition.hyperparameters(),
            all_scalars=config["diagnostics"]["scalars"] == "all",
            monitor=monitor,
            others=logger_makers(config),
        )
        trainer = build(
            "trainer",
            config["trainer"],
            callbacks=callbacks,
            logger=loggers,
            profiler=run.profiler(config["trainer"]["profiler"], folder),
            plugins=run.plugins(),
            strategy=run.strategy(config["trainer"], timeout=config["rank_timeout"]),
        )
        run.check_goes_on(trainer, folder, changes)
        _keep(composition, folder, fingerprint=getattr(data, "fingerprint", None))
        fit = bound(config["fit"])
        with run.closing(loggers):
            return fit(trainer, module, data, folder=folder, settings=settings(composition))


def _keep(composition: Composition, folder: Any, *, fingerprint: str | None) -> None:
    """Write the configuration, of which a summary in the folder must be, and what tells runs apart.

    Args:
        composition: Of the run.
        folder: Of the run.
        fingerprint: That of its text, if it has one.
    """
    from fwlight import run

    if not first_process():
        return
    try:
        drop_other_summary(folder.path, composition)
        told = {"settings": settings(composition), "fingerprint": fingerprint}
        for path, text in (
            (folder.run_json, run.as_json(told) + "\n"),
            (folder.config_yaml, composition.yaml()),
        ):
            run.write_atomically(path, partial(_put, text.encode()))
    except OSError as error:
        raise StorageError(
            f"{folder.config_yaml} cannot be written: {error.strerror or error}"
        ) from error


def _put(content: bytes, file: Any) -> None:
    file.write(content)


def _warn(messages: Sequence[str]) -> None:
    """Print warnings, once per run."""
    for message in messages if first_process() else ():
        print(f"warning: {one_line(message)}", file=sys.stderr)
