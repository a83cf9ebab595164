"""What nvidia-smi says of the GPUs, asked in a thread so that a driver that hangs holds nobody up."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_QUERY = "index,utilization.gpu,memory.used,memory.total"
_EVERY = 5.0  # seconds
_PATIENCE = 10.0


@dataclass(frozen=True)
class Gpu:
    """One device; None where it does not tell."""

    index: int
    percent: int | None
    used: int | None
    """MiB."""
    total: int | None


class Gpus:
    """The devices of this machine; none where there is no nvidia-smi, or it does not answer."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi")
        self._seen: tuple[Gpu, ...] = ()
        self._over = threading.Event()
        if self._program is not None:
            threading.Thread(target=self._ask, name="nvidia-smi", daemon=True).start()

    @property
    def seen(self) -> tuple[Gpu, ...]:
        """As they were at most a few seconds ago."""
        return self._seen

    def close(self) -> None:
        """Ask no more."""
        self._over.set()

    def _ask(self) -> None:
        words = [str(self._program), f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        while not self._over.is_set():
            try:
                done = subprocess.run(
                    words,
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    errors="replace",
                    timeout=_PATIENCE,
                )
            except (OSError, subprocess.SubprocessError):
                self._seen = ()
            else:
                self._seen = tuple(read(done.stdout))
            self._over.wait(_EVERY)


def read(text: str) -> Iterator[Gpu]:
    """The devices in the answer of nvidia-smi; lines that are none are left out."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4 and cells[0].isdecimal():
            percent, used, total = (int(c) if c.isdecimal() else None for c in cells[1:])
            yield Gpu(int(cells[0]), percent, used, total)
