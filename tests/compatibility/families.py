"""One small run of every family of models and tasks, and the text that it reads.

`python -m tests.compatibility.families FOLDER` trains them with the checkout's code and keeps of
each a checkpoint of its middle and, in recorded.json, what it printed, logged and tested: the
record that later versions are held to by test_checkpoints.py.
"""

import json
import random
import sys
from pathlib import Path

STEPS, MIDDLE = 12, 6
_SMALL = (
    *("size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8", "size.d_ff=16"),
    *(f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={MIDDLE}"),
    *("trainer.log_every_n_steps=1", "optimizer.warmup_steps=4", "diagnostics.every_n_steps=5"),
    f"callbacks.checkpoint.keep_every_n_train_steps={MIDDLE}",
    "diagnostics.scalars=all",
)
_TEXT = (
    *("task=lm", "size=tiny", "task.data=text", "task.path={folder}/text.txt", "task.batch_size=4"),
    *("task.seq_len=16", "task.min_count=1", "callbacks.text_samples.max_new_tokens=3"),
)
_CARRIED = ("task.context=carried", "task.eval=carried", "model.positions=none")
FAMILIES: dict[str, tuple[str, ...]] = {
    "lm_delta_dpfp": (*_TEXT, "model=delta_dpfp"),
    "lm_softmax": (*_TEXT, "model=softmax", "task.eval=sliding"),
    "lm_performer": (*_TEXT, "model=performer", "model/feature_map=favor_lm"),
    "lm_delta_performer_carried": (*_TEXT, "model=delta_performer", *_CARRIED),
    "lm_deltanet_carried": (*_TEXT, "model=deltanet", *_CARRIED),
    "lm_adaptive": (
        *(*_TEXT, "model=delta_linear", "model.read_norm=full", "model.output=adaptive"),
        "model.cutoffs=[10]",
    ),
    "mqar_deltanet": (
        *("task=mqar", "model=deltanet", "task.vocab_size=20", "task.seq_len=16"),
        *("task.n_pairs=[1,3]", "task.eval_sequences=8", "task.batch_size=4"),
    ),
    "retrieval_fwm": ("task=retrieval", "model=fwm", "task.setting=update", "task.n_keys=5"),
    "retrieval_dpfp": ("task=retrieval", "model=sum_dpfp", "task.n_keys=5"),
    "translation": (
        *("task=translation", "model=delta_dpfp", "model@encoder=softmax", "size=tiny"),
        *("task.data=files", "task.vocab_size=100", "task.batch_tokens=100"),
        *(f"task.{split}={{folder}}/{split}" for split in ("train", "valid", "test")),
    ),
}
"""The arguments of each; {folder} is where `write_texts` wrote."""


def arguments(family: str, folder: Path) -> list[str]:
    """Return the command line of a family."""
    # Retrieval's sizes are its own.
    small = _SMALL if not family.startswith("retrieval") else _SMALL[5:]
    return [text.format(folder=folder) for text in (*FAMILIES[family], *small)]


def write_texts(folder: Path) -> None:
    """Write a text and three pairs of files, the same on every machine."""
    draw = random.Random(0)
    words = [a + b for a in "bdfglmnprst" for b in ("a", "e", "il", "on")]
    lines = [" ".join(draw.choices(words, k=9)) + " ." for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, part in (("train", lines[:40]), ("valid", lines[40:48]), ("test", lines[48:60])):
        (folder / f"{split}.en").write_text("\n".join(part) + "\n", encoding="utf-8")
        backwards = [" ".join(reversed(line.split())) for line in part]
        (folder / f"{split}.de").write_text("\n".join(backwards) + "\n", encoding="utf-8")


def tags(run_dir: Path) -> list[str]:
    """Return the names of all scalars, images and texts that a run shows in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir))
    events.Reload()
    kinds = events.Tags()
    return sorted(kinds["scalars"] + kinds["images"] + kinds["tensors"])


def main(target: Path) -> None:
    """Train every family and keep its record."""
    import shutil
    import tempfile

    from train import main as train

    record = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder)
        for family in FAMILIES:
            run_dir = folder / family
            assert train([*arguments(family, folder), f"run_dir={run_dir}"]) == 0
            kept = run_dir / "checkpoints" / f"step-{MIDDLE:06d}.ckpt"
            shutil.copy(kept, target / f"{family}.ckpt")
            tested = folder / f"{family}.json"
            assert train(["action=test", f"ckpt={kept}", f"output={tested}"]) == 0
            record[family] = {
                "test": json.loads(tested.read_text()),
                "summary": json.loads((run_dir / "summary.json").read_text()),
                "tags": tags(run_dir),
            }
    text = json.dumps(record, indent=1)
    (target / "recorded.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
