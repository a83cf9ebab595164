"""Measure what a trained stage has learned, and leave a result that proves it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from expc_runtime.attempt import Attempt, attempt
from expc_runtime.diagnosis import devices
from expc_runtime.errors import BadValue, MissingInput
from expc_runtime.evals.accept import Accept
from expc_runtime.export import load
from expc_runtime.flags import Run
from expc_runtime.log import Log
from expc_runtime.progress import progress
from expc_runtime.provenance import record
from expc_runtime.randomness import seed_all
from expc_runtime.state import Result, parent_key, read_result, sibling
from expc_runtime.training.trainer import device_of

__all__ = ["Measure", "Measured", "Subject", "evaluate"]


@dataclass(frozen=True)
class Subject:
    """What is measured, and where what is found of it goes."""

    module: nn.Module  # on ``device``, in eval mode, with the weights its result is about
    parent: Path  # folder of the stage that trained it
    folder: Path  # of this stage
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement found. A metric that is None has a reason."""

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # left in the stage's folder
    extra: Mapping[str, Any] = field(default_factory=dict)


class Measure(Protocol):
    """A kind of evaluation. A ValueError means that a value given to it does not fit."""

    def measure(self, subject: Subject) -> Measured: ...


def evaluate(
    cfg: Run,
    measure: Measure,
    *,
    of: str,
    accept: Accept | None = None,
    file: str,
    program: str,
) -> int:
    """Measure the module that stage ``of`` of the same run trained; returns the exit code.

    Args:
        of: its verified checkpoint is measured; without a result the exit code is 66.
        accept: when the answer is yes. A no is a result like any other, not a failure.
        file, program: of the generated module, as in `fit`.

    The figures are in 32 bits, seeded by ``cfg.seed``. The same command leaves a finished stage
    alone. Nothing is raised: a failure is a state, a message and an exit code.
    """
    return attempt(
        cfg,
        lambda at: _Evaluation(cfg, measure, of, accept, file, program, at).run(),
        parents=lambda out: {of: _parent_key(out, of)},
        file=file,
        program=program,
    )


def _parent_key(out: Path, of: str) -> str:
    key = parent_key(out, of)
    if not key:
        raise MissingInput(
            f"stage {of} of this run has no result: {out.parent / of}\n"
            f"  by hand: --out RUN/{out.name}, where RUN/{of} is done"
        )
    return key


@dataclass
class _Evaluation:
    """One attempt at a stage whose folder is ours."""

    cfg: Run
    measure: Measure
    of: str
    accept: Accept | None
    file: str
    program: str
    at: Attempt

    def run(self) -> int:
        """Load, measure, judge, write the result; returns 0 or raises why not."""
        stage, ranks = self.at.stage, self.at.ranks
        if ranks.size > 1:
            raise BadValue(
                f"{ranks.size} devices for one run: an evaluation is done by one process; leave "
                "run.devices of this stage at 1"
            )
        self.log = Log(stage.folder)
        self.log.rewind(0)
        self.progress = progress(stage.folder.name)
        try:
            stage.beat(step=0, steps_target=1, epoch=0, force=True)
            began = time.monotonic()
            try:
                origin, subject = self._prepare()
                found = self._measured(subject)
                verdict = self._judged(found)
            except ValueError as error:
                raise BadValue(str(error)).with_traceback(error.__traceback__) from error
            self._say(found, verdict, time.monotonic() - began)
            self._finish(found, verdict, origin)
            return 0
        finally:
            self.progress.close()

    def _prepare(self) -> tuple[dict[str, Any], Subject]:
        folder = self.at.stage.folder
        device = device_of(self.cfg.device)
        origin = record(folder, file=self.file, program=self.program, device=device)
        parent = sibling(folder, self.of)
        trained = read_result(parent)
        if trained is not None and trained.state == "smoke" and not self.cfg.smoke:
            raise MissingInput(f"stage {self.of} was a smoke run, which trains nothing: {parent}")
        module = load(parent).to(device)
        seed_all(self.cfg.seed)
        return origin, Subject(module, parent, folder, device)

    def _measured(self, subject: Subject) -> Measured:
        module, device = subject.module, subject.device
        devices.require_module(module, device, f"stage {self.of}, before it is measured")
        with devices.told(module, device):
            return self.measure.measure(subject)

    def _judged(self, found: Measured) -> dict[str, Any]:
        """What the result says of acceptance; nothing of a smoke run, whose figures mean nothing."""
        if self.accept is None:
            return {}
        verdict = self.accept.judge(found.metrics, found.reasons)
        return {} if self.cfg.smoke else {"accept": verdict}

    def _say(self, found: Measured, verdict: Mapping[str, Any], seconds: float) -> None:
        told = [f"measured in {seconds:.1f} s; in brackets: what chance reaches"]
        told += _lines(found)
        told += [f"warning: {warning}" for warning in found.warnings]
        if verdict:
            told.append(verdict["accept"]["message"])
        for text in told:
            self.progress.line(text)
            self.log.note(text)

    def _finish(
        self, found: Measured, verdict: Mapping[str, Any], origin: Mapping[str, Any]
    ) -> None:
        """The result, last: with it the stage is done."""
        stage = self.at.stage
        missing = [name for name in found.files if not (stage.folder / name).is_file()]
        if missing:
            raise MissingInput(f"{', '.join(missing)} should be in {stage.folder} and is not")
        figures = {name: value for name, value in found.metrics.items() if value is not None}
        self.log.figures("eval", figures, step=1, epoch=0)
        stage.beat(step=1, steps_target=1, epoch=0)
        stage.finish(
            Result(
                state="smoke" if self.cfg.smoke else "done",
                config=asdict(self.cfg),
                parents=self.at.parents,
                metrics=found.metrics,
                floors=found.floors,
                warnings=found.warnings,
                step=1,
                extra={
                    **found.extra,
                    **verdict,
                    "reasons": dict(found.reasons),
                    "files": list(found.files),
                    "provenance": origin,
                },
            )
        )


def _lines(found: Measured) -> list[str]:
    """The metrics, one line for those of one stem: ``reward: event_rate 0.02  lift 3.1 (1)``."""
    groups: dict[str, list[str]] = {}
    for name, value in found.metrics.items():
        stem, _, figure = name.rpartition(".")
        floor = f" ({found.floors[name]:.4g})" if name in found.floors else ""
        text = f"{value:.4g}{floor}" if value is not None else "null"
        groups.setdefault(stem, []).append(f"{figure} {text}")
    return [(f"{stem}: " if stem else "") + "  ".join(parts) for stem, parts in groups.items()]
