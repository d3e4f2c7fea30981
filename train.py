"""Train a model, test it or let it write: `python train.py key=value ...`; see `--help`."""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cli.composition import Composition, compose_config
from cli.early import check_files
from cli.finished import drop_other_summary, settings
from cli.launch import first_process, first_to_tell, run_dir
from cli.output import check_told, lasting_output, mend_streams, tell
from cli.stored import before_checkpoint
from cli.sweep import expand, run_sweep
from cli.usage import usage
from fwlight import __version__
from fwlight.errors import (
    ConfigError,
    FwlightError,
    StorageError,
    error_line,
    one_line,
    printable,
)


def train(composition: Composition, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Do what `action` says; return the summary, or {"text": ...} of what it wrote.

    Args:
        composition: From `compose_config`.
        arguments: The command line, which goes last over what a checkpoint was made with.
    """
    from fwlight import run

    run.quiet()
    run.keep_freed_memory()
    with run.flushing_denormals(), run.listening(before_exit=run.end_at_once):
        return act(composition, arguments)


def act(composition: Composition, arguments: Sequence[str]) -> dict[str, Any]:
    """Do what `action` says."""
    from cli.building import build, build_callbacks, build_parts
    from cli.stored import recompose
    from fwlight import run

    if composition.config["action"] == "fit":
        return fit(composition)
    checkpoint = run.load_checkpoint(composition.config["ckpt"])
    composition = recompose(checkpoint.get("fwlight"), arguments)
    warn(composition.warnings)
    config = composition.config
    module, data = build_parts(config, checkpoint=checkpoint)
    if config["action"] == "generate":
        prompt = config["prompt"]
        text = run.generate(
            module,
            data,
            ckpt=config["ckpt"],
            prompt="\n".join(run.read_lines(config["input"])) if prompt is None else prompt,
            seed=config["seed"],
            **config["generate"],
        )
        return {"text": text}
    if config["action"] == "translate":
        lines = run.read_lines(config["input"])
        text = run.translate(module, data, lines, ckpt=config["ckpt"], **config["translate"])
        return {"text": text}
    if config["action"] == "diagnose":
        text = run.diagnose(
            module,
            data,
            ckpt=config["ckpt"],
            configuration=composition.yaml(),
            sequences=config["diagnostics"]["report_sequences"],
            draws=config["diagnostics"]["capacity_draws"],
        )
        return {"text": text, "output": config["output"] or report_path(config["ckpt"])}
    identity = {**composition.record(), "version": __version__}
    same = run.SameStart(identity=identity, step=checkpoint.get("global_step"))
    trainer = build(
        "trainer",
        config["trainer"],
        callbacks=[same, *build_callbacks(config)],
        logger=False,
        strategy=run.strategy(config["trainer"], timeout=config["rank_timeout"]),
    )
    return run.test(trainer, module, data, ckpt=config["ckpt"])


def fit(composition: Composition) -> dict[str, Any]:
    """Train, or go on training, in the run's folder; return the summary."""
    from cli.building import build, build_callbacks, build_parts
    from cli.stored import check_resume
    from fwlight import run

    config = composition.config
    with run.RunFolder.open(
        run_dir(composition), resume=config["resume"], is_rank_zero=first_process()
    ) as folder:
        changes: list[str] = []
        if folder.resume_from is not None:
            stored = run.load_checkpoint(folder.resume_from).get("fwlight")
            changes = check_resume(stored, composition)
            composition.warnings.extend(changes)
        if first_process():
            print(f"run_dir={folder.path}", flush=True)
        warn(composition.warnings)
        module, data = build_parts(config)
        monitor = config["callbacks"]["checkpoint"]["monitor"]
        if monitor not in module.monitored:
            raise ConfigError(
                f"callbacks.checkpoint.monitor={monitor} is no metric of this task, which has "
                + ", ".join(module.monitored)
            )
        callbacks = build_callbacks(config) + run.run_callbacks(
            folder,
            seed=config["seed"],
            identity={**composition.record(), "version": __version__},
            **config["callbacks"]["checkpoint"],
        )
        loggers = run.build_loggers(
            folder, hyperparameters=composition.hyperparameters(), **config["logger"]
        )
        trainer = build(
            "trainer",
            config["trainer"],
            callbacks=callbacks,
            logger=loggers,
            plugins=run.plugins(),
            strategy=run.strategy(config["trainer"], timeout=config["rank_timeout"]),
        )
        run.check_goes_on(trainer, folder, changes)
        if first_process():
            try:
                drop_other_summary(folder.path, composition)
                text = composition.yaml().encode()
                run.write_atomically(folder.config_yaml, lambda file: file.write(text))
            except OSError as error:
                raise cannot_write(folder.config_yaml, error) from error
        return run.fit(trainer, module, data, folder=folder, settings=settings(composition))


def report_path(ckpt: str) -> str:
    """Return where a diagnosis goes: into the run's folder, or else beside the checkpoint."""
    folder = Path(ckpt).parent
    return str((folder.parent if folder.name == "checkpoints" else folder) / "diagnosis.html")


def write(path: str | Path, text: str) -> None:
    """Write a small file."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | Path, error: OSError) -> StorageError:
    """Return the error to raise."""
    return StorageError(f"{path} cannot be written: {error.strerror or error}")


def warn(messages: Sequence[str]) -> None:
    """Print warnings, once per run."""
    for message in messages if first_process() else ():
        print(f"warning: {one_line(message)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    with lasting_output():
        return obey(list(sys.argv[1:] if arguments is None else arguments))


def obey(arguments: list[str]) -> int:
    """Do what a command line says, and tell what went wrong."""
    flags = {flag for flag in ("-h", "--help", "--cfg", "-m") if flag in arguments}
    arguments = [argument for argument in arguments if argument not in flags]
    try:
        if flags & {"-h", "--help"}:
            tell(usage() + "\n")
        elif flags >= {"-m", "--cfg"}:
            tell("".join(shlex.join(point.arguments) + "\n" for point in expand(arguments)))
        elif "-m" in flags:
            return run_sweep(arguments)
        elif "--cfg" in flags:
            tell(compose_config(arguments).yaml())
        else:
            composition = compose_config(before_checkpoint(arguments))
            check_files(composition.config)
            result = train(composition, arguments)
            from fwlight import run

            output = result.get("output") or composition.config["output"]
            text = result["text"] if "text" in result else run.as_json(result) + "\n"
            if output is not None and first_process():
                write(output, text)
            elif "text" in result:
                tell(printable(text) if sys.stdout.isatty() else text)
            elif composition.config["action"] != "fit":  # of that everything is in its folder
                check_told()
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("FWLIGHT_DEBUG") == "1":
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        return conclude(*exit_code_and_line(error))
    return conclude(0, None)


def conclude(code: int, line: str | None) -> int:
    """End this process: tell what went wrong, once for all the processes of a run."""
    if "fwlight.run" in sys.modules:
        from fwlight import run

        code, line = run.conclude(code, line)
    if line is not None and first_to_tell(line):
        print(line, file=sys.stderr)
    return code


def leave(code: int) -> NoReturn:
    """End this process with an exit code."""
    if "fwlight.run" in sys.modules:
        from fwlight import run

        run.leave(code)
    sys.exit(code)


def exit_code_and_line(error: BaseException) -> tuple[int, str]:
    """Explain an exception; without importing torch for a mistake found before it was."""
    if isinstance(error, FwlightError):
        return error.exit_code, error_line(error)
    from fwlight.run import errors

    return errors.exit_code_and_line(error)


if __name__ == "__main__":
    mend_streams()
    leave(main())
