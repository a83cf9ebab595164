"""Why a stage ended, and the exit code that says so to a shell.

A stage raises one of these when the cause is known and a person can act on it: the message is then
the whole story and no traceback is shown. Anything else is a crash. Standard library only: the
sweep reads the table, the compiler may.
"""

import errno
from typing import ClassVar

__all__ = [
    "CRASH",
    "FAILURES",
    "NO_SPACE",
    "TIMED_OUT",
    "BadValue",
    "DiskFull",
    "Diverged",
    "GateNotMet",
    "Leak",
    "Locked",
    "MissingInput",
    "MissingOutput",
    "OutOfMemory",
    "Preempted",
    "StageError",
    "exhausted",
    "failure_of",
    "known",
]

TIMED_OUT = 124  # timeout(1)'s; the sweep gives it, no stage does
CRASH = 1  # an exception nobody foresaw; its traceback is in the stage's log


class StageError(Exception):
    """A stage ended for a known reason.

    ``failure`` is the class written as ``failed(<failure>)`` in status.json; ``code`` the process's
    exit code. The message is written for the person who runs the sweep.
    """

    failure: ClassVar[str] = "crash"
    code: ClassVar[int] = CRASH
    source = ""  # where in the spec the reason lies, if this was raised elsewhere


class BadValue(StageError):
    """A value that somebody gave, in the spec or as a flag, is one that can't be used."""

    failure = "bad_value"
    code = 2


class GateNotMet(StageError):
    """The budget was used up before the metric met its bound; running it again changes nothing."""

    failure = "gate"
    code = 3


class Diverged(StageError):
    """A loss, a gradient or a weight is NaN or infinite."""

    failure = "diverged"
    code = 65
    found = True  # what made it is told


class MissingInput(StageError):
    """A file, a column or another stage's product is not there, or cannot be read."""

    failure = "missing_input"
    code = 66


class MissingOutput(StageError):
    """The stage ended without weights that it declared: it is not done, whatever it trained."""

    failure = "missing_output"
    code = 67


class OutOfMemory(StageError):
    """The device or the host has no memory left."""

    failure = "oom"
    code = 71


class Leak(StageError):
    """Memory grew from update to update until none was left: a smaller batch only delays it."""

    failure = "leak"
    code = 72


class Locked(StageError):
    """Another process holds this run's folder."""

    failure = "locked"
    code = 73


class DiskFull(StageError):
    """No space, quota or file size left for a file that must be written."""

    failure = "disk_full"
    code = 74


class Preempted(StageError):
    """Asked to stop; the state was saved and the same command goes on from there."""

    failure = "preempted"
    code = 75


_KNOWN: tuple[type[StageError], ...] = (
    BadValue,
    GateNotMet,
    Diverged,
    MissingInput,
    MissingOutput,
    OutOfMemory,
    Leak,
    Locked,
    DiskFull,
    Preempted,
)

# 137 and 143 are the shell's names for SIGKILL and SIGTERM, nothing saved.
FAILURES: dict[int, str] = {e.code: e.failure for e in _KNOWN} | {
    TIMED_OUT: "timed_out",
    137: "killed",
    143: "killed",
}

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def failure_of(code: int) -> str:
    """The failure class of a process's exit code; ``crash`` for any code without a meaning.

    A negative code, as `subprocess` reports a signal, reads as the shell's 128 + signal.
    """
    return FAILURES.get(128 - code if code < 0 else code, StageError.failure)


def known(error: BaseException) -> StageError | None:
    """The stage error that ``error`` is, or means; None for a crash.

    Memory and disk run out inside libraries, which say so by exceptions of their own.
    """
    if isinstance(error, StageError):
        return error
    if short := exhausted(error):
        return OutOfMemory(short)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f" ({error.filename})" if error.filename else ""
        return DiskFull(f"{error.strerror}{where}")
    return None


_NO_MEMORY = (
    "out of memory",  # CUDA's driver, and libraries on top of it
    "can't allocate memory",  # torch's allocator for the host
    "cannot allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def exhausted(error: BaseException) -> str:
    """What is said of memory that ran out, in a line; empty if ``error`` means something else."""
    # torch.OutOfMemoryError by name: this module must stay importable without torch.
    names = {c.__name__ for c in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return _first_line(error) or "the host has no memory left"
    text = str(error)
    if isinstance(error, RuntimeError) and any(word in text for word in _NO_MEMORY):
        return _first_line(error)
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
