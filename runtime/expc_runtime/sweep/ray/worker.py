"""What runs on the cluster. Ray sends this module's functions by value, so they need nothing but Ray there."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray

__all__ = ["Bell", "carry_out", "sees"]


class Bell:
    """An actor through which the driver reaches what runs: each token's queue holds signals."""

    def __init__(self) -> None:
        self._queues: dict[int, asyncio.Queue[int]] = {}

    async def wait(self, token: int) -> int:
        """The next signal for ``token``; 0 when it has ended."""
        number = await self._queue(token).get()
        if not number:
            del self._queues[token]
        return number

    async def ring(self, token: int, number: int) -> None:
        """Pass on signal ``number``; 0: ``token`` has ended."""
        self._queue(token).put_nowait(number)

    def _queue(self, token: int) -> "asyncio.Queue[int]":
        return self._queues.setdefault(token, asyncio.Queue())


def sees(root: str, mark: str) -> str:
    """Why this node can't work in the project ``root``, which holds the file ``mark``; or nothing."""
    if os.path.exists(os.path.join(root, mark)):
        return ""
    return f"{socket.gethostname()} does not see {root}, where the sweep runs"


def carry_out(
    root: str,
    mark: str,
    command: Sequence[str],
    env: Mapping[str, str],
    bell: Any,
    token: int,
) -> tuple[int, str]:
    """Run ``command`` (a leash) in ``root``; its exit code, and why it was not started, if so.

    The leash holds its standard input, which ends with this process: whatever kills a worker
    leaves nothing behind.
    """
    if lost := sees(root, mark):
        return 66, lost
    job = f"ray {ray.get_runtime_context().get_task_id()[:16]}"
    whole = {**os.environ, **env, "EXPC_JOB": job}
    try:
        process = subprocess.Popen(
            command, cwd=root, env=whole, stdin=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        return 1, f"{socket.gethostname()}: {error}"

    def listen() -> None:
        while number := ray.get(bell.wait.remote(token)):
            if process.poll() is None:
                process.send_signal(signal.Signals(number))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    code = process.wait()
    assert process.stdin is not None
    process.stdin.close()  # ends what the leash left, if it was killed
    bell.ring.remote(token, 0)
    return (128 - code if code < 0 else code), ""
