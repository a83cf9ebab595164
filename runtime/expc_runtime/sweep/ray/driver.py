"""The driver: a clerk, and Ray in the place of sweep.bash."""

import argparse
import fcntl
import itertools
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expc_runtime.errors import BadValue, MissingInput, OutOfMemory
from expc_runtime.state.plan import Layout, records
from expc_runtime.sweep.alone import alone
from expc_runtime.sweep.ray import worker
from expc_runtime.sweep.serve import Sweep
from expc_runtime.sweep.slots import Slot, Slots

__all__ = ["drive"]

_TICK = 2.0  # seconds between two writes of status.env
_LOOK = 0.5  # seconds after which a signal is seen at the latest
_LAST = 20.0  # seconds that a stage may outlive its worker
_KILLED = 137
_SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}
# Of this process alone; everything else goes along, as it does to a job of Slurm.
_OWN = ("RAY_", "CUDA_VISIBLE_DEVICES", "HOSTNAME", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_")


@dataclass(frozen=True)
class Ask:
    """What a task of one stage asks of Ray."""

    cpus: float = 1.0  # of each device, or of the run on a CPU
    devices: int = 1  # GPUs, where the cluster has any; processes, where it has none

    @classmethod
    def read(cls, words: Sequence[str]) -> "Ask":
        """From ``--cpus 2 --devices 1``.

        Raises:
            MissingInput: they are no such options.
        """
        parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--cpus", type=float, default=1.0)
        parser.add_argument("--devices", type=int, default=1)
        try:
            asked, unknown = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise MissingInput(f"ray.sh: {error}; compile its spec again") from None
        if unknown:
            raise MissingInput(f"ray.sh knows no {unknown[0]}; compile its spec again")
        return cls(**vars(asked))

    def resources(self, *, gpus: bool) -> dict[str, float]:
        """What Ray is to set aside."""
        return {"num_cpus": self.cpus * self.devices, "num_gpus": self.devices if gpus else 0}

    def fit(self, node: Mapping[str, float], *, gpus: bool) -> int:
        """How many such tasks ``node`` carries at a time."""
        wanted = self.resources(gpus=gpus)
        rooms = [node.get("CPU", 0.0) / wanted["num_cpus"]]
        rooms += [node.get("GPU", 0.0) / wanted["num_gpus"]] if wanted["num_gpus"] else []
        return int(min(rooms))


class _Places(Slots):
    """As many places as the cluster has; Ray knows which is where, and keeps sick nodes out."""

    def __init__(self, jobs: int, cpus: float) -> None:
        super().__init__([], jobs)
        self.all = [Slot("Ray", places=jobs)]
        self._cpus = cpus

    def threads(self, ranks: int) -> int:
        return max(1, int(self._cpus))


def drive(layout: Layout, args: argparse.Namespace, jobs: BinaryIO, plan: BinaryIO) -> int:
    """Carry out ``plan`` on Ray; returns the exit code of the sweep.

    Args:
        args: ``only``, ``jobs``, ``smoke``, ``rehearse``, ``grace``, ``notify`` and ``address``.
        jobs: records ``STAGE OPTION...``, what its tasks ask for (`Ask`).

    Raises:
        Locked: a sweep of this experiment is not over.
        BadValue: there is no such cluster, or it can't carry the stages.
        MissingInput: a node does not see the project, or the plan can't be read to its end.
    """
    asks = {stage: Ask.read(words) for stage, *words in records(jobs)}
    with alone(layout.root), _cluster(args.address) as where:
        copy = layout.root / ".ray-plan"
        copy.write_bytes(plan.read())
        try:
            return _Driver(layout, args, asks, copy, where).run()
        finally:
            copy.unlink(missing_ok=True)


@contextmanager
def _cluster(address: str) -> Iterator[str]:
    """Ray at ``address``, or a cluster of this machine's own; says which.

    Raises:
        BadValue: nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = os.environ.get("RAY_ADDRESS") or address
    options: dict[str, Any] = {"address": where or "local", "log_to_driver": False}
    options |= {} if where else {"include_dashboard": False}
    try:
        ray.init(**options, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, ValueError) as error:
        raise BadValue(
            f"no cluster of Ray at {where}: {str(error).splitlines()[0]}; start one "
            "(ray start --head), or leave the address out for one on this machine"
        ) from None
    try:
        yield where or "this machine"
    finally:
        ray.shutdown()


class _Driver:
    """Does what a clerk says, with tasks of Ray."""

    def __init__(
        self,
        layout: Layout,
        args: argparse.Namespace,
        asks: Mapping[str, Ask],
        plan: Path,
        where: str,
    ) -> None:
        ray.cloudpickle.register_pickle_by_value(worker)
        self._layout = layout
        self._grace = args.grace
        self._asks = asks
        self._root = str(Path.cwd())
        self._mark = str(plan)
        self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._gpus = any(node.get("GPU") for node in self._nodes)
        self._tokens = itertools.count(1)
        self._tasks: dict[Any, int] = {}  # reference -> the clerk's number of it
        self._token: dict[int, int] = {}
        self._logs: dict[int, Path] = {}
        self._dead: dict[int, float] = {}  # whose worker died, and until when they may live on
        self._signals: list[str] = []
        self._stopping = False
        self._code: int | None = None
        self._carry = ray.remote(max_retries=0)(worker.carry_out)
        jobs = args.jobs or self._room()
        self._bell = ray.remote(num_cpus=0, max_concurrency=jobs + 100)(worker.Bell).remote()
        cpus = min((ask.cpus for ask in asks.values()), default=1.0)
        self._sweep = Sweep(
            layout,
            args,
            slots=_Places(jobs, cpus),
            send=self._obey,
            plans=[plan] * 4,
            console=1,
            runner=os.getpid(),
        )
        self._sweep.say(f"Ray     {where}: {len(self._nodes)} nodes, {jobs} stages at a time")

    def run(self) -> int:
        """The sweep, from its start to its exit code. Raises as `drive` does."""
        self._check()
        for name, number in (*_SIGNALS.items(), ("USR1", signal.SIGUSR1)):
            signal.signal(number, lambda *_, name=name: self._signals.append(name))
        self._sweep.start()
        while self._code is None:
            self._turn()
        return self._code

    def _room(self) -> int:
        """Stages that the cluster carries at a time, of those that ask for the most.

        A stage that waits within Ray would use up its time limit there.
        """
        rooms = [self._fit(ask) for ask in self._asks.values()] or [self._fit(Ask())]
        return max(1, min(rooms))

    def _fit(self, ask: Ask) -> int:
        return sum(ask.fit(node, gpus=self._gpus) for node in self._nodes)

    def _check(self) -> None:
        """Whether every stage fits somewhere, and every node sees the project."""
        for stage, ask in self._asks.items():
            if not self._fit(ask):
                wanted = ask.resources(gpus=self._gpus)
                gpus = f" and {wanted['num_gpus']:g} GPUs" if self._gpus else ""
                raise BadValue(
                    f"no node of the cluster carries stage {stage}: "
                    f"it asks for {wanted['num_cpus']:g} CPUs{gpus}"
                )
        sees = ray.remote(num_cpus=0)(worker.sees)
        asked = [
            sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(self._root, self._mark)
            for node in ray.nodes()
            if node["Alive"]
        ]
        lost = sorted(filter(None, ray.get(asked)))
        if lost:
            raise MissingInput(f"{'; '.join(lost)}. Nodes must share its file system")

    def _obey(self, command: bytes) -> None:
        """Take one command of the clerk; see sweep.bash."""
        head, _, rest = command.partition(b"\n")
        match head.decode().split():
            case ["start", number, _, _, threads]:
                words = rest.decode(errors="surrogateescape").split("\0")[:-1]
                self._start(int(number), words, threads)
            case ["signal", number, name]:
                self._ring(int(number), signal.SIGQUIT if name == "KILL" else signal.SIGTERM)
            case ["quit", code]:
                self._code = int(code)

    def _start(self, number: int, words: list[str], threads: str) -> None:
        log, *command = words
        python, stage = self._layout.python, Path(log).parent.name
        leash = [python, "-m", "expc_runtime.sweep.leash", log, str(self._grace), *command]
        env = {
            name: value
            for name, value in os.environ.items()
            if not any(name == own or (own == "RAY_" and name.startswith(own)) for own in _OWN)
        }
        env.setdefault("OMP_NUM_THREADS", threads)
        token = next(self._tokens)
        self._token[number], self._logs[number] = token, Path(log)
        resources = self._asks.get(stage, Ask()).resources(gpus=self._gpus and not _cpu(command))
        options = {**resources, "name": f"{Path(log).parent.parent.name}/{stage}"}
        task = self._carry.options(**options).remote(
            self._root, self._mark, leash, env, self._bell, token
        )
        self._tasks[task] = number

    def _ring(self, number: int, what: int) -> None:
        if number in self._token:
            self._bell.ring.remote(self._token[number], int(what))

    def _turn(self) -> None:
        """Wait a little; pass on what has ended and what somebody asked for."""
        clerk = self._sweep.clerk
        wait = max(0.0, min(_LOOK, clerk.wait))
        ready = []
        if self._tasks:
            ready = ray.wait(list(self._tasks), num_returns=1, timeout=wait)[0]
        else:
            time.sleep(wait)
        for name in [self._signals.pop(0) for _ in range(len(self._signals))]:
            self._heed(name)
        for task in ready:
            self._collect(self._tasks.pop(task), task)
        for number, until in list(self._dead.items()):
            if time.monotonic() > until or _free(self._logs[number].parent):
                del self._dead[number]
                self._ended(number, _KILLED)
        if self._code is None and not ready:
            self._pulse()
        if self._code is None:
            self._sweep.clerk.tick()

    _beaten = 0.0

    def _pulse(self) -> None:
        if time.monotonic() - self._beaten >= _TICK:
            self._beaten = time.monotonic()
            self._sweep.clerk.refresh()

    def _heed(self, name: str) -> None:
        """A signal: the first one asks all to save and end, a second one kills them."""
        if name == "USR1":
            self._sweep.clerk.obey("status")
            return
        again, self._stopping = self._stopping, True
        for number in list(self._token):
            self._ring(number, signal.SIGQUIT if again else signal.SIGTERM)
        if not again:
            self._sweep.clerk.obey(f"stop {name}")

    def _collect(self, number: int, task: Any) -> None:
        try:
            code, why = ray.get(task)
        except ray.exceptions.OutOfMemoryError as error:
            code, why = OutOfMemory.code, f"killed for memory by Ray: {_first(error)}"
        except ray.exceptions.RayError as error:
            task_failed = isinstance(error, ray.exceptions.RayTaskError)
            code, why = (1, "") if task_failed else (_KILLED, "the worker died: ")
            why += _first(error)
        if why:
            self._note(number, why)
        if code == _KILLED:  # what it ran may still be saving
            self._dead[number] = time.monotonic() + _LAST
        else:
            self._ended(number, code)

    def _ended(self, number: int, code: int) -> None:
        del self._token[number], self._logs[number]
        self._sweep.clerk.obey(f"ended {number} {code}")

    def _note(self, number: int, text: str) -> None:
        with suppress(OSError), self._logs[number].open("a", encoding="utf-8") as log:
            log.write(text + "\n")


def _cpu(command: Sequence[str]) -> bool:
    """Whether the stage is told to stay on the CPU."""
    return ("--device", "cpu") in itertools.pairwise(command)


def _free(folder: Path) -> bool:
    """Whether no process works in ``folder`` any more."""
    try:
        with (folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
