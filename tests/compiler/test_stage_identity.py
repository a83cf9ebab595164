"""What an edit puts out of date: the stage it was made in, and what comes after it. Nothing else."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from expc import digest
from expc.build import compiled
from expc.emit.python import python_file
from expc.emit.render import _python
from expc.runs import stream
from expc_runtime.state.plan import Layout, tasks

# `second` starts from `first`, `third` from `second`; `apart` stands alone.
SPEC = """\
expc: 1
name: it
about: Does an edit stay where it is made?
stages:
  first: &stage
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model: {trunk: {use: conv_net, channels: [4, 8]}}
    heads: {loop: {use: linear_head, out: 1}}
    loss: {loop: {use: bce, weight: 1.0}}
    metrics: {brier: {use: brier, of: loop}}
    optim: {use: adamw, lr: 1.0e-3, weight_decay: 0.01}
    until: {epochs: 4}
  second:
    <<: *stage
    init: {trunk: {from: first}}
  third:
    <<: *stage
    init: {heads.loop: {from: second}}
  apart:
    <<: *stage
sweep: {seeds: [0, 1], grid: {first.optim.weight_decay: [0.0, 0.01], apart.clip: [1.0, 2.0]}}
"""
BEFORE = {"first": set(), "second": {"first"}, "third": {"first", "second"}, "apart": set()}

EDITS: Mapping[tuple[str, ...], st.SearchStrategy[Any]] = {
    ("data", "batch"): st.integers(1, 512),
    ("data", "split"): st.fixed_dictionaries({"val": st.floats(0.05, 0.5), "seed": st.integers(0, 9)}),
    ("model", "trunk", "norm"): st.booleans(),
    ("model", "trunk", "dropout"): st.floats(0.0, 0.9),
    ("loss", "loop"): st.sampled_from(
        [{"use": "mse"}, {"use": "focal", "gamma": 1.0}, {"use": "bce", "weight": 0.5}]
    ),
    ("metrics",): st.sampled_from([{}, {"again": {"use": "brier", "of": "loop"}}]),
    ("optim",): st.sampled_from([{"use": "sgd", "lr": 0.1}, {"use": "adam", "lr": 1.0e-4}]),
    ("schedule",): st.sampled_from([{"use": "cosine"}, {"use": "linear", "floor": 0.1}]),
    ("clip",): st.floats(0.1, 10.0),
    ("accumulate",): st.integers(1, 4),
    ("precision",): st.sampled_from(["bf16-mixed", "16-mixed"]),
    ("until",): st.sampled_from([{"epochs": 5}, {"updates": 7}, {"minutes": 1.5}]),
    ("norm_statistics",): st.just("reestimated"),
    ("data", "limit"): st.fixed_dictionaries({"rows": st.integers(64, 512)}),
    ("optim", "trains"): st.sampled_from([["trunk"], ["trunk", "heads.loop"]]),
    ("frozen",): st.just({"trunk": {"file": "trunk.safetensors"}}),
    ("checkpoint",): st.sampled_from([{"keep": 3}, {"every": {"epochs": 2}}]),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A compiled spec, by stage: texts of its files, programs with values, keys of its instances by run."""

    files: Mapping[str, Mapping[str, str]]
    programs: Mapping[str, tuple[str, ...]]
    keys: Mapping[str, Mapping[str, str]]


def make(spec: Any) -> Made:
    """Compile without a formatter, which takes longer than all else."""
    with tempfile.TemporaryDirectory() as root, contextlib.chdir(root):
        Path("pyproject.toml").touch()
        Path("generated").mkdir()
        Path("it.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        plan = compiled(Path("it.yaml")).plan
        files: dict[str, dict[str, str]] = {name: {} for name in plan.stages}
        programs: dict[str, list[str]] = {name: [] for name in plan.stages}
        for module in plan.modules:
            piece = python_file(module, plan.experiment, plan.spec, "generated", frozenset())
            text = _python().render(m=piece)
            Path("generated", module.file).write_text(text)
            files[module.stage][module.file] = text
            programs[module.stage].append(digest.identity(module.program))
        keys: dict[str, dict[str, str]] = {name: {} for name in plan.stages}
        for task in tasks(stream(plan), Layout("it", "generated")):
            keys[task.stage][task.run] = task.key
        return Made(files, {name: tuple(each) for name, each in programs.items()}, keys)


@cache
def whole() -> tuple[Any, Made]:
    spec = json.loads(json.dumps(yaml.safe_load(SPEC)))  # no two stages share a map
    return spec, make(spec)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(BEFORE)), st.sampled_from(sorted(EDITS)), st.data())
def test_an_edit_reaches_what_comes_after_and_nothing_else(
    stage: str, place: tuple[str, ...], data: st.DataObject
) -> None:
    spec, before = whole()
    edited = copy.deepcopy(spec)
    at = edited["stages"][stage]
    for key in place[:-1]:
        at = at[key]
    value = data.draw(EDITS[place])
    swept = (stage, place) == ("apart", ("clip",))  # the sweep says it, whatever stands there
    assume(at.get(place[-1]) != value and not swept)
    at[place[-1]] = value
    if place == ("optim",):  # what is swept there may not be taken away
        edited["sweep"]["grid"].pop(f"{stage}.optim.weight_decay", None)
        spec = {**spec, "sweep": edited["sweep"]}
        before = make(spec)
    after = make(edited)
    for other, ancestors in BEFORE.items():
        same_code = after.files[other] == before.files[other]
        same_programs = after.programs[other] == before.programs[other]
        if other != stage:  # code and values of a stage are its own
            assert same_code and same_programs
        kept = set(after.keys[other].values()) & set(before.keys[other].values())
        if other == stage or stage in ancestors:
            moved = after.programs[stage] != before.programs[stage]
            assert not kept if moved else after.keys[other] == before.keys[other]
        else:
            assert after.keys[other] == before.keys[other]


def test_a_swept_value_of_an_ancestor_tells_its_descendants_apart() -> None:
    _, made = whole()
    by_run = made.keys["third"]
    assert (
        len(set(by_run.values())) == 4
    )  # two decays of `first`, two seeds; the clip of `apart` is not theirs
    assert len(set(made.keys["apart"].values())) == 4
    assert len(by_run) == 8
