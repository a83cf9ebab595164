"""What stands in a report, read back from its HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from expc.cli import main
from expc.report import pictures
from expc.report.text import Cleaner, tail
from expc_runtime.state import Result, claim
from expc_runtime.state.records import STATES

Report = Callable[..., str]
VOID = frozenset({"meta", "link", "img", "wbr", "br", "path", "circle"})


class Page(HTMLParser):
    """A page as its elements: (tag, attributes, text within), in the order in which they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, [self.elements[i][0] for i in self._open]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        opened = self.elements[self._open.pop()][0]
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, " ".join("".join(text).split()))
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]

    def texts(self, tag: str, **wanted: str) -> list[str]:
        return [text for _, text in self.all(tag, **wanted)]


# ------------------------------------------------------------------------------------------------------ figures


def test_a_condition_has_its_mean_deviation_floor_and_every_seed(project, report: Report) -> None:
    for seed, value in enumerate((0.90, 0.92, 0.94)):
        project.done(project.task("0.001", seed), value)
    page = Page(report())
    cell = next((a, text) for a, text in page.all("td") if text.startswith("0.920"))
    assert cell[1] == "0.920 ±0.020floor 0.117"
    assert cell[0]["title"] == "seed 0: 0.9\nseed 1: 0.92\nseed 2: 0.94"
    assert "val/accuracy" in " ".join(page.texts("th"))


def test_best_is_marked_beyond_the_spread_and_nowhere_else(project, report: Report) -> None:
    for seed in (0, 1, 2):
        project.done(project.task("0.001", seed), 0.80 + 0.01 * seed)
        project.done(project.task("0.003", seed), 0.95 + 0.01 * seed)
    page = Page(report())
    marked = [text for a, text in page.all("td") if "best" in str(a.get("class", "")).split()]
    assert [text.split()[0] for text in marked] == ["0.960", "0.120"]  # accuracy up, loss down
    assert "√(s₁² + s₂²)" in " ".join(page.texts("p"))


def test_a_figure_made_with_a_changed_setting_is_marked(project, report: Report) -> None:
    project.done(project.task("0.001", 0), 0.9)
    planned = json.dumps({"precision": "16-mixed"})
    config = {"precision": "32", "planned": planned}
    project.done(project.task("0.001", 1), 0.9, changed={"precision": "32"}, config=config)
    page = Page(report())
    assert any(text.startswith("0.9†") for text in page.texts("td"))
    assert "† lr=0.001, seed 1: a retry changed precision 16-mixed → 32" in page.texts("p")
    assert (
        "1 stage ran with settings that a retry changed; figures made so are marked †."
        in page.texts("p")
    )


def test_the_head_says_what_was_asked_when_and_what_computed_it(project, report: Report) -> None:
    project.done(project.task("0.001", 0))
    text = report()
    page = Page(text)
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert page.texts("h1") == ["small"]
    assert "Does a larger rate read digits better, and does <b>it</b> last?" in page.texts("p")
    assert facts["Commit"] == "0123456789ab1 results with local changes"
    assert facts["Device"] == "NVIDIA H100"
    assert facts["Peak memory"] == "2 GBof a device"
    assert facts["Runs"] == "1224 stages"
    assert (
        facts["lr"] == "0.001, 0.003, 0.01, 0.03 4 values" and facts["seed"] == "0, 1, 2 3 values"
    )
    assert "specs/small.yaml has changed since these results" in text


def test_device_hours_count_every_device_and_no_stage_twice(project, report: Report) -> None:
    project.done(project.task("0.001", 0))
    project.note(project.task("0.001", 0), seconds=3600.0, devices="0,1")
    project.note(
        project.task("0.001", 1), state="done", same_as="lr=0.001,seed=0/read", seconds=3600.0
    )
    facts = Page(report()).texts("dd")
    assert any("2 device-hours" in fact for fact in facts)


def test_an_answer_stands_at_the_top(project, report: Report) -> None:
    for seed, met in enumerate((True, True, False)):
        bound = {"metric": "val/accuracy", "wanted": "> 0.9", "met": met, "message": "so"}
        accept = {"met": met, "seeds": 2, "message": "so", "bounds": [bound]}
        gate = {
            "met": met,
            "otherwise": "warn",
            "message": "" if met else "gate not met\n  achieved: 0.4",
        }
        project.done(project.task("0.001", seed), extra={"accept": accept}, gate=gate)
    verdicts = [t for a, t in Page(report()).all("li") if a.get("class") in ("yes", "no", "open")]
    assert verdicts == [
        "✓read: accepted in 1 of 1 judged conditions: lr=0.001; without an answer: lr=0.003, lr=0.01, lr=0.03val/accuracy > 0.9, in 2 seeds or more",
        "✕read: gate met by 2 of 3 runs; 9 not there yetgate not met · achieved: 0.4",
    ]


# ------------------------------------------------------------------------------------------------------- states


def test_every_state_is_told_with_its_reason(project, report: Report) -> None:
    told = {
        "failed": {"failure": "killed", "reason": "ended by SIGKILL"},
        "blocked": {"by": "read", "reason": "read is failed(killed)"},
        "skipped": {"reason": "not asked for"},
        "undefined": {"reason": "no boundary ever fired"},
        "interrupted": {"reason": "stopped at step 7"},
        "running": {},
        "smoke": {},
        "pending": {},
        "done": {},
    }
    assert set(told) == set(STATES)
    for task, (state, more) in zip(project.every, told.items(), strict=False):
        project.note(task, state=state, host="elsewhere", **more)
    text = report()
    for more in told.values():
        assert str(more.get("reason", "")) in text
    assert "failed(killed)" in text and "blocked(read)" in Page(text).texts("span")


def test_a_failure_says_why_where_what_was_tried_and_how_to_go_on(project, report: Report) -> None:
    log = "\n".join(f"line {i}" for i in range(30)) + "\nFAILED: it \x1b[31mdiverged\x1b[0m\n"
    task = project.task("0.01", 2)
    project.fail(
        task,
        "loss is NaN\n  in trunk.1",
        log=log,
        changed={"precision": "32"},
        tries={"diverged": 1},
    )
    project.note(
        project.task("0.01", 2, "again"),
        state="blocked",
        by="read",
        reason="read is failed(diverged)",
    )
    page = Page(report())
    (failed, blocked) = page.texts("article", **{"class": "failure"})
    assert failed.startswith("failed(diverged) lr=0.01,seed=2/read loss is NaN in trunk.1")
    assert "from specs/small.yaml:19:12 (read.optim)" in failed
    assert (
        "1 attempt, 1 spent on diverged, reached step 40 of 100" in failed and "exit 65" in failed
    )
    assert "Last tried with precision 32" in failed
    assert "line 11 " in failed and "line 10 " not in failed  # the last 20
    assert "FAILED: it diverged" in failed
    assert "expc run generated/small --only lr=0.01,seed=2" in failed
    assert (
        "python generated/small/read.py --lr 0.01 --seed 2 --out runs/small/lr=0.01,seed=2/read"
        in failed
    )
    assert blocked == "blocked(read) lr=0.01,seed=2/again read is failed(diverged)"


def test_equal_failures_are_told_once(project, report: Report) -> None:
    for seed in (0, 1, 2):
        project.fail(project.task("0.01", seed), f"loss is NaN\n  sample {seed}")
    (failed,) = Page(report()).texts("article", **{"class": "failure"})
    assert "and 2 more for the same reason" in failed and "lr=0.01,seed=2/read" in failed


# ------------------------------------------------------------------------------------------- hostile and broken


def test_names_and_logs_are_text_and_nothing_else(
    project, report: Report, hostile: str, png
) -> None:
    lines = [
        {"step": s, "split": "val", f"val/{hostile}": float(s), hostile: 1.0} for s in (1, 2, 3)
    ]
    project.done(
        project.task("0.001", 0),
        metrics={f"val/{hostile}": 0.5},
        floors={f"val/{hostile}": 0.1},
        warnings=(hostile,),
        lines=lines,
        files={"a'><script>.png": png()},
        extra={"provenance": {"git": {"commit": hostile}}, "files": ["a'><script>.png"]},
    )
    project.fail(project.task("0.001", 1), hostile, log=f"{hostile}\n</pre></article>{hostile}\n")
    spec = project.root / "specs" / "small.yaml"
    spec.write_text(
        spec.read_text().replace("and does", f"{hostile.replace(chr(34), '')} and does")
    )
    page = Page(report())
    assert len(page.all("script")) == 1 and page.all("script")[0][1].startswith('"use strict"')
    assert not [a for _, a, _ in page.elements for key in a if key.startswith("on")]
    assert all(str(a["src"]).startswith("data:image/") for a, _ in page.all("img"))
    assert any(hostile in text for text in page.texts("pre"))
    assert f"val/{hostile}" in page.texts("h4")
    assert any(hostile in text for text in page.texts("p"))


def test_a_condition_may_have_any_name(project, hostile: str) -> None:
    from expc_runtime.state import run_name

    folder = project.root / "runs" / "odd" / run_name(hostile, "0") / "read"
    with claim(folder, "k") as stage:
        stage.finish(Result(metrics={"f1": 0.5}))
    assert main(["report", "odd"]) == 0
    page = Page((project.root / "runs" / "odd" / "report.html").read_text())
    assert len(page.all("script")) == 1
    assert any("<script>pwned=1<%2Fscript>" in text for text in page.texts("th"))


def test_only_the_one_script_may_run_and_nothing_is_fetched(project, report: Report) -> None:
    project.done(project.task("0.001", 0))
    text = report()
    page = Page(text)
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv")]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None and policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text) and "url(" not in text


@pytest.mark.parametrize("name", ["status.json", "result.json", "metrics.jsonl", "attempt-1.log"])
@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "a folder"])
def test_a_stage_may_lack_any_file(project, report: Report, name: str, damage: str) -> None:
    for task in (project.task("0.001", 0), project.task("0.003", 0)):
        project.done(task, 0.9)
    project.fail(project.task("0.01", 0), "loss is NaN", log="so it is\n")
    for task in (project.task("0.001", 0), project.task("0.01", 0)):
        path = project.folder(task) / name
        text = path.read_bytes()[: len(path.read_bytes()) // 2] if path.exists() else b"{"
        path.unlink(missing_ok=True)
        if damage == "a folder":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes(b"" if damage == "empty" else text)
    page = Page(report())
    assert any(text.startswith("0.9") for text in page.texts("td"))  # the whole one is there
    assert len(page.all("h2")) >= 3


def test_runs_without_a_generated_folder_are_told_from_the_disk_alone(
    project, report: Report
) -> None:
    project.done(project.task("0.001", 0), 0.93)
    project.fail(project.task("0.01", 0), "loss is NaN")
    (project.root / "generated" / "small" / "sweep.sh").unlink()
    text = report()
    assert "runs that never began are not in it" in text
    assert "0.93" in text and "loss is NaN" in text


def test_from_the_disk_stages_come_as_they_began_and_numbers_by_value(project) -> None:
    for name in ("lr=10,seed=0/train", "lr=9,seed=0/train", "lr=9,seed=0/judge"):
        with claim(project.root / "runs" / "loose" / name, "k") as stage:
            stage.finish(Result())
    assert main(["report", "loose"]) == 0
    page = Page((project.root / "runs" / "loose" / "report.html").read_text())
    assert page.texts("h2")[:2] == ["train 2 done", "judge 1 done"]
    assert [text for text in page.texts("th") if text.startswith("lr=")][:2] == ["lr=9", "lr=10"]


def test_what_was_set_aside_is_no_run(project, report: Report) -> None:
    task = project.task("0.001", 0)
    project.done(task, 0.93)
    with claim(project.folder(task), "another") as stage:
        stage.finish(Result(metrics={"val/accuracy": 0.11}))
    (project.root / "generated" / "small" / "sweep.sh").unlink()
    assert "0.93" not in Page(report()).texts("span", **{"class": "value"})


# ---------------------------------------------------------------------------------------------- logs, pictures


def test_secrets_and_this_machine_stay_at_home(tmp_path: Path) -> None:
    environment = {
        "HOME": "/home/ada",
        "EXPC_WEBHOOK": "https://chat/very/secret",
        "PATH": "/usr/bin:/bin",
    }
    clean = Cleaner(tmp_path, environment)
    assert clean("post to https://chat/very/secret failed") == "post to [$EXPC_WEBHOOK] failed"
    assert clean(f"File {tmp_path}/generated/a.py") == "File generated/a.py"
    assert clean("/home/ada/data and /usr/bin:/bin") == "~/data and /usr/bin:/bin"
    assert clean("$ /opt/env/bin/python3.11 a.py") == "$ python3.11 a.py"
    address = "https://discord.com/api/" + "webhooks/1/abc"
    assert "abc" not in clean(f"{address} https://ada:pw@host/x") and "pw" not in clean(
        "https://ada:pw@h"
    )


def test_no_secret_is_left_in_any_corner(
    project, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a reason and its hover text, a verdict, a warning, a log, or what computed a result."""
    secret = "s3cr3t-value-of-a-token"
    monkeypatch.setenv("HUB_TOKEN", secret)
    told = f"denied {secret} at {project.root}/data"
    project.done(
        project.task("0.003", 1),
        warnings=(told,),
        gate={"met": False, "message": told},
        extra={
            "accept": {"met": False, "message": told, "bounds": [], "seeds": 1},
            "reasons": {"f1": told},
            "provenance": {"device": {"name": told}},
        },
    )
    project.fail(project.task("0.001", 1), told, log=f"{told}\n")
    project.note(project.task("0.01", 1), state="skipped", reason=told)
    text = report()
    assert secret not in text and str(project.root) not in text
    assert text.count("denied [$HUB_TOKEN] at data") >= 6


def test_the_end_of_a_log_is_lines_without_colour(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\n 10%\r 50%\r100%\r\n\x1b[1;31mred\x1b[0m \xff\n\n" + b"x" * 1000 + b"\n")
    assert tail(log) == ["one", "100%", "red \ufffd", "x" * 400 + " ..."]


def test_pictures_are_there_with_condition_and_seed(project, report: Report, png) -> None:
    project.done(project.task("0.003", 1), files={"grid.png": png(), "notes.txt": b"no picture"})
    page = Page(report())
    ((image, _),) = page.all("img")
    assert image["alt"] == "grid.png of lr=0.003, seed 1" and image["loading"] == "lazy"
    assert base64.b64decode(str(image["src"]).partition(",")[2]).startswith(b"\x89PNG")


def test_pictures_that_do_not_fit_are_left_out_and_counted(
    project, report: Report, png, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "BUDGET", 40_000)
    for seed in (0, 1):
        for rate in ("0.001", "0.003"):
            project.done(project.task(rate, seed), files={"grid.png": png(80, 80, noise=True)})
    page = Page(report())
    shown = [a["alt"] for a, _ in page.all("img")]
    assert shown == [
        "grid.png of lr=0.001, seed 0",
        "grid.png of lr=0.003, seed 0",
    ]  # first seeds first
    assert "2 more are left out: the pictures would take more than 0.0 MB" in page.texts("p")


def test_a_picture_that_is_none_is_said(project, report: Report) -> None:
    project.done(project.task("0.003", 1), files={"grid.png": b"not a picture"})
    told = Page(report()).texts("p")
    assert any(text.startswith("lr=0.003,seed=1/read/grid.png can't be read") for text in told)


def test_a_wide_picture_is_scaled(project, report: Report, png) -> None:
    pytest.importorskip("PIL")
    project.done(project.task("0.003", 1), files={"grid.png": png(3200, 20)})
    ((image, _),) = Page(report()).all("img")
    assert (image["width"], image["height"]) == ("1600", "10")


# ---------------------------------------------------------------------------------------------------- command


def test_it_lies_beside_the_runs_unless_told_otherwise(project, capsys) -> None:
    project.done(project.task("0.001", 0))
    assert main(["report"]) == 0
    assert capsys.readouterr().out.startswith("runs/small/report.html: 23 pending, 1 done, ")
    assert (project.runs / "report.html").read_text().startswith("<!doctype html>")


def test_check_names_what_has_neither_result_nor_reason(project, capsys) -> None:
    for task in project.every[1:]:
        project.note(task, state="skipped", reason="not today")
    capsys.readouterr()
    assert main(["report", "small", "--check"]) == 1
    said = capsys.readouterr()
    assert said.out == "lr=0.001,seed=0/read: not begun, and no sweep runs\n"
    assert said.err == "small: 1 stage has neither a result nor a reason\n"
    assert not (project.runs / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": "failed", "failure": "crash", "reason": "no such column"}, 0),
        ({"state": "failed", "failure": "crash"}, 1),
        ({"state": "pending"}, 1),
        ({"state": "pending", "job": "slurm 12_3"}, 0),
        ({"state": "running", "host": "elsewhere"}, 0),
        ({"state": "interrupted", "reason": "stopped at step 3"}, 0),
    ],
)
def test_check_wants_a_reason(project, changes: dict[str, str], code: int) -> None:
    for task in project.every:
        project.note(task, state="skipped", reason="not today")
    project.note(project.every[0], **{"reason": "", **changes})
    assert main(["report", "small", "--check"]) == code


def test_what_waits_is_not_missing_while_a_sweep_runs(project) -> None:
    import fcntl

    project.runs.mkdir(parents=True)
    assert main(["report", "small", "--check"]) == 1
    with (project.runs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["report", "small", "--check"]) == 0
    assert main(["report", "small", "--check"]) == 1


def test_an_experiment_that_is_not_there_is_a_question_of_spelling(project, capsys) -> None:
    project.done(project.task("0.001", 0))
    capsys.readouterr()
    assert main(["report", "smal"]) == 2
    assert "Did you mean `small`?" in capsys.readouterr().err


def test_many_runs_stay_a_file_that_can_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'many'\n")
    monkeypatch.chdir(tmp_path)
    names = [f"train/loss_{i}" for i in range(12)]
    text = "".join(
        json.dumps(
            {"step": s, "split": "train", **{n: 1.0 / (1 + s) + i for i, n in enumerate(names)}}
        )
        + "\n"
        for s in range(200)
    )
    for rate in range(15):
        for seed in range(4):
            folder = tmp_path / "runs" / "many" / f"lr={rate},seed={seed}" / "read"
            with claim(folder, "k") as stage:
                (folder / "metrics.jsonl").write_text(text)
                stage.finish(
                    Result(metrics={f"val/m{i}": 0.1 * seed + i for i in range(12)}, step=199)
                )
    assert main(["report", "many"]) == 0
    assert (tmp_path / "runs" / "many" / "report.html").stat().st_size < 3_000_000
