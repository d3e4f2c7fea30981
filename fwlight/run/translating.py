"""Translate sentences with a checkpoint."""

import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from fwlight.errors import ConfigError, DataError
from fwlight.models import EncoderDecoder
from fwlight.pipes import copied
from fwlight.run.actions import restore
from fwlight.training.translation import TranslationModule


def read_lines(path: str | None) -> list[str]:
    """Return the lines of a UTF-8 file or pipe, or of standard input.

    Raises:
        ConfigError: The file cannot be read.
        DataError: It is no UTF-8, or a pipe that nobody writes to.
    """
    name = "standard input" if path is None else f"input={path}"
    try:
        if path is None:
            raw = sys.stdin.buffer.read()
        else:
            file = Path(path)
            raw = (copied(file) if file.is_fifo() else file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}: byte 0x{raw[error.start]:02x} in line {line} is not valid UTF-8"
        ) from error
    if "\n" not in text:  # as in tasks.io.textfiles, which this package does not import
        text = text.replace("\r", "\n")
    # Not splitlines(), which also cuts at other characters and so loses the count of sentences.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def translate(
    module: Any,
    data: Any,
    lines: list[str],
    *,
    ckpt: str | Path,
    beam: int,
    length_penalty: float,
    batch_size: int,
) -> str:
    """Translate every line with the model of a checkpoint; a blank one stays blank.

    Args:
        module: A `TranslationModule`.
        data: With `encode_source`, `decode` and `special_ids` of the checkpoint's vocabulary.
        lines: One sentence each.
        ckpt: The checkpoint.
        beam: Beams; 1 is greedy.
        length_penalty: See `fwlight.models.beam_search`.
        batch_size: Sentences at a time.

    Returns:
        As many lines, each with its end.
    """
    if not isinstance(module, TranslationModule):
        raise ConfigError("action=translate needs a checkpoint of task=translation")
    pad_id = cast(EncoderDecoder, module.network).pad_id
    restore(module, data, ckpt)
    sources = data.encode_source(lines)
    # Alike in length together, the longest first: memory that is too small shows at once.
    order = [i for i in range(len(lines)) if lines[i].strip()]
    order.sort(key=lambda i: -len(sources[i]))
    found = [""] * len(lines)
    with tqdm(total=len(order), unit="sentence", disable=None) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [torch.tensor(sources[i], device=module.device) for i in rows]
            padded = pad_sequence(batch, batch_first=True, padding_value=pad_id)
            options = {"beam": beam, "length_penalty": length_penalty}
            ids = module.translate(padded, special_ids=data.special_ids, **options)
            for i, translation in zip(rows, ids, strict=True):
                found[i] = data.decode(translation)
            bar.update(len(rows))
    return "".join(f"{line}\n" for line in found)
