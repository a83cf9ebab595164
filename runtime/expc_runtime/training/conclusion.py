"""The end of a training: its gate is judged, the test split measured, the result written."""

from dataclasses import asdict
from typing import Any

from expc_runtime.checkpoint import LAST
from expc_runtime.diagnosis import devices
from expc_runtime.errors import GateNotMet
from expc_runtime.parts import fingerprints, outputs
from expc_runtime.state import Result
from expc_runtime.training.state import Training

__all__ = ["conclude"]


def conclude(training: Training) -> None:
    """Check the gate, measure the test split, warn, and write the result.

    Raises GateNotMet, and MissingOutput where something that was declared is not there to leave.
    """
    asked, at, module = training.asked, training.at, training.module
    feed, figures, words = training.feed, training.figures, training.words
    gate = _judge_gate(training)
    if not asked.cfg.smoke:
        figures.tell_gap()
    left = _outputs(training) if at.ranks.first else {}
    at.ranks.wait()
    weights, reached = _chosen(training)
    if not asked.cfg.smoke:
        figures.warn_of_floors(reached)
    floors = figures.floors
    at.stage.finish(
        Result(
            state="smoke" if asked.cfg.smoke else "done",
            config=asdict(asked.cfg),
            parents=dict(at.parents),
            metrics=reached,
            floors={key: floors[key] for key in reached if key in floors},
            gate=gate,
            warnings=tuple(words.warned),
            step=module.updates,
            epoch=module.epoch,
            memory=training.memory.peak(),
            extra={
                "best": training.best.told(),
                "weights": weights,
                "artifacts": left,
                "parts": fingerprints(module),
                "handoff": training.handoff,
                "drives": _drives(training),
                "train": figures.train,
                **feed.counts(),
                **feed.facts(),
                "provenance": training.provenance,
            },
        )
    )
    told = "  ".join(f"{key} {value:.4g}" for key, value in reached.items())
    words.say(f"done: {told}")


def _outputs(training: Training) -> dict[str, dict[str, Any]]:
    """What the stage declared to leave; a smoke run leaves what it has."""
    monitor, best = training.asked.monitor, training.best

    def why(series: str) -> str:
        never = series in monitor and series not in best.held
        what = f"{monitor[series]} was never a number, or it is gone since\n  " if never else ""
        return f"{what}to train again, remove that folder: {training.folder}"

    return outputs(training.saves.store, best.held if training.asked.cfg.smoke else monitor, why)


def _drives(training: Training) -> dict[str, dict[str, int]]:
    module = training.module
    drives = {name: module.drive(name) for name in module.drive_names()}
    return {name: {"steps": d.steps, "skipped": d.skipped} for name, d in drives.items()}


def _chosen(training: Training) -> tuple[str, dict[str, float]]:
    """The series of checkpoints that the result is about, and its figures with those of test.

    The first monitor's best, whose weights the module then has, or the last.
    """
    module, figures = training.module, training.figures
    series, reached = LAST, dict(figures.last)
    step, epoch = module.updates, module.epoch
    first = training.best.first
    if first is not None and not training.asked.cfg.smoke:
        held = training.best.load(first, module)
        series, reached = first, dict(held["figures"])
        step, epoch = held["step"], held["epoch"]
    devices.require_module(module, training.device, "at the end, before the last measurement")
    return series, reached | figures.test(step, epoch)


def _judge_gate(training: Training) -> dict[str, Any]:
    """What the result says of the gate; raises GateNotMet if not met, and that is a failure."""
    watch, words = training.gate, training.words
    if watch is None:
        return {}
    gate, eval_mode = watch.gate, _beside_gate(training)
    message = watch.message(str(training.budget), eval_mode)
    if not watch.met:
        if gate.otherwise == "fail":
            raise GateNotMet(message)
        words.warn(message)
    elif eval_mode is not None and not gate.met(eval_mode):
        words.warn(f"{message}: it is open for a net that is used in eval mode and fails there")
    else:
        words.say(message)
    told = {"met": watch.met, "otherwise": gate.otherwise, "message": message}
    return told | ({} if eval_mode is None else {"mode": gate.mode, "eval_mode": eval_mode})


def _beside_gate(training: Training) -> float | None:
    """What eval mode makes of the figure that the gate read in train mode."""
    watch, figures = training.gate, training.figures
    if watch is None or not figures.other or watch.gate.mode == "eval":
        return None
    return figures.last.get(watch.gate.metric)
