"""Every frame that was seen, in files that only grow.

A row is one frame of each environment and a CRC-32 of all bytes up to its own, so each row vouches
for those before it. Rows lie in segments, ``replay/<first row>.frames``: a header (magic, bytes of a
row, CRC before the first row), then the rows. The segment being written is kept in memory and goes to
the disk when the training saves; older ones are mapped when they are read. What a kill leaves behind
the rows of a checkpoint is cut off by the run that goes on from it.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expc_runtime.errors import MissingInput
from expc_runtime.state.files import sync

__all__ = ["FrameLog"]

Frames = NDArray[np.void]

MAGIC = b"EXPCLOG1"
HEADER = struct.Struct("<8sII")
SEGMENT = 2**16  # frames


class FrameLog:
    """Frames by row and environment. ``rows`` are there, and ``crc`` vouches for them."""

    def __init__(self, folder: Path, frame: np.dtype[Any], envs: int) -> None:
        self._folder = folder
        self._row = np.dtype([("frames", frame, (envs,)), ("crc", "<u4")])
        self._frame = frame
        self._per = max(1, SEGMENT // envs)
        self._clear()

    def _clear(self) -> None:
        self.rows, self.crc = 0, 0
        self._before = 0  # CRC before the first row of the tail
        self._written = 0  # rows in files
        self._unsynced: set[Path] = set()  # files that a power cut may still take rows from
        self._tail = np.zeros(self._per, self._row)
        self._maps: dict[int, NDArray[np.void]] = {}

    @property
    def _number(self) -> int:
        """Of the segment in memory."""
        return max(0, self.rows - 1) // self._per

    def append(self, frames: NDArray[np.uint8]) -> None:
        """One row: (envs, bytes of a frame) uint8, contiguous."""
        place = self.rows % self._per
        if place == 0 and self.rows:
            self._write()
            self._tail, self._before = np.zeros(self._per, self._row), self.crc
        self.crc = zlib.crc32(frames.data, self.crc)
        self._tail["frames"][place] = frames.view(self._frame)[:, 0]
        self._tail["crc"][place] = self.crc
        self.rows += 1

    def gather(self, row: NDArray[np.int64], env: NDArray[np.int64]) -> Frames:
        """The frames at (row, env), of any one shape."""
        number, place = np.divmod(row, self._per)
        if (number == self._number).all():
            near: Frames = self._tail["frames"][place, env]
            return near
        found = np.empty(row.shape, self._frame)
        for one in np.unique(number).tolist():
            there = number == one
            found[there] = self._segment(one)["frames"][place[there], env[there]]
        return found

    def _segment(self, number: int) -> NDArray[np.void]:
        if number == self._number:
            return self._tail
        if number not in self._maps:
            self._maps[number] = self._map(number)
        return self._maps[number]

    def _map(self, number: int) -> NDArray[np.void]:
        """The whole rows of a segment's file."""
        path = self._path(number)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                magic, width, _ = HEADER.unpack(file.read(HEADER.size))
        except (OSError, struct.error) as error:
            raise MissingInput(f"the replay cannot be read: {path}: {error}") from error
        if (magic, width) != (MAGIC, self._row.itemsize):
            raise MissingInput(f"the replay cannot be read: {path} holds other frames")
        rows = (size - HEADER.size) // self._row.itemsize
        return np.memmap(path, self._row, "r", HEADER.size, (rows,)) if rows else self._tail[:0]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number * self._per:012d}.frames"

    # The disk.

    def flush(self) -> None:
        """What was appended is on the disk when this returns. Raises OSError if it is full."""
        self._write()
        for path in sorted(self._unsynced):
            sync(path)
        if self._unsynced:
            sync(self._folder)
        self._unsynced.clear()

    def _write(self) -> None:
        first = self._number * self._per
        if self._written == self.rows:
            return
        self._folder.mkdir(exist_ok=True)
        with self._path(self._number).open("r+b" if self._written > first else "wb") as file:
            if self._written <= first:
                file.write(HEADER.pack(MAGIC, self._row.itemsize, self._before))
            file.seek(HEADER.size + (self._written - first) * self._row.itemsize)
            file.write(self._tail[self._written - first : self.rows - first].tobytes())
        self._unsynced.add(self._path(self._number))
        self._written = self.rows

    def restart(self) -> None:
        """Forget everything, on the disk too."""
        self._clear()
        for path in self._folder.glob("*.frames"):
            path.unlink()

    def retire(self, row: int) -> None:
        """Delete segments that end before ``row``."""
        for path in self._folder.glob("*.frames"):
            first = int(path.stem)
            if first + self._per <= row:
                self._maps.pop(first // self._per, None)
                self._unsynced.discard(path)
                path.unlink()

    def load(self, rows: int, crc: int, first: int) -> None:
        """Go back to the state in which there were ``rows`` rows; those from ``first`` are read.

        Raises MissingInput if one of them is missing, or is not what was written.
        """
        self._clear()
        last = max(0, rows - 1) // self._per
        for path in self._folder.glob("*.frames"):
            if not rows or int(path.stem) > last * self._per:
                path.unlink()
        if not rows:
            return
        for number in range(first // self._per, last + 1):
            self._before = self._start(number)
            if number > first // self._per and self._before != self.crc:
                raise MissingInput(f"the replay is damaged: {self._path(number)} is of another run")
            held = self._map(number)[: rows - number * self._per]
            self.crc = self._checked(number, held)
        if len(held) + last * self._per != rows or self.crc != crc:
            raise MissingInput(f"the replay in {self._folder} does not end as the checkpoint says")
        self.rows = self._written = rows
        self._tail[: len(held)] = held
        os.truncate(self._path(last), HEADER.size + len(held) * self._row.itemsize)

    def _start(self, number: int) -> int:
        """CRC of all rows before a segment, as its header has it."""
        self._map(number)
        with self._path(number).open("rb") as file:
            before: int = HEADER.unpack(file.read(HEADER.size))[2]
        return before

    def _checked(self, number: int, held: NDArray[np.void]) -> int:
        """The CRC after ``held``; raises MissingInput at the first row that does not fit it."""
        crc = self._before
        frames, said = held["frames"], held["crc"].tolist()
        for place, crc_then in enumerate(said):
            crc = zlib.crc32(frames[place].tobytes(), crc)
            if crc != crc_then:
                raise MissingInput(
                    f"the replay is damaged: row {number * self._per + place}, in "
                    f"{self._path(number)}, fails its checksum"
                )
        return crc
