"""XC7: environments, world models, and what is measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from expc.components.core import Use
from expc.components.evaluations import BY_QUANTILE, UNIONS
from expc.experiment import Experiment, Stage
from expc.findings import Finding, Note, Span, an
from expc.kinds import KINDS
from expc.lint.core import StageRule, SweepRule
from expc.lint.readings import (
    dynamics,
    events,
    frames,
    has_boundaries,
    longer,
    measured,
    measures,
    never,
    reads_boundaries,
    span_of,
    whole,
)
from expc.resolve import Document
from expc.source import KeyPath
from expc.sweep import Space, Variant


def _place(at: Variant, *path: str | int) -> Span:
    """The value, where somebody wrote it; else the key of what it belongs to."""
    place = at.experiment.where(*path)
    return place.key if place.origin == "default" else place.value


# -------------------------------------------------------------------------------------- what an environment gives


class NeverPays(StageRule):
    """The environment can't pay: its reward is 0 in every episode, whatever the policy.

    A world model study took a port of Visual Pin Pad whose list of paid sequences was empty. All of its runs ended with
    return 0 and "reward event rate 0", which was reported as an open question.

    ## Bad
    ```yaml world
    env: {use: pinpad, layout: three, time_limit: 1000, variant: port}
    ```

    ## Good
    ```yaml world
    env: {use: pinpad, layout: three, time_limit: 1000, variant: port, targets: ["123"]}
    ```
    """

    code, name = "XC701", "never-pays"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        why = never(stage).get("reward")
        if why is not None:
            use = stage.uses["env"]
            key = "variant" if "variant" in use.written else "use"
            yield self.finding(
                f"`{use.name}` never pays here: {why}",
                _place(at, *use.path, key),
                why="the return is 0 whatever is learned, and the reward head learns to say 0",
                help="give it something to pay for, such as `targets: ['123']`, or use the reference",
            )


class RewardOutOfReach(StageRule):
    """A beginner meets less than one reward in the whole training, and something waits for rewards.

    A uniform random policy touches three pads in order once in 2,400 steps, four in 140,000; eight it never did. Where
    no reward is ever met none is learned from, so a best return or a reward event is that of chance.

    ## Bad
    ```yaml world
    env: {use: pinpad, layout: eight, time_limit: 1000}
    monitor: {best: eval/return}
    ```

    ## Good
    ```yaml world
    env: {use: pinpad, layout: three, time_limit: 1000}
    monitor: {best: eval/return}
    ```
    """

    code, name, severity = "XC702", "reward-out-of-reach", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        env = stage.uses.get("env")
        steps = getattr(getattr(stage.shape, "until", None), "env_steps", None)
        rate = env.component.rewards(env.params) if env and env.component.rewards else None
        if env is None or steps is None or rate is None or rate * steps / 1000 >= 1:
            return
        waits = tuple(_waits_for_reward(stage, at))
        if waits:
            found = rate * steps / 1000
            some = f"about {found:.1g} rewards" if found else "no reward"
            yield self.finding(
                f"a random policy earns {some} in {steps:,} steps of `{env.name}`",
                _place(at, *env.path, env.written[0] if env.written else "use"),
                why="where no reward is ever met, none is learned from",
                help="make the task shorter, train for longer, or look at other events",
                notes=waits,
            )


def _waits_for_reward(stage: Stage, at: Variant) -> Iterator[Note]:
    for label, _ in _watches_reward(stage):
        yield Note(at.experiment.value(*stage.path, "monitor", label), "this waits for rewards")
    for other in measures(stage, at):
        for index, event in enumerate(events(other)):
            if event in ("reward", "reward_or_delta"):
                where = (*other.uses["measure"].path, "events", index)
                yield Note(_place(at, *where), "this waits for rewards")


def _watches_reward(stage: Stage) -> Iterator[tuple[str, str]]:
    """Monitors of what only rewards move."""
    for label, key in getattr(stage.shape, "monitor", {}).items():
        if key.rpartition("/")[2] in ("return", "reward_events"):
            yield label, key


class EventNeverHappens(StageRule):
    """Something waits for an event that never happens in this environment.

    Its figures would be null, or a checkpoint that is "best" because it came first.

    ## Bad
    ```yaml world
    env: {use: pinpad, layout: three, time_limit: 1000, variant: port, targets: ["123"]}
    measure: {use: boundary_alignment, events: [pad_enter, respawn]}
    ```

    ## Good
    ```yaml world
    env: {use: pinpad, layout: three, time_limit: 1000, variant: port, targets: ["123"]}
    measure: {use: boundary_alignment, events: [pad_enter]}
    ```
    """

    code, name = "XC703", "event-never-happens"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        lost = never(stage)
        for label, key in _watches_reward(stage) if "reward" in lost else ():
            yield self.finding(
                f"monitor `{label}` watches `{key}`, which never moves: {lost['reward']}",
                at.experiment.value(*stage.path, "monitor", label),
                why="the first checkpoint would stay the best",
                help="watch something else, or let the environment pay",
            )
        source = measured(stage, at)
        for index, event in enumerate(events(stage)):
            told = _never(event, source) if source is not None else ""
            if source is not None and told:
                again = event in UNIONS
                yield self.finding(
                    f"event `{event}` {told}",
                    _place(at, *stage.uses["measure"].path, "events", index),
                    why="the same test would count as two"
                    if again
                    else "its figures would be null",
                    help="leave it out, or change the environment",
                    notes=(Note(at.experiment.key(*source.path, "env"), "the environment"),),
                )


def _never(event: str, stage: Stage) -> str:
    """What keeps an event from being told in a stage's environment; "" where it may be."""
    env, lost = stage.uses.get("env"), never(stage)
    if env is None:
        return ""
    one, other = UNIONS.get(event, ("", ""))
    if one in lost:
        return f"is `{other}` and nothing more: {lost[one]}"
    told = env.component.events or not env.component.own  # your own may not say
    if told and event not in BY_QUANTILE and event not in env.component.events:
        return f"is not one of `{env.name}`"
    return f"never happens: {lost[event]}" if event in lost else ""


class QuantileOfFewValues(StageRule):
    """Events are the frames that change most, where frames change by a few sizes only.

    In Visual Pin Pad a frame changes by 0, by 1.99, or by about 4. The 90th percentile then is one of these numbers,
    and all frames at it count: up to 61 % of them, not 10 %, and most are plain moves. Pads entered and left are known
    exactly; the figures of a percentile mean something beside theirs.

    ## Bad
    ```yaml world
    measure: {use: boundary_alignment, events: [frame_delta]}
    ```

    ## Good
    ```yaml world
    measure: {use: boundary_alignment, events: [pad_enter, frame_delta]}
    ```
    """

    code, name, severity = "XC712", "quantile-of-few-values", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        source, named = measured(stage, at), events(stage)
        env = source.uses.get("env") if source is not None else None
        if env is None or "frames_of_few_cells" not in env.component.traits:
            return
        known = [event for event in env.component.events if event != "reward"]
        by_quantile = [index for index, event in enumerate(named) if event in BY_QUANTILE]
        if by_quantile and not set(known) & set(named):
            use = stage.uses["measure"]
            yield self.finding(
                f"`{named[by_quantile[0]]}` takes a percentile of changes that take few values",
                _place(at, *use.path, "events", by_quantile[0]),
                why=f"every frame at the percentile counts: with {use.param('percentile'):g} "
                "up to six frames in ten of `pinpad` were events, and most were plain moves",
                help=f"add `{known[0]}`, which the environment tells exactly",
            )


# ------------------------------------------------------------------------------------------------- boundaries


class NothingHeldOut(StageRule):
    """An evaluation measures a stage that leaves no episodes.

    It plays nothing itself: it reads the episodes of that stage's last evaluation. A stage that is trained on rows of
    data, or that is an evaluation, has none.

    ## Bad
    ```yaml whole
    expc: 1
    name: example
    about: Do learned boundaries fall on events?
    stages:
      read:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        model: {backbone: {use: conv_net}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
      boundaries:
        kind: evaluate
        of: read
        measure: {use: boundary_alignment, events: [pad_enter]}
    ```

    ## Good
    ```yaml world
    of: train
    ```
    """

    code, name = "XC717", "nothing-held-out"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        source = measured(stage, at)
        if source in (None, stage) or source.kind.keeps_episodes:
            return
        others = [each.name for each in at.experiment.stages.values() if each.kind.keeps_episodes]
        kinds = [kind.name for kind in KINDS.values() if kind.keeps_episodes]
        yield self.finding(
            f"stage `{stage.name}` measures `{source.name}`, which keeps no episodes",
            at.experiment.value(*stage.path, "of"),
            why=f"{an(source.kind.name)} stage plays none; the evaluation would stop for want of them",
            help=f"measure {_either(others)}" if others else f"measure {an(kinds[0])} stage",
            notes=(Note(at.experiment.key(*source.path, "kind"), "its kind"),),
        )


def _either(names: list[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


class NoBoundariesToRead(StageRule):
    """Boundaries are measured of a stage that has none.

    The evaluation would stop at once, after hours of training.

    ## Bad
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: rssm}
      decoder: {use: conv_decoder}
    ```

    ## Good
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 0.0, obs_action_input: true}
      decoder: {use: conv_decoder}
    ```
    """

    code, name = "XC711", "no-boundaries-to-read"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        source = measured(stage, at)
        if source is None or not reads_boundaries(stage) or has_boundaries(source):
            return
        if not source.kind.keeps_episodes:
            return  # told by another rule
        use = dynamics(source)
        has_none = f"dynamics `{use.name}`" if use is not None else f"stage `{source.name}`"
        place = at.experiment.key(*(use.path if use is not None else source.path))
        condition = at.condition.name
        leave = f"leave it out in this condition: `{condition}: {{{stage.name}: skip}}`"
        yield self.finding(
            f"stage `{stage.name}` measures boundaries, and {has_none} has none",
            at.experiment.value(*stage.path, "of"),
            why=f"in condition `{condition}` it would stop at once" if condition else "",
            help=leave if condition else "measure a `vta`, or leave the stage out",
            notes=(Note(place, "this has no boundaries"),),
            spans=(place,),
        )


class RateBelowArgmax(StageRule):
    """Boundaries are wanted rarer than half of the time, and measured by which of two is likelier.

    A detector that gives a boundary the probability 0.1, as its prior asks, is right, and never says "boundary" when the
    likelier of two answers is taken: one study's third condition had 0 boundaries in evaluation, while the same logits
    fired in 9 % of the frames when drawn, and it was read as a collapse.

    ## Bad
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 0.0, rate: 0.1, obs_action_input: true}
      decoder: {use: conv_decoder}
    ```

    ## Good
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 0.0, obs_action_input: true}
      decoder: {use: conv_decoder}
    ```
    """

    code, name, severity = "XC705", "rate-below-argmax", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        use = dynamics(stage)
        rate = getattr(use.params, "rate", 0.0) if use is not None else 0.0
        readers = measures(stage, at)
        if use is not None and 0 < rate < 0.5 and readers:
            yield self.finding(
                f"`rate: {rate:g}` asks for boundaries that are rarely the likelier answer",
                _place(at, *use.path, "rate"),
                why=f"stage `{readers[0].name}` counts one where its probability is 0.5 or more: "
                "a detector that does as the prior asks has none",
                help="read `boundary_ratio_train` beside `boundary_ratio_eval`, and `auc_read_prob`, "
                "which takes no threshold; then allow this",
                notes=(Note(at.experiment.key(*readers[0].path), "measured here"),),
            )


class SegmentLimitsTooTight(StageRule):
    """The limits of segments do not reach to the end of an episode.

    After `max_seg_num` boundaries no frame may be one: the rest of the episode is one segment, whatever happens in it.

    ## Bad
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 10.0, max_seg_len: 30, max_seg_num: 20, obs_action_input: true}
      decoder: {use: conv_decoder}
    accept: {all: [{metric: forced_ratio, below: 0.5}]}
    ```

    ## Good
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 10.0, max_seg_len: 30, max_seg_num: 200, obs_action_input: true}
      decoder: {use: conv_decoder}
    accept: {all: [{metric: forced_ratio, below: 0.5}]}
    ```
    """

    code, name, severity = "XC706", "segment-limits-too-tight", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        use, length = dynamics(stage), frames(stage)
        if use is None or length is None or not getattr(use.params, "force_scale", 0):
            return
        most, longest = use.param("max_seg_num"), use.param("max_seg_len")
        expected = use.param("rate") * length
        if most * longest < length:
            what = f"{most} segments of {longest} frames end at frame {most * longest:,}"
        elif most < expected:
            what = f"`rate: {use.param('rate'):g}` asks for about {expected:.0f} segments, and {most} may be"
        else:
            return
        yield self.finding(
            f"{what}; an episode has {length:,} frames",
            _place(at, *use.path, "max_seg_num"),
            why="after the last one allowed, no boundary is possible",
            help=f"set `max_seg_num` to {max(-(-length // longest), round(expected)) * 2} or more",
        )


class ForcedReadsAccepted(StageRule):
    """Boundaries may be forced by a limit, and the answer does not ask how many are.

    A detector that never fires is made to fire every `max_seg_len` frames: in one condition all 33 boundaries of an
    episode were those of the clock, 33 being 1000 / 30. Such boundaries say nothing of what was learned. Figures of
    events count them; `forced_ratio` says what share they are.

    ## Bad
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 10.0, obs_action_input: true}
      decoder: {use: conv_decoder}
    accept: {all: [{metric: pad_enter.lift_over_event_rate, above: 2.0}]}
    ```

    ## Good
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 10.0, obs_action_input: true}
      decoder: {use: conv_decoder}
    accept: {all: [{metric: pad_enter.lift_over_event_rate, above: 2.0}, {metric: forced_ratio, below: 0.5}]}
    ```
    """

    code, name, severity = "XC707", "forced-reads-accepted", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        accept, source = getattr(stage.shape, "accept", None), measured(stage, at)
        use = dynamics(source) if source is not None else None
        if accept is None or use is None or not getattr(use.params, "force_scale", 0):
            return
        if not any(bound.metric == "forced_ratio" for bound in accept.all):
            forced = _place(at, *use.path, "force_scale")
            yield self.finding(
                "boundaries may be forced, and `accept` does not ask how many are",
                at.experiment.key(*stage.path, "accept"),
                why="a detector that never fires is made to, at regular times, and may be accepted for it",
                help="add `{metric: forced_ratio, below: 0.5}`",
                notes=(Note(forced, f"`force_scale: {use.param('force_scale'):g}` forces them"),),
                spans=(forced,),
            )


class ActionUnseen(StageRule):
    """Within a segment the state moves without the action.

    The action enters at the abstract level alone, and that moves only where a segment begins. In a segment of 30 frames
    the model can't know where the player went, and imagination there is the same for every action.

    ## Bad
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 0.0}
      decoder: {use: conv_decoder}
    ```

    ## Good
    ```yaml world
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 0.0, obs_action_input: true}
      decoder: {use: conv_decoder}
    ```
    """

    code, name, severity = "XC713", "action-unseen", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        use = dynamics(stage)
        if use is not None and getattr(use.params, "obs_action_input", None) is False:
            yield self.finding(
                f"within a segment `{use.name}` moves without the action",
                _place(at, *use.path, "obs_action_input"),
                why="what is imagined there is the same for every action, and no actor can learn from it",
                help="set `obs_action_input: true`",
            )


# ------------------------------------------------------------------------------------------ what is measured


class PValueFloor(SweepRule):
    """The smallest p-value that so few permutations can give is above what so many tests allow.

    With N permutations p is at least 1 / (N + 1): 0.0196 for 50. One study reported p = 0.0196, the floor, as
    significant; with three conditions and three events, 0.05 / 9 = 0.0056 would have been.

    ## Bad
    ```yaml world
    measure: {use: boundary_alignment, events: [pad_enter, pad_leave, reward], permutations: 50}
    ```

    ## Good
    ```yaml world
    measure: {use: boundary_alignment, events: [pad_enter, pad_leave, reward], permutations: 1000}
    ```
    """

    code, name, severity = "XC704", "p-value-floor", "warning"

    ALPHA = 0.05

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for name in experiment.stages:
            readers = [each for each in _running(space, name) if reads_boundaries(each.stage)]
            if readers:
                points = 1
                for axis in space.loops:
                    points *= len(axis.rows)
                yield from self._of(readers, points)

    def _of(self, readers: list[_Run], points: int) -> Iterator[Finding]:
        tests = points * sum(len(events(each.stage)) for each in readers)
        at, stage = min(readers, key=lambda each: each.stage.uses["measure"].param("permutations"))
        use = stage.uses["measure"]
        floor, alpha = 1 / (use.param("permutations") + 1), self._alpha(stage)
        if floor > alpha / tests:
            least = round(tests / alpha)
            yield self.finding(
                f"with {use.param('permutations')} permutations no p is below {floor:.3g}, "
                f"and {_counted(tests)} at {alpha:g} ask for {alpha / tests:.2g}",
                _place(at, *use.path, "permutations"),
                why="the smallest p there is would be reported as if it said something",
                help=f"set `permutations: {10 ** len(str(least))}`, or test less",
            )

    def _alpha(self, stage: Stage) -> float:
        accept = getattr(stage.shape, "accept", None)
        bounds = [
            value
            for bound in (accept.all if accept is not None else ())
            if bound.metric.endswith(".perm_p_value")
            for value in bound.bounds.values()
        ]
        return min((each for each in bounds if 0 < each < 1), default=self.ALPHA)


def _counted(tests: int) -> str:
    return f"{tests} tests" if tests > 1 else "one test"


class EpisodesNotKept(StageRule):
    """More episodes are to be measured than the training keeps.

    Those of its last evaluation are kept for measuring, and no others: an average over four would be one over one.

    ## Bad
    ```yaml world
    evaluate: {every: {env_steps: 6000}, episodes: 1}
    measure: {use: boundary_alignment, events: [pad_enter], episodes: 4}
    ```

    ## Good
    ```yaml world
    evaluate: {every: {env_steps: 6000}, episodes: 4}
    measure: {use: boundary_alignment, events: [pad_enter], episodes: 4}
    ```
    """

    code, name, severity = "XC714", "episodes-not-kept", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        source, use = measured(stage, at), stage.uses.get("measure")
        kept = getattr(getattr(source.shape if source else None, "evaluate", None), "episodes", 0)
        if source is None or use is None or not kept or "episodes" not in use.written:
            return
        wanted = use.param("episodes")
        if wanted > kept:
            where = (*source.path, "evaluate", "episodes")
            yield self.finding(
                f"{wanted} episodes are to be measured, and stage `{source.name}` keeps {kept}",
                at.experiment.value(*use.path, "episodes"),
                why="the figures would be those of fewer episodes than the spec says",
                help=f"set `evaluate: {{episodes: {wanted}}}` in stage `{source.name}`",
                notes=(Note(_place(at, *where), "kept here"),),
            )


class AcceptOutOfReach(SweepRule):
    """More seeds must be accepted than there are.

    The answer would be no, whatever is found.

    ## Bad
    ```yaml world
    accept: {all: [{metric: pad_enter.lift_over_event_rate, above: 2.0}], seeds: 2}
    ```

    ## Good
    ```yaml world
    accept: {all: [{metric: pad_enter.lift_over_event_rate, above: 2.0}], seeds: 2}
    sweep: {seeds: [0, 1, 2]}
    ```
    """

    code, name = "XC715", "accept-out-of-reach"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        seeds = len(set(experiment.sweep.seeds))
        for name in experiment.stages:
            for at, stage in _running(space, name):
                accept = getattr(stage.shape, "accept", None)
                if accept is not None and accept.seeds > seeds:
                    yield self.finding(
                        f"{accept.seeds} seeds must be accepted, and the sweep has {seeds}",
                        _place(at, *stage.path, "accept", "seeds"),
                        why="the answer would be no, whatever is found",
                        help=f"`sweep: {{seeds: {list(range(accept.seeds))}}}`, or ask for fewer",
                    )


class NoUpdateBetween(StageRule):
    """There is no update between two evaluations, or none before the end.

    An update takes `batch * length / train_ratio` steps of the environments, and none is made while the replay is
    filled. A stage whose evaluations are closer than that would measure the same weights again, so it does not start.

    ## Bad
    ```yaml world
    evaluate: {every: {env_steps: 1}, episodes: 4}
    ```

    ## Good
    ```yaml world
    evaluate: {every: {env_steps: 6000}, episodes: 4}
    ```
    """

    code, name = "XC716", "no-update-between"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        replay, env = getattr(stage.shape, "replay", None), stage.uses.get("env")
        if replay is None or env is None:
            return
        copies: int = env.slot.batch
        takes = Fraction(replay.batch * replay.length) / Fraction(replay.train_ratio)
        every = stage.shape.evaluate.every.env_steps
        if every // copies * copies < takes:
            least = -(-takes // copies) * copies
            yield self.finding(
                f"an evaluation every {every} env steps, and an update takes {float(takes):.4g}",
                at.experiment.value(*stage.path, "evaluate", "every", "env_steps"),
                why="the same weights would be measured twice",
                help=f"set it to {least} or more",
            )
        end, filled = stage.shape.until.env_steps, -(-replay.prefill.env_steps // copies)
        if end is not None and end > replay.prefill.env_steps and end // copies <= filled:
            yield self.finding(
                f"the stage ends at {end} env steps, and {copies} copies fill the replay until {filled * copies}",
                at.experiment.value(*stage.path, "until", "env_steps"),
                why="nothing would be trained",
                help=f"set it well above {filled * copies}, or `prefill` lower",
            )


class CheckpointTooLate(StageRule):
    """Checkpoints of a long training are far apart.

    One study's first checkpoint came after an hour, with the first evaluation. The run that failed before it had left
    nothing, and its evaluation failed with "missing checkpoint". Here a run saves at its start and when it fails, but
    a machine that is taken away does not wait for that.

    ## Bad
    ```yaml world
    checkpoint: {every: {minutes: 90}}
    ```

    ## Good
    ```yaml world
    checkpoint: {every: {minutes: 10}}
    ```
    """

    code, name, severity = "XC710", "checkpoint-too-late", "warning"

    MINUTES = 60
    SHARE = 0.1

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = getattr(stage.shape, "until", None)
        every = getattr(getattr(stage.shape, "checkpoint", None), "every", None)
        if "env" not in stage.uses or until is None or every is None:
            return
        clock, amount = span_of(every) or ("", 0)
        if clock == "minutes" and amount > self.MINUTES:
            lost = f"{amount:g} minutes"
        elif clock == "updates" and not longer(stage, every, until.clock):
            every_one = whole(stage)
            if every_one is None or amount <= self.SHARE * every_one:
                return
            lost = f"{amount:,} of {every_one:,.0f} updates"
        else:
            return  # beyond the budget: told by another rule
        yield self.finding(
            f"a machine that goes away takes up to {lost} with it",
            at.experiment.value(*stage.path, "checkpoint", "every", clock),
            why="that is how far apart checkpoints are",
            help="`{minutes: 10}` costs next to nothing",
        )


# ------------------------------------------------------------------------------------- conditions against each other


class _Run(NamedTuple):
    """A stage at a structural point of the sweep where it is not left out."""

    at: Variant
    stage: Stage


def _running(space: Space, name: str) -> list[_Run]:
    """A stage at every structural point where it runs."""
    return [
        _Run(at, at.experiment.stages[name])
        for at in space.variants
        if name not in at.condition.skips and name in at.experiment.stages
    ]


def _conditions(space: Space, name: str) -> list[_Run]:
    """A stage with an environment, in each condition, at the first point of that."""
    first: dict[str, _Run] = {}
    for each in _running(space, name):
        if "env" in each.stage.uses:
            first.setdefault(each.at.condition.name, each)
    return list(first.values())


def _more(others: int) -> str:
    return f" (and {others} more)" if others else ""


_TRAINING = (
    "until",
    "replay",
    "optim",
    "precision",
    "evaluate",
    "checkpoint",
    "compile",
    "monitor",
)
"""Keys that say how a stage is trained, not what."""


class UnequalTraining(SweepRule):
    """Conditions that differ in what is trained also differ in how: in budget, replay, optimizers, or precision.

    A baseline of one study trained for 51,200 steps in half precision, its rivals for 43,200 in single: a budget that
    was rounded up to an interval which differed. Whatever came out could be owed to either. Conditions that differ in
    their training alone are a study of it, and no finding.

    ## Bad
    ```yaml world
    sweep:
      conditions:
        far: {}
        near: {train.behaviour.horizon: 5, train.until.env_steps: 36000}
    ```

    ## Good
    ```yaml world
    sweep:
      conditions:
        far: {}
        near: {train.behaviour.horizon: 5}
    ```
    """

    code, name, severity = "XC708", "unequal-training", "warning"

    TOLERANCE = 0.05

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for name in experiment.stages:
            runs = _conditions(space, name)
            unlike: dict[KeyPath, list[_Run]] = {}
            for other in runs[1:]:
                for path in self._differences(runs[0], other):
                    unlike.setdefault(path, []).append(other)
            for path, others in unlike.items():
                yield self._told(path, runs[0], others)

    def _differences(self, one: _Run, other: _Run) -> Iterator[KeyPath]:
        here, there = _leaves(one), _leaves(other)
        if all(
            here.get(path) == there.get(path) for path in {**here, **there} if not _trains(path)
        ):
            return  # then how it is trained is what is studied
        for path in here:
            same = path in there and _alike(here[path], there[path], self.TOLERANCE)
            if path in there and not same and _counts(path, one.stage):
                yield path

    def _told(self, path: KeyPath, one: _Run, others: list[_Run]) -> Finding:
        other = others[0]
        places = [each.at.experiment.where(*path) for each in (one, other)]
        first, second = places if places[1].origin == "sweep" else places[::-1]
        key = ".".join(map(str, path[2:]))
        values = [each.at.experiment.tree.get(path) for each in (one, other)]
        return self.finding(
            f"conditions `{one.at.condition.name}` and `{other.at.condition.name}`"
            f"{_more(len(others) - 1)} differ in `{key}`: {_shown(values[0])} and {_shown(values[1])}",
            second.value,
            why=_owed(path, one, other),
            help="give all conditions one value, or allow it and say why",
            notes=(Note(first.value, "the other value"),),
            spans=(first.value,),
        )


def _leaves(run: _Run) -> dict[KeyPath, Any]:
    return dict(run.at.experiment.tree.leaves(run.stage.path))


def _trains(path: KeyPath) -> bool:
    return path[2] in _TRAINING


def _counts(path: KeyPath, stage: Stage) -> bool:
    """Whether a difference here may decide a comparison: looking more often does, where the best look is kept."""
    match path[2]:
        case "until" | "replay" | "optim" | "precision":
            return True
        case "evaluate":
            return bool(getattr(stage.shape, "monitor", {}))
    return False


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= tolerance * max(abs(one), abs(other))
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _owed(path: KeyPath, one: _Run, other: _Run) -> str:
    if path[2] == "evaluate":
        return "the best of many looks is better than the best of few, whatever was learned"
    updates = [whole(each.stage) for each in (one, other)]
    if path[2] in ("until", "replay") and None not in updates and updates[0] != updates[1]:
        return f"a difference may be owed to {updates[0]:,.0f} updates against {updates[1]:,.0f}"
    return "a difference between them may be owed to this alone"


class UnequalSizes(SweepRule):
    """The dynamics of two conditions differ in size by more than a quarter.

    At its defaults `vta` has 15.5 million weights and `rssm` 5.8: a difference between them may be one of size.

    ## Bad
    ```yaml world
    sweep:
      conditions:
        narrow: {train.model.dynamics.hidden: 256}
        wide: {}
    ```

    ## Good
    ```yaml world
    sweep:
      conditions:
        narrow: {train.model.dynamics.hidden: 480}
        wide: {}
    ```
    """

    code, name, severity = "XC709", "unequal-sizes", "warning"

    SHARE = 1.25

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for name in experiment.stages:
            sizes = [(run, size) for run in _conditions(space, name) if (size := _weights(run))]
            unlike = [
                (run, size)
                for run, size in sizes[1:]
                if max(size, sizes[0][1]) > self.SHARE * min(size, sizes[0][1])
            ]
            if unlike:
                yield self._told(*sizes[0], *unlike[0], len(unlike) - 1)

    def _told(self, one: _Run, size: int, other: _Run, unlike: int, more: int) -> Finding:
        keys = ("model", "dynamics", "use")
        places = [each.at.experiment.where(*each.stage.path, *keys) for each in (one, other)]
        first, second = places if places[1].origin == "sweep" else places[::-1]
        return self.finding(
            f"conditions `{one.at.condition.name}` and `{other.at.condition.name}`{_more(more)} "
            f"have dynamics of {size / 1e6:.2f} and {unlike / 1e6:.2f} million weights",
            second.value,
            why="a difference between them may be one of size",
            help="make the smaller one wider, or allow it and say why",
            notes=(Note(first.value, "the other one"),),
            spans=(first.value,),
        )


def _weights(run: _Run) -> int | None:
    """How many weights the dynamics has, where that can be known."""
    use, env = dynamics(run.stage), run.stage.uses["env"].component
    encoder: Use | None = run.stage.maps.get("model", {}).get("encoder")
    if use is None or encoder is None or env.actions is None:
        return None
    if use.component.weights is None or encoder.component.width is None:
        return None
    return use.component.weights(use.params, encoder.component.width(encoder.params), env.actions)
