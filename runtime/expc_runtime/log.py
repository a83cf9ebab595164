"""What a stage says and measures: console, ``log``, ``metrics.jsonl`` and TensorBoard."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from expc_runtime.state import append_line
from expc_runtime.state.files import write_text

__all__ = ["Log"]


class Board(Protocol):
    """A Lightning logger."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...


class Log:
    """The stage's ``log`` and ``metrics.jsonl`` in ``folder``, which exists."""

    def __init__(self, folder: Path) -> None:
        self._text = folder / "log"
        self._figures = folder / "metrics.jsonl"
        self.boards: list[Board] = []

    def say(self, text: str) -> None:
        """A message for people, on the console and in the log."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """A message for the log alone."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._text.open("a", encoding="utf-8") as file:
            file.writelines(f"{stamp} {line}\n" for line in text.splitlines())

    def figures(
        self, split: str, values: Mapping[str, float], *, step: int, epoch: int, **more: Any
    ) -> None:
        """One line of metrics.jsonl; ``values`` by full name, ``<split>/<name>``."""
        append_line(self._figures, {"step": step, "epoch": epoch, "split": split, **more, **values})
        for board in self.boards:
            board.log_metrics(dict(values), step)

    def rewind(self, step: int) -> None:
        """Drop figures that an earlier attempt logged after ``step``, from which this one goes on."""
        if not self._figures.exists():
            return
        lines = self._figures.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step(line) <= step]
        if len(kept) < len(lines):
            write_text(self._figures, "".join(f"{line}\n" for line in kept))


def _step(line: str) -> float:
    """The step of a line; a torn one, from a kill while it was written, counts as never."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
