import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.text.tokenizer import detokenize, tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't panic.", ["Don't", "panic", "."]),
        ("a read-only file", ["a", "read-only", "file"]),
        ("since 3.11, not 1,000!", ["since", "3.11", ",", "not", "1,000", "!"]),
        ("call foo_bar() twice", ["call", "foo_bar", "()", "twice"]),
        ("object.__init__(self)", ["object", ".", "__init__", "(", "self", ")"]),
        ("i.e. utf8 -- wait...", ["i.e.", "utf8", "--", "wait", "..."]),
        ("\u201cIt\u2019s\u201d", ['"', "It's", '"']),
        ("Kutúzov <unk> <eos>", ["Kutúzov", *["<", "unk", ">", "<", "eos", ">"]]),
        ("", []),
    ],
)
def test_tokenize_cuts_prose(text, tokens):
    assert tokenize(text) == tokens


@given(st.text())
def test_tokenize_loses_only_whitespace(text):
    straight = text.translate(str.maketrans("\u2018\u2019\u201c\u201d", "''\"\""))
    assert "".join(tokenize(text)) == "".join(straight.split())


@given(st.text(), st.text())
def test_tokenize_is_local_to_words(left, right):
    assert tokenize(f"{left} {right}") == tokenize(left) + tokenize(right)


@pytest.mark.parametrize(
    "text",
    [
        "The method (if any) is called with one argument, foo() say.",
        'He said: "Go on!" and left.\nNothing else; see os.path.join().',
        "It's 'quoted' at [1] and *starred*.",
    ],
)
def test_detokenize_reads_as_prose(text):
    tokens = " <eos> ".join(" ".join(tokenize(line)) for line in text.split("\n")).split()
    assert detokenize(tokens) == text


def test_detokenize_joins_what_wikitext_parted():
    text = "the dog 's 3 @.@ 5 m @-@ long tail"
    assert detokenize(text.split()) == "the dog's 3.5 m-long tail"
