"""Whether a checkpoint file is whole, found without torch.

Beside `last.ckpt` stands `last.ckpt.sha256` in the format of `sha256sum`. Two files cannot be
replaced in one step, so while a checkpoint is being replaced the digest file lists both the old
and the new digest; a file is whole if it has one of them.
"""

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from fwlight.errors import CheckpointError, FwlightError


class Verified(NamedTuple):
    """A file that was found whole: where, and what its system said of it before it was read."""

    path: Path
    inode: int
    bytes: int
    changed_ns: int


def check_whole(
    path: str | Path, *, most_bytes: int | None = None, known: Verified | None = None
) -> Verified | None:
    """Verify the digest of a checkpoint, or without a digest file the archive's own check sums.

    Args:
        path: The checkpoint.
        most_bytes: Of a larger file only the archive's directory is read.
        known: What an earlier call returned; a file that is still the same is not read again.

    Returns:
        What a later call may know, unless only the directory was read.

    Raises:
        CheckpointError: It is missing, a URL or damaged.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)):
        raise CheckpointError(f"the checkpoint {path} is a URL; download it and give the file")
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"there is no checkpoint {path}; give the path of a .ckpt file")
        stat = path.stat()
        found = Verified(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if most_bytes is not None and found.bytes > most_bytes:
            zipfile.ZipFile(path).close()
            return None
        if found != known:
            _verify(path)
        return found
    except CheckpointError:
        raise
    except Exception as error:  # zipfile meets nonsense in many ways
        raise damaged(path, error) from error


@contextlib.contextmanager
def taking_from(
    path: str | Path, *, now: Callable[[], bool] = lambda: True
) -> Generator[None, None, None]:
    """Tell errors of a part that takes its own from a checkpoint as ones of the checkpoint.

    What a data module or a callback keeps, only it can read.

    Args:
        path: The checkpoint.
        now: Whether it is about that where something is raised.

    Raises:
        CheckpointError: A part could not take what the checkpoint holds for it.
    """
    try:
        yield
    except FwlightError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        if not now():
            raise
        raise damaged(Path(path), error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Return what to tell of a checkpoint that cannot be read."""
    return CheckpointError(
        f"the checkpoint {path} is damaged ({reason(error)}); use another one, or "
        "resume=auto for the newest that is whole"
    )


def reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines()[:1]
    return lines[0] if lines else type(error).__name__


def digest_path(path: Path) -> Path:
    """Where the digest of a checkpoint is kept."""
    return path.with_name(f"{path.name}.sha256")


def read_digests(path: Path) -> list[str]:
    """Return the digests that are written beside a checkpoint."""
    beside = digest_path(path)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if beside.is_file():  # a pipe would be waited for
            return re.findall(r"^([0-9a-f]{64})\b", beside.read_text(), re.MULTILINE)
    return []


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path) -> None:
    digests = read_digests(path)
    if digests and sha256(path) not in digests:
        raise ValueError("its SHA-256 is not the one written beside it")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            _check_as_torch_writes(member)
        if len({member.filename.lower() for member in members}) < len(members):
            raise ValueError("it holds a name twice")
        if len({member.filename.partition("/")[0] for member in members}) > 1:
            raise ValueError("its members are in several folders")
        if not digests and (broken := archive.testzip()) is not None:
            raise ValueError(f"the check sum of {broken} is wrong")


def _check_as_torch_writes(member: zipfile.ZipInfo) -> None:
    """Refuse what two readers of archives could take for different things.

    Check sums cover what a member holds, and not what the archive's directory says of it: torch's
    reader takes a member whose attributes make it a folder for empty, and leaves memory as it is.
    """
    if not _MEMBER.fullmatch(member.filename):
        raise ValueError(f"torch writes no member {member.filename!r}")
    # Never compressed: what unpacks to more than its size was made to.
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(f"{member.filename} is compressed")
    found = (
        member.flag_bits,
        (member.create_system, member.create_version, member.extract_version),
        (member.external_attr, member.internal_attr, member.volume),
        member.comment,
    )
    if found != _MEMBER_FIELDS:
        raise ValueError(f"torch does not write {member.filename} with these flags or attributes")


_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id)"
)
_MEMBER_FIELDS = (0x808, (0, 0, 0), (0, 0, 0), b"")
"""Flags (UTF-8 names, sizes behind the content), versions, attributes and comment."""
