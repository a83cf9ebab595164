"""The head of a report: what it is of, where it stands, and what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expc.report import figures
from expc.report.figures import Condition, answered
from expc.report.gather import Experiment, Run
from expc.report.svg import number
from expc.report.words import GLYPHS, MARKS, in_bytes, listed, on_day
from expc_runtime.state.table import duration

__all__ = ["Count", "Fact", "Verdict", "facts", "notes", "states", "verdicts"]


_BAR = (
    "done",
    "smoke",
    "running",
    "failed",
    "blocked",
    "undefined",
    "interrupted",
    "skipped",
    "pending",
)


@dataclass(frozen=True)
class Fact:
    """A term and what is known of it."""

    term: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Count:
    """How many stage instances are in a state."""

    state: str
    glyph: str
    label: str
    count: int


@dataclass(frozen=True)
class Verdict:
    """One declared question, answered."""

    answer: str  # yes, no, or open
    glyph: str
    stage: str
    text: str
    note: str = ""


def facts(experiment: Experiment, runs: Sequence[Run]) -> Iterator[Fact]:
    names = len({run.run for run in runs})
    stages = f"{len(runs):,} stages" if len(runs) != 1 else "1 stage"
    yield Fact("Runs", f"{names:,}", stages)
    spent = sum(run.device_seconds for run in runs)
    hours = f"{number(spent / 3600, 3)}" if spent >= 36 else "under 0.01"
    yield Fact("Compute", duration(spent), f"{hours} device-hours")
    if experiment.began:
        day, clock = on_day(experiment.began).split()
        last = on_day(max(experiment.began, experiment.ended)).removeprefix(f"{day} ")
        yield Fact("When", day, f"{clock} to {last}")
    origin = experiment.origin
    if origin.devices:
        device, _ = origin.devices.most_common(1)[0]
        more = len(origin.devices) - 1
        yield Fact("Device", device, f"and {more} more kinds" if more else "")
    if origin.commits:
        commit, _ = origin.commits.most_common(1)[0]
        others = len(origin.commits) - 1
        parts = [f"and {others} other commits" if others > 1 else "and another commit"] * bool(
            others
        )
        parts += [f"{origin.dirty} results with local changes"] if origin.dirty else ["clean"]
        yield Fact("Commit", commit[:12], ", ".join(parts))
    peak = max((run.memory.get("device", 0) for run in runs), default=0)
    host = max((run.memory.get("host", 0) for run in runs), default=0)
    if peak or host:
        yield Fact("Peak memory", in_bytes(peak or host), "of a device" if peak else "of a process")


def states(runs: Sequence[Run]) -> Iterator[Count]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status.state] = counts.get(run.status.state, 0) + 1
    for state in sorted(counts, key=_BAR.index):
        yield Count(state, GLYPHS[state], state, counts[state])


def verdicts(experiment: Experiment) -> Iterator[Verdict]:
    for stage, runs in experiment.stages.items():
        conditions = figures.conditions(runs)
        yield from _accepted(stage, conditions)
        gated = [run for run in runs if run.gate]
        if gated:
            yield _gate(stage, gated, runs)


def _accepted(stage: str, conditions: Sequence[Condition]) -> Iterator[Verdict]:
    judged = [c for c in conditions if any(run.accept for run in c.runs)]
    if not judged:
        return
    yes = [c for c in judged if answered(c)[0] == "yes"]
    still = [c for c in judged if answered(c)[0] == "open"]
    said = next(run.accept for c in judged for run in c.runs if run.accept)
    bounds = " and ".join(f"{b['metric']} {b['wanted']}" for b in said.get("bounds", ()))
    wanted = (
        f"{bounds}, in {said.get('seeds', 1)} seeds or more" if said.get("seeds", 1) > 1 else bounds
    )
    text = f"accepted in {len(yes)} of {len(judged)} judged conditions"
    if yes:
        text += f": {listed([c.name or 'the one there is' for c in yes])}"
    if still:
        text += f"; open in {len(still)}"
    unjudged = [c for c in conditions if c not in judged and set(c.states()) != {"skipped"}]
    if unjudged:
        text += f"; without an answer: {listed([c.name for c in unjudged])}"
    answer = "yes" if yes else "open" if still else "no"
    yield Verdict(answer, MARKS[answer], stage, text, wanted)


def _gate(stage: str, gated: Sequence[Run], runs: Sequence[Run]) -> Verdict:
    met = sum(bool(run.gate.get("met")) for run in gated)
    answer = "yes" if met == len(gated) == len(runs) else "no" if met < len(gated) else "open"
    left = f"; {len(runs) - len(gated)} not there yet" if len(runs) > len(gated) else ""
    missed = next((str(r.gate.get("message", "")) for r in gated if not r.gate.get("met")), "")
    first = " · ".join(line.strip() for line in missed.splitlines()[:2])
    return Verdict(
        answer, MARKS[answer], stage, f"gate met by {met} of {len(gated)} runs{left}", first
    )


def notes(experiment: Experiment) -> Iterator[str]:
    yield from experiment.notes
    if experiment.declared.changed_since:
        yield (
            f"{experiment.declared.spec} has changed since these results: its text below is of now, "
            "the results are of the text that their hash names."
        )
    changed = [run for run in experiment.runs if run.changed and not run.same_as]
    if changed:
        what = "1 stage" if len(changed) == 1 else f"{len(changed)} stages"
        yield f"{what} ran with settings that a retry changed; figures made so are marked †."
