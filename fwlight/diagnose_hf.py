"""`python -m fwlight.diagnose_hf PATH --text FILE`: the memories of somebody else's model.

PATH is a folder as transformers writes one: config.json, weights as safetensors, tokenizer.json.
Nothing is fetched, and no code that comes with a model is run.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from fwlight import extras
from fwlight.diagnostics.attached import Attached, attach, embedding_of
from fwlight.diagnostics.findings import find_out
from fwlight.diagnostics.interventions import intervene
from fwlight.diagnostics.kind import rules
from fwlight.diagnostics.losses import in_words as loss_in_words
from fwlight.diagnostics.losses import sequence_losses
from fwlight.diagnostics.report import html_report
from fwlight.diagnostics.worth import advise, in_words
from fwlight.errors import ConfigError, DataError, FwlightError, StorageError, error_line
from fwlight.types import LMBatch

_ABOUT = """\
What the (gated) delta rule and linear attention layers of a language model of transformers do with
a text: the report of action=diagnose, as FOLDER/diagnosis.html."""
_LOGITS = 2**26
"""Numbers of an output layer that are there at a time: a quarter of a gigabyte."""
_BLOCK = 2**20
"""Letters of a text that are read at a time."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class Text(NamedTuple):
    """Tokens to look at."""

    sequences: Tensor
    """Ids `[n, t + 1]`, int64."""
    decode: Callable[[list[int]], str] | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; the exit code.

    Args:
        arguments: None are those of this process.
    """
    parser = _Parser(prog="python -m fwlight.diagnose_hf", description=_ABOUT)
    parser.add_argument("path", type=Path, help="folder of a model")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", type=Path, metavar="FILE", help="for the folder's tokenizer.json")
    text.add_argument("--tokens", type=Path, metavar="FILE", help="or ids, with spaces between")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="default: here")
    numbers = {
        "sequences": (32, 1, "to look at"),
        "seq-len": (256, 2, "tokens of each"),
        "interventions": (8, 0, "sequences on which memories are changed; 0: none"),
        "draws": (20, 0, "sequences with which the capacity is measured; 0: it is not"),
    }
    for name, (default, least, told) in numbers.items():
        parser.add_argument(
            f"--{name}", type=_count(least), default=default, metavar="N",
            help=f"{told}; default: {default}",
        )  # fmt: skip
    try:
        print(_diagnose(parser.parse_args(arguments)), flush=True)
    except FwlightError as error:
        print(error_line(error), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (told := extras.missing(error)) is None:
            raise
        print(error_line(told), file=sys.stderr)
        return ConfigError.exit_code
    return 0


def _diagnose(of: argparse.Namespace) -> str:
    """Write the report, a line a layer meanwhile; return where it is."""
    about = _described(of.path)
    ids, decode = _words(of) if of.text else (_numbers(of.tokens), None)
    text = Text(_cut(ids, of.text or of.tokens, of.sequences, of.seq_len), decode)
    model = load(of.path)
    n_types = embedding_of(model).num_embeddings
    if not 0 <= int(text.sequences.min()) <= int(text.sequences.max()) < n_types:
        raise DataError(
            f"{of.text or of.tokens} has tokens that are none of the {n_types} of {of.path}"
        )
    with attach(model) as attached:
        page = _report(attached, text, of, about)
    place = of.out / "diagnosis.html"
    try:
        of.out.mkdir(parents=True, exist_ok=True)
        place.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{place} cannot be written: {error.strerror or error}") from error
    return str(place)


def _report(attached: Attached, text: Text, of: argparse.Namespace, about: dict[str, Any]) -> str:
    layers = attached.layers
    findings = find_out(attached, _batches(text, attached), layers=layers, draws=of.draws)
    for found in findings:
        print(f"{found.layer.name}: {found.line}", flush=True)
    few = _batches(text, attached, of.interventions)
    effects = intervene(attached, few, layers=layers)
    for layer in effects:
        print(f"{layer.layer.name}: {in_words(layer)}", flush=True)
    n, length = text.sequences.shape
    losses = sequence_losses(attached, _batches(text, attached))
    blocks = about.get("num_hidden_layers")
    others = f" of {blocks}" if isinstance(blocks, int) else ""
    unknown = ", ".join(sorted(set(attached.left_out.values())))
    unknown = f" Layers of {unknown} called no kernel that is known here." if unknown else ""
    size = sum(x.numel() for x in attached.model.parameters())
    return html_report(
        findings,
        title=f"Diagnosis of {of.path.resolve().name}: {type(attached.model).__name__}, "
        f"{rules(layers)}, {size:,} parameters, {loss_in_words(losses)}",
        of=f"On {n} sequences of {length - 1} tokens of {of.text or of.tokens}. Shown are the "
        f"{len(layers)}{others} layers whose memory is known here, by their number.{unknown} Keys "
        "are those that reach the kernel: a feature map before it is the model's. Advice is in "
        "keys of fwlight.",
        configuration=json.dumps(about, indent=2, ensure_ascii=False),
        decode=text.decode,
        effects=effects,
        advice=advise(attached, effects),
    )


def load(path: Path) -> nn.Module:
    """Load a model from a folder in float32: its safetensors alone, and none of its code.

    Raises:
        ConfigError: There is no such model, its type is unknown, or weights are missing.
    """
    transformers: Any = _transformers()
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(path),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # whatever a library says of a folder that is no model
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{path} cannot be loaded: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"{path} has no weights for {missing[0]} and {len(missing) - 1} more")
    return model.eval().requires_grad_(False)


def _transformers() -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _described(path: Path) -> dict[str, Any]:
    """Return a folder's config.json, after a look at what else is there."""
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}")
    try:
        about = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} is no model: its config.json: {reason}") from error
    if not isinstance(about, dict) or not isinstance(about.get("model_type"), str):
        raise ConfigError(f"{path} is no model: its config.json names no model_type")
    if (path / "adapter_config.json").exists():
        raise ConfigError(f"{path} holds an adapter of another model; merge it into that first")
    if not any(path.glob("*.safetensors")):
        raise ConfigError(f"{path} has no weights as safetensors; other files may hold code")
    transformers = _transformers()
    if about["model_type"] not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"{path}: model_type={about['model_type']} is unknown to transformers "
            f"{transformers.__version__}; code that comes with a model is not run"
        )
    return about


def _words(of: argparse.Namespace) -> tuple[list[int], Callable[[list[int]], str]]:
    """Return ids of as much of a text as is needed, and what turns ids into text."""
    import tokenizers

    file = of.path / "tokenizer.json"
    if not file.exists():
        raise ConfigError(f"{file} does not exist; --tokens FILE gives a text as numbers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no other
        raise ConfigError(f"{file}: {error}") from error
    tokenizer.no_truncation()  # which may be stored with it, for the model's own inputs
    tokenizer.no_padding()
    ids: list[int] = []
    try:
        with of.text.open(encoding="utf-8") as text:
            while len(ids) < of.sequences * (of.seq_len + 1) and (block := text.read(_BLOCK)):
                ids += tokenizer.encode(block, add_special_tokens=False).ids
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f"{of.text} cannot be read: {reason}") from error
    return ids, tokenizer.decode


def _numbers(file: Path) -> list[int]:
    try:
        return [int(x) for x in file.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it must hold whole numbers with spaces"
        raise DataError(f"{file} cannot be read: {reason}") from error


def _cut(ids: list[int], file: Path, n: int, length: int) -> Tensor:
    """Return up to n sequences, one after the other, each with a last target."""
    n = min(n, len(ids) // (length + 1))
    if n < 1:
        most = max(0, len(ids) - 1)
        raise DataError(f"{file} has {len(ids)} tokens; --seq-len={length} can be {most} at most")
    return torch.tensor(ids[: n * (length + 1)]).view(n, length + 1)


def _batches(text: Text, attached: Attached, n: int | None = None) -> Iterator[LMBatch]:
    """Yield (the first n) sequences, as many at a time as the output layer has room for."""
    sequences = text.sequences[:n]
    rows = max(1, _LOGITS // (sequences.shape[1] * attached.n_types))
    for few in sequences.split(min(rows, 8)) if len(sequences) else ():
        yield LMBatch(few[:, :-1], few[:, 1:])


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return count


if __name__ == "__main__":
    sys.exit(main())
