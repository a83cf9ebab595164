"""What a stage says and measures: console, ``log``, ``metrics.jsonl`` and TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from expc_runtime.state import append_line
from expc_runtime.state.files import write_text

__all__ = ["Log", "Unwritten"]


class Board(Protocol):
    """A Lightning logger."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...


class Log:
    """The stage's ``log`` and ``metrics.jsonl`` in ``folder``, which exists."""

    def __init__(self, folder: Path) -> None:
        self._text = folder / "log"
        self._figures = folder / "metrics.jsonl"
        self.lines = 0  # of figures, for `rewind`
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
        self,
        split: str,
        values: Mapping[str, float],
        *,
        step: int,
        epoch: int,
        curves: str = "",
        **more: Any,
    ) -> None:
        """One line of metrics.jsonl; ``values`` by full name, ``<split>/<name>``.

        ``curves`` is put before the names on the boards, where a name is one curve.
        """
        append_line(self._figures, {"step": step, "epoch": epoch, "split": split, **more, **values})
        self.lines += 1
        for board in self.boards:
            board.log_metrics({f"{curves}{key}": v for key, v in values.items()}, step)

    def rewind(self, lines: int) -> None:
        """Drop the figures that an earlier attempt logged after its first ``lines`` lines."""
        text = self._figures.read_text(encoding="utf-8") if self._figures.exists() else ""
        # The last may be torn, by a kill while it was written.
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(whole[:lines])
        if kept != text:
            write_text(self._figures, kept)
        self.lines = len(whole[:lines])


class Unwritten(Log):
    """The log of a rank whose figures and words are those of the first, which writes them."""

    def say(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def figures(self, split: str, values: Mapping[str, float], **more: Any) -> None:
        pass

    def rewind(self, lines: int) -> None:
        pass
