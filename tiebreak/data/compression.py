"""Files, plain or compressed, as streams of bytes; a file that expands without bound is refused before it fills memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tiebreak.errors import DataError

COMPRESSED_ENDINGS = (".gz", ".zst", ".bz2", ".xz")
SURELY_FINE_BYTES = 256 * 1024**2
"""Content up to this size is read whatever its ratio."""
MOST_RATIO = 200
"""Larger content may expand to this many times its file's size: texts to less than 30, decompression bombs to 1,000."""
LONGEST_LINE_BYTES = 64 * 1024**2
LARGEST_WHOLE_BYTES = 256 * 1024**2
"""Forms that are read as a whole (one JSON object, a document) may have this size, decompressed: an object takes four times
as much memory as its file."""
_BLOCK = 1024**2


def _open_zstandard(path: Path) -> IO[bytes]:
    from pyarrow import CompressedInputStream, OSFile

    return io.BufferedReader(_Readable(CompressedInputStream(OSFile(str(path)), "zstd")))


class _Readable(io.RawIOBase):
    """An Arrow stream as one of Python's, which has lines."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content: bytes = self.stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Streams(io.RawIOBase):
    """The streams of a bz2 or xz file, one after another, as programs with several threads write them.

    Python's own readers take a damaged stream after the first for the end of the file: its rows would be lost in silence.
    """

    def __init__(self, path: Path, begin: Callable[[], Any]) -> None:
        self._file, self._begin, self._held = path.open("rb"), begin, b""
        self._pieces = self._decompressed()

    def _decompressed(self) -> Iterator[bytes]:
        left, is_first = self._file.read(_BLOCK), True
        while left or is_first:
            stream = self._begin()
            while not stream.eof:
                if stream.needs_input and not left and not (left := self._file.read(_BLOCK)):
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                yield stream.decompress(left, _BLOCK)
                left = b""
            left, is_first = stream.unused_data.lstrip(b"\0"), False
            while not left and (block := self._file.read(_BLOCK)):
                left = block.lstrip(b"\0")  # padding

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._held = piece
        content, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": lambda path: _Streams(path, bz2.BZ2Decompressor),
    ".xz": lambda path: _Streams(path, lzma.LZMADecompressor),
    ".zst": _open_zstandard,
}


class _Bounded(io.RawIOBase):
    """A decompressed stream that stops at a decompression bomb."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream, self.count = path, stream, 0
        self.most = max(SURELY_FINE_BYTES, MOST_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        self.count += len(content)
        if self.count > self.most:
            raise DataError(
                f"{self.path}: expands to more than {MOST_RATIO} times its size: a decompression bomb? If it is not, "
                "decompress it yourself and give the plain file"
            )
        buffer[: len(content)] = content
        return len(content)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """A file's content as a stream, decompressed according to its name.

    Raises:
        DataError: it cannot be read, its compression is another, or it is a decompression bomb.
    """
    opener = _OPEN.get(path.suffix.lower())
    try:
        with contextlib.ExitStack() as stack:
            if opener is None:
                yield stack.enter_context(path.open("rb"))
            else:
                stream = stack.enter_context(contextlib.closing(opener(path)))
                yield io.BufferedReader(_Bounded(path, stream), _BLOCK)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def read_bytes(path: Path) -> bytes:
    """A file's content as a whole, decompressed according to its name.

    Raises:
        DataError: it cannot be read, its compression is another, it is a decompression bomb or too large.
    """
    with open_bytes(path) as stream:
        content = stream.read(LARGEST_WHOLE_BYTES + 1)
    if len(content) > LARGEST_WHOLE_BYTES:
        raise DataError(
            f"{path}: larger than {LARGEST_WHOLE_BYTES // 1024**2} MB, and this form (one JSON object, JSON whose first "
            "line is broken, or a document) is read as a whole: save its rows as JSON Lines, an array, a table or Parquet"
        )
    return content


def lines_of(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers; None in place of one that is too long."""
    number = 0
    while piece := stream.readline(LONGEST_LINE_BYTES + 1):
        if len(piece) > LONGEST_LINE_BYTES and not piece.endswith(b"\n"):
            number += 1
            yield number, None
            while (rest := stream.readline(_BLOCK)) and not rest.endswith(b"\n"):
                pass
            continue
        for line in piece.splitlines():  # at carriage returns, too
            number += 1
            yield number, line
