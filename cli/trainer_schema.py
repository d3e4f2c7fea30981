"""What arguments of `lightning.Trainer` may hold, and why some take nothing; see `cli.schema`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cli.checks import Because, Pattern, Range, WholeSection
from cli.kinds import Kind
from cli.model_schema import Count, Natural, Positive

BatchLimit = Count | Annotated[float, Range(above=0, high=1)] | None
EvaluationLimit = Natural | Annotated[float, Range(low=0, high=1)] | None
MAX_TIME = r"(?!00:00:00:00)[0-9][0-9](:[0-9][0-9]){3}"
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]


@dataclass
class Trainer(WholeSection):
    """trainer=: arguments of `lightning.Trainer`; those of type None are not for this place."""

    max_steps: Annotated[Count, Kind.TRAINING]
    max_time: Annotated[str, Pattern(MAX_TIME, "DD:HH:MM:SS, above 0")] | None
    max_epochs: Annotated[Count | None, Kind.TRAINING]
    min_steps: Annotated[Count | None, Kind.TRAINING]
    min_epochs: Annotated[Count | None, Kind.TRAINING]
    accelerator: Literal["cpu", "gpu", "cuda", "mps", "tpu", "auto"]
    devices: Annotated[int, Range(low=1, high=4096)] | Literal["auto"] | list[Natural]
    num_nodes: Count
    strategy: str
    sync_batchnorm: bool
    precision: Annotated[Precision, Kind.TRAINING]
    gradient_clip_val: Annotated[Positive | None, Kind.TRAINING]
    gradient_clip_algorithm: Annotated[Literal["norm", "value"] | None, Kind.TRAINING]
    accumulate_grad_batches: Annotated[Count, Kind.TRAINING]
    val_check_interval: Count | Annotated[float, Range(above=0, high=1)]
    check_val_every_n_epoch: Count | None
    overfit_batches: Natural | Annotated[float, Range(low=0, high=1)]
    limit_train_batches: BatchLimit
    limit_val_batches: EvaluationLimit
    limit_test_batches: BatchLimit
    limit_predict_batches: EvaluationLimit
    num_sanity_val_steps: Annotated[int, Range(low=-1)]
    log_every_n_steps: Count
    deterministic: bool | Literal["warn"]
    benchmark: bool | None
    inference_mode: Annotated[bool, Kind.NO_RESULT]
    detect_anomaly: Annotated[bool, Kind.NO_RESULT]
    profiler: Annotated[Literal["simple", "advanced", "pytorch"] | None, Kind.NO_RESULT]
    enable_progress_bar: bool
    enable_model_summary: bool
    enable_autolog_hparams: Annotated[bool, Kind.NO_RESULT]
    use_distributed_sampler: Annotated[
        Literal[False], Because("the data modules divide their data over the processes themselves")
    ]
    enable_checkpointing: Annotated[
        Literal[False],
        Because("checkpoints go into the run's folder, as callbacks.checkpoint says"),
    ]
    default_root_dir: Annotated[None, Because("everything of a run is in its folder, run_dir=PATH")]
    logger: Annotated[None, Because("logger= chooses the loggers, beside the run's metrics.csv")]
    callbacks: Annotated[None, Because("callbacks= chooses the callbacks, beside the run's own")]
    plugins: Annotated[
        None, Because("a run has its own, which write whole checkpoints; see trainer.precision")
    ]
    fast_dev_run: Annotated[
        None, Because("it writes no checkpoint and no metrics; debug=fdr is a fast run that does")
    ]
    barebones: Annotated[None, Because("it writes no metrics, which a run's folder holds")]
    reload_dataloaders_every_n_epochs: Annotated[
        None, Because("data made anew would begin anew, and a resumed run could not go on exactly")
    ]
    model_registry: Annotated[
        None, Because("resume=PATH goes on from a checkpoint, and none is taken from elsewhere")
    ]
