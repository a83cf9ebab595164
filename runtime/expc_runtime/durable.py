"""A file that is read back, summed and pushed to the disk while it is being written.

To write 400 MB, to read them back and to wait for the disk are three costs of the same size. What
was written a moment ago is still in the core's cache, where reading it costs little; another core
sums, and the disk works beside.
"""

import io
import os
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["LARGE", "Durable", "Piece", "crc32"]

Piece = tuple[int, int]  # offset and size in bytes

LARGE = 1 << 18  # bytes; less is not worth an entry
_PUSH = 1 << 25  # sent to the disk at once: each time costs a journal's commit
_BLOCK = 1 << 18  # written and read back in turn: stays in a core's own cache


class Durable(io.FileIO):
    """A new file at ``path``; an old one there is overwritten.

    Every byte is read back at once and compared; ``sums`` has the CRC-32 of each piece of at least
    `LARGE` bytes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.sums: dict[Piece, int] = {}
        self._end = self._sent = 0
        self._block = bytearray(_BLOCK)
        self._pushed: Future[None] | None = None
        self._pusher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-sync")
        self._summer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-sum")

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        """All of ``data``, at the end. Raises OSError if it does not read back as it is."""
        rest = memoryview(data).cast("B")
        start, size = self._end, len(rest)
        crc = self._summer.submit(zlib.crc32, rest) if size >= LARGE else None
        for at in range(0, size, _BLOCK):
            self._append(rest[at : at + _BLOCK])
        if crc is not None:
            self.sums[start, size] = crc.result()
            waits = self._end - self._sent >= _PUSH
            if waits and (self._pushed is None or self._pushed.done()):
                self._push(os.fdatasync)
        return size

    def flush(self) -> None:
        """Nothing is buffered; and `torch.save` calls this, which must not wait for the disk."""

    def sync(self) -> None:
        """Begin to send to the disk what is not there yet; `synced` waits for it."""
        self._push(os.fsync)

    def synced(self) -> None:
        """Wait for the disk. Raises the OSError of any part of it."""
        if self._pushed is not None:
            self._pushed.result()

    def _append(self, block: memoryview) -> None:
        size = len(block)
        rest = block
        while rest:
            rest = rest[super().write(rest) :]
        back = self._block if size == _BLOCK else bytearray(size)
        if os.preadv(self.fileno(), [back], self._end) != size or back != block:
            raise OSError(f"{self.name}: byte {self._end} on reads back as it was not written")
        self._end += size

    def _push(self, sync: Callable[[int], None]) -> None:
        before, self._sent = self._pushed, self._end

        def push() -> None:
            if before is not None:
                before.result()  # the kernel tells of a lost page once, to whoever asks first
            sync(self.fileno())

        self._pushed = self._pusher.submit(push)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._summer.shutdown()
        self._pusher.shutdown(cancel_futures=True)
        self.close()


def crc32(descriptor: int, piece: Piece) -> int:
    """CRC-32 of a piece of an open file, as far as there is one.

    By reads and not by a map: a bad disk block is an OSError here, and there the end of the process.
    """
    offset, left = piece
    block = memoryview(bytearray(min(_BLOCK, left)))
    total = 0
    while left:
        count = os.preadv(descriptor, [block[: min(left, _BLOCK)]], offset)
        if not count:
            break
        total = zlib.crc32(block[:count], total)
        offset, left = offset + count, left - count
    return total
