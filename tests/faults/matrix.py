"""The matrix of faults: what each marked test is a case of, and a table at the end."""

from collections import defaultdict

import pytest

FAULTS = {
    1: "kill -9 in an epoch, then resume",
    2: "kill -9 in a checkpoint write",
    3: "checkpoints on another file system than TMPDIR",
    4: "damaged checkpoint",
    5: "disk full under a checkpoint",
    6: "disk full or unwritable under the logs",
    7: "run folder unwritable",
    8: "SIGTERM, SIGINT, SIGUSR1, twice",
    9: "signal to one rank only",
    10: "a rank raises, is killed or hangs",
    11: "another number of processes",
    12: "resume with another configuration",
    13: "NaN or infinity, on one rank only",
    14: "unknown key, typo, wrong type",
    15: "impossible sizes",
    16: "data file missing, folder, empty",
    17: "invalid UTF-8, NUL, BOM, CRLF",
    18: "one line of 50 MB",
    19: "source and target differ in lines",
    20: "vocabulary differs from the checkpoint's",
    21: "empty, short and long sequences",
    22: "malicious checkpoint",
    23: "malicious archive",
    24: "download that lies",
    25: "two processes in one place",
    26: "same seed twice",
    27: "a callback raises",
    28: "no HOME, read-only package",
    29: "compiled kernel flipped, cut, zeroed",
    30: "kernels' cache full or without execution",
    31: "kill -9 at a change of a run's files",
    32: "kill -9 in caches, downloads, compilation",
    33: "sweep or one of its runs killed",
    34: "sweep's summary or config.yaml of another run",
    35: "checkpoint's parts of another form",
    36: "checkpoint's archive as torch writes none",
    37: "processes started with different arguments",
    38: "download resumed with other content",
    39: "stdout or stderr closed, broken, ASCII",
    40: "damaged or foreign logs on resume",
    41: "pipe or device in place of a file",
    42: "file system without locks",
    43: "too many processes, parent killed",
    44: "archive whose headers are the bomb",
    45: "packed text, cut or in several parts",
    46: "empty run_dir, path or value",
    47: "time limit, then the same command",
}


def pytest_ignore_collect(collection_path, config):
    """Of `-m fault`, modules without a case need not be imported."""
    if config.option.markexpr == "fault" and collection_path.suffix == ".py":
        return "mark.fault(" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("fault"):
            if marker.args[0] not in FAULTS:
                raise pytest.UsageError(f"{item.nodeid}: the matrix has no fault {marker.args[0]}")
            item.user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter):
    """One line a fault, if all were asked for."""
    cases = defaultdict(lambda: defaultdict(float))
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            for name, number in getattr(report, "user_properties", ()):
                if name == "fault" and outcome != "deselected":
                    counted = report.when == "call" or outcome in ("skipped", "error")
                    cases[number][outcome] += counted
                    cases[number]["seconds"] += getattr(report, "duration", 0.0)
    if not terminalreporter.config.getoption("--full"):
        return
    write = terminalreporter.write_line
    write(f"{'#':>2}  {'fault':<48} {'cases':>5}  {'seconds':>7}  result")
    for number, name in FAULTS.items():
        case = cases[number]
        n = int(case["passed"] + case["failed"] + case["error"] + case["skipped"])
        bad, skipped = int(case["failed"] + case["error"]), int(case["skipped"])
        result = f"{bad} failed" if bad else "holds" if n > skipped else "not run"
        result += f", {skipped} skipped" if skipped and n > skipped else ""
        write(f"{number:>2}  {name:<48} {n:>5}  {case['seconds']:7.1f}  {result}")
