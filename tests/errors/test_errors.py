"""Broken specs: each gives located, helpful findings, whatever is broken, and never a traceback.

A file's first line says what is expected of it: `# expect: CODE line:col, ...`.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from expc.findings import Finding
from expc.lint.check import check
from expc.lint.engine import (
    exit_code,
    fix_file,
    lint_files,
    render_github,
    render_json,
    render_text,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BROKEN = sorted(HERE.glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    shutil.copy(HERE / "own_code.py", tmp_path)
    return tmp_path


def linted(spec: Path) -> tuple[Finding, ...]:
    """The findings of a spec; they can be shown in every way, and lint would exit with 1."""
    (report,) = lint_files([spec], cache=False)
    assert exit_code([report]) == 1
    for shown in (render_text([report]), render_json([report]), render_github([report])):
        assert shown and "Traceback" not in shown and "pydantic" not in shown
    for finding in report.findings:
        assert finding.help or finding.why, finding.message
    return report.findings


SAID = {
    "shogi_mistyped": (
        "there is no data `shogi.reachable_square`",
        "did you mean `shogi.reachable_squares`?",
    ),
    "shogi_files_neither": ("`file` takes a file, or a list of files", "from the project root"),
    "shogi_head_too_narrow": ("column `reachable` holds 81 numbers a row", "set `out: 81`"),
    "world_weight_without_rate": ("nothing brings a loss `rate`", "set `rate` of `vta`"),
    "world_rate_by_name": ("nothing brings a loss `rate`", "set `rate` of `vta`"),
    "world_weight_of_nothing": ("nothing brings a loss `msk`", "did you mean `mask`?"),
    "world_one_optimizer": ("one for each of `world`, `actor`, `critic`", "actor: {use: adam}"),
    "world_missing_optimizer": ("`optim` needs `actor`", "an optimizer: `adam`"),
    "world_mistyped_part": ("`dynamcs` is not a key of `model`", "did you mean `dynamics`?"),
    "world_loss_left_out": ("`loss` needs `cont`", "such as `{use: bce}`"),
    "world_until_epochs": ("`epochs` is not a key of `until`", "`until` takes `env_steps`"),
    "world_ends_in_prefill": ("all of them random", "set a smaller `replay.prefill`"),
    "world_capacity_below_prefill": ("`prefill` alone is 1200", "keep more frames"),
    "world_monitor_of_rows": ("measured on val", "this stage measures `eval/length`"),
    "world_saves_by_env_steps": ("`env_steps` is not a key", "`every` takes `updates`, `minutes`"),
    "world_target_not_a_list": ("`targets` takes a list", "write `['123']`"),
    "world_target_out_of_reach": ("the pads of `three` are 1 to 3", ""),
    "split_by_nothing": ("`digits` has no column `writer` to split by", "leave out `by`"),
    "split_by_mistyped": ("has no column `gmae` to split by", "did you mean `game`?"),
    "limit_of_two": ("`limit` is of groups or of rows", "write `limit: {rows: 1000}`"),
    "seeds_as_a_number": ("`seeds` takes a list", "such as `[0, 1, 2]`"),
    "axis_of_the_name": ("`name` can't be swept", "a path starts with a stage (`read`)"),
    "limit_without_groups": ("`split` does not say which rows make one", "`split: {by: ...}`"),
    "stream_without_window": ("`stream` needs `window`", "rows that are held"),
    "supervised_env_steps": ("`env_steps` is not a key", "only a stage with an environment"),
    "evaluate_of_unknown": ("there is no stage `trian`", "did you mean `train`?"),
    "evaluate_metric_mistyped": ("does not measure", "did you mean `boundary_ratio_eval`?"),
    "evaluate_metric_begun": ("does not measure", "did you mean `pad_enter.lift_over_event_rate`?"),
    "evaluate_two_bounds": ("takes one bound, not 2", "such as `above: 2.0`"),
    "evaluate_bound_misspelt": ("`under` is not a key of an entry of `all`", "`below`"),
    "run_failure_misspelt": ("`divergd` is not a key of `retry`", "did you mean `diverged`?"),
    "run_failure_in_vain": ("`missing_input` is not tried again", "leave it out"),
    "run_setting_misspelt": ("stage `read` has no `optim.rate`", "did you mean `optim.lr`?"),
    "run_setting_is_code": ("`optim.use` can't be changed by a retry", "leave it out"),
    "run_setting_unwritten": ("`optim.eps` is not set", "`optim.eps: 1.0e-08`, in the stage"),
    "run_setting_is_a_map": ("`optim` is no setting, but a map", "name one of them: `optim.lr`"),
    "run_setting_taken_away": (
        "`clip` can't become nothing in a retry",
        "of the kind that it has, `5.0`",
    ),
    "run_setting_nowhere": ("`clip` is not set in stage `read`", "set `clip` in the stage, too"),
    "run_halve": ("`optim.lr` becomes a number, or `half`", "at each try anew"),
    "run_half_of_one": ("`accumulate` is 1 and can't be halved", "leave it out"),
    "run_gpus": ("`gpus` is not a key of `slurm`", "GPUs of a run are `devices`"),
    "run_retry_a_number": ("`killed` takes a map of keys", "`times`, `delay`, and settings"),
    "run_value_unfit": ("`precision` is one of 32, `bf16-mixed` or `16-mixed`", ""),
    "run_half_of_a_word": ("`precision` can't be halved", "write what it is in the next try"),
    "run_microbatch_of_a_world": ("no stage has a `microbatch`", "smaller `replay.batch`"),
    "run_microbatch_of_a_measurement": ("stage `boundaries` has no `microbatch`", "`episodes`"),
    "microbatch_of_a_world": ("`microbatch` is not a key", "a stage that trains on rows"),
    "run_webhook_address": ("a webhook's address", "`webhook: EXPC_WEBHOOK`"),
    "run_webhook_of_discord": ("a webhook's address", "`webhook: EXPC_WEBHOOK`"),
    "run_webhook_in_a_comment": ("a webhook's address", "take it out and revoke it"),
    "run_webhook_token": ("names an environment variable", "`webhook: EXPC_WEBHOOK`"),
    "run_form_misspelt": ("`form` is one of", "did you mean `discord`?"),
    "run_told_when_misspelt": ("an entry of `on` is one of", "did you mean `failed`?"),
    "run_timeout_two_units": ("`timeout` takes one unit, not 2", "such as `{hours: 4}`"),
    "run_timeout_without_unit": ("`timeout` takes a map of keys", "such as `{hours: 4}`"),
    "run_swept": ("`run.timeout.hours` can't be swept", "set it once, under `run`"),
    "run_of_a_stage_swept": ("`read.run.timeout.hours` can't be swept", "set it once"),
    "run_notify_in_a_stage": ("`notify` is not a key of `run`", "under `run` at the top"),
    "run_slurm_misspelt": ("`partiton` is not a key", "did you mean `partition`?"),
    "run_slurm_injected": ("`partition` must be a plain name", ""),
    "run_norm_of_devices": ("normalises the rows of each device", "a net without batch norm"),
    "evaluate_event_mistyped": ("an entry of `events`", "did you mean `pad_enter`?"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said(name: str, project: Path) -> None:
    """The message says what is wrong, and the help what to do."""
    message, help = SAID[name]
    (found,) = linted(Path(shutil.copy(HERE / f"{name}.yaml", project)))
    assert message in found.message
    assert help in found.help


def test_there_are_enough_of_them() -> None:
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("spec", BROKEN, ids=lambda spec: spec.stem)
def test_broken_spec(spec: Path, project: Path) -> None:
    expected = spec.read_text().splitlines()[0].removeprefix("# expect: ")
    copy = Path(shutil.copy(spec, project))
    found = linted(copy)
    assert ", ".join(f"{f.code} {f.span.line}:{f.span.col}" for f in found) == expected
    assert all(finding.span.file == spec.name for finding in found)


@pytest.mark.parametrize("spec", BROKEN, ids=lambda spec: spec.stem)
def test_fixing_a_broken_spec_breaks_nothing_more(spec: Path, project: Path) -> None:
    copy = Path(shutil.copy(spec, project))
    before = {finding.code for finding in check(copy, project).findings}
    fix_file(copy)
    after = {finding.code for finding in check(copy, project).findings}
    assert after <= before


def bomb() -> str:
    """Nine levels of nine aliases each: a billion values in half a kilobyte."""
    names = "abcdefghi"
    lines = ["expc: 1", "name: bomb", "about: boom", 'a: &a ["x","x","x","x","x","x","x","x","x"]']
    for before, name in itertools.pairwise(names):
        lines.append(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]")
    return "\n".join([*lines, "stages: *i", ""])


def flat(text: str) -> bytes:
    return text.encode()


MADE: dict[str, tuple[bytes, str]] = {
    "binary": (bytes(range(256)) * 8, "XC007"),
    "latin_1": ("name: caf\xe9\n".encode("latin-1"), "XC007"),
    "utf_16": ("expc: 1\n".encode("utf-16"), "XC007"),
    "one_megabyte": (b"about: " + b"x" * 2**20 + b"\n", "XC007"),
    "bomb": (flat(bomb()), "XC006"),
    "nul_bytes": (b"expc: 1\nname: \0\n", "XC006"),
    "deep_flow": (b"a: " + b"[" * 20_000, "XC006"),
    "deep_blocks": (
        flat("".join(" " * depth + "a:\n" for depth in range(600))),
        "XC006",
    ),
    "circle_of_aliases": (b"a: &a [*a]\n", "XC006"),
    "carriage_returns": (b"expc: 1\r\nname: 7\r\nabout: x\r\nstages: {}\r\n", "XC103"),
    "huge_number": (b"expc: 1" + b"0" * 5000 + b"\n", "XC103"),
}


@pytest.mark.parametrize("name", MADE)
def test_made(name: str, project: Path) -> None:
    raw, code = MADE[name]
    spec = project / f"{name}.yaml"
    spec.write_bytes(raw)
    assert code in {finding.code for finding in linted(spec)}


def test_folder(project: Path) -> None:
    (project / "specs").mkdir()
    assert [finding.code for finding in linted(project / "specs")] == ["XC007"]


def test_missing_file(project: Path) -> None:
    assert [finding.code for finding in linted(project / "nowhere.yaml")] == ["XC007"]


def test_dangling_link(project: Path) -> None:
    (project / "link.yaml").symlink_to(project / "nowhere.yaml")
    assert [finding.code for finding in linted(project / "link.yaml")] == ["XC007"]


# ------------------------------------------------------------------------------------------------ mutations

DIGITS = yaml.safe_load((ROOT / "specs" / "digits.yaml").read_text())
SWEEP = {
    "conditions": {
        "a": {"read.clip": 2.0},
        "b": {"read.heads.digit": {"use": "linear_head", "out": 10}},
    },
    "zip": {"read.optim.lr": [0.1, 0.2], "read.data.batch": [3, 4]},
    "grid": {"read.model.backbone.channels": [[1], [2, 3]], "read.until.budget.epochs": [1, 2]},
    "exclude": [{"condition": "a", "read.data.batch": 3}],
}
SPECS = [
    DIGITS,
    {**DIGITS, "sweep": SWEEP},
    yaml.safe_load((ROOT / "specs" / "digits_as_feared.yaml").read_text()),
    yaml.safe_load((HERE / "stages_in_a_circle.yaml").read_text()),
    yaml.safe_load((ROOT / "specs" / "pinpad_vta.yaml").read_text()),
]

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.floats(allow_nan=True, width=32),
    st.sampled_from(
        [
            "digit", "loop", "bce", "mse", "accuracy", "val/accuracy", "prob", "logits", "skip", "read",
            "first", "", "no such thing", "16-mixed", "own_code:squared_error", "a.b.c", "test", "é\n",
        ]
    ),
    st.lists(st.sampled_from([0, 1.0, "bce", None, {}]), max_size=3),
    st.dictionaries(st.sampled_from(["use", "epochs", "of", "x"]), st.sampled_from(["bce", 1, None])),
)  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key and entry."""
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A spec with up to four places deleted, renamed, replaced, or copied from elsewhere."""
    spec: dict[str, Any] = yaml.safe_load(yaml.safe_dump(draw(st.sampled_from(SPECS))))
    for _ in range(draw(st.integers(1, 4))):
        every = list(places(spec))
        if not every:
            break
        *above, key = draw(st.sampled_from(every))
        owner: Any = spec
        for step in above:
            owner = owner[step]
        match draw(st.sampled_from(["delete", "rename", "replace", "copy"])):
            case "delete":
                del owner[key]
            case "rename" if isinstance(owner, dict):
                new = draw(st.sampled_from(["use", "x", "read", "until", f"{key}s", 7, None]))
                owner[new] = owner.pop(key)
            case "copy":
                node: Any = spec
                for step in draw(st.sampled_from(every)):
                    node = node[step] if _has(node, step) else {}
                owner[key] = yaml.safe_load(yaml.safe_dump(node))
            case _:
                owner[key] = draw(VALUES)
    return spec


def _has(node: Any, key: Any) -> bool:
    return (isinstance(node, dict) and key in node) or (
        isinstance(node, list) and isinstance(key, int) and key < len(node)
    )


@given(spec=mutated())
@settings(max_examples=300, deadline=None)
def test_no_mutation_is_a_crash(
    spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "mutated"
    root.mkdir(exist_ok=True)
    (root / "pyproject.toml").write_text("")
    shutil.copy(HERE / "own_code.py", root)
    file = root / "spec.yaml"
    file.write_text(yaml.safe_dump(spec, allow_unicode=True, sort_keys=False))
    (report,) = lint_files([file], cache=False)
    lines = file.read_text().splitlines()
    for finding in report.findings:
        assert 1 <= finding.span.line <= max(1, len(lines))
    render_text([report])


@given(cut=st.integers(0, 900), junk=st.text(max_size=8))
@settings(max_examples=150, deadline=None)
def test_no_text_is_a_crash(cut: int, junk: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "torn"
    root.mkdir(exist_ok=True)
    (root / "pyproject.toml").write_text("")
    file = root / "spec.yaml"
    text = (ROOT / "specs" / "digits.yaml").read_text()
    file.write_text(text[:cut] + junk + text[cut + len(junk) :], encoding="utf-8", errors="replace")
    render_text(lint_files([file], cache=False))
