"""One vocabulary of subwords for both languages (joint byte-pair encoding)."""

import json
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fwlight.types import DataError

SPECIAL = PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
"""Of every vocabulary, in this order."""


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn byte-pair encoding (Sennrich et al. 2016).

    Words are cut at spaces and around every punctuation mark and digit, so that numbers are spelt.
    Where a space was, a piece begins with U+2581: texts come back as they were, with single spaces.
    What looks like a special entry (`<s>`) is text. Where the texts have more different characters
    than the vocabulary has room for, the rarest become `<unk>`.

    Args:
        texts: Sentences of both languages.
        vocab_size: Most entries, the four special ones included.

    Raises:
        DataError: there is no text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        limit_alphabet=vocab_size - len(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() <= UNK_ID + 1:
        raise DataError("the training data holds no text to learn a vocabulary from")
    return _reading_text(tokenizer)


def load_bpe(text: str) -> Tokenizer:
    """Return the tokenizer that `Tokenizer.to_str` wrote.

    Raises:
        DataError: it is no such thing.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        known = json.loads(text)["model"]["vocab"]
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"the stored vocabulary cannot be read: {error}") from error
    if [known.get(token) for token in SPECIAL] != [PAD_ID, BOS_ID, EOS_ID, UNK_ID]:
        raise DataError("the stored vocabulary lacks <pad>, <s>, </s> and <unk>")
    return _reading_text(tokenizer)


def _reading_text(tokenizer: Tokenizer) -> Tokenizer:
    """Let no text become a special entry; the library does not store this."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of every text, with no special ones."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Cut any iterable into lists of up to `size`."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
