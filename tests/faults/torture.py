"""Runs, their folders, sweeps and caches hurt again and again, against the same left alone.

python -m tests.faults.torture FOLDER [kills=150] [of=run,folder,sweep,text,pairs] [ranks=1]
                                      [seed=0] [steps=2000]

Each of the kinds gets its share of the kills, which are also errors of the disk. What ends in
spite of them is compared, bit for bit, and begun anew. `ranks` and `steps` are those of a run. The
command can itself be stopped and goes on where it was. See `tests.faults.victims`.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.victims import Caches, Sweep, Training, Victim

LOGS = ("metrics.csv", "events.out.tfevents")


def main(
    folder: Path,
    *,
    kills: int = 150,
    of: str = "run,folder,sweep,text,pairs",
    ranks: int = 1,
    seed: int = 0,
    steps: int = 2000,
) -> int:
    victims: dict[str, Callable[[Path], Victim]] = {
        "run": lambda place: Training(place, ranks=ranks, steps=steps),
        "folder": Victim,
        "sweep": Sweep,
        "text": lambda place: Caches(place, "lm"),
        "pairs": lambda place: Caches(place, "translation"),
    }
    kinds = of.split(",")
    for number, kind in enumerate(kinds):
        share = kills * (number + 1) // len(kinds) - kills * number // len(kinds)
        place = (folder / kind).resolve()
        torture(victims[kind](place), place, kind, kills=share, seed=seed)
    return 0


def torture(victim: Victim, folder: Path, kind: str, *, kills: int, seed: int) -> None:
    """Hurt a victim so many times, and compare it each time it comes to its end."""
    whole, tortured, journal = (folder / name for name in ("whole", "tortured", "journal.json"))
    if not journal.exists():
        shutil.rmtree(whole, ignore_errors=True)
        victim.complete(whole)
        journal.write_text(json.dumps({"legs": 0, "ends": 0, "done": []}))
    state = json.loads(journal.read_text())
    began, before = time.monotonic(), len(state["done"])
    while len(state["done"]) < kills:
        chance = random.Random(f"{seed} {kind} {state['legs']}")
        done = victim.hurt(tortured, chance)
        state["legs"] += 1
        if done is None:
            end(victim, tortured, whole, state)
        else:
            state["done"].append({"round": state["ends"], **done})
            print(f"{kind} {len(state['done'])}/{kills}: {done}", flush=True)
        journal.write_text(json.dumps(state, indent=1))
    if tortured.exists():
        victim.complete(tortured)
        end(victim, tortured, whole, state)
    journal.write_text(json.dumps(state, indent=1))
    seconds = (time.monotonic() - began) / max(1, kills - before)
    print(
        f"{kind}: hurt {len(state['done'])} times, {seconds:.1f} s each, compared "
        f"{state['ends']} times: equal bit for bit",
        flush=True,
    )


def end(victim: Victim, tortured: Path, whole: Path, state: dict) -> None:
    """Compare what came to its end, and make room for the next."""
    hurts = [done for done in state["done"] if done["round"] == state["ends"]]
    lost = any(done.get("error") and any(x in done["change"] for x in LOGS) for done in hurts)
    victim.compare(tortured, whole, logs=not lost)
    shutil.rmtree(tortured)
    state["ends"] += 1


if __name__ == "__main__":
    settings = dict(argument.split("=") for argument in sys.argv[2:])
    numbers = {key: int(text) if text.isdecimal() else text for key, text in settings.items()}
    sys.exit(main(Path(sys.argv[1]), **numbers))
