"""What a training says to people: on the console, in its log, and as warnings in its result."""

from typing import Any

from expc_runtime.log import Log
from expc_runtime.progress import Progress

__all__ = ["Words", "some"]


class Words:
    """Says a thing once, also over several attempts: what was said is in `state_dict`."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log = log
        self.progress = progress
        self.warned: list[str] = []
        self._told: set[str] = set()

    def say(self, text: str) -> None:
        self.progress.line(text)
        self.log.note(text)

    def warn(self, text: str, *, once: str = "") -> None:
        """Say it once, and put it into the result; of what shares ``once`` only the first."""
        if text not in self.warned and once not in self._told:
            self._told |= {once} - {""}
            self.warned.append(text)
            self.say(f"warning: {text}")

    def told(self, once: str) -> bool:
        """Whether something was said that shares ``once``."""
        return once in self._told

    def tell_no_more(self, once: str) -> None:
        """What shares ``once`` was looked at: nothing is to be said of it."""
        self._told.add(once)

    def state_dict(self) -> dict[str, Any]:
        return {"warned": self.warned, "told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Beside what earlier attempts said, this one may have said something: both are true."""
        before = list(state["warned"])
        self.warned = before + [text for text in self.warned if text not in before]
        self._told |= set(state["told"])


def some(names: list[str]) -> str:
    """The first few names of many."""
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)
