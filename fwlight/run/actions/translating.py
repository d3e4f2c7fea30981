"""Translate sentences with a checkpoint."""

from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from fwlight.errors import ConfigError
from fwlight.models import EncoderDecoder
from fwlight.run.actions import Restored
from fwlight.run.text import read_lines
from fwlight.training.translation import TranslationModule


def translate(
    of: Restored, *, input: str | None, beam: int, length_penalty: float, batch_size: int
) -> dict[str, Any]:
    """Translate every line with the model of a checkpoint; a blank one stays blank.

    Args:
        of: Whose module is a `TranslationModule`, and whose data has `encode_source`, `decode` and
            `special_ids` of the checkpoint's vocabulary.
        input: A file of one sentence a line; None is standard input.
        beam: Beams; 1 is greedy.
        length_penalty: See `fwlight.models.beam_search`.
        batch_size: Sentences at a time.

    Returns:
        As "text", as many lines, each with its end.
    """
    lines = read_lines(input)
    module: Any = of.module
    if not isinstance(module, TranslationModule):
        raise ConfigError("action=translate needs a checkpoint of task=translation")
    pad_id = cast(EncoderDecoder, module.network).pad_id
    sources = of.data.encode_source(lines)
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
            ids = module.translate(padded, special_ids=of.data.special_ids, **options)
            for i, translation in zip(rows, ids, strict=True):
                found[i] = of.data.decode(translation)
            bar.update(len(rows))
    return {"text": "".join(f"{line}\n" for line in found)}
