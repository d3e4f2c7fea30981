"""What no key of a configuration can be checked for alone."""

from typing import Any

from cli.launch import LOCAL, cores
from fwlight.errors import ConfigError

_PROCESSES_A_CORE = 4


def check_together(values: dict[str, Any]) -> None:
    """Check what no key can be checked for alone.

    Raises:
        ConfigError: Naming both values.
    """
    size, action = values["size"], values["action"]
    if size.get("d_model", 0) % size.get("n_heads", 1):
        raise ConfigError(
            f"size.n_heads={size['n_heads']} does not divide size.d_model={size['d_model']}"
        )
    optimizer, trainer = values["optimizer"], values["trainer"]
    warmup = optimizer.get("warmup_steps", 0)
    if optimizer.get("schedule") != "constant" and warmup > trainer["max_steps"]:
        raise ConfigError(
            f"optimizer.warmup_steps={warmup} is longer than "
            f"trainer.max_steps={trainer['max_steps']}"
        )
    decay = (optimizer.get("decay_steps") or 0) if optimizer.get("schedule") == "wsd" else 0
    if decay and warmup + decay > trainer["max_steps"]:
        raise ConfigError(
            f"optimizer.warmup_steps={warmup} and optimizer.decay_steps={decay} together are "
            f"longer than trainer.max_steps={trainer['max_steps']}"
        )
    devices, batch = trainer["devices"], values["task"].get("batch_size", 0)
    ranks = (len(devices) if isinstance(devices, list) else devices) if devices != "auto" else 1
    if batch % (ranks * trainer["num_nodes"] or 1):
        raise ConfigError(
            f"task.batch_size={batch} sequences cannot be shared evenly by "
            f"{ranks * trainer['num_nodes']} processes"
        )
    if action == "fit" and values["launcher"]["_target_"] == LOCAL:
        _check_processes(values, max(ranks, 1))
    if len(optimizer.get("betas", (0, 0))) != 2:
        raise ConfigError(f"optimizer.betas={optimizer['betas']} are not two numbers")
    checkpoint = values["callbacks"]["checkpoint"]
    asked = {"callbacks.checkpoint.average_last": checkpoint["average_last"]}
    asked |= {f"optimizer.{x}": optimizer.get(x) for x in ("ema_decay", "average_from")}
    averages = [f"{key}={value}" for key, value in asked.items() if value]
    if len(averages) > 1:
        raise ConfigError(
            f"{averages[0]} and {averages[1]} are two averages of the weights; choose one"
        )
    every, last = checkpoint["keep_every_n_train_steps"], checkpoint["average_last"] or 0
    if (kept := trainer["max_steps"] // every if every else 0) < last:
        raise ConfigError(
            f"callbacks.checkpoint.average_last={last}, but of trainer.max_steps="
            f"{trainer['max_steps']} only {kept} copies are kept: "
            f"callbacks.checkpoint.keep_every_n_train_steps={'null' if every is None else every}"
        )
    if values["compile"] and values["model"].get("recompute"):
        raise ConfigError(
            "model.recompute=true beside compile=true, which chooses itself what is computed again"
        )
    if action == "fit" and values["ckpt"] is not None:
        raise ConfigError("action=fit takes no ckpt=; resume=PATH goes on from a checkpoint")
    if action != "fit" and values["ckpt"] is None:
        raise ConfigError(f"action={action} needs ckpt=PATH, as runs/.../checkpoints/best.ckpt")
    if values["against"] is not None and action != "diagnose":
        raise ConfigError(f"against={values['against']} is of action=diagnose, not of {action}")
    if action != "fit" and trainer["profiler"] is not None:
        raise ConfigError("trainer.profiler is of action=fit: its reports go into the run's folder")
    if action == "generate" and (values["prompt"] is None) == (values["input"] is None):
        raise ConfigError("action=generate needs prompt=TEXT or input=FILE, and only one of them")
    if action == "generate" and values["model"].get("positions") == "sinusoidal_reversed":
        raise ConfigError("action=generate cannot decode with model.positions=sinusoidal_reversed")
    if action == "fit" and values["resume"] == "auto" and values["run_dir"] is None:
        raise ConfigError("resume=auto needs run_dir=PATH: the run to go on with")


def _check_processes(values: dict[str, Any], ranks: int) -> None:
    """Check that no more processes are started here than the machine has use for."""
    started = {"task.num_workers": values["task"].get("num_workers", 0) * ranks}
    if values["trainer"]["accelerator"] == "cpu":
        started["trainer.devices"] = ranks
    most = _PROCESSES_A_CORE * cores()
    for key, n in started.items():
        if n > most:
            raise ConfigError(
                f"{key} asks for {n} processes on {cores()} cores; at most {most}, "
                f"{_PROCESSES_A_CORE} a core, may be started"
            )
