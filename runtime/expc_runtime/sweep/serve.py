"""One run of sweep.sh: what the clerk hears and says, from the stock of the plan to the exit code."""

import argparse
import fcntl
import fnmatch
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from expc_runtime.errors import DiskFull, Locked, MissingInput, StageError, known
from expc_runtime.notify import Notifier
from expc_runtime.state.plan import Layout, Task, cover, tasks
from expc_runtime.state.records import Status, read_status
from expc_runtime.state.table import duration
from expc_runtime.sweep.clerk import Clerk
from expc_runtime.sweep.console import Console
from expc_runtime.sweep.slots import Slots, gpus
from expc_runtime.sweep.slurm.submission import refuse_queued

__all__ = ["Sweep", "serve"]

_TICK = 2.0  # seconds between two writes of status.env
_CONSOLE, _PLANS = 3, (4, 5, 6, 7)  # descriptors that sweep.bash opens for the clerk


class Sweep:
    """A sweep from its beginning to its exit code: a smoke run of what has never run, then the runs.

    Args:
        layout: where modules and runs lie.
        args: what the script was called with.
        slots: where stages run.
        send: takes one command for whoever owns the processes.
        plans: where to read the plan from, once for each pass over it.
        console: the descriptor that a person reads.
        runner: the process that the sweep lives as long as; our parent, if not given.
    """

    def __init__(
        self,
        layout: Layout,
        args: argparse.Namespace,
        *,
        slots: Slots,
        send: Callable[[bytes], None],
        plans: Iterable[int | Path] = _PLANS,
        console: int = _CONSOLE,
        runner: int | None = None,
    ) -> None:
        self._layout = layout
        self._args = args
        self._plans = iter(plans)
        self._launcher = False
        self._tell = send
        self._fd = console
        self._runner = runner
        self._console = Console(console, layout.root / "sweep.log")
        self._slots = slots
        self._notes = _notifier(args.notify, self.say) if args.notify else None
        self._clerk: Clerk | None = None
        self._smoke: BinaryIO | None = None  # holds the folder of the smoke runs
        self.over = False

    @property
    def clerk(self) -> Clerk:
        assert self._clerk is not None
        return self._clerk

    def start(self) -> None:
        """Begin; raises as `Clerk.start` does."""
        picked = self._unproved() if self._args.rehearse else []
        if picked:
            self._rehearse(picked)
        else:
            self._run()

    def _selected(self, layout: Layout) -> Iterator[Task]:
        """The tasks of the selected runs, which are counted from 1 among themselves.

        Raises MissingInput if there is none.
        """
        number = last = 0
        with open(next(self._plans), "rb") as plan:
            for task in tasks(plan, layout):
                if fnmatch.fnmatchcase(task.run, self._args.only):
                    number += task.index != last
                    last = task.index
                    yield task if number == last else replace(task, index=number)
        if not number:
            raise MissingInput(f"no run of {layout.experiment} matches {self._args.only}")

    def _unproved(self) -> list[Task]:
        return cover(self._selected(self._layout.smoked()), self._layout)

    def _rehearse(self, picked: list[Task]) -> None:
        root = self._layout.smoked().root
        root.mkdir(parents=True, exist_ok=True)
        self._smoke = (root / ".lock").open("ab")
        try:
            fcntl.flock(self._smoke, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Locked(f"{root} is in use by another sweep") from None
        began, modules = time.monotonic(), len({task.argv[1] for task in picked})

        named = "1 module" if modules == 1 else f"{modules} modules"

        def quit(code: int) -> None:
            clerk = self.clerk
            if clerk.stopping:
                self.say("End     stopped in the smoke runs; nothing else was started")
                self._quit(code)
            elif clerk.failed:
                self._refuse(clerk.failed, root)
            else:
                took = duration(time.monotonic() - began)
                self.say(f"Smoke   {named} ran two updates, {took}")
                self._run()

        self.say(f"Smoke   {named} that never ran: two updates first")
        quiet = Console(self._fd, root / "sweep.log", quiet=True)
        self._begin(self._layout.smoked(), lambda: iter(picked), quit, quiet, None)

    def _refuse(self, failed: list[Task], root: Path) -> None:
        """A stage can't train two batches: say why, and start nothing."""
        once: dict[str, Task] = {}
        for task in failed:
            once.setdefault(task.key, task)  # runs may share it
        for task in once.values():
            status = read_status(root / task.name) or Status()
            source = f"\n    from {status.source}" if status.source else ""
            told = f"{task.argv[1]}: {status.label}: {status.reason}"
            self.say(f"Smoke   {told}{source}")
            self._console.line(f"    {root / task.name}")
            self._note("failed", told, failure=status.failure, reason=status.reason)
        self.say("End     nothing was started; --no-smoke runs it all the same")
        self._note("end", "nothing was started", state="failed")
        self._quit(1)

    def _note(self, event: str, text: str, **facts: object) -> None:
        if self._notes is not None:
            name = self._layout.experiment
            self._notes.send(event, f"{name}: {text}", experiment=name, **facts)

    def say(self, text: str) -> None:
        self._console.line(time.strftime("[%Y-%m-%d %H:%M:%S] ") + text)

    def _run(self) -> None:
        if self._smoke is not None:
            self._smoke.close()
        self._begin(
            self._layout,
            lambda: self._selected(self._layout),
            self._quit,
            self._console,
            self._notes,
        )

    def _begin(
        self,
        layout: Layout,
        stages: Callable[[], Iterator[Task]],
        quit: Callable[[int], None],
        console: Console,
        notes: Notifier | None,
    ) -> None:
        self._clerk = Clerk(
            layout,
            stages,
            send=self._send,
            quit=quit,
            console=console,
            slots=self._slots,
            grace=self._args.grace,
            notes=notes,
            runner=self._runner,
        )
        self._clerk.start()

    def _send(self, command: bytes) -> None:
        if command == b"launcher\n":
            if self._launcher:
                return
            self._launcher = True
        self._tell(command)

    def orphaned(self) -> None:
        """The shell was killed: end what runs, and tell people."""
        self.clerk.orphaned()
        if self._notes is not None:
            self._notes.close()

    def _quit(self, code: int) -> None:
        if self._notes is not None:
            self._notes.close()
        self._send(f"quit {code}\n".encode())
        self.over = True


def serve(layout: Layout, args: argparse.Namespace) -> int:
    """Be the clerk of sweep.bash until it goes away."""
    try:
        refuse_queued(layout.root)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the writers of the plan are our children
        sweep = Sweep(layout, args, slots=Slots(gpus(), args.jobs), send=_send)
        sweep.start()
        _listen(sweep)
    except MissingInput as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except (OSError, StageError) as error:
        told = known(error) or DiskFull(str(error))  # it reads and writes nothing but state
        print(f"sweep: {told}", file=sys.stderr)
        return told.code
    return 0


def _listen(sweep: Sweep) -> None:
    """Pass on what the shell says until the sweep is over, or the shell is gone."""
    shell, rest = os.getppid(), b""
    while not sweep.over:
        wait = min(_TICK, sweep.clerk.wait)
        ready = select.select([0, *sweep.clerk.watched()], [], [], wait)[0]
        for watch in ready:
            if watch != 0:
                sweep.clerk.look(watch)
        if 0 in ready:
            words = os.read(0, 1 << 16)
            if not words:
                break
            *lines, rest = (rest + words).split(b"\n")
            for line in lines:
                sweep.clerk.obey(line.decode())
        elif not ready and os.getppid() != shell:
            break
        elif not ready:
            sweep.clerk.refresh()
        if not sweep.over:
            sweep.clerk.tick()
    if not sweep.over:
        sweep.orphaned()


def _notifier(words: Sequence[str], say: Callable[[str], None]) -> Notifier:
    form, variable, *on = words
    return Notifier(form, variable, on, say=lambda text: say(f"Notify  {text}"))


def _send(command: bytes) -> None:
    """Tell the shell; an empty line ends the first one, whose own end it may miss (see sweep.bash)."""
    line, end, words = command.partition(b"\n")
    command = line + end + end + words
    with suppress(BrokenPipeError):  # the shell is gone; the end of stdin says so next
        while command:
            command = command[os.write(1, command) :]
