"""A request to stop: the handler raises a flag, the loop acts on it between two updates or steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

__all__ = ["Requests", "Stopped", "nothing_to_save"]


class Stopped(Exception):
    """Raised in long work beside the updates, where it may be left: the training is to stop."""


class Requests:
    """SIGTERM and SIGINT ask to stop, SIGUSR1 asks to save; nothing is done inside a handler.

    A second SIGINT kills the process at once. `install` may be called again where somebody else
    has put their own handlers since.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.stop: str = ""  # name of the signal that asked for it
        self.save = False
        self._wake = wake
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        for number, handler in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGUSR1, self._save),
        ):
            before = signal.signal(number, handler)
            self._before.setdefault(number, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.stop = signal.Signals(number).name
        self._wake()

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save = True
        self._wake()


@contextmanager
def nothing_to_save() -> Iterator[None]:
    """Inside, SIGUSR1 ends nothing where no `Requests` hear it: all is saved, or there is nothing yet."""
    number = signal.SIGUSR1
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
