"""How far a stage is, for people: one live line on a terminal, time-stamped lines elsewhere."""

import sys
import time
from typing import Any, Protocol

__all__ = ["Progress", "Silent", "progress"]


class Progress(Protocol):
    """Told how far training is; says so in its own way."""

    def tick(self, done: float, total: float, words: str) -> None:
        """``done`` of ``total`` (updates or seconds) is behind us; called about once a second."""
        ...

    def line(self, text: str) -> None:
        """Say something that stays."""
        ...

    def close(self) -> None: ...


def progress(title: str) -> Progress:
    """A live display if stdout is a terminal, else plain lines."""
    return _Live(title) if sys.stdout.isatty() else _Plain(title)


class Silent:
    """Of a rank that another speaks for."""

    def tick(self, done: float, total: float, words: str) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Plain:
    EVERY = 60.0  # seconds between two lines that only say that it lives

    def __init__(self, title: str) -> None:
        self._title = title
        self._said = time.monotonic()

    def tick(self, done: float, total: float, words: str) -> None:
        if time.monotonic() - self._said >= self.EVERY:
            self.line(f"{100 * done / total:.0f}%  {words}")

    def line(self, text: str) -> None:
        self._said = time.monotonic()
        stamp = time.strftime("%H:%M:%S")
        print("\n".join(f"{stamp} {self._title}  {part}" for part in text.splitlines()), flush=True)

    def close(self) -> None:
        pass


class _Live:
    def __init__(self, title: str) -> None:
        # Only here: a run without a terminal does not pay for the import.
        from rich import progress as rich

        self._bar: Any = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[words]}"),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=None, words="")
        self._bar.start()

    def tick(self, done: float, total: float, words: str) -> None:
        self._bar.update(self._task, completed=done, total=total, words=words)

    def line(self, text: str) -> None:
        self._bar.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()
