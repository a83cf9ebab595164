"""Run a command in a process group of its own, and leave nothing of it behind.

``python -m expc_runtime.sweep.leash LOG GRACE COMMAND...`` does so for an owner that holds the
other end of its stdin: when that ends, so does the group. Standard library only.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "run"]

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # each reaches the group as TERM
_PASSED = (*_STOP, signal.SIGUSR1, signal.SIGQUIT)
_LOOK = 0.2  # seconds between two looks at a process, where the system has no pidfd


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # 128 + N if by signal N
    asked: bool = False  # a signal had asked it to stop, or its owner was gone
    timed_out: bool = False


def run(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = 60.0,
    owner: int | None = None,
) -> Ended:
    """Run ``command``, its output added to ``log``, and wait for its end. Main thread only.

    TERM, INT and HUP ask its group to stop (by TERM), USR1 is passed on as it is, QUIT kills. After
    ``grace`` seconds the group is killed; so is, at once, whatever of it outlives its leader.

    Args:
        timeout: seconds after which it is asked to stop.
        owner: a descriptor that turns readable when nobody is left to run this for.
    """
    began = time.monotonic()
    asked = timed_out = False
    kill_at: float | None = None
    with _signals() as wake, log.open("ab", buffering=0) as output:
        output.write(_told(command, env).encode(errors="surrogateescape"))
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            return Ended(127 if isinstance(error, FileNotFoundError) else 126)
        with _watch(process.pid) as ends:
            while process.poll() is None:
                now = time.monotonic()
                if timeout is not None and not asked and now - began >= timeout:
                    timed_out, timeout = True, None
                    _tell(process.pid, signal.SIGTERM)
                    kill_at = now + grace
                if kill_at is not None and now >= kill_at:
                    _tell(process.pid, signal.SIGKILL)
                    kill_at = None
                dues = [d for d in (kill_at, timeout and began + timeout) if d is not None]
                sources = [wake, *ends, *([] if owner is None else [owner])]
                ready = select.select(sources, [], [], _pause(dues, bool(ends)))[0]
                signals = list(os.read(wake, 64)) if wake in ready else []
                if owner in ready:
                    signals, owner = [signal.SIGTERM], None
                if signal.SIGUSR1 in signals:
                    _tell(process.pid, signal.SIGUSR1)
                if signal.SIGQUIT in signals:
                    asked = True
                    _tell(process.pid, signal.SIGKILL)
                if not asked and any(number in _STOP for number in signals):
                    asked = True
                    _tell(process.pid, signal.SIGTERM)
                    kill_at = kill_at or time.monotonic() + grace
        _tell(process.pid, signal.SIGKILL)  # what its leader left behind
    code = process.returncode
    return Ended(128 - code if code < 0 else code, asked, timed_out)


def _told(command: Sequence[str], env: Mapping[str, str] | None) -> str:
    """The first line of a log."""
    gpus = (os.environ if env is None else env).get("CUDA_VISIBLE_DEVICES", "")
    pinned = f"CUDA_VISIBLE_DEVICES={gpus} " if gpus else ""
    return f"$ {pinned}{shlex.join(command)}\n"


def _pause(dues: list[float], watched: bool) -> float | None:
    """Seconds until there is something to do that nothing announces."""
    waits = [max(0.0, due - time.monotonic()) for due in dues]
    return min([*waits, *([] if watched else [_LOOK])], default=None)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that gives the number of each signal that arrives, a byte each."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    fd = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in _PASSED}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED)
    try:
        yield wake
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)
        os.close(wake)
        os.close(waker)


@contextmanager
def _watch(pid: int) -> Iterator[list[int]]:
    """Descriptors that turn readable when ``pid`` ends; none where there are no such."""
    fds = []
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            fds.append(os.pidfd_open(pid))
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _tell(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the command's exit code.

    The work is a child's: an owner that is killed may have its own children killed with it, as Ray
    does, and somebody must be left to end the group.
    """
    log, grace, *command = argv
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED)
    pid = os.fork()
    if not pid:
        os.setsid()
        return run(command, Path(log), grace=float(grace), owner=0).code
    for number in _PASSED:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
