"""Stories like bAbI's, with words of our own, so that catbAbI's task runs without any file.

Six of bAbI's kinds of questions (Weston et al. 2015, arXiv 1502.05698), by their numbers there.
"""

from collections.abc import Callable, Sequence
from random import Random

PEOPLE = ("olga", "pavel", "rosa", "sven")
PLACES = ("attic", "cellar", "harbour", "library", "market", "stable")
THINGS = ("kettle", "lantern", "map", "violin")
ANIMALS = ("fox", "goat", "heron", "otter")
NAMES = ("bruno", "dora", "emil", "flora")
NUMBERS = ("none", "one", "two", "three", "four")
GOES = ("walked to", "hurried to", "moved to")
TAKES = ("took", "picked up")
DROPS = ("dropped", "put down")
DIRECTIONS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
OPPOSITE = {"north": "south", "east": "west", "south": "north", "west": "east"}
QUESTIONS = 5
"""Of a story, but of path finding, which has one."""

MadeUp = tuple[int, tuple[str, ...]]


class _Tale:
    """A story as it is told, and what is true after every sentence."""

    def __init__(self, draw: Random) -> None:
        self.draw, self.words = draw, list[str]()
        self.place: dict[str, str] = {}
        """Where people are, of those who were seen."""
        self.holder: dict[str, str] = {}
        """Who carries what."""
        self.trail: dict[str, list[str]] = {}
        """Where things have been, of those that were taken once."""

    def say(self, sentence: str) -> None:
        self.words += [*sentence.split(), "."]

    def ask(self, question: str, answer: str) -> None:
        self.words += [*question.split(), "?", answer]

    def go(self, person: str | None = None) -> None:
        person = person or self.draw.choice(PEOPLE)
        to = self.draw.choice([x for x in PLACES if x != self.place.get(person)])
        self.say(f"{person} {self.draw.choice(GOES)} the {to}")
        self.place[person] = to
        for thing, holder in self.holder.items():
            if holder == person:
                self.trail[thing].append(to)

    def take(self) -> None:
        """Let somebody take what lies there, or has not been seen yet; else go."""
        free = [
            (person, thing)
            for person, place in self.place.items()
            for thing in THINGS
            if thing not in self.holder and self.trail.get(thing, [place])[-1] == place
        ]
        if not free:
            self.go()
            return
        person, thing = self.draw.choice(free)
        self.say(f"{person} {self.draw.choice(TAKES)} the {thing}")
        self.holder[thing] = person
        self.trail.setdefault(thing, [self.place[person]])

    def drop(self) -> None:
        """Let somebody put down what is carried; else go."""
        if not self.holder:
            self.go()
            return
        thing = self.draw.choice(sorted(self.holder))
        self.say(f"{self.holder.pop(thing)} {self.draw.choice(DROPS)} the {thing}")

    def anything(self) -> None:
        self.draw.choice((self.go, self.take, self.drop))()


def _where_is_who(tale: _Tale) -> None:
    for _ in range(QUESTIONS):
        tale.go()
        tale.go()
        person = tale.draw.choice(sorted(tale.place))
        tale.ask(f"where is {person}", tale.place[person])


def _where_is_what(tale: _Tale) -> None:
    tale.go()
    tale.take()
    for _ in range(QUESTIONS):
        for _ in range(3):
            tale.anything()
        thing = tale.draw.choice(sorted(tale.trail))
        tale.ask(f"where is the {thing}", tale.trail[thing][-1])


def _where_was_what(tale: _Tale) -> None:
    tale.go()
    tale.take()
    for _ in range(QUESTIONS):
        while True:
            for _ in range(3):
                tale.anything()
            # Of several visits to a place the last counts.
            moves = [
                (thing, trail[i - 1], place)
                for thing, trail in sorted(tale.trail.items())
                for i, place in enumerate(trail)
                if i and place not in trail[i + 1 :]
            ]
            if moves:
                break
        thing, before, place = tale.draw.choice(moves)
        tale.ask(f"where was the {thing} before the {place}", before)


def _how_many(tale: _Tale) -> None:
    tale.go()
    for _ in range(QUESTIONS):
        for _ in range(3):
            tale.anything()
        person = tale.draw.choice(sorted(tale.place))
        carried = sum(holder == person for holder in tale.holder.values())
        tale.ask(f"how many things does {person} carry", NUMBERS[carried])


def _what_fears(tale: _Tale) -> None:
    animals = tale.draw.sample(ANIMALS, len(ANIMALS))
    fears: dict[str, str] = dict(zip(animals, [*animals[1:], animals[0]], strict=True))
    kinds = {name: tale.draw.choice(ANIMALS) for name in NAMES}
    told = [f"a {animal} fears a {other}" for animal, other in fears.items()]
    told += [f"{name} is a {animal}" for name, animal in kinds.items()]
    for sentence in tale.draw.sample(told, len(told)):
        tale.say(sentence)
    for _ in range(QUESTIONS):
        name = tale.draw.choice(NAMES)
        tale.ask(f"what does {name} fear", fears[kinds[name]])


def _which_way(tale: _Tale) -> None:
    """Places on a grid, each beside one before it; the way has two steps."""
    first, *others = tale.draw.sample(PLACES, 5)
    at = {first: (0, 0)}
    ways: dict[tuple[str, str], str] = {}
    sentences = []
    for place in others:
        beside, direction = tale.draw.choice(
            [
                (known, name)
                for known, (x, y) in at.items()
                for name, (dx, dy) in DIRECTIONS.items()
                if (x + dx, y + dy) not in at.values()
            ]
        )
        (x, y), (dx, dy) = at[beside], DIRECTIONS[direction]
        at[place] = (x + dx, y + dy)
        ways[beside, place], ways[place, beside] = direction, OPPOSITE[direction]
        here, there, name = tale.draw.choice(
            [(place, beside, direction), (beside, place, OPPOSITE[direction])]
        )
        sentences.append(f"the {here} is {name} of the {there}")
    for sentence in tale.draw.sample(sentences, len(sentences)):
        tale.say(sentence)
    # Five places that hang together have two steps somewhere.
    two = [(a, b, c) for a, b in ways for x, c in ways if x == b and c != a]
    a, b, c = tale.draw.choice(two)
    tale.ask(f"how do you go from the {a} to the {c}", f"{ways[a, b][0]},{ways[b, c][0]}")


KINDS: dict[int, Callable[[_Tale], None]] = {
    1: _where_is_who,
    2: _where_is_what,
    3: _where_was_what,
    7: _how_many,
    15: _what_fears,
    19: _which_way,
}
"""One, two and three supporting facts, counting, basic deduction, path finding."""


def made_up_story(task: int, draw: Random) -> MadeUp:
    """Return a story of one of `KINDS`: its number, and its words as in `tasks.babi.Story`."""
    tale = _Tale(draw)
    KINDS[task](tale)
    return task, tuple(tale.words)


def made_up_splits(tasks: Sequence[int], *, n_stories: int, seed: int) -> dict[str, list[MadeUp]]:
    """Return the stories of all splits, tasks one after the other.

    Args:
        tasks: Of `KINDS`.
        n_stories: For training, of each task; of validation and test each a tenth, at least one.
        seed: Of those for training; the others are the same for every seed.
    """
    counts = {"train": n_stories, "valid": max(1, n_stories // 10), "test": max(1, n_stories // 10)}
    made: dict[str, list[MadeUp]] = {}
    for split, count in counts.items():
        made[split] = []
        for task in tasks:
            draw = Random(f"{split} {task} {seed if split == 'train' else ''}")
            made[split] += [made_up_story(task, draw) for _ in range(count)]
    return made
