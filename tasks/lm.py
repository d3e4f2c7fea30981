"""Language modelling: text to batches of contiguous lanes."""

from collections.abc import Iterable
from pathlib import Path
from platform import python_version
from typing import Any

import lightning
from torch import Tensor

from fwlight.types import DataError
from tasks.contexts import EVALUATIONS, EvalLoader, eval_loader
from tasks.lanes import TrainLanes
from tasks.position import SCORES, refuse_other_data, refuse_other_text, whose
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_choices, check_least
from tasks.segments import CONTEXTS, LENGTHS, check_lengths
from tasks.text.bigrams import TrainingBigrams
from tasks.text.corpora import SPLITS, open_corpus
from tasks.text.documents import RESETS, check_documents, document_starts, line_beginnings
from tasks.text.encoding import encode, encode_split, stream_hash
from tasks.text.learning import Choice, restored
from tasks.text.public_texts import PATTERNS
from tasks.text.tokens import Tokens, Words
from tasks.text.vocabulary import Vocabulary

_STDLIB_REMEDY = "the text comes with Python: use the Python version of the old run"
_FILES_REMEDY = "use the files and vocabulary size of the old run"


class LanguageModelingDataModule(lightning.LightningDataModule):
    """Text as contiguous batch lanes of token ids; the vocabulary is the training split's.

    A checkpoint keeps the vocabulary, whatever the tokens are, and a fingerprint of the encoded
    text; to go on training one that was written on other data is refused. The vocabulary of a
    checkpoint alone is enough to encode a prompt and decode an answer, without `setup`, and to test
    it on any text: the file of `test_split` may then be another, whatever the source, and the
    others need not be there.

    Args:
        data: A source of `tasks.text.corpora.open_corpus`.
        path: The one file of `text`, or the folder of the files of others.
        train: File of the training split.
        valid: File of the validation split.
        test: File of the test split.
        batch_size: Sequences of a training batch, over all ranks.
        eval_batch_size: Sequences of an evaluation batch, over all ranks; changes no result.
        seq_len: Tokens of a segment.
        tokenizer: What the tokens are: `words`, `chars`, `bytes`, `bpe` (byte pairs, learnt on the
            training split) or a tokenizer.json, whose path this is.
        vocab_size: Most entries of a vocabulary of byte pairs.
        min_count: Words or characters with fewer occurrences in the training split become `<unk>`;
            None: words of prose 3; 1 in token files, which hold `<unk>` already, and of characters.
        max_vocab_size: Most entries of such a vocabulary, `<unk>` and `<eos>` included.
        context: What a training segment starts from: `segment`, an empty memory, or `carried`, what
            the memory held at the end of the lane's segment before it.
        lengths: Of carried training segments, `fixed` or `drawn`; see `tasks.segments`.
        lengths_seed: Of the drawn ones.
        packing: Whether rows hold several documents of which none sees another (WikiText): the
            memory is empty where an article begins, in segments and sliding windows too. Documents
            that are longer than a row go on in the next one, which begins with nothing.
        reset: What empties a carried memory: `never` anything but the start of an epoch, or
            `document`, where an article begins (WikiText), as `packing` does.
        eval: How validation and test are read: `segment`, `sliding` or `carried`; see
            `tasks.contexts`. Carried, the stream is cut into `eval_batch_size` lanes.
        eval_stride: How far a sliding window is from the one before it.
        eval_seq_len: Tokens of a segment or window of an evaluation; None: as trained.
        test_split: What a test reads, `test` or `valid`.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: a size below 1 or an unknown option. What is wrong with the text `setup` says.
    """

    def __init__(
        self,
        *,
        data: str = "stdlib",
        path: str | Path | None = None,
        train: str | Path | None = None,
        valid: str | Path | None = None,
        test: str | Path | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        seq_len: int = 128,
        tokenizer: str = "words",
        vocab_size: int = 4000,
        min_count: int | None = None,
        max_vocab_size: int | None = None,
        context: str = "segment",
        lengths: str = "fixed",
        lengths_seed: int = 0,
        packing: bool = False,
        reset: str = "never",
        eval: str = "segment",
        eval_stride: int = 1,
        eval_seq_len: int | None = None,
        test_split: str = "test",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, seq_len=seq_len)
        check_least(1, min_count=min_count, eval_stride=eval_stride, eval_seq_len=eval_seq_len)
        check_least(3, max_vocab_size=max_vocab_size)
        check_least(256, vocab_size=vocab_size if tokenizer == "bpe" else None)  # of every byte one
        check_choices(context=(context, CONTEXTS), reset=(reset, RESETS), eval=(eval, EVALUATIONS))
        check_choices(lengths=(lengths, LENGTHS), test_split=(test_split, SPLITS[1:]))
        check_lengths(lengths, context=context, seq_len=seq_len)
        if packing or reset == "document":
            asked = "task.packing=true" if packing else "task.reset=document"
            check_documents(asked, data=data, tokenizer=tokenizer)
        self._paths: dict[str, Any] = {"path": path, "train": train, "valid": valid, "test": test}
        self.data = data
        self.batch_size, self.eval_batch_size, self.seq_len = batch_size, eval_batch_size, seq_len
        # Token files hold <unk> already.
        rare = 3 if tokenizer == "words" and data not in PATTERNS else 1
        self._choice = Choice(tokenizer, min_count or rare, max_vocab_size, vocab_size)
        self.context, self.packing, self.reset = context, packing, reset
        self._lengths_seed = lengths_seed if lengths == "drawn" else None
        self.eval, self.eval_stride, self.test_split = eval, eval_stride, test_split
        self.eval_seq_len, self.num_workers = eval_seq_len or seq_len, num_workers
        self._tokens: Tokens | None = None
        self._n_bytes: dict[str, int] = {}
        self._fingerprint: str | None = None
        self._split_hashes: dict[str, str] = {}
        self._training_bigrams = TrainingBigrams()
        self.streams: dict[str, Tensor] = {}
        """Token ids of each split, int32; filled by `setup`."""
        self.tested_text = ""
        """Which text a checkpoint is tested on; known once it is."""

    # Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Read, count and encode the text, or map it from the cache; once.

        To test a checkpoint that was loaded before, only the tested split is read.

        Raises:
            DataError: the text cannot be used, or is not what the loaded checkpoint saw.
        """
        if stage in SCORES and self._tokens is not None:
            if self.test_split not in self.streams:
                self._read_tested()
        elif len(self.streams) < len(SPLITS):
            encoded = encode(open_corpus(self.data, **self._paths), self._choice)
            self._adopt(encoded.tokens, encoded.fingerprint, stored=False)
            self.streams, self._n_bytes = encoded.streams, dict(encoded.n_bytes)
            self._split_hashes = {s: stream_hash(self.streams[s]) for s in SPLITS[1:]}

    def train_dataloader(self) -> TrainLanes:
        """This rank's lanes of the training split."""
        return TrainLanes(
            self.streams["train"],
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            carried=self.context == "carried",
            lengths_seed=self._lengths_seed,
            documents=self._documents("train", carried=self.context == "carried"),
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalLoader:
        """This rank's share of the validation split."""
        return self._eval_loader("valid")

    def test_dataloader(self) -> EvalLoader:
        """This rank's share of the split that is tested."""
        return self._eval_loader(self.test_split)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {
            "data": self.data,
            "tokens": self.tokens.kind,
            **self.tokens.state_dict(),
            "vocab_hash": self.tokens.hash,
            "fingerprint": self.fingerprint,
            "split_hashes": dict(self._split_hashes),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the checkpoint's data; before `setup`, adopt the checkpoint's vocabulary.

        Raises:
            DataError: the source, the vocabulary or the text is another.
        """
        stored = {"data": state_dict["data"], "tokenizer": state_dict.get("tokens", "words")}
        refuse_other_data(stored, {"data": self.data, "tokenizer": self._choice.kind})
        tokens = restored(state_dict, spaced=self.data in PATTERNS)
        self._adopt(tokens, state_dict["fingerprint"], stored=True)
        if not self._split_hashes:  # checkpoints of earlier versions have none
            self._split_hashes = dict(state_dict.get("split_hashes", {}))

    # What the rest of a run asks of the data

    @property
    def tokens(self) -> Tokens:
        """What ids mean, once `setup` or `load_state_dict` has run."""
        if self._tokens is None:
            raise RuntimeError("call setup() or load_state_dict() first")
        return self._tokens

    @property
    def vocabulary(self) -> Vocabulary:
        """The words, where words are the tokens."""
        assert isinstance(self.tokens, Words)
        return self.tokens.vocabulary

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the encoded splits, once `setup` or `load_state_dict` has run."""
        if self._fingerprint is None:
            raise RuntimeError("call setup() or load_state_dict() first")
        return self._fingerprint

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with, once `setup` or `load_state_dict` has run."""
        return {"vocab_size": len(self.tokens)}

    def bytes_per_target(self, split: str) -> float:
        """Bytes of the UTF-8 text of `val` or `test` over its targets, all tokens but the first.

        A line's end is one byte. The text is that of the files, whatever the tokens keep of it.
        """
        name = self._name(split)
        return self._n_bytes[name] / (len(self.streams[name]) - 1)

    def training_bigrams(self, split: str) -> tuple[Tensor, Tensor, int] | None:
        """See `TrainingBigrams`, of `val` or `test`; None where training was not read."""
        return self._training_bigrams(self.streams, self._name(split), len(self.tokens))

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, cut as the source's own text."""
        return self.tokens.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text of ids."""
        return self.tokens.decode(ids)

    def prompts(self, n: int, *, n_words: int = 3) -> list[list[int]]:
        """Ids of the beginnings of `n` lines of the validation split, spread over it."""
        return line_beginnings(self.streams["valid"], self.tokens, n=n, n_words=n_words)

    # Parts

    def _name(self, split: str) -> str:
        return "valid" if split == "val" else self.test_split

    def _read_tested(self) -> None:
        """Read the split that is tested, in the checkpoint's tokens."""
        split, tokens = self.test_split, self.tokens
        try:
            corpus = open_corpus(self.data, **self._paths, only=split)
        except DataError as error:
            raise DataError(f"{error}; task.{split}=FILE gives another text to run on") from error
        stream, self._n_bytes[split] = encode_split(corpus.splits[split], tokens)
        self.streams[split] = stream
        name = ", ".join(map(str, corpus.files)) or f"the library of Python {python_version()}"
        unknown = 0.0 if tokens.unk_id is None else (stream == tokens.unk_id).double().mean()
        self.tested_text = (
            f"{name}, {split} split, {len(stream):,} tokens, {unknown:.2%} of them <unk>; "
            f"{whose(self._split_hashes.get(split), stream_hash(stream))}"
        )

    def _adopt(self, tokens: Tokens, fingerprint: str, *, stored: bool) -> None:
        """Take over vocabulary and fingerprint; if the other side is there already, compare.

        Args:
            tokens: Of the checkpoint or of the text at hand.
            fingerprint: Likewise.
            stored: Whether they are the checkpoint's.
        """
        if self._tokens is not None and self._fingerprint is not None:
            known, given = (self._tokens.hash, self._fingerprint), (tokens.hash, fingerprint)
            then, now = (given, known) if stored else (known, given)
            remedy = _STDLIB_REMEDY if self.data == "stdlib" else _FILES_REMEDY
            refuse_other_text(then, now, remedy=remedy)
        self._tokens, self._fingerprint = tokens, fingerprint

    def _eval_loader(self, split: str) -> EvalLoader:
        return eval_loader(
            self.streams[split],
            kind=self.eval,
            batch_size=self.eval_batch_size,
            stride=self.eval_stride,
            seq_len=self.eval_seq_len,
            documents=self._documents(split, carried=self.eval == "carried"),
            **ranks(self.trainer),
        )

    def _documents(self, split: str, *, carried: bool) -> Tensor | None:
        if not self.packing and not (carried and self.reset == "document"):
            return None
        return document_starts(self.streams[split], self.vocabulary)
