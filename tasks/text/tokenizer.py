"""Word-level tokens of English prose and readable text back from them."""

import re
from collections.abc import Iterable

EOS = "<eos>"
"""Ends every line."""
UNK = "<unk>"
"""Stands for every word outside the vocabulary."""

_TOKEN = re.compile(
    r"""(?:[A-Za-z]\.){2,}                    # abbreviations: i.e.
      | [^\W\d_]+(?:['-][^\W\d_]+)*(?!\w)     # words: don't, read-only
      | \d+(?:[.,]\d+)*(?!\w)                 # numbers: 3.11, 10,000
      | \w+                                  # identifiers: __init__, utf8
      | \(\) | \.\.\. | --                    # marks of several characters
      | [^\w\s]                              # every other character by itself
    """,
    re.VERBOSE,
)
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})

_NO_SPACE_BEFORE = frozenset([*".,;:!?)]}%", "()", "..."])
_NO_SPACE_AFTER = frozenset("([{$#@")
_JOINING = re.compile(r"@(.)@")
_PAIRED = frozenset("\"'`*")


def tokenize(text: str) -> list[str]:
    """Cut prose into words, numbers and punctuation marks; the case is kept.

    Curly quotation marks become straight ones, so that one mark is one token. Apostrophes and
    hyphens inside a word belong to it (`don't`, `read-only`), a dot or comma between digits to the
    number (`3.11`), and underscores to identifiers (`__init__`). What looks like `<unk>` or `<eos>`
    is text like any other, of three tokens.
    """
    return _TOKEN.findall(text.translate(_STRAIGHT))


def split_tokens(text: str) -> list[str]:
    """Cut a line of a token file at its spaces.

    There `<unk>` is by convention the unknown word; `<eos>`, which ends lines here and is in none
    of the published files, is cut as prose.
    """
    words = text.split()
    if EOS not in words:
        return words
    return [part for word in words for part in (tokenize(word) if word == EOS else [word])]


def detokenize(words: Iterable[str]) -> str:
    """Text that reads as prose: no space before closing punctuation, `<eos>` as a line break.

    A quotation mark opens and closes in turn, starting anew on each line. `tokenize` does not keep
    the spacing, so this is for reading and not its inverse.
    """
    parts: list[str] = []
    open_marks: set[str] = set()
    glue, previous = True, ""
    for word in words:
        if word == EOS:
            parts.append("\n")
            open_marks.clear()
            glue, previous = True, ""
            continue
        joins = _JOINING.fullmatch(word)  # WikiText's 3 @.@ 5
        closes = word in open_marks
        dotted = previous == "." and (word[0].islower() or word[0] == "_")
        suffix = len(word) > 1 and word[0] == "'"  # WikiText's 's
        if not (glue or closes or dotted or suffix or joins or word in _NO_SPACE_BEFORE):
            parts.append(" ")
        parts.append(joins[1] if joins else word)
        glue = bool(joins) or word in _NO_SPACE_AFTER
        if word in _PAIRED:
            glue = not closes
            open_marks ^= {word}
        previous = word
    return "".join(parts)
