"""How runs are carried out: what a spec says of it reaches the script, and no program and no key."""

from __future__ import annotations

import json
import os
import subprocess
import types
import typing
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from expc.build import Compiled
from expc.ir import Backend, Notify, Policy, Retry
from expc.lint.check import check
from expc.runs import records, stream
from expc.spec import HALF, Run, StageRun
from expc_runtime.state.plan import Layout, tasks
from expc_runtime.state.program import read_program

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

ALL = """\
run:
  retry:
    oom: {microbatch: half, times: 2}
    timed_out: {times: 3}
    killed: {times: 2, delay: {seconds: 30}}
    diverged: {loss.loop.weight: half, optim.lr: 1.0e-4, compile: false}
  timeout: {hours: 4}
  notify: {webhook: EXPC_WEBHOOK, form: slack, on: [done]}
  slurm: {partition: gpu, time: {hours: 12}, memory_gb: 16, cpus: 4, at_once: 20}
  ray: {cpus: 0.5, address: auto}
"""
SECOND = """\
  second:
    kind: supervised
    init: {backbone: {from: read}}
    data: {use: digits, batch: 64, split: {val: 0.2}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    optim: {use: adamw, lr: 1.0e-3}
    until: {epochs: 2}
    run:
      retry: {oom: {optim.lr: half}, killed: {times: 0}}
      timeout: {minutes: 90}
      devices: 2
      slurm: {time: {hours: 2}, requeue: false}
"""


def said(project: Project, run: str = ALL, second: str = SECOND) -> str:
    """The spec of two stages, with what it says of their runs."""
    text = project.changed(
        "    until: {epochs: 2}\n", "    compile: true\n    until: {epochs: 2}\n"
    )
    return text + second + run


@pytest.fixture
def made(project: Project) -> Compiled:
    return project.compile(said(project))


def test_a_stage_s_own_word_wins_key_by_key(made: Compiled) -> None:
    first, second = made.plan.policies
    assert first == Policy(
        "read",
        timeout=14400,
        devices=1,
        retries=(
            Retry("oom", 2, None, (("--microbatch", "half"),)),
            Retry("timed_out", 3),
            Retry("killed", 2, 30),
            Retry(
                "diverged", 1, None,
                (("--loop-weight", "half"), ("--lr", "0.0001"), ("--no-compile", "")),
            ),
        ),
    )  # fmt: skip
    assert (second.timeout, second.devices) == (5400, 2)
    # Its own `oom` takes the place of the one above; what it has no setting for is left out.
    assert second.retries == (
        Retry("oom", 1, None, (("--lr", "half"),)),
        Retry("timed_out", 3),
        Retry("diverged", 1, None, (("--lr", "0.0001"),)),
    )
    assert made.plan.notify == Notify("EXPC_WEBHOOK", "slack", ("done",))


def test_a_null_of_a_stage_takes_away_what_is_said_for_all(project: Project) -> None:
    own = "timeout: null\n      devices: null\n      slurm: {partition: null, at_once: null}\n"
    second = SECOND[: SECOND.index("      timeout:")] + f"      {own}"
    top = ALL.replace("  timeout:", "  devices: 2\n  timeout:")
    plan = project.compile(said(project, run=top, second=second)).plan
    assert [(each.timeout, each.devices) for each in plan.policies] == [(14400, 2), (None, 1)]
    slurm, _ = plan.backends
    asked = dict(dict(slurm.stages)["second"])
    assert "partition" not in asked and "at_once" not in asked and asked["memory_gb"] == 16


def test_back_ends_ask_in_the_spec_s_own_words(made: Compiled) -> None:
    slurm, ray = made.plan.backends
    assert slurm.name == "slurm"
    common = (("partition", "gpu"),)
    rest = (("memory_gb", 16), ("cpus", 4), ("at_once", 20))
    assert dict(slurm.stages) == {
        "read": (*common, ("time", 43200), *rest, ("requeue", True), ("devices", 1)),
        "second": (*common, ("time", 7200), *rest, ("requeue", False), ("devices", 2)),
    }
    assert ray == Backend(
        "ray",
        (("read", (("cpus", 0.5), ("devices", 1))), ("second", (("cpus", 0.5), ("devices", 2)))),
        (("address", "auto"),),
    )


def test_one_stage_alone_declares_a_back_end_for_all(project: Project) -> None:
    """A run goes to the cluster whole: what other stages ask there is left to it."""
    (slurm,) = project.compile(said(project, run="")).plan.backends
    assert dict(slurm.stages)["read"] == (("requeue", True), ("devices", 1))


def test_nothing_is_printed_that_nobody_said(project: Project) -> None:
    files = project.render().files
    assert "policy()" not in files["sweep.sh"] and "notify=" not in files["sweep.sh"]
    assert "carried out" not in files["README.md"]
    assert not any("microbatch" in text for text in files.values())
    assert "conduct" not in project.render().lock


def test_results_outlive_an_edit_to_how_runs_are_carried_out(project: Project) -> None:
    """Neither the programs nor the keys of instances change, with a setting that a retry alone turns."""
    before, after = (project.compile(said(project, run=run)) for run in ("", ALL))
    assert [module.digest for module in before.plan.modules] == [
        module.digest for module in after.plan.modules
    ]
    keys = [_keys(project, text) for text in (said(project, run=""), said(project))]
    assert keys[0] == keys[1] != []
    written = said(project).replace(
        "    until: {epochs: 2}\n  second", "    microbatch: 0.5\n    until: {epochs: 2}\n  second"
    )
    assert (
        _keys(project, written)[0] != keys[0][0]
    )  # a batch in parts from the start is another one


def _keys(project: Project, text: str) -> list[str]:
    from expc.build import compiled
    from expc.emit.render import render

    made = compiled(project.write(project.spec, text))
    for name, content in render(made.experiment, made.plan, "generated/reader").files.items():
        project.write(f"generated/reader/{name}", content)
    folder = str(project.root / "generated/reader")
    return [task.key for task in tasks(stream(made.plan), Layout("reader", folder))]


def test_the_script_records_what_the_plan_says(project: Project) -> None:
    """Through bash, and back as the runtime reads it."""
    text = said(project)
    made = project.compile(text)
    script = project.render(text).files["sweep.sh"].partition("\nrunner=")[0]
    script = script.replace('cd -- "$(dirname', ': "$(dirname')
    for word in ("limit", "retry", "run", "stage"):
        script += f'\n{word}() {{ printf \'%s\\0\' "$(($# + 1))" {word} "$@"; }}'
    script += "\npolicy\nruns\nprintf '1\\0end\\0'\n"
    told = subprocess.run(
        ["bash", "--norc", "-c", script], check=True, capture_output=True, env=os.environ
    )
    assert told.stdout == b"".join(
        b"".join(word.encode() + b"\0" for word in (str(len(words)), *words))
        for words in records(made.plan)
    )
    _keys(project, text)
    layout = Layout("reader", str(project.root / "generated/reader"))
    read, second = tasks(BytesIO(told.stdout), layout)
    assert (read.policy.timeout, second.policy.timeout) == (14400.0, 5400.0)
    assert (read.policy.devices, second.policy.devices) == (1, 2)
    assert read.policy.retries["killed"].delay == 30.0
    assert read.policy.retries["diverged"].changes == (
        ("loop_weight", HALF), ("lr", "0.0001"), ("compile", "false"),
    )  # fmt: skip
    declared = read_program(project.root / "generated/reader/read.py")
    assert declared.changed("compile", "false", True) is False
    assert declared.changed("microbatch", HALF, 1.0) == 0.5
    assert set(second.policy.retries) == {"oom", "timed_out", "diverged"}


def test_the_script_names_who_is_told(project: Project) -> None:
    assert (
        "\nnotify=(slack EXPC_WEBHOOK 'done')\n" in project.render(said(project)).files["sweep.sh"]
    )


def test_the_readme_tells_it(project: Project) -> None:
    text = project.render(said(project)).files["README.md"]
    assert (
        "| `second` | 90 min an attempt; 2 devices a run; tried again after oom (lr halved), "
        "timed_out (3 times), diverged (lr 0.0001) |"
    ) in text
    assert "| `notice` | slack, to the address in $EXPC_WEBHOOK: each stage that is done |" in text
    assert "| `slurm.sh` | read partition gpu, time 12 h, memory_gb 16" in text
    assert "generated/it/slurm.sh" in text


def test_lint_asks_for_a_compile_when_only_that_was_edited(project: Project) -> None:
    from expc.emit.render import render
    from expc.emit.write import write

    made = project.compile(said(project))
    folder = project.root / "generated/reader"
    write(render(made.experiment, made.plan, "generated/reader"), folder, "generated/reader")
    spec = project.root / project.spec

    def stale() -> list[str]:
        return [f.message for f in check(spec, project.root).findings if f.code == "XC901"]

    assert stale() == []
    project.write(project.spec, said(project).replace("timed_out: {times: 3}", "timed_out: {}"))
    assert stale() == ["`generated/reader` is older than this spec: `sweep.sh` would change"]


@pytest.mark.parametrize(
    ("planned", "change", "turns"),
    [
        ("clip: 1.0", "clip: 1", False),
        ("clip: 1.0", "clip: half", True),
        ("accumulate: 1", "accumulate: half", False),
        ("accumulate: 3", "accumulate: half", True),
        ("compile: true", "compile: false", True),
        ("compile: false", "compile: false", False),
        ("precision: 16-mixed\n    clip: 1.0", "precision: 32", True),
        ("precision: 32", "precision: 32", False),
        ("microbatch: 1.0", "microbatch: 1", False),
        ("microbatch: 0.5", "microbatch: 0.25", True),
        ("clip: 1.0", "loss.loop.weight: 0.5", False),
        ("clip: 1.0", "loss.loop.weight: 1", True),
    ],
)
def test_a_retry_that_changes_nothing_is_told_and_not_made(
    project: Project, planned: str, change: str, turns: bool
) -> None:
    text = project.changed("    until: {epochs: 2}\n", f"    {planned}\n    until: {{epochs: 2}}\n")
    text += f"run: {{retry: {{crash: {{{change}}}}}}}\n"
    made = project.compile(text)
    assert bool(made.plan.policies) is turns
    assert of_runs(project) == ([] if turns else ["XC511"])


def of_runs(project: Project) -> list[str]:
    """What lint says of the retries."""
    found = check(project.root / project.spec, project.root).findings
    return [finding.code for finding in found if "XC509" <= finding.code <= "XC514"]


def test_a_change_for_all_stages_is_for_those_that_it_changes(project: Project) -> None:
    """What one stage has and another has not is no fault of the second."""
    run = "run: {retry: {diverged: {loss.loop.weight: 0.1}}}\n"
    made = project.compile(said(project, run=run, second=SECOND.partition("    run:")[0]))
    assert [policy.stage for policy in made.plan.policies] == ["read"]
    assert of_runs(project) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("data.batch: half", "at a place in these very rows"),
        ("model.backbone.channels: [4, 4]", "the shapes that they have"),
        ("heads.digit.out: 11", "the shapes that they have"),
    ],
)
def test_what_a_checkpoint_holds_a_stage_to_is_not_changed(
    project: Project, change: str, why: str
) -> None:
    text = project.text + f"run: {{retry: {{crash: {{{change}}}}}}}\n"
    (told,) = project.findings(text)
    assert told.code == "XC510" and why in told.why


def test_a_setting_that_some_runs_lack_can_not_be_changed(project: Project) -> None:
    sweep = "conditions: {plain: {}, other: {read.loss.loop: {use: mse}}}"
    text = project.swept(sweep) + "run: {retry: {diverged: {loss.loop.weight: half}}}\n"
    (told,) = project.findings(text)
    assert told.code == "XC510"
    assert "those of condition `other` do not" in told.message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("oom: {microbach: half}", "did you mean `microbatch`?"),
        ("killed: {time: 2}", "did you mean `times`?"),
        ("killed: {delya: {seconds: 3}}", "did you mean `delay`?"),
        ("diverged: {precision: 32}", "change something else, or leave it out"),
    ],
)
def test_the_help_is_one_that_lint_then_takes(project: Project, change: str, told: str) -> None:
    """`precision: 32` in the stage, too, would be the value that it has anyway."""
    (finding,) = project.findings(project.text + f"run: {{retry: {{{change}}}}}\n")
    assert finding.code == "XC510" and told in finding.help


# ------------------------------------------------------------------------------------- no dead knob


def alternatives(annotation: Any) -> Iterator[Any]:
    """Values of a field that differ from those of `ALL`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        yield from alternatives(inner[0])
    elif origin is Literal:
        yield from inner
    elif origin in (typing.Union, types.UnionType):
        for each in inner:
            yield from alternatives(each)
    elif origin is list:
        yield from ([each] for each in alternatives(inner[0]))
    elif origin is dict:
        yield {"killed": {"times": 7}}
    elif annotation in (int, float):
        yield 7
    elif annotation is bool:
        yield False
    elif annotation is str:
        yield "other"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            for value in alternatives(info.annotation):
                yield {name: value}


@pytest.mark.parametrize(
    ("stage", "key"),
    [(False, key) for key in Run.model_fields] + [(True, key) for key in StageRun.model_fields],
)
def test_every_key_changes_the_script_and_no_program(
    project: Project, stage: bool, key: str
) -> None:
    model = StageRun if stage else Run
    plain = project.compile()
    tried = []
    for value in alternatives(model.model_fields[key].annotation):
        value = {"webhook": "OTHER", **value} if key == "notify" else value
        written = json.dumps({key: value})
        text = project.text + (f"    run: {written}\n" if stage else f"run: {written}\n")
        if key == "devices":
            text = text.replace("7", "8")  # of a batch of 64
        made = project.compile(text)
        assert [m.digest for m in made.plan.modules] == [m.digest for m in plain.plan.modules]
        tried.append((made.plan.policies, made.plan.notify, made.plan.backends))
    nothing = ((), None, ())
    assert tried and nothing not in tried
    assert len({repr(each) for each in tried}) >= len(tried) - 2  # a default may be said, too
