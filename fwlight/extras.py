"""Which part of what is not installed would bring a module that is missing."""

_EXTRAS = {
    "train": (
        *("filelock", "hydra", "lightning", "numpy", "omegaconf"),
        *("tensorboard", "torchmetrics", "tqdm", "yaml"),
    ),
    "plots": ("PIL", "matplotlib"),
    "translation": ("babel", "sacrebleu", "tokenizers"),
    "images": ("mlxtend", "sklearn"),
    "wandb": ("wandb",),
    "hf": ("safetensors", "tokenizers", "transformers"),
}
"""Modules, as they are imported, by the extra of pyproject.toml that installs them."""


def missing(error: BaseException | None) -> str | None:
    """Say what to install if an exception, or one of its causes, is that a module is not there.

    Returns:
        One line that names an extra; None if the exception is another, or the module no extra's.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            name = error.name.partition(".")[0]
            for extra, modules in _EXTRAS.items():
                if name in modules:
                    return f"{name} is not installed: pip install 'fwlight[{extra}]'"
        error = error.__cause__
    return None
