"""Train a module, measure it, and leave a result that proves it.

`fit` takes the stage's folder and turns what happens into a state and an exit code. `Training` is
one attempt at it: Lightning's Trainer runs the loop over chunks, and `Training` is told of what
happens in it (`on_...`), measures, saves, and says when it is enough.
"""

import logging
import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from expc_runtime.checkpoint import LAST, Checkpoint, Store, load_weights
from expc_runtime.clocks import Epochs, Minutes, Updates
from expc_runtime.data.feed import Chunk, Feed, Split
from expc_runtime.errors import CRASH, BadValue, GateNotMet, MissingInput, Preempted, known
from expc_runtime.export import columns_of
from expc_runtime.flags import Run
from expc_runtime.gates import GateWatch, Until
from expc_runtime.guards import Spread, untrained
from expc_runtime.log import Log
from expc_runtime.module import Module
from expc_runtime.parts import load_parts, parents
from expc_runtime.progress import progress
from expc_runtime.provenance import project_root, record
from expc_runtime.randomness import random_state, restore, seed_all
from expc_runtime.signals import Requests
from expc_runtime.state import SMOKE, Claim, Result, claim, identity
from expc_runtime.trace import annotate

__all__ = ["fit"]

DEFAULT_CHECKPOINT = Checkpoint()
PULSE = 1.0  # seconds between two looks at the clock and the status
R = TypeVar("R", bound=Run)


def fit(
    build: Callable[[R], Module],
    cfg: R,
    feed: Feed,
    *,
    until: Until,
    precision: str = "32",
    compile: bool = False,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    monitor: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
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
        file: the caller's ``__file__``; the project root is the nearest folder above it with a
            pyproject.toml or .git, and ``cfg.out`` is relative to that.
        program: names the program; with the values and parents it makes the stage's key.

    The same command resumes an unfinished stage and leaves a finished one alone. A smoke run works
    in ``<out>.smoke``, unless that is in a smoke sweep's folder already. Nothing is raised:
    a failure is a state, a message, a line in ``log`` and an exit code (`expc_runtime.errors`).
    """
    root = project_root(Path(file))
    out = root / _folder(cfg)
    try:
        made_by = parents(init or {}, out)
        key = identity(program, asdict(cfg), made_by)
        with claim(out, key, program=program, module=_relative(file, root)) as stage:
            if stage.verdict == "done":
                print(f"{cfg.out}: done already, nothing to do", flush=True)
                return 0
            if stage.moved:
                print(f"{cfg.out} held other work, which is now {stage.moved.name}", flush=True)
            try:
                return Training(
                    build=build,
                    cfg=cfg,
                    feed=feed,
                    until=Until(Updates(2)) if cfg.smoke else until,
                    precision=precision,
                    compile=compile,
                    checkpoint=checkpoint,
                    monitor=dict(monitor or {}),
                    init=dict(init or {}),
                    file=file,
                    program=program,
                    root=root,
                    parents=made_by,
                    stage=stage,
                ).run()
            except Exception as error:  # noqa: BLE001  any failure becomes a state
                return _failed(error, stage)
    except Exception as error:
        # Before the folder was ours (locked, a parent missing) there is no state to write.
        stage_error = known(error)
        if stage_error is None:
            raise
        print(f"{cfg.out}: {stage_error}", flush=True)
        return stage_error.code


def _folder(cfg: Run) -> str:
    """Where the stage works: a smoke run beside a real one, never in its place."""
    apart = any(part.endswith(SMOKE) for part in Path(cfg.out).parts)
    return f"{cfg.out}{SMOKE}" if cfg.smoke and not apart else cfg.out


def _relative(file: str, root: Path) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _failed(error: Exception, stage: Claim) -> int:
    """Write the failure where it belongs and say it; returns the exit code."""
    source = annotate(error)
    log = Log(stage.folder)
    log.note("".join(traceback.format_exception(error)))
    if isinstance(error, Preempted):
        stage.interrupt(str(error))
        log.say(str(error))
        return error.code
    stage_error = known(error)
    where = f"\nfrom {source}" if source else ""
    if stage_error is None:
        reason = f"{type(error).__name__}: {error}"
        stage.fail("crash", reason, code=CRASH, source=source)
        traceback.print_exception(error)
        log.say(f"failed(crash): {reason}{where}")
        return CRASH
    stage.fail(stage_error.failure, str(stage_error), code=stage_error.code, source=source)
    log.say(f"failed({stage_error.failure}): {stage_error}{where}")
    return stage_error.code


@dataclass
class Training:
    """One attempt at a stage whose folder is ours."""

    build: Callable[[Any], Module]
    cfg: Run
    feed: Feed
    until: Until
    precision: str
    compile: bool
    checkpoint: Checkpoint
    monitor: dict[str, str]
    init: dict[str, str]
    file: str
    program: str
    root: Path
    parents: dict[str, str]
    stage: Claim

    module: Module = field(init=False)
    floors: dict[str, float] = field(init=False, default_factory=dict)
    figures: dict[str, float] = field(
        init=False, default_factory=dict
    )  # of the last epoch measured
    best: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)  # by tag
    warned: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.log = Log(self.stage.folder)
        self.store = Store(self.stage.folder / "checkpoints", self.checkpoint.keep)
        self.gate = GateWatch(self.until.gate) if self.until.gate else None
        self.saved_step = 0
        self.saved_at = self.began = time.monotonic()
        self.spent = 0.0  # seconds of training in earlier attempts
        self.ended = False  # by gate or budget; nothing but the result is missing

    def run(self) -> int:
        """Prepare, train, measure, write the result; returns 0 or raises why not."""
        self.progress = progress(self.stage.folder.name)
        try:
            device, origin = self._prepare()
            self._train(device)
            return self._conclude(origin)
        finally:
            self.progress.close()

    def _prepare(self) -> tuple[torch.device, dict[str, Any]]:
        """Device, seeds, data, module. Nothing runs yet, so a ValueError is a value that does not fit."""
        try:
            device = _device(self.cfg.device)
            origin = record(self.stage.folder, file=self.file, program=self.program, device=device)
            seed_all(self.cfg.seed)
            self.feed.setup(device, self.cfg.seed)
            self._make(device)
        except ValueError as error:
            raise BadValue(str(error)).with_traceback(error.__traceback__) from error
        return device, origin

    def _make(self, device: torch.device) -> None:
        """The module, with its floors, its drives, and the state of an earlier attempt."""
        module = self.module = self.build(self.cfg).to(device)
        load_parts(module, self.init, out=self.stage.folder, root=self.root)
        self.total = self.until.updates(self.feed.updates_per_epoch)
        module.start(
            self.precision,
            total_updates=self.total,
            updates_per_epoch=self.feed.updates_per_epoch,
        )
        if lost := untrained(module):
            self.warn(f"no optimizer trains {', '.join(lost[:5])}" + "..." * (len(lost) > 5))
        self.floors = self._floors()
        if self.compile:
            module.compile()
        if not (self.stage.verdict == "resume" and self._restore()):
            self.log.rewind(0)
            self._save()
        module.on_flush(self._flushed)
        module.watch(self._pulse)
        module.batches_from(self._rows_of)

    def _rows_of(self, update: int) -> str:
        epoch, position = divmod(update, self.feed.updates_per_epoch)
        rows: list[int] = self.feed.batch_rows(epoch, position).tolist()
        named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        return f"batch {position} of epoch {epoch + 1}, rows {named} of the source"

    def _floors(self) -> dict[str, float]:
        """The best that constant answers reach, by figure, for every split that is measured."""
        constants = self.module.constants(self.feed.columns("train"))
        found: dict[str, float] = {}
        if not constants:
            return found
        for split in self._splits():
            for k in range(len(constants[0])):
                with self.module.answering(tuple(head[k] for head in constants)):
                    for key, value in self._measured(split).items():
                        found[key] = self._best_of(key, found.get(key), value)
        return found

    def _splits(self) -> list[Split]:
        """What is measured: the train split only if a gate reads it or there is no other."""
        gated = self.until.gate is not None and self.until.gate.split == "train"
        on_train = gated or not len(self.feed.rows("val"))
        every: list[Split] = ["train", "val", "test"]
        return [
            split
            for split in every
            if (split != "train" or on_train)
            and (split != "test" or not self.cfg.smoke)
            and len(self.feed.rows(split))
        ]

    def _best_of(self, key: str, before: float | None, value: float) -> float:
        if before is None or math.isnan(before):
            return value
        rises = self.module.rises(key.partition("/")[2])
        return max(before, value) if rises else min(before, value)

    def _measured(self, split: Split) -> dict[str, float]:
        batches = self.feed.batches(split)
        figures = self.module.measured(batches.first(1) if self.cfg.smoke else batches)
        return {f"{split}/{name}": value for name, value in figures.items()}

    # Training.

    def _train(self, device: torch.device) -> None:
        if self.ended:
            return
        trainer = _trainer(device, self.stage.folder, _Told(self))
        self.log.boards = list(trainer.loggers)
        self._open()
        self.began = time.monotonic()
        with Requests(lambda: self.module.wake_at(0.0)) as self.requests:
            self.module.wake_at(0.0)
            trainer.fit(self.module, train_dataloaders=_Chunks(self))
        self.log.boards = []
        if self.requests.stop and not self.ended:
            raise Preempted(
                f"{self.requests.stop} at update {self.module.updates}: saved; "
                "the same command goes on from there"
            )

    def _open(self) -> None:
        module = self.module
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        text = f"{size:,} parameters, {self.feed.updates_per_epoch} updates an epoch"
        if module.updates:
            text += f"; goes on from update {module.updates}, epoch {module.epoch}"
        self.say(text)
        if self.floors:
            self.say("in brackets: the best that one answer for every row reaches")
        if not module.updates and self.floors:
            self.log.figures(
                "floor",
                {f"floor/{key}": value for key, value in self.floors.items()},
                step=0,
                epoch=0,
            )

    def _flushed(self) -> None:
        """Every few updates: the means since the last time, and the settings that moved them."""
        module = self.module
        means = {f"train/{name}": value for name, value in module.records.means().items()}
        module.records.clear()
        if means:
            for name in module.drive_names():
                told = module.drive(name).figures()
                means |= {f"{key}/{name}": value for key, value in told.items()}
            self.log.figures("train", means, step=module.updates, epoch=module.epoch)
        if self._save_due():
            self._save()

    def _pulse(self) -> bool:
        """About once a second, and at once after a signal; true ends the training here."""
        module, now = self.module, time.monotonic()
        module.wake_at(now + PULSE)
        done, total = self._gone()
        self.stage.beat(
            step=module.updates,
            steps_target=self.total or round(module.updates * total / max(done, 1e-9)),
            epoch=module.epoch,
        )
        self.progress.tick(done, total, f"epoch {module.epoch + 1}  update {module.updates}")
        if self.requests.stop:
            return True
        if self.requests.save or self._save_due():
            self.requests.save = False
            self._save()
        return self._budget_gone()

    def _gone(self) -> tuple[float, float]:
        """How much of the budget is used, and how much there is, on its own clock."""
        if isinstance(self.until.budget, Minutes):
            return self._seconds(), self.until.budget.seconds
        return self.module.updates, self.total or 1

    def _budget_gone(self) -> bool:
        done, total = self._gone()
        return done >= total

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def end_epoch(self) -> bool:
        """Measure and decide; true if training ends. Also called where the budget cuts an epoch."""
        module = self.module
        module.settle()
        self._flushed()
        if self.requests.stop:
            self._save()
            return True
        whole = module.updates == (module.epoch + 1) * self.feed.updates_per_epoch
        self._measure_epoch()
        gate_ends = self.gate is not None and self.gate.see(self.figures)
        self._keep_best()
        self.say(self._epoch_line())
        if whole:
            module.next_epoch()
        self.ended = gate_ends or self._budget_gone()
        if self.ended or self._save_due(epoch_ended=True):
            self._save()
        return self.ended

    def _measure_epoch(self) -> None:
        module, spread = self.module, Spread(self.module)
        self.figures = {}
        try:
            for split in self._splits():
                if split != "test":
                    self.figures |= self._measured(split)
                    self._log_measured(split)
        finally:
            spread.close()
        for head in spread.constant():
            self.warn(
                f"output {head + 1} of {type(module).__name__} is the same for every row: "
                "it has collapsed to a constant"
            )

    def _log_measured(self, split: Split) -> None:
        values = {k: v for k, v in self.figures.items() if k.startswith(f"{split}/")}
        module = self.module
        self.log.figures(split, values, step=module.updates, epoch=module.epoch + 1, mode="eval")

    def _keep_best(self) -> None:
        for tag, metric in self.monitor.items():
            if metric not in self.figures:
                raise ValueError(
                    f"monitor {tag} reads {metric}, but what is measured is "
                    f"{', '.join(sorted(self.figures)) or 'nothing'}"
                )
            value = self.figures[metric]
            held = self.best.get(tag)
            rises = self.module.rises(metric.partition("/")[2])
            if math.isnan(value) or (
                held and not (value > held["value"] if rises else value < held["value"])
            ):
                continue
            held = self.best[tag] = {
                "metric": metric,
                "value": value,
                "step": self.module.updates,
                "epoch": self.module.epoch + 1,
                "figures": dict(self.figures),
            }
            state = {"model": self.module.state_dict(), "best": held}
            self.store.save(state, step=self.module.updates, tag=tag)

    def _epoch_line(self) -> str:
        """Figures of the epoch; the best constant answer's in brackets."""
        module = self.module
        told = [f"epoch {module.epoch + 1}"]
        for key, value in self.figures.items():
            floor = f" ({self.floors[key]:.4g})" if key in self.floors else ""
            told.append(f"{key.removeprefix('val/')} {value:.4g}{floor}")
        drives = module.drive_names()
        for name in drives:
            told.append(f"lr {name if len(drives) > 1 else ''} {module.drive(name).lr:.3g}")
        return "  ".join(" ".join(part.split()) for part in told)

    # State.

    def _save_due(self, *, epoch_ended: bool = False) -> bool:
        match self.checkpoint.every:
            case Minutes() as every:
                return time.monotonic() - self.saved_at >= every.seconds
            case Updates(count):
                return self.module.updates - self.saved_step >= count
            case Epochs(count):
                return epoch_ended and self.module.epoch % count == 0

    def _save(self) -> None:
        module = self.module
        module.settle()
        state = {
            "model": module.state_dict(),
            "progress": module.progress(),
            "random": random_state(),
            "gate": self.gate.state_dict() if self.gate else {},
            "figures": self.figures,
            "logged": self.log.lines,
            "warned": self.warned,
            "seconds": self._seconds(),
            "ended": self.ended,
        }
        self.store.save(state, step=module.updates)
        self.saved_at, self.saved_step = time.monotonic(), module.updates

    def _restore(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none."""
        try:
            loaded = self.store.load()
        except MissingInput as error:
            raise MissingInput(f"{error}\n  to begin again, remove that folder") from error
        if loaded is None:
            return False
        state, manifest = loaded
        load_weights(self.module, state["model"])
        # What is best is said beside its weights alone: a kill can part two files.
        for tag in self.monitor:
            if (best := self.store.load(tag)) is not None:
                self.best[tag] = best[0]["best"]
        self.module.resume(state["progress"])
        if self.gate:
            self.gate.load_state_dict(state["gate"])
        self.figures = state["figures"]
        self.warned = list(state["warned"])
        self.spent, self.ended = state["seconds"], state["ended"]
        self.saved_step = manifest.step
        self.log.rewind(state["logged"])
        restore(state["random"])
        return True

    # The end.

    def _conclude(self, origin: Mapping[str, Any]) -> int:
        """Check the gate, measure the test split, warn, and write the result."""
        gate = self._judge_gate()
        weights, figures = self._chosen()
        self._warn_of_floors(figures)
        self.stage.finish(
            Result(
                state="smoke" if self.cfg.smoke else "done",
                config=asdict(self.cfg),
                parents=self.parents,
                metrics=figures,
                floors={key: self.floors[key] for key in figures if key in self.floors},
                gate=gate,
                warnings=tuple(self.warned),
                step=self.module.updates,
                epoch=self.module.epoch,
                extra={
                    "best": {
                        tag: {k: held[k] for k in ("metric", "value", "step", "epoch")}
                        for tag, held in self.best.items()
                    },
                    "weights": weights,
                    "drives": {
                        name: {
                            "steps": self.module.drive(name).steps,
                            "skipped": self.module.drive(name).skipped,
                        }
                        for name in self.module.drive_names()
                    },
                    "columns": columns_of(self.feed.sample()),
                    "provenance": origin,
                },
            )
        )
        told = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self.say(f"done: {told}")
        return 0

    def _chosen(self) -> tuple[str, dict[str, float]]:
        """The series of checkpoints that the result is about, and its figures with those of test.

        The first monitor's best, whose weights the module then has, or the last.
        """
        series, figures = LAST, dict(self.figures)
        step, epoch = self.module.updates, self.module.epoch
        if self.monitor and not self.cfg.smoke:
            first = next(iter(self.monitor))
            loaded = self.store.load(first)
            if loaded is None:
                self.warn(f"no checkpoint of monitor {first}: the figures are of the last weights")
            else:
                load_weights(self.module, loaded[0]["model"])
                held = loaded[0]["best"]
                series, figures = first, dict(held["figures"])
                step, epoch = held["step"], held["epoch"]
        if "test" in self._splits():
            tested = self._measured("test")
            self.log.figures("test", tested, step=step, epoch=epoch, mode="eval")
            figures |= tested
        return series, figures

    def _judge_gate(self) -> dict[str, Any]:
        """What the result says of the gate; raises GateNotMet if not met, and that is a failure."""
        if self.gate is None:
            return {}
        message = self.gate.message(self._spent_words())
        otherwise = self.gate.gate.otherwise
        if not self.gate.met:
            if otherwise == "fail":
                raise GateNotMet(message)
            self.warn(message)
        else:
            self.say(message)
        return {"met": self.gate.met, "otherwise": otherwise, "message": message}

    def _spent_words(self) -> str:
        if isinstance(self.until.budget, Epochs):
            return str(Epochs(max(1, self.module.epoch)))
        if isinstance(self.until.budget, Minutes):
            return f"{self._seconds() / 60:.1f} minutes"
        return str(Updates(self.module.updates))

    def _warn_of_floors(self, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            floor = self.floors.get(key)
            if floor is None or self.cfg.smoke or key.startswith("test/"):
                continue
            gain = value - floor if self.module.rises(key.partition("/")[2]) else floor - value
            if not gain > 1e-6 * max(1.0, abs(floor)):
                self.warn(
                    f"{key} {value:.6g} is no better than constant: "
                    f"one answer for every row gives {floor:.6g}"
                )

    # Words.

    def say(self, text: str) -> None:
        self.progress.line(text)
        self.log.note(text)

    def warn(self, text: str) -> None:
        """Say it once, and put it into the result."""
        if text not in self.warned:
            self.warned.append(text)
            self.say(f"warning: {text}")


class _Chunks:
    """The chunks of the epoch that the module is in, from where it is to the end of the budget."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def __iter__(self) -> Iterator[Chunk]:
        training = self._training
        module, feed = training.module, training.feed
        first = module.epoch * feed.updates_per_epoch
        stop = None if training.total is None else training.total - first
        return feed.chunks(module.epoch, module.updates - first, stop)


class _Told(pl.Callback):
    """Hands Lightning's hooks on to the training."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._training.requests.install()  # Lightning has put its own handlers since

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._training.end_epoch():
            trainer.should_stop = True


def _device(name: str) -> torch.device:
    if name == "auto":
        name = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadValue(f"there is no device {name!r} here: {reason}") from error
    return device


def _trainer(device: torch.device, folder: Path, told: pl.Callback) -> pl.Trainer:
    """A quiet Trainer that decides nothing: epochs, precision, saving and measuring are ours."""
    from pytorch_lightning.loggers import TensorBoardLogger

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)(\.|$)")
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1 if device.type == "cpu" else [device.index or 0],
        max_epochs=-1,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        callbacks=[told],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
