"""Stories and their streams: the authors' own, and made-up ones answered again by a reader."""

import gzip
import json
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch

from fwlight.types import IGNORE_INDEX, DataError
from tasks.babi import Story, check_task, read_stories
from tasks.catbabi import CatbabiDataModule
from tasks.made_up_stories import KINDS, NUMBERS, made_up_story
from tasks.story_rows import EvalStories, StoryRows, TrainStories, assigned, encode

MADE_UP = {"n_stories": 12, "batch_size": 4, "eval_batch_size": 3, "seq_len": 20}


@pytest.fixture(scope="module")
def golden(shared_dir):
    return json.loads((shared_dir / "reference" / "catbabi_golden.json").read_text())


def rows_of(stories, words, mode, *, n_rows, seq_len):
    encoded = encode(stories, {word: i for i, word in enumerate(words)})
    options = {"question": words.index("?"), "answers_only": mode == "qm"}
    made = partial(StoryRows, encoded, seq_len=seq_len, **options)
    return list(EvalStories(encoded, made, n_rows=n_rows))


def padded(targets: torch.Tensor) -> list[list[int]]:
    return targets.masked_fill(targets == IGNORE_INDEX, 0).tolist()


def test_golden_stories(golden, tmp_path):
    for i, known in enumerate(golden["stories"]):
        file = tmp_path / f"{i}.txt"
        file.write_text("\n".join(known["raw"]) + "\n")
        (story,) = read_stories(file, known["task"])
        assert " ".join(story.words) == known["words"]
        for mode in ("lm", "qm"):
            (batch,) = rows_of([story], golden["vocabulary"], mode, n_rows=1, seq_len=2000)
            assert batch.inputs[0].tolist() == known["x"]
            assert padded(batch.targets)[0] == known[f"y_{mode}"]
            (asked,) = batch.kinds.nonzero()[:, 1:].T.tolist()
            assert asked == known["question_positions"]
            assert set(batch.kinds[batch.kinds > 0].tolist()) == {known["task"]}
            answers = [golden["vocabulary"][y] for y in batch.targets[0, asked].tolist()]
            assert answers == known["answers"]


@pytest.mark.parametrize("mode", ["lm", "qm"])
def test_golden_batches(golden, mode):
    stories = [Story(x["task"], tuple(x["words"].split())) for x in golden["stories"]]
    words, expected = golden["vocabulary"], golden["batches"][mode]
    batches = rows_of(stories, words, mode, n_rows=3, seq_len=25)
    assert len(batches) == len(expected)
    for batch, known in zip(batches, expected, strict=True):
        assert batch.inputs.tolist() == known["x"]
        assert padded(batch.targets) == known["y"]
        tasks = torch.tensor(known["t"])
        assert torch.equal(batch.kinds, tasks * (batch.inputs == words.index("?")))
        assert (batch.inputs > 0).sum(1).tolist() == known["length"]


@pytest.mark.slow
def test_raw_files_have_the_published_sizes(shared_dir):
    path = str(shared_dir / "data" / "babi")
    check_task({"data": "babi", "path": path, "tasks": None, "mode": "qm"})
    data = CatbabiDataModule(data="babi", path=path)
    data.setup()
    assert len(data.words) == 200
    stories = data.stories
    assert len(stories["test"].ends) == 6247
    assert len(stories["test"].tokens) == 565_653 + 6247
    asked = (stories["test"].tokens == data.words.index("?")).sum()
    assert asked == 19_910
    # Of task 3 a tenth of the training file is here.
    assert len(stories["valid"].ends) == 6245 - 180
    assert len(stories["train"].ends) == 56_376 - 1620
    everything = CatbabiDataModule(data="babi", path=path, drop_last_story=False, tasks=[1, 20])
    everything.setup()
    assert len(everything.stories["test"].ends) == 293
    assert len(everything.stories["train"].ends + everything.stories["valid"].ends) == 2933


# What raw files may be

RAW = "1 the cat sat here.\n2 where is the cat? \there\t1\n1 the dog ran off.\n2 it was gone.\n"


def test_last_story_of_a_file_is_lost_where_that_is_asked_for(tmp_path):
    for split in ("train", "valid", "test"):
        packed = gzip.compress((RAW * 3).encode())
        (tmp_path / f"qa4_some-kind_{split}.txt.gz").write_bytes(packed)
    for drop, count in ((True, 5), (False, 6)):
        data = CatbabiDataModule(data="babi", path=tmp_path, tasks=[4], drop_last_story=drop)
        data.setup()
        assert [len(data.stories[x].ends) for x in ("train", "valid", "test")] == [count] * 3
        assert data.words[:2] == ("<pad>", "<eos>")
        assert "<task 20>" in data.words
    assert (data.mode, data.network_sizes["n_outputs"]) == ("qm", len(data.words))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 the cat sat here.\n2 where is the cat? \the", "qa4_x_train.txt:2: no line of bAbI"),
        ("1 the cat sat here.\n2 it ran of", "qa4_x_train.txt:2: no line of bAbI"),
        ("1 the cat sat here.\n3 it ran.\n", "qa4_x_train.txt:2: no line of bAbI"),
        ("It was a dark and stormy night.\n", "qa4_x_train.txt:1: no line of bAbI"),
        ("", "holds no story"),
    ],
)
def test_cut_and_foreign_files_are_named(text, message, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"qa4_x_{split}.txt").write_text(text)
    task = {"data": "babi", "path": str(tmp_path), "tasks": [4], "mode": "qm"}
    with pytest.raises(DataError, match=message):
        check_task(task)
    with pytest.raises(DataError, match=r"holds no file qa5_..._train.txt of bAbI's task 5"):
        check_task({**task, "tasks": [4, 5]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x"}, "x is none of made_up, babi"),
        ({"path": "x"}, "made_up reads no files"),
        ({"tasks": [4]}, "made_up has no 4, but 1, 2, 3, 7"),
        ({"data": "babi", "tasks": [21]}, "babi has no 21"),
        ({"tasks": []}, "at least one"),
        ({"mode": "x"}, "x is none of qm, lm"),
        ({"seq_len": 0}, "task.seq_len=0 is too small"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(DataError, match=message):
        CatbabiDataModule(**options)


# Made-up stories


class Reader:
    """Reads sentences, and answers questions of every kind."""

    def __init__(self) -> None:
        self.place, self.holder, self.trail = {}, {}, {}
        self.fears, self.kind, self.at = {}, {}, {}

    def hear(self, words: list[str]) -> None:
        who, last = words[0], words[-1]
        if words[1] in ("walked", "hurried", "moved"):
            self.place[who] = last
            for thing, holder in self.holder.items():
                if holder == who:
                    self.trail[thing].append(last)
        elif words[1] in ("took", "picked"):
            assert last not in self.holder
            assert self.trail.setdefault(last, [self.place[who]])[-1] == self.place[who]
            self.holder[last] = who
        elif words[1] in ("dropped", "put"):
            assert self.holder.pop(last) == who
        elif words[2] == "fears":
            self.fears[words[1]] = last
        elif words[2] == "is":
            self.at.setdefault(last, {})[words[1]] = words[3][0]
        else:
            self.kind[who] = last

    def answer(self, words: list[str]) -> str:
        last = words[-1]
        if words[:2] == ["where", "is"]:
            return self.trail[last][-1] if words[2] == "the" else self.place[last]
        if words[0] == "where":
            trail = self.trail[words[3]]
            visit = len(trail) - 1 - trail[::-1].index(last)
            return trail[visit - 1]
        if words[1] == "many":
            return NUMBERS[sum(x == words[4] for x in self.holder.values())]
        if words[0] == "what":
            return self.fears[self.kind[words[2]]]
        return self.way(words[6], last)

    def way(self, start: str, end: str) -> str:
        """Every pair that hangs together can be walked in both directions."""
        turned = {"n": "s", "s": "n", "e": "w", "w": "e"}
        ways = {(a, b): d for a, beside in self.at.items() for b, d in beside.items()}
        ways |= {(b, a): turned[d] for (a, b), d in ways.items()}
        first = [(b, d) for (a, b), d in ways.items() if a == start]
        (only,) = [f"{d},{ways[b, end]}" for b, d in first if (b, end) in ways]
        return only


@pytest.mark.parametrize("task", KINDS)
def test_made_up_stories_are_answered_by_who_reads_them(task):
    draw, answers = Random(task), set()
    for _ in range(60):
        number, words = made_up_story(task, draw)
        assert number == task
        reader, sentence, rest = Reader(), [], iter(words)
        for word in rest:
            if word == ".":
                reader.hear(sentence)
            elif word == "?":
                answer = next(rest)
                assert answer == reader.answer(sentence)
                answers.add(answer)
            else:
                sentence.append(word)
                continue
            sentence = []
        assert not sentence
    assert len(answers) >= 4


# Streams


def test_stories_go_to_the_shortest_row():
    assert assigned([5, 1, 1, 9, 2, 2], range(6), n_rows=3) == [[0], [1, 3], [2, 4, 5]]
    lengths = [Random(i).randrange(1, 60) for i in range(200)]
    rows = assigned(lengths, range(200), n_rows=7)
    assert sorted(i for row in rows for i in row) == list(range(200))
    sizes = [sum(lengths[i] for i in row) for row in rows]
    assert max(sizes) - min(sizes) <= max(lengths)


def loader(data: CatbabiDataModule, **options) -> TrainStories:
    data.setup()
    sizes = {"batch_size": data.batch_size, "seq_len": data.seq_len, "seed": data.seed}
    return TrainStories(data.stories["train"], data._rows_of("train"), **sizes, **options)


def test_epochs_hold_every_story_once_and_the_state_begins_once():
    data = CatbabiDataModule(**MADE_UP)
    stream = loader(data)
    tokens = len(data.stories["train"].tokens)
    batches = [batch for batch, _ in zip(stream, range(230), strict=False)]
    seen = torch.tensor([int((x.inputs > 0).sum()) for x in batches]).cumsum(0)
    first = int((seen == tokens).nonzero()[0]) + 1
    second = int((seen == 2 * tokens).nonzero()[0]) + 1
    assert first < second < 230
    assert [x.begins for x in batches] == [True] + [False] * (len(batches) - 1)
    assert all(x.continues for x in batches)
    epochs = batches[:first], batches[first:second]
    words = [torch.cat([x.inputs.flatten() for x in part]) for part in epochs]
    counts = [part[part > 0].bincount() for part in words]
    assert torch.equal(*counts)
    assert not torch.equal(words[0], words[1][: len(words[0])])
    # From its number alone, in any order, on any rank.
    again = loader(data)
    for number in (first + 1, 0, second, 3):
        assert torch.equal(again._segment(number).inputs, batches[number].inputs)
        assert torch.equal(again._segment(number).targets, batches[number].targets)
    halves = [loader(data, rank=rank, world_size=2) for rank in (0, 1)]
    parts = [half._segment(first).inputs for half in halves]
    assert torch.equal(torch.cat(parts), batches[first].inputs)


def test_stream_goes_on_from_a_stored_position():
    stream, other = (loader(CatbabiDataModule(**MADE_UP)) for _ in "ab")
    taken = iter(stream)
    for _ in range(7):
        next(taken)
    other.load_state_dict(stream.state_dict())
    assert torch.equal(next(iter(other)).inputs, next(taken).inputs)
    with pytest.raises(DataError, match=r"task.seq_len=20, now it is task.seq_len=10"):
        loader(CatbabiDataModule(**{**MADE_UP, "seq_len": 10})).load_state_dict(stream.state_dict())


def test_limited_epochs_begin_again_with_an_empty_memory():
    stream = loader(CatbabiDataModule(**MADE_UP), epoch_limit=3)
    batches = [batch for batch, _ in zip(stream, range(7), strict=False)]
    assert [x.begins for x in batches] == [True, False, False] * 2 + [True]
    assert [x.continues for x in batches] == [True, True, False] * 2 + [True]
    assert torch.equal(batches[0].inputs, batches[3].inputs)


def test_evaluation_sees_every_question_once_over_ranks():
    data = CatbabiDataModule(**MADE_UP)
    data.setup()
    (one,) = [list(data.val_dataloader())]
    assert [x.begins for x in one] == [True] + [False] * (len(one) - 1)
    assert [x.continues for x in one] == [True] * (len(one) - 1) + [False]
    stories, rows = data.stories["valid"], data._rows_of("valid")
    two = [list(EvalStories(stories, rows, n_rows=3, rank=r, world_size=2)) for r in (0, 1)]
    asked = int((stories.tokens == data.words.index("?")).sum())
    assert sum(int((x.kinds > 0).sum()) for x in one) == asked
    assert sum(int((x.kinds > 0).sum()) for part in two for x in part) == asked
    assert len(two[0]) == len(two[1]) == len(one)
    assert not two[1][0].inputs[1].any()  # a row that there is not


def test_checkpoint_knows_its_stories_and_words():
    options = {**MADE_UP, "tasks": [1]}
    data, other, more = (CatbabiDataModule(**options, seed=seed) for seed in (1, 2, 1))
    data.setup()
    other.load_state_dict(data.state_dict())
    assert other.decode(other.encode("<eos> where is olga ?")) == "<eos> where is olga ?"
    with pytest.raises(DataError, match="no word of this task"):
        other.encode("where is nobody")
    assert other.network_sizes == data.network_sizes
    with pytest.raises(DataError, match="the checkpoint's stories are others"):
        other.setup("fit")
    other.setup("test")
    assert other.words == data.words
    more.load_state_dict(data.state_dict())
    more.setup("fit")
    assert torch.equal(more.stories["train"].tokens, data.stories["train"].tokens)
    with pytest.raises(DataError, match=r"task.mode=qm, now it is task.mode=lm"):
        CatbabiDataModule(**options, mode="lm").load_state_dict(data.state_dict())


def test_archive_is_read_as_its_folder(tmp_path, monkeypatch):
    import tarfile

    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    inside = tmp_path / "files" / "tasks" / "en-10k"
    inside.mkdir(parents=True)
    for split in ("train", "test"):
        (inside / f"qa4_x_{split}.txt").write_text(RAW * 20)
    archive = tmp_path / "tasks_1-20_v1-2.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "files" / "tasks", arcname="tasks")
    found = []
    for path in (archive, Path(inside)):
        data = CatbabiDataModule(data="babi", path=path, tasks=[4])
        data.setup()
        found.append({split: x.tokens.tolist() for split, x in data.stories.items()})
        assert len(data.stories["valid"].ends) == 3  # a tenth of 40, and one of them is lost
    assert found[0] == found[1]
