"""Translation: sentence pairs to batches of subword ids."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from tokenizers import Tokenizer

from fwlight.types import DataError
from tasks.io.cache import cached_folder
from tasks.pairs import EncodedPairs, EvalPairs, TrainPairs
from tasks.position import SCORES, refuse_other_data, whose
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_least
from tasks.text.bpe import BOS_ID, EOS_ID, PAD_ID, UNK_ID, encode_all, load_bpe, train_bpe
from tasks.text.pair_files import read_split, write_split
from tasks.text.parallel import SPLITS, check_source, open_pairs
from tasks.text.sentence_pairs import Split

_SPECIAL = {"pad": PAD_ID, "bos": BOS_ID, "eos": EOS_ID}
_FORMAT = 2  # to be raised when the same text is encoded otherwise
_NOTES = "notes.txt"


class TranslationDataModule(lightning.LightningDataModule):
    """Sentence pairs in a joint vocabulary of subwords, learnt from the training split.

    Vocabulary and encoded pairs are made once and kept in the cache, memory-mapped. A checkpoint
    keeps the vocabulary, which is enough to encode a sentence and decode an answer without `setup`,
    and to test it on any pairs: `test` may then name other files, whatever the source. It also
    keeps a fingerprint of the text; to go on training one of other data is refused.

    Args:
        data: `cldr`, `multi30k`, `wmt14` or `files`; see `tasks.text.parallel.open_pairs`.
        source_lang: Language to translate from, as the files are named.
        target_lang: Language to translate to.
        path: Folder of `multi30k`; None downloads it.
        train: Of `files`: the name of the training split's two files without `.<language>`.
        valid: Likewise.
        test: Likewise.
        drop_blank: Of `files`: leave out pairs of which one side is blank; else they are refused.
        vocab_size: Most entries of the vocabulary.
        batch_tokens: Most tokens of a training batch on either side, padded, over all ranks.
        packing: Whether training pairs of any lengths stand one behind the other in rows, none of
            which sees another, instead of one a row with others alike in length; `batch_tokens` are
            then those of sentences alone.
        eval_batch_tokens: Likewise in evaluation; changes no result.
        max_length: Training pairs with more tokens on a side are left out; None keeps all.
        max_ratio: Likewise those with a side so many times as long as the other, of over 10 tokens.
        seed: Of the order of training, and of what is drawn.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: a value out of range. What is wrong with the text `setup` says.
    """

    def __init__(
        self,
        *,
        data: str = "cldr",
        source_lang: str = "en",
        target_lang: str = "de",
        path: str | Path | None = None,
        train: str | Path | None = None,
        valid: str | Path | None = None,
        test: str | Path | None = None,
        drop_blank: bool = False,
        vocab_size: int = 4000,
        batch_tokens: int = 4096,
        packing: bool = False,
        eval_batch_tokens: int = 4096,
        max_length: int | None = None,
        max_ratio: float | None = None,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        self._where = {
            "source_lang": source_lang,
            "target_lang": target_lang,
            "path": path,
            "given": {"train": train, "valid": valid, "test": test},
            "drop_blank": drop_blank,
        }
        check_least(100, vocab_size=vocab_size)
        check_least(1, batch_tokens=batch_tokens, eval_batch_tokens=eval_batch_tokens)
        check_least(1, max_length=max_length, max_ratio=max_ratio)
        self.data, self.seed = data, seed
        self.vocab_size = vocab_size
        self.batch_tokens, self.eval_batch_tokens = batch_tokens, eval_batch_tokens
        self.packing = packing
        self._max_length, self._max_ratio = max_length, max_ratio
        self._tokenizer: Tokenizer | None = None
        self._fingerprint: str | None = None
        self._splits: dict[str, Split] = {}
        self._split_keys: dict[str, str] = {}
        self.pairs: dict[str, EncodedPairs] = {}
        """The encoded splits; filled by `setup`."""
        self.tested_text = ""
        """Which pairs a checkpoint is tested on; known once it is."""

    # Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Read, learn the vocabulary and encode, or find all that in the cache; once.

        To test a checkpoint that was loaded before, only the test split is read.

        Raises:
            DataError: the text cannot be used, or is not what the loaded checkpoint saw.
            StorageError: something cannot be downloaded or kept.
        """
        if stage in SCORES and self._tokenizer is not None:
            if "test" not in self.pairs:
                self._read_tested(self._tokenizer)
            return
        if len(self.pairs) == len(SPLITS):
            return
        check_source(self.data, **self._where)
        self._splits = open_pairs(self.data, seed=self.seed, **self._where)
        self._split_keys = {split: self._splits[split].key for split in SPLITS[1:]}
        keys = "\n".join(self._splits[split].key for split in SPLITS)
        treatment = f"1 {self.vocab_size} {self._max_length} {self._max_ratio}"
        fingerprint = hashlib.sha256(f"{keys}\n{treatment}".encode()).hexdigest()
        folder = cached_folder("pairs", key=f"{fingerprint[:16]}-{_FORMAT}", build=self._build)
        tokenizer = load_bpe((folder / "bpe.json").read_text(encoding="utf-8"))
        self._adopt(tokenizer, fingerprint, stored=False)
        self.pairs = {split: read_split(folder, split) for split in SPLITS}
        _tell((folder / _NOTES).read_text(encoding="utf-8"))

    def train_dataloader(self) -> TrainPairs:
        """This rank's rows of every training batch."""
        return TrainPairs(
            self.pairs["train"],
            batch_tokens=self.batch_tokens,
            seed=self.seed,
            special=_SPECIAL,
            packing=self.packing,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalPairs:
        """This rank's share of the validation split."""
        return self._eval_pairs("valid")

    def test_dataloader(self) -> EvalPairs:
        """This rank's share of the test split."""
        return self._eval_pairs("test")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {
            "data": self.data,
            "tokenizer": self.tokenizer.to_str(),
            "vocab_hash": self.vocab_hash,
            "fingerprint": self.fingerprint,
            "split_keys": dict(self._split_keys),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the checkpoint's data; before `setup`, adopt the checkpoint's vocabulary.

        Raises:
            DataError: the source, the vocabulary or the text is another.
        """
        refuse_other_data(state_dict, {"data": self.data})
        self._adopt(load_bpe(state_dict["tokenizer"]), state_dict["fingerprint"], stored=True)
        if not self._split_keys:  # checkpoints of earlier versions have none
            self._split_keys = dict(state_dict.get("split_keys", {}))

    # What the rest of a run asks of the data

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary, once `setup` or `load_state_dict` has run."""
        if self._tokenizer is None:
            raise RuntimeError("call setup() or load_state_dict() first")
        return self._tokenizer

    @property
    def vocab_hash(self) -> str:
        """SHA-256 of the vocabulary and its merges."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text and of what was made of it."""
        if self._fingerprint is None:
            raise RuntimeError("call setup() or load_state_dict() first")
        return self._fingerprint

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with, once `setup` or `load_state_dict` has run."""
        return {"vocab_size": self.tokenizer.get_vocab_size(), "pad_id": PAD_ID}

    @property
    def special_ids(self) -> dict[str, int]:
        """What a search begins and ends a translation with."""
        return {"bos_id": BOS_ID, "eos_id": EOS_ID}

    def sentences(self, split: str) -> tuple[list[str], list[str]]:
        """Sources and references of a split, by the `numbers` of its batches."""
        sources, targets = zip(*filter(all, self._splits[split].pairs()), strict=True)
        return list(sources), list(targets)

    def encode_source(self, texts: list[str]) -> list[list[int]]:
        """Ids of sentences to translate, each with its end token."""
        return [[*ids, EOS_ID] for ids in encode_all(self.tokenizer, texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special ones are left out."""
        return self.tokenizer.decode(list(ids))

    # Parts

    def _build(self, folder: Path) -> None:
        """Fill a folder with the vocabulary and the arrays of every split."""
        train = self._splits["train"]
        texts = (text for pair in train.pairs() for text in pair)
        tokenizer = train_bpe(texts, vocab_size=self.vocab_size)
        tokenizer.save(str(folder / "bpe.json"), pretty=False)
        limits = {"max_length": self._max_length, "max_ratio": self._max_ratio}
        notes = [
            note
            for split in SPLITS
            for note in write_split(
                folder,
                split,
                self._splits[split].pairs(),
                tokenizer=tokenizer,
                **(limits if split == "train" else {}),
            )
        ]
        (folder / _NOTES).write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")

    def _read_tested(self, tokenizer: Tokenizer) -> None:
        """Read the test split, in the checkpoint's vocabulary."""
        try:
            self._splits = open_pairs(self.data, seed=self.seed, only="test", **self._where)
        except DataError as error:
            raise DataError(f"{error}; task.test=NAME gives other pairs to run on") from error
        split = self._splits["test"]
        key = hashlib.sha256(f"{self.vocab_hash} {split.key}".encode()).hexdigest()
        folder = cached_folder(
            "pairs",
            key=f"{key[:16]}-{_FORMAT}",
            build=lambda folder: write_split(folder, "test", split.pairs(), tokenizer=tokenizer),
        )
        self.pairs["test"] = pairs = read_split(folder, "test")
        both = torch.cat([pairs.source, pairs.target])
        self.tested_text = (
            f"{split.name or f'task.data={self.data}'}, test split, {len(pairs):,} pairs, "
            f"{(both == UNK_ID).double().mean():.2%} of the subwords <unk>; "
            f"{whose(self._split_keys.get('test'), split.key)}"
        )

    def _adopt(self, tokenizer: Tokenizer, fingerprint: str, *, stored: bool) -> None:
        """Take over vocabulary and fingerprint; if the other side is there already, compare."""
        if self._fingerprint is not None and self._fingerprint != fingerprint:
            now, then = self._fingerprint, fingerprint
            if not stored:
                now, then = then, now
            raise DataError(
                f"the checkpoint's text is another: {then[:12]} in the checkpoint, {now[:12]} now; "
                "use the data and sizes of the old run, or start anew in another run_dir"
            )
        if self._tokenizer is not None and self._tokenizer.to_str() != tokenizer.to_str():
            raise DataError(
                "the checkpoint's vocabulary is another, though the text is the same: it was "
                "learnt by another version of tokenizers; start anew in another run_dir"
            )
        self._tokenizer, self._fingerprint = tokenizer, fingerprint

    def _eval_pairs(self, split: str) -> EvalPairs:
        return EvalPairs(
            self.pairs[split],
            batch_tokens=self.eval_batch_tokens,
            special=_SPECIAL,
            **ranks(self.trainer),
        )


@rank_zero_only
def _tell(notes: str) -> None:
    print(notes, end="", file=sys.stderr, flush=True)
