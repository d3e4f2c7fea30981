"""A file over http or https, from servers of which nothing is believed.

They may cut, change, stretch or never end what they send, and lie about its length.
"""

import contextlib
import http.client
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from fwlight.errors import one_line

TIMEOUT = 30.0
"""Seconds without a byte after which a transfer counts as broken."""
PERIOD = 60.0
LEAST_RATE = 1000
"""Bytes a second that must come in every `PERIOD` seconds."""
MAX_BYTES = 4 << 30
"""Most bytes of a file."""

_CHUNK = 1 << 18
_AHEAD = 8  # chunks
_FOR_NOW = (408, 416, 425, 429)  # answers that a later attempt may change, as those from 500
_FAILURES = (http.client.HTTPException, OSError, ValueError)
_SCHEMES = ("http", "https")
_SHOWN = 200  # characters of what a server says


class BrokenError(Exception):
    """An attempt failed; `final` where the same address will not do better."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(one_line(reason[:1000])[:_SHOWN])
        self.final = final


class Transfer:
    """A file that grows over several attempts.

    Args:
        partial: The file.
        name: What it will be, for the progress bar.
        needs_length: Whether a file is refused whose length the server does not say, as nobody
            would notice if it is cut.
    """

    def __init__(self, partial: Path, *, name: str, needs_length: bool) -> None:
        self._partial, self._name, self._needs_length = partial, name, needs_length
        self._url, self._validator = "", ""
        self._have = 0
        self._total: int | None = None

    def restart(self) -> None:
        """Forget what is there."""
        self._partial.unlink(missing_ok=True)
        self._validator = ""
        self._have, self._total = 0, None

    def run(self, url: str) -> None:
        """Get what is missing; returns when the file is complete.

        Raises:
            BrokenError: it is not.
        """
        if urlsplit(url).scheme not in _SCHEMES:
            raise BrokenError("only http and https addresses are read", final=True)
        if not self._validator or url != self._url:
            self.restart()
        self._url = url
        headers = {"User-Agent": "fwlight"}
        if self._have:
            # Only the same file is continued; of a changed one the server sends the whole.
            headers |= {"Range": f"bytes={self._have}-", "If-Range": self._validator}
        try:
            with contextlib.closing(_pieces(url, headers)) as pieces:
                self._begin(next(pieces))
                self._receive(pieces)
        except BrokenError as error:
            cause = error.__cause__
            if isinstance(cause, urllib.error.HTTPError) and cause.code == 416:
                self.restart()  # what is there is longer than the server's file
            raise

    def _begin(self, response: Any) -> None:
        """Take in the head of a response; what is there is kept if the server goes on with it."""
        headers = response.headers
        tag = headers.get("ETag", "")
        if response.status == 206:
            # Not every server heeds If-Range.
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""), re.A)
            start, total = map(_length, place.groups()) if place else (None, None)
            same = tag == self._validator and self._total in (None, total)
            if not (self._have and start == self._have and same):
                self.restart()
                raise BrokenError("the server continued another file, or at another place")
            self._total = total
        elif response.status == 200:
            self.restart()
            self._validator = tag if re.fullmatch(r'"[!#-~]*"', tag) else ""  # W/ promises less
            if (stated := headers.get("Content-Length")) is not None:
                self._total = _length(stated)
        else:
            raise BrokenError(f"HTTP {response.status} {response.reason}", final=True)
        chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"  # says where it ends
        if self._needs_length and self._total is None and not chunked:
            raise BrokenError("the server does not say how long the file is", final=True)
        if (self._total or 0) > MAX_BYTES:
            raise BrokenError(f"it has {self._total:,} bytes, over {MAX_BYTES:,}", final=True)

    def _receive(self, pieces: Iterator[bytes]) -> None:
        unknown = self._total is None
        limit = MAX_BYTES if self._total is None else self._total
        with (
            self._partial.open("ab") as file,
            tqdm(
                total=self._total,
                initial=self._have,
                desc=self._name,
                unit="B",
                unit_scale=True,
                disable=None,  # without a terminal
            ) as bar,
        ):
            for piece in pieces:
                self._have += len(piece)
                if self._have > limit:
                    self.restart()
                    raise BrokenError(f"it goes on after {limit:,} bytes", final=unknown)
                file.write(piece)
                bar.update(len(piece))
        if not unknown and self._have < limit:
            raise BrokenError(f"cut short after {self._have:,} of {limit:,} bytes")


def _length(stated: str) -> int:
    if not re.fullmatch(r"\d{1,18}", stated.strip(), re.A):
        raise BrokenError(f"the server states a length of {stated}")
    return int(stated)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and reads no page on the way, which may have no end."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()
        if urlsplit(newurl).scheme not in _SCHEMES:
            raise BrokenError(f"it leads to {newurl}, neither http nor https", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _pieces(url: str, headers: dict[str, str]) -> Generator[Any, None, None]:
    """Yield the response to a request, then its content as it comes.

    A thread of its own reads: where a server sends a byte now and then, in the head or in the
    content, a socket never runs into its timeout. Here what comes is held to `LEAST_RATE`.

    Raises:
        BrokenError: anything goes wrong on the network.
    """
    arrived: queue.Queue[Any] = queue.Queue(_AHEAD)
    given_up = threading.Event()

    def read() -> None:
        try:
            opener = urllib.request.build_opener(_Redirects)
            request = urllib.request.Request(url, headers=headers)
            with opener.open(request, timeout=TIMEOUT) as response:
                arrived.put(response)
                while not given_up.is_set() and (piece := response.read1(_CHUNK)):
                    arrived.put(piece)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        end, came = time.monotonic() + PERIOD, 0
        while True:
            with contextlib.suppress(queue.Empty):
                piece = arrived.get(timeout=max(0.0, end - time.monotonic()))
                if piece is None:
                    return
                if isinstance(piece, _FAILURES):
                    raise _broken(piece) from piece
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                came += len(piece) if isinstance(piece, bytes) else 0
            if time.monotonic() >= end:
                if came < LEAST_RATE * PERIOD:
                    raise BrokenError(f"{came:,} bytes in {PERIOD:g} s are too few")
                end, came = time.monotonic() + PERIOD, 0
    finally:
        given_up.set()
        with contextlib.suppress(queue.Empty):  # the thread may wait for a place
            while True:
                arrived.get_nowait()


def _broken(error: Exception) -> BrokenError:
    """Return what to tell of an error on the network."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        final = 300 <= error.code < 500 and error.code not in _FOR_NOW
        return BrokenError(f"HTTP {error.code} {error.reason}", final=final)
    if isinstance(error, TimeoutError):
        return BrokenError(f"nothing came for {TIMEOUT:g} s")
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return BrokenError(str(getattr(reason, "strerror", None) or reason) or type(reason).__name__)
