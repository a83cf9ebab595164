"""One sweep at a time has a root, whichever back end runs it; sweep.bash holds the same lock."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expc_runtime.errors import Locked
from expc_runtime.sweep.slurm.submission import refuse_queued

__all__ = ["alone"]


@contextmanager
def alone(root: Path, doing: str = "") -> Iterator[None]:
    """Hold ``root`` while nothing else of it runs or waits to run; ``doing`` is told whom it keeps out.

    Raises:
        Locked: another process holds it, or has jobs in a queue.
        BadValue: there may be such jobs, and Slurm does not answer.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip()
            raise Locked(f"{root} is in use by {holder or 'another sweep'}") from None
        refuse_queued(root)
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        who = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        lock.write(f"{who}{', ' * bool(doing)}{doing}\n".encode())
        lock.flush()
        yield
