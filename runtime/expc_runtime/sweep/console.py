"""Where a person reads what a sweep does."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["Console"]


class Console:
    """Lines for a person on ``fd``, copied to a log; below them a bar if ``fd`` is a terminal.

    A quiet one writes the log alone.
    """

    def __init__(self, fd: int, log: Path, *, quiet: bool = False) -> None:
        self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if quiet else fd
        self._log = log
        self._terminal = os.isatty(self._fd)
        self._bar = 0

    @property
    def terminal(self) -> bool:
        """Whether there is a bar, renewed in place; else a line now and then tells how far it is."""
        return self._terminal

    def line(self, text: str) -> None:
        clear = "\r" + " " * self._bar + "\r" if self._bar else ""
        self._bar = 0
        with suppress(OSError):  # nobody reads any more; the log and the state files go on
            os.write(self._fd, f"{clear}{text}\n".encode(errors="surrogateescape"))
        with suppress(OSError), self._log.open("ab", buffering=0) as log:
            log.write(f"{text}\n".encode(errors="surrogateescape"))

    def bar(self, text: str) -> None:
        if self._terminal:
            columns = os.get_terminal_size(self._fd).columns or 80  # some say 0
            text = text[: columns - 1]
            with suppress(OSError):
                os.write(self._fd, f"\r{text.ljust(self._bar)}".encode(errors="surrogateescape"))
            self._bar = len(text)
