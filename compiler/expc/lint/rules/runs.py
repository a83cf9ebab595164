"""XC5, from XC509 on: how runs are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from expc.experiment import Experiment, Stage
from expc.findings import Finding, Note, Span, listed
from expc.lint.core import StageRule, SweepRule, ToldRule
from expc.lint.rules.gates import keepers
from expc.policy import Planned, planned, word
from expc.resolve import Document, spec_path
from expc.source import KeyPath
from expc.spec import HALF, Duration
from expc.sweep import Space, Variant, number


class RetryInVain(ToldRule):
    """A retry is declared for an end that no other try would change.

    A budget that is used up is used up in the next try; a value that was refused is refused again; a file that lacks
    goes on lacking. Such a stage is reported once, with its reason, and what depends on it is blocked.

    ## Bad
    ```yaml
    run: {retry: {gate: {times: 2}}}
    ```

    ## Good
    ```yaml
    run: {retry: {killed: {times: 2}}}
    ```
    """

    code, name = "XC509", "retry-in-vain"


class RetryOfNoSetting(ToldRule):
    """A retry changes what is no setting of the stage, or sets it to what it can't be.

    Settings are named by their paths within the stage, as in a sweep: `precision`, `optim.lr`. One that decides the code
    of a stage (`use`, a list of parts) makes another program, which has results of its own. One that the checkpoint holds
    it to, such as a size of the net or the batch, can't change on the way. One that nobody wrote is no setting yet: write
    what it is otherwise; `microbatch` alone need not be written, for it is a whole batch then.

    ## Bad
    ```yaml
    run: {retry: {diverged: {optim.rate: half}}}
    ```

    ## Good
    ```yaml
    run: {retry: {diverged: {optim.lr: half}}}
    ```
    """

    code, name = "XC510", "retry-of-no-setting"


def _every(experiment: Experiment, space: Space) -> Iterator[Planned]:
    for stage in experiment.stages.values():
        yield from planned(stage, experiment, space)


class RetryChangesNothing(SweepRule):
    """A retry sets a setting to what it is already, in every run.

    The next try would be the one that failed, under a message that says something was changed.

    ## Bad
    ```yaml
    precision: 32
    run: {retry: {diverged: {precision: 32}}}
    ```

    ## Good
    ```yaml
    precision: bf16-mixed
    run: {retry: {diverged: {precision: 32}}}
    ```
    """

    code, name = "XC511", "retry-changes-nothing"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        same: dict[KeyPath, Planned] = {}
        turning: set[KeyPath] = set()
        for one in _every(experiment, space):
            yield from self._idle(experiment, one)
            for path, flags in one.turned.items():
                swept = any(flag.swept for flag in flags)
                if one.turns(path) or swept:
                    turning.add(one.at(path))
                elif flags:
                    same.setdefault(one.at(path), one)
        for at, one in same.items():
            if at not in turning:
                flag, then = one.turned[str(at[-1])][0], experiment.tree.get(at)
                yield self.finding(
                    f"`{at[-1]}` is {word(flag, flag.default)} and can't be halved"
                    if then == HALF
                    else f"`{at[-1]}` is `{number(then)}` already",
                    experiment.tree.at(at).value,
                    why=f"the next try after `{one.failure}` would be the one that failed",
                    help="change something that can help, or leave it out",
                    notes=(Note(flag.span, "as it is planned"),),
                )

    def _idle(self, experiment: Experiment, one: Planned) -> Iterator[Finding]:
        above = experiment.run.retry if experiment.run is not None else {}
        if one.written.times or (one.own and one.failure in above):
            return
        yield self.finding(
            f"`{one.failure}` is not tried again anyway",
            experiment.tree.at(one.at("times")).key,
            why="`times: 0` takes away what is said for all stages, and nothing is",
            help="leave it out",
        )


class RetryFailsAlike(SweepRule):
    """A run that had no memory, or whose numbers went wrong, is tried again just as it was.

    It goes on from its checkpoint with the same rows in the same order and needs as much memory as before. On a machine
    that others use the next try may find more of it; a leak goes on from there and ends in the same way, later.

    ## Bad
    ```yaml
    run: {retry: {oom: {times: 2}}}
    ```

    ## Good
    ```yaml
    run: {retry: {oom: {microbatch: half, times: 2}}}
    ```
    """

    code, name, severity = "XC512", "retry-fails-alike", "warning"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for one in _every(experiment, space):
            why = _ALIKE.get(one.failure)
            if why and one.written.times and not one.written.changes:
                yield self.finding(
                    f"after `{one.failure}` nothing is changed before the next try",
                    experiment.tree.at(one.at()).key,
                    why=why,
                    help=_INSTEAD[one.failure],
                )


_ALIKE = {
    "oom": "it needs as much memory as before",
    "leak": "memory grows as before, until none is left again",
    "diverged": "it goes on from its checkpoint with the same rows in the same order",
}
_INSTEAD = {
    "oom": "let a batch go through in parts: `oom: {microbatch: half}`",
    "leak": "mend what holds the tensors: the message of the failure names it",
    "diverged": "say what is to be changed, such as `diverged: {precision: 32}` or `{optim.lr: half}`",
}


class RetryOfSwept(SweepRule):
    """A retry changes what the sweep varies.

    The figures of a point would be those of another: a run of `bf16-mixed` that was ended in 32 bits stands in the
    column of `bf16-mixed`, and the question of the sweep is answered with it.

    ## Bad
    ```yaml
    run: {retry: {diverged: {precision: 32}}}
    sweep: {grid: {read.precision: [32, bf16-mixed]}}
    ```

    ## Good
    ```yaml
    precision: bf16-mixed
    run: {retry: {diverged: {precision: 32}}}
    sweep: {grid: {read.optim.lr: [1.0e-3, 3.0e-3]}}
    ```
    """

    code, name = "XC513", "retry-of-swept"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for one in _every(experiment, space):
            for path, flags in one.turned.items():
                where = _swept(experiment, space, (*one.stage.path, *path.split(".")))
                if flags and where is not None:
                    yield self.finding(
                        f"a retry changes `{path}` of stage `{one.stage.name}`, which is swept",
                        experiment.tree.at(one.at(path)).key,
                        why="figures of one point of the sweep would be those of another",
                        help="change something that is the same in all runs",
                        notes=(Note(document.tree.at(where).key, "it is swept here"),),
                    )


def _swept(experiment: Experiment, space: Space, at: KeyPath) -> KeyPath | None:
    """Where the sweep sets a path: on an axis, or in a condition; itself, or with the map that holds it."""
    sweep = experiment.sweep
    for key, axes in (("grid", sweep.grid), ("zip", sweep.zip)):
        for path, values in axes.items():
            if any(_sets(experiment, path, value, at) for value in values):
                return ("sweep", key, path)
    for name, overrides in sweep.conditions.items():
        for path, value in overrides.items():
            if value != "skip" and _sets(experiment, path, value, at):
                return ("sweep", "conditions", name, path)
    return None


def _sets(experiment: Experiment, path: str, value: Any, at: KeyPath) -> bool:
    """Whether a swept value holds a path; one of the shared model reaches every stage that takes the part."""
    place = spec_path(path)
    if place[0] == "model":
        at = at[2:]
    if at[: len(place)] != place:
        return False
    for key in at[len(place) :]:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


class CoarserRetry(SweepRule):
    """A retry goes on in fewer bits than are planned.

    16-bit numbers overflow, and lose small gradients, where 32-bit ones do neither; and the run stands beside others
    of 32 bits. Where memory is short, a batch in parts needs less of it, and computes the same.

    ## Bad
    ```yaml
    precision: 32
    run: {retry: {oom: {precision: bf16-mixed}}}
    ```

    ## Good
    ```yaml
    precision: 32
    run: {retry: {oom: {microbatch: half}}}
    ```
    """

    code, name, severity = "XC514", "coarser-retry", "warning"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for one in _every(experiment, space):
            planned_bits = {str(flag.default) for flag in one.turned.get("precision", ())}
            wanted = str(one.written.changes.get("precision", "32"))
            if "32" in planned_bits and wanted != "32":
                yield self.finding(
                    f"after `{one.failure}` a run of 32 bits goes on in `{wanted}`",
                    experiment.tree.at(one.at("precision")).value,
                    why="coarser numbers do not mend what 32 bits could not, and the run is compared with others of 32",
                    help="for memory: `microbatch: half`; for a run that diverged: `optim.lr: half`",
                )


# ------------------------------------------------------------------------------------------------ timeouts


def _timeout(stage: Stage, at: Variant) -> tuple[Duration, Span] | None:
    """The timeout of a stage, and where it stands."""
    found = at.experiment.run_of(stage).timeout
    own = stage.shape.run is not None and stage.shape.run.timeout is not None
    path = (*(stage.path if own else ()), "run", "timeout")
    return (found, at.experiment.tree.at(path).key) if found is not None else None


class TimeoutBeforeTheEnd(StageRule):
    """A stage trains for longer than all its attempts together may take.

    `until: {minutes: ...}` counts what attempts have trained together. A stage that is stopped by its timeout is
    saved, but nothing goes on with it unless `timed_out` is tried again.

    ## Bad
    ```yaml
    until: {minutes: 600}
    run: {timeout: {hours: 4}}
    ```

    ## Good
    ```yaml
    until: {minutes: 600}
    run: {timeout: {hours: 4}, retry: {timed_out: {times: 3}}}
    ```
    """

    code, name = "XC515", "timeout-before-the-end"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        limited = _timeout(stage, at)
        clock = getattr(getattr(stage.shape, "until", None), "clock", None)
        minutes = getattr(clock, "minutes", None)
        if limited is None or minutes is None:
            return
        timeout, place = limited
        retry = at.experiment.run_of(stage).retry.get("timed_out")
        tries = 1 + (retry.times if retry is not None else 0)
        if tries * timeout.in_seconds < minutes * 60:
            several = f"{tries} attempts have " if tries > 1 else "it has "
            needed = -(-minutes * 60 // timeout.in_seconds)
            yield self.finding(
                f"stage `{stage.name}` trains for {minutes:g} minutes, and {several}"
                f"{tries * timeout.in_seconds / 60:g}",
                place,
                why="it is stopped before its end, and nothing goes on with it",
                help=f"let it go on: `retry: {{timed_out: {{times: {needed:g}}}}}`, or give an attempt more time",
            )


class TimeoutBeforeACheckpoint(StageRule):
    """An attempt may take no longer than the time between two checkpoints.

    A timeout asks the stage to stop, and it saves then. One that hangs does not answer and is killed; the next
    attempt begins where the last checkpoint was, and none was written since the attempt began.

    ## Bad
    ```yaml
    checkpoint: {every: {minutes: 30}}
    run: {timeout: {minutes: 20}}
    ```

    ## Good
    ```yaml
    checkpoint: {every: {minutes: 5}}
    run: {timeout: {minutes: 20}}
    ```
    """

    code, name, severity = "XC516", "timeout-before-a-checkpoint", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        limited = _timeout(stage, at)
        every = getattr(getattr(stage.shape, "checkpoint", None), "every", None)
        minutes = getattr(every, "minutes", None)
        if limited is None or minutes is None or limited[0].in_seconds > minutes * 60:
            return
        yield self.finding(
            f"an attempt at stage `{stage.name}` ends before its first checkpoint by time, after {minutes:g} minutes",
            limited[1],
            why="one that hangs is killed, and the next begins where it began",
            help="save more often, or give an attempt more time",
            notes=(
                Note(at.experiment.key(*stage.path, "checkpoint", "every"), "it is saved so often"),
            ),
        )


# ------------------------------------------------------------------------------------------------- devices


def _devices(stage: Stage, at: Variant) -> tuple[int, Span]:
    own = stage.shape.run is not None and stage.shape.run.devices is not None
    path = (*(stage.path if own else ()), "run", "devices")
    return at.experiment.run_of(stage).devices or 1, at.experiment.tree.at(path).key


class DevicesWithoutRows(StageRule):
    """Several devices are given to a stage that can't share out its batches.

    Rows of a batch are shared out among devices, and their gradients are averaged. A stage that acts in an environment,
    or that measures, has none: all its devices would do the same work, or all but one none.

    ## Bad
    ```yaml world
    run: {devices: 2}
    ```

    ## Good
    ```yaml world
    run: {timeout: {hours: 40}}
    ```
    """

    code, name = "XC517", "devices-without-rows"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        count, place = _devices(stage, at)
        if count > 1 and stage.kind.undivided is not None:
            yield self.finding(
                f"stage `{stage.name}` can't use {count} devices",
                place,
                why="only the rows of a batch are shared out among devices, and it has none",
                help=f"say `devices` in the stages that train on rows; runs of `{stage.name}` can go side by side",
            )


class PartsNormalisedApart(StageRule):
    """A batch goes through in parts, or is shared out among devices, and batch norm reads each part by itself.

    Its mean and variance are those of a part, so the step is not that of the whole batch: the net trains as with a
    smaller batch. Gradients are gathered as they should be. A retry may halve `microbatch` all the same: the table marks it.

    ## Bad
    ```yaml
    microbatch: 0.5
    ```
    ```yaml
    run: {devices: 2}
    ```

    ## Good
    ```yaml
    model:
      backbone: {use: conv_net, channels: [16, 32], norm: false}
    microbatch: 0.5
    run: {devices: 2}
    ```
    """

    code, name, severity = "XC518", "parts-normalised-apart", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        parts = keepers(stage)
        if not parts:
            return
        norms = f"{listed(parts)} normalise{'' if len(parts) > 1 else 's'}"
        share = getattr(stage.shape, "microbatch", 1.0)
        if share < 1:
            yield self.finding(
                f"{norms} each part of a batch by itself",
                at.experiment.value(*stage.path, "microbatch"),
                why=f"statistics are those of {share:g} of a batch, whatever the size of the batch",
                help="let the batch go through at once, or take a net without batch norm",
            )
        count, place = _devices(stage, at)
        if count > 1 and stage.kind.undivided is None:
            yield self.finding(
                f"{norms} the rows of each device by themselves",
                place,
                why=f"statistics are those of a batch shared out among {count} devices",
                help="take a batch so large that a share is enough, or a net without batch norm",
            )
