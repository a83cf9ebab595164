"""Train a module, measure it, and leave a result that proves it.

`fit` takes the stage's folder and turns what happens into a state and an exit code. `Training` is
one attempt at it: Lightning's Trainer runs the loop over chunks, and `Training` is told of what
happens in it (`on_...`), measures, saves, and says when it is enough.
"""

import gc
import math
import os
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from expc_runtime import devices, evidence, norms
from expc_runtime.attempt import attempt
from expc_runtime.checkpoint import LAST, Checkpoint
from expc_runtime.clocks import EnvSteps, Epochs, Minutes, Updates
from expc_runtime.errors import (
    BadValue,
    GateNotMet,
    Leak,
    MissingInput,
    OutOfMemory,
    Preempted,
    StageError,
    exhausted,
)
from expc_runtime.feeds import TrainingFeed, Work
from expc_runtime.flags import Run
from expc_runtime.gates import GateWatch, Until
from expc_runtime.guards import untrained
from expc_runtime.learning import Unmoved, faint, pulls
from expc_runtime.log import Log, Unwritten
from expc_runtime.measuring import Figures, NormStatistics
from expc_runtime.memory import Memory
from expc_runtime.module import Batch, Incident, Module
from expc_runtime.parts import Origin, fingerprints, load_parts, outputs, parents
from expc_runtime.progress import Silent, progress
from expc_runtime.provenance import record
from expc_runtime.randomness import seed_all
from expc_runtime.ranks import Ranks
from expc_runtime.saving import Best, Saves
from expc_runtime.signals import Requests, Stopped
from expc_runtime.state import Claim, Result
from expc_runtime.trace import source_of
from expc_runtime.trainer import Chunks, Told, device_of, trainer

__all__ = ["fit"]

DEFAULT_CHECKPOINT = Checkpoint()
PULSE = 1.0  # seconds between two looks at the clock and the status
RANK_SEED = 1_000_003  # between the seeds of two ranks: further apart than those of a sweep
R = TypeVar("R", bound=Run)


def fit(
    build: Callable[[R], Module],
    cfg: R,
    feed: TrainingFeed,
    *,
    until: Until,
    precision: str = "32",
    compile: bool = False,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    monitor: Mapping[str, str] | None = None,
    init: Mapping[str, Origin] | None = None,
    frozen: Mapping[str, Origin] | None = None,
    norm_statistics: NormStatistics = "running",
    microbatch: float = 1.0,
    file: str,
    program: str,
) -> int:
    """Train ``build(cfg)`` on ``feed`` until its budget or gate ends it; returns the exit code.

    Args:
        build: makes the module; called after seeding, before anything else draws a number.
        until: the budget and the gate.
        monitor: checkpoints kept for the best value, tag -> metric. The first one's weights are
            those that the result's figures are about; without any, the last weights are.
        init: parts that start from a file or another stage; see `load_parts`.
        frozen: the same of parts that are not trained: no gradient, always in eval mode, their
            statistics as they came.
        norm_statistics: ``reestimated`` replaces the running statistics of batch norm, before each
            measurement, by their mean over at most `norms.AVERAGED` rows of the train split.
            Training goes on from these, and they are in what is saved and handed on.
        microbatch: the share of a batch that goes through the net at once; gradients are gathered,
            and each optimizer steps once for the batch. Of a loss that is a mean over rows they are
            those of the whole batch, to rounding; batch norm reads the parts, and so does a mean
            over something else than rows.
        file: the caller's ``__file__``; the project root is the nearest folder above it with a
            pyproject.toml or .git, and ``cfg.out`` is relative to that.
        program: names the program; with the values and parents it makes the stage's key.

    The same command resumes an unfinished stage and leaves a finished one alone. A smoke run works
    in ``<out>.smoke``, unless that is in a smoke sweep's folder already. Nothing is raised:
    a failure is a state, a message, a line in ``log`` and an exit code (`expc_runtime.errors`).
    """
    return attempt(
        cfg,
        lambda at: Training(
            build=build,
            cfg=cfg,
            feed=feed,
            until=Until(Updates(2)) if cfg.smoke else until,
            precision=precision,
            compile=compile,
            checkpoint=checkpoint,
            monitor=dict(monitor or {}),
            init=dict(init or {}),
            frozen=dict(frozen or {}),
            norm_statistics=norm_statistics,
            microbatch=microbatch,
            file=file,
            program=program,
            root=at.root,
            parents=dict(at.parents),
            stage=at.stage,
            ranks=at.ranks,
        ).run(),
        parents=lambda out: parents((init or {}, frozen or {}), out),
        file=file,
        program=program,
    )


@dataclass
class Training:
    """One attempt at a stage whose folder is ours."""

    build: Callable[[Any], Module]
    cfg: Run
    feed: TrainingFeed
    until: Until
    precision: str
    compile: bool
    checkpoint: Checkpoint
    monitor: dict[str, str]
    init: dict[str, Origin]
    frozen: dict[str, Origin]
    norm_statistics: NormStatistics
    microbatch: float
    file: str
    program: str
    root: Path
    parents: dict[str, str]
    stage: Claim
    ranks: Ranks

    module: Module = field(init=False)
    device: torch.device = field(init=False)
    figures: Figures = field(init=False)
    handoff: dict[str, dict[str, Any]] = field(init=False)  # what was taken, by part
    warned: list[str] = field(init=False, default_factory=list)
    told: set[str] = field(init=False, default_factory=set)  # what is said once
    unmoved: Unmoved | None = field(init=False, default=None)  # until it was looked at
    memory: Memory | None = field(init=False, default=None)  # once there is a net

    def __post_init__(self) -> None:
        first = self.ranks.first
        self.log = (Log if first else Unwritten)(self.stage.folder)
        self.saves = Saves(self.stage.folder, self.checkpoint, self.ranks)
        self.best = Best(self.saves.store, self.monitor, writes=first)
        self.gate = GateWatch(self.until.gate) if self.until.gate else None
        self.began = time.monotonic()
        self.shown = 0.0  # when it was last said that it lives
        self.spent = 0.0  # seconds of training in earlier attempts
        self.ended = False  # by gate or budget; nothing but the result is missing

    def run(self) -> int:
        """Prepare, train, measure, write the result; returns 0 or raises why not."""
        self.progress = progress(self.stage.folder.name) if self.ranks.first else Silent()
        short = source = ""
        try:
            device, origin = self._prepare()
            self._train(device)
            return self._conclude(origin)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error.__context__, StageError):
                raise error.__context__ from None  # what Lightning's clean-up then fell over
            if devices.met(error) and (found := self._strays()):
                raise BadValue(found) from error
            if not (short := exhausted(error)):
                raise
            source = source_of(error)
            self.log.note("".join(traceback.format_exception(error)))
        finally:
            self.progress.close()
        # Only here: the traceback kept every tensor of what broke off.
        raise self._out_of_memory(short, source)

    def _prepare(self) -> tuple[torch.device, dict[str, Any]]:
        """Device, seeds, data, module. Nothing runs yet, so a ValueError is a value that does not fit."""
        try:
            device = self.device = device_of(self.cfg.device, self.ranks)
            origin = self._record(device)
            seed_all(self.cfg.seed)
            self.feed.setup(device, self.cfg.seed)
            self._make(device)
        except ValueError as error:
            raise BadValue(str(error)).with_traceback(error.__traceback__) from error
        return device, origin

    def _record(self, device: torch.device) -> dict[str, Any]:
        """What computes this; the first of several ranks says it for all."""
        if not self.ranks.first:
            return {}
        origin = record(self.stage.folder, file=self.file, program=self.program, device=device)
        return origin | ({"ranks": self.ranks.size} if self.ranks.size > 1 else {})

    def _strays(self) -> str:
        """What two devices met over; empty if nobody knows."""
        module: Module | None = getattr(self, "module", None)
        found = devices.strays(module, self.device) if module is not None else []
        return (
            "\n  ".join((f"tensors on two devices met, on {self.device}:", *found)) if found else ""
        )

    def _out_of_memory(self, short: str, source: str) -> OutOfMemory | Leak:
        """Whose fault it is; what was not torn is saved."""
        memory = self.memory
        if memory is None:
            verdict: OutOfMemory | Leak = OutOfMemory(
                f"out of memory before there was a net: {short}"
            )
        else:
            module = self.module
            doing = f"in update {module.updates}" if module.in_update else "beside an update"
            told = memory.exhausted(short, doing, self.feed, advice=self._advice())
            whole = module.take_back() and self.ranks.size == 1
            del module
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            verdict = told(self._saved_before() if whole else self._stands())
        verdict.source = source
        return verdict

    def _advice(self) -> str:
        if len(self.module.drive_names()) > 1 or not self.module.in_update:
            return "a smaller batch or net is needed, or a larger device"
        now = "" if self.microbatch == 1 else f"; it is {self.microbatch:g} now"
        return (
            "`retry: {oom: {microbatch: half}}` in the stage's `run` puts half as much of a batch "
            f"through the net at once{now}"
        )

    def _saved_before(self) -> str:
        """Save what is as it was before the update that broke off; says what the next attempt has."""
        try:
            self._save()
        except (StageError, OSError, RuntimeError, MemoryError) as error:
            return f"not saved ({str(error).partition(chr(10))[0]}); {self._stands()}"
        return f"saved: the same command goes on from update {self.module.updates}"

    def _stands(self) -> str:
        return f"the same command goes on from the last checkpoint, update {self.saves.step}"

    def _make(self, device: torch.device) -> None:
        """The module, with its floors, its drives, and the state of an earlier attempt."""
        module, feed = self.build(self.cfg), self.feed
        self.module = module
        module.to(device)
        self._take_parts(module)
        self.ranks.same(module.state_dict().values())
        if self.ranks.rank:  # dropout of other rows
            seed_all(self.cfg.seed + RANK_SEED * self.ranks.rank)
        feed.attach(
            Work(
                module=module,
                folder=self.stage.folder,
                until=self.until,
                keep=self.checkpoint.keep,
                smoke=self.cfg.smoke,
                warn=self.warn,
                alive=self._alive,
                ranks=self.ranks,
            )
        )
        self.total = self.until.updates(feed)
        module.start(
            self.precision,
            total_updates=self.total,
            updates_per_epoch=feed.updates_per_epoch,
            microbatch=self.microbatch,
        )
        if self.microbatch < 1 and norms.running(module):
            self.warn(
                f"microbatch {self.microbatch:g}: batch norm reads each part of a batch by itself, "
                "so this is not the training of the whole batch"
            )
        if lost := untrained(module):
            self.warn(f"no optimizer trains {_some(lost)}")
        self.figures = Figures(
            module,
            feed,
            self.log,
            self.warn,
            gate=self.until.gate,
            norm_statistics=self.norm_statistics,
        )
        if self.compile:
            module.compile()
        if not (self.stage.verdict == "resume" and self._restore()):
            self.log.rewind(0)
            self.saves.require_room(module, len(self.monitor))
            self._save()
        self.unmoved = None if module.epoch or self.cfg.smoke else Unmoved(module)
        self.memory = Memory(module, device, self.root)
        module.on_flush(self._flushed)
        module.watch(self._pulse)
        module.batches_from(feed.origin)
        module.on_diverged(self._leave)
        module.on_first_batch(self._look_at_devices)
        if "EXPC_FAULTS" in os.environ:
            from expc_runtime import faults

            faults.arm(module, self.cfg.out, self.stage.status.attempt)

    def _take_parts(self, module: Module) -> None:
        """Load what it starts from, and freeze what is not trained."""
        if both := self.init.keys() & self.frozen.keys():
            raise BadValue(f"{', '.join(sorted(both))}: either trained on from there, or frozen")
        taken = self.init | self.frozen
        self.handoff = load_parts(module, taken, out=self.stage.folder, root=self.root)
        module.hold(*(module.get_submodule(part) for part in self.frozen))

    # Training.

    def _train(self, device: torch.device) -> None:
        if self.ended:
            return
        with Requests(lambda: self.module.wake_at(0.0)) as self.requests:
            # Lightning puts its own handlers before it starts.
            told = Told(self.requests.install, self.end_epoch)
            loop = trainer(device, self.stage.folder, told, boards=self.ranks.first)
            self.log.boards = list(loop.loggers)
            self._open()
            self.began = time.monotonic()
            self.module.wake_at(0.0)
            loop.fit(self.module, train_dataloaders=Chunks(self.module, self.feed, self.total))
            self.module.to(device)  # Lightning leaves it on the CPU
        self.log.boards = []
        if self.requests.stop and not self.ended:
            raise Preempted(
                f"{self.requests.stop} at update {self.module.updates}: saved; "
                "the same command goes on from there"
            )

    def _open(self) -> None:
        module = self.module
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        text = f"{size:,} parameters, {self.feed.updates_per_epoch} updates each {self.feed.part}"
        if module.updates:
            text += f"; goes on from update {module.updates}, {self.feed.part} {module.epoch}"
        self.say(text)
        if self.figures.floors:
            self.say(f"in brackets: the best that {self.feed.chance} reaches")
        if not module.updates:
            self.figures.log_floors()

    def _flushed(self) -> None:
        """Every few updates."""
        self.figures.flush()
        if self.memory is not None:
            self.memory.sample()
        self._look_early()
        if self._due():
            self._save()

    def _due(self, *, epoch_ended: bool = False) -> bool:
        """Whether it is time to save; of several ranks, by the clock of the first."""
        return self.ranks.of_first(self.saves.due(self.module, epoch_ended=epoch_ended))

    def _look_early(self, *, epoch_ended: bool = False) -> None:
        """Once in a stage: does every loss have a say, and does every parameter move?"""
        module = self.module
        if self.unmoved is None or module.last_batch is None:
            return
        if "pulls" not in self.told:
            self.told.add("pulls")
            if text := faint(pulls(module, module.pieces(module.last_batch)[0])):
                self.warn(text)
        if self.unmoved.due or (epoch_ended and self.unmoved.stepped):
            if names := self.unmoved.names():
                steps = max(module.drive(name).steps for name in module.drive_names())
                self.warn(f"not changed by {steps} steps of its optimizer: {_some(names)}")
            self.unmoved = None

    def _pulse(self) -> bool:
        """About once a second, and at once after a signal; true ends the training here."""
        module = self.module
        self._show(f"update {module.updates}")
        module.wake_at(self.shown + PULSE if self.ranks.first else math.inf)
        if self._stops():
            return True
        if any(self.ranks.gather(self.requests.save)) or self._due():
            self.requests.save = False
            self._save()
        return self._budget_gone()

    def _stops(self) -> bool:
        """Whether a rank was asked to stop; then all were."""
        asked = self.ranks.gather(self.requests.stop)
        for rank, name in enumerate(asked):
            if name:
                where = f" to rank {rank}" if not all(asked) else ""
                self.requests.stop = f"{name}{where}"
                return True
        return False

    def _alive(self, doing: str) -> None:
        """In long work beside the updates; raises Stopped after a signal."""
        if self.requests.stop:
            raise Stopped
        if time.monotonic() >= self.shown + PULSE:
            self._show(doing)

    def _show(self, doing: str) -> None:
        """Say to the status, and to people, that the training lives."""
        self.shown = time.monotonic()
        self._beat()
        self.progress.tick(*self._gone(), f"{self.feed.part} {self.module.epoch + 1}  {doing}")

    def _beat(self, *, force: bool = False) -> None:
        done, total = self._gone()
        step, target = self._steps()
        self.stage.beat(
            step=step,
            steps_target=target or round(step * total / max(done, 1e-9)),
            epoch=self.module.epoch,
            force=force,
        )

    def _gone(self) -> tuple[float, float]:
        """How much of the budget is used, and how much there is, in seconds or updates."""
        if isinstance(self.until.budget, Minutes):
            return self._seconds(), self.until.budget.seconds
        return self.module.updates, self.total or 1

    def _steps(self) -> tuple[int, int | None]:
        """The same as people count it: env steps where these are the budget, else updates."""
        if isinstance(self.until.budget, EnvSteps):
            return self.feed.counts()["env_steps"], self.until.budget.count
        return self.module.updates, self.total

    def _budget_gone(self) -> bool:
        done, total = self._gone()
        return self.ranks.of_first(done >= total)

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def end_epoch(self) -> bool:
        """Measure and decide; true if training ends. Also called where the budget cuts an epoch."""
        module = self.module
        module.settle()
        devices.require_module(module, self.device, "before measuring")
        try:
            if self._stops():
                raise Stopped
            self.feed.complete(module.updates)
            self._flushed()
            self._look_early(epoch_ended=True)
            whole = self._is_whole()
            self.figures.measure()
            self._look_at_memory()
        except Stopped:
            self._flushed()
            self._save()
            return True
        gate_ends = self.gate is not None and self.gate.see(
            self.figures.seen_by(self.gate.gate.mode)
        )
        self.best.see(self.figures.last, module, self.feed)
        self.say(self.figures.line())
        if whole:
            module.next_epoch()
        self.ended = gate_ends or self._budget_gone()
        if self.ended:
            self._beat(force=True)
        if self._due(epoch_ended=True) or self.ended:
            self._save()
        return self.ended

    def _look_at_devices(self, batch: Batch) -> None:
        """Of the first batch; a column elsewhere is a message, not a traceback from inside a layer."""
        when = "before the first update"
        devices.require_module(self.module, self.device, when)
        names: Sequence[str] = getattr(self.feed, "names", ())
        devices.require_batch(names, batch, self.device, when)

    def _look_at_memory(self) -> None:
        """Name what grows while there is memory left."""
        if self.memory is None:
            return
        for who, text in self.memory.look():
            if f"memory {who}" not in self.told:
                self.stage.caution(text)
            self.warn(text, once=f"memory {who}")

    def _is_whole(self) -> bool:
        """Whether the epoch had all its updates; without them only the budget may end it.

        Raises MissingInput for one that had not: it would be begun again for ever.
        """
        module, feed = self.module, self.feed
        first, end = (feed.updates_after(module.epoch + more) for more in (0, 1))
        whole = module.updates == end
        if not whole and not self._budget_gone():
            raise MissingInput(
                f"{feed.part} {module.epoch + 1} ended after {module.updates - first} of its "
                f"{end - first} updates: the data gave fewer batches than it said"
            )
        return whole

    # State.

    def _save(self) -> None:
        self.saves.save(
            self.module,
            self.feed,
            {
                "gate": self.gate.state_dict() if self.gate else {},
                "figures": self.figures.last,
                "other_mode": self.figures.other,
                "means": self.figures.train,
                "logged": self.log.lines,
                "warned": self.warned,
                "told": sorted(self.told),
                "seconds": self._seconds(),
                "ended": self.ended,
            },
        )

    def _leave(self, incident: Incident) -> str:
        """Keep what it takes to run an update again; says the command that does, or why it cannot."""
        try:
            evidence.leave(
                self.saves.store,
                self.module,
                incident,
                config=asdict(self.cfg),
                program=self.program,
                file=str(Path(self.file).resolve().relative_to(self.root)),
                precision=self.precision,
                microbatch=self.microbatch,
            )
        except (StageError, OSError, TypeError, ValueError) as error:  # it diverged all the same
            return f"nothing is left to run it again: {error}"
        return f"see it again, module by module: python -m expc_runtime.rerun {self._out()}"

    def _out(self) -> str:
        """The stage's folder for a command line in the project's root."""
        folder = self.stage.folder
        out = folder.relative_to(self.root) if folder.is_relative_to(self.root) else folder
        return shlex.quote(str(out))

    def _restore(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none."""
        state = self.saves.load(self.module, self.feed)
        if state is None:
            return False
        self.best.restore()
        if self.gate:
            self.gate.load_state_dict(state["gate"])
        self.figures.last, self.figures.train = state["figures"], state["means"]
        self.figures.other = state["other_mode"]
        self.warned, self.told = list(state["warned"]), set(state["told"])
        self.spent, self.ended = state["seconds"], state["ended"]
        self.log.rewind(state["logged"])
        saved_by = len(state.get("ranks", [None]))
        if saved_by != self.ranks.size:
            self.warn(
                f"goes on with {_ranks(self.ranks.size)} where there were {saved_by}: the same batches, "
                "but other draws of dropout, and other rows that batch norm reads together"
            )
        return True

    # The end.

    def _conclude(self, origin: Mapping[str, Any]) -> int:
        """Check the gate, measure the test split, warn, and write the result."""
        gate = self._judge_gate()
        if not self.cfg.smoke:
            self.figures.tell_gap()
        left = self._outputs() if self.ranks.first else {}
        self.ranks.wait()
        weights, figures = self._chosen()
        if not self.cfg.smoke:
            self.figures.warn_of_floors(figures)
        floors = self.figures.floors
        self.stage.finish(
            Result(
                state="smoke" if self.cfg.smoke else "done",
                config=asdict(self.cfg),
                parents=self.parents,
                metrics=figures,
                floors={key: floors[key] for key in figures if key in floors},
                gate=gate,
                warnings=tuple(self.warned),
                step=self.module.updates,
                epoch=self.module.epoch,
                memory=self.memory.peak() if self.memory is not None else {},
                extra={
                    "best": self.best.told(),
                    "weights": weights,
                    "artifacts": left,
                    "parts": fingerprints(self.module),
                    "handoff": self.handoff,
                    "drives": self._drives(),
                    "train": self.figures.train,
                    **self.feed.counts(),
                    **self.feed.facts(),
                    "provenance": origin,
                },
            )
        )
        told = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self.say(f"done: {told}")
        return 0

    def _outputs(self) -> dict[str, dict[str, Any]]:
        """What the stage declared to leave; a smoke run leaves what it has."""

        def why(series: str) -> str:
            never = series in self.monitor and series not in self.best.held
            what = f"{self.monitor[series]} was never a number, or it is gone since\n  "
            return f"{what if never else ''}to train again, remove that folder: {self.stage.folder}"

        kept = self.best.held if self.cfg.smoke else self.monitor
        return outputs(self.saves.store, kept, why)

    def _drives(self) -> dict[str, dict[str, int]]:
        drives = {name: self.module.drive(name) for name in self.module.drive_names()}
        return {name: {"steps": d.steps, "skipped": d.skipped} for name, d in drives.items()}

    def _chosen(self) -> tuple[str, dict[str, float]]:
        """The series of checkpoints that the result is about, and its figures with those of test.

        The first monitor's best, whose weights the module then has, or the last.
        """
        series, figures = LAST, dict(self.figures.last)
        step, epoch = self.module.updates, self.module.epoch
        first = self.best.first
        if first is not None and not self.cfg.smoke:
            held = self.best.load(first, self.module)
            series, figures = first, dict(held["figures"])
            step, epoch = held["step"], held["epoch"]
        devices.require_module(self.module, self.device, "at the end, before the last measurement")
        return series, figures | self.figures.test(step, epoch)

    def _judge_gate(self) -> dict[str, Any]:
        """What the result says of the gate; raises GateNotMet if not met, and that is a failure."""
        if self.gate is None:
            return {}
        gate, eval_mode = self.gate.gate, self._beside_gate()
        message = self.gate.message(self._spent_words(), eval_mode)
        if not self.gate.met:
            if gate.otherwise == "fail":
                raise GateNotMet(message)
            self.warn(message)
        elif eval_mode is not None and not gate.met(eval_mode):
            self.warn(f"{message}: it is open for a net that is used in eval mode and fails there")
        else:
            self.say(message)
        told = {"met": self.gate.met, "otherwise": gate.otherwise, "message": message}
        return told | ({} if eval_mode is None else {"mode": gate.mode, "eval_mode": eval_mode})

    def _beside_gate(self) -> float | None:
        """What eval mode makes of the figure that the gate read in train mode."""
        if self.gate is None or not self.figures.other or self.gate.gate.mode == "eval":
            return None
        return self.figures.last.get(self.gate.gate.metric)

    def _spent_words(self) -> str:
        if isinstance(self.until.budget, Epochs):
            return str(Epochs(max(1, self.module.epoch)))
        if isinstance(self.until.budget, Minutes):
            return f"{self._seconds() / 60:.1f} minutes"
        if isinstance(self.until.budget, EnvSteps):
            return str(EnvSteps(self._steps()[0]))
        return str(Updates(self.module.updates))

    # Words.

    def say(self, text: str) -> None:
        self.progress.line(text)
        self.log.note(text)

    def warn(self, text: str, *, once: str = "") -> None:
        """Say it once, and put it into the result; of what shares ``once`` only the first."""
        if text not in self.warned and once not in self.told:
            self.told |= {once} - {""}
            self.warned.append(text)
            self.say(f"warning: {text}")


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"


def _some(names: list[str]) -> str:
    """The first few names of many."""
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)
