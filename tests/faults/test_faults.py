"""Every other way for a run to end: codes, hangs, disks full or read-only, a set clock, torn files."""

import shutil
import signal
import subprocess

import pytest

SLOW = pytest.mark.slow

# What the process of a stage does, the class it is put into, and what the table says of it.
ENDS = [
    ("exit:1", "failed(crash)", "exit 1"),
    ("exit:2", "failed(bad_value)", "exit 2"),
    ("fail:3,gate", "failed(gate)", "told to end as gate"),
    ("fail:65,diverged", "failed(diverged)", "told to end as diverged"),
    ("exit:65", "failed(diverged)", "exit 65"),
    ("exit:66", "failed(missing_input)", "exit 66"),
    ("exit:67", "failed(missing_output)", "exit 67"),
    ("exit:71", "failed(oom)", "exit 71"),
    ("fail:72,leak", "failed(leak)", "told to end as leak"),
    ("raise:", "failed(crash)", "ValueError: no such column: digit"),
    ("silent:", "failed(unproved)", "exit 0, but it wrote no result.json"),
    (f"signal:{signal.SIGKILL}", "failed(killed)", "ended by SIGKILL"),
    (f"signal:{signal.SIGSEGV}", "failed(crash)", "ended by SIGSEGV"),
    (f"signal:{signal.SIGABRT}", "failed(crash)", "ended by SIGABRT"),
]
QUICK = ("exit:71", "raise:", "silent:")


@pytest.mark.parametrize(
    ("do", "label", "reason"),
    [pytest.param(*end, marks=[SLOW] * (end[0] not in QUICK), id=end[0]) for end in ENDS],
)
def test_each_way_to_end_is_in_the_table_with_its_reason(do, label, reason, sweep) -> None:
    sweep.plan(runs=2, flags=f"--do {do}", steps=4)
    code, out = sweep.run()
    assert code == 1, out
    assert sweep.status("n=0,seed=0/train").label == label
    assert reason in sweep.status("n=0,seed=0/train").reason
    assert sweep.status("n=0,seed=0/judge").label == "blocked(train)"
    assert sweep.status("n=1,seed=1/judge").label == "done"
    table = sweep.table()
    assert label in table and reason in table, table
    if label != "failed(gate)":  # which stays as it is: to run it again would change nothing
        sweep.finish()


@pytest.mark.parametrize("how", ["deaf", pytest.param("patient", marks=SLOW)])
def test_what_hangs_is_ended_in_time_and_goes_on_if_that_was_declared(how: str, sweep) -> None:
    policy = ("limit train --timeout 2", "retry train timed_out --times 2")
    sweep.plan(runs=2, flags=f"--do hang:{how}", steps=4, policy=policy)
    code, out = sweep.run(EXPC_GRACE="1")
    assert code == 0, out
    assert sweep.status("n=0,seed=0/train").attempt >= 2
    assert sweep.status("n=0,seed=0/train").tries["timed_out"] >= 1
    sweep.finish()


@pytest.mark.parametrize(
    "jump", [-86400.0, pytest.param(86400.0, marks=SLOW), pytest.param(-1e9, marks=SLOW)]
)
def test_a_clock_that_is_set_ends_nothing_and_hangs_nothing(jump: float, sweep) -> None:
    policy = ("limit train --timeout 60",)
    sweep.plan(runs=3, policy=policy)
    process = sweep.start()
    assert sweep.progress(process, 4)
    (sweep.root / "clock").write_text(str(jump))
    assert sweep.settled(process) != ""
    assert process.returncode == 0
    seconds = [sweep.status(f"{run}/train").seconds for run in sweep.runs]
    assert all(0 <= each < 60 for each in seconds)
    sweep.finish()


TEAR = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: bytes(b ^ 0x5A for b in data),
    "null": lambda data: b"null\n",
}
FILES = [
    "*/train/status.json",
    "*/train/result.json",
    "*/train/checkpoints/last-*",
    "events.jsonl",
    ".lock",
]


@pytest.mark.parametrize("how", [pytest.param(n, marks=[SLOW] * (n != "cut")) for n in TEAR])
@pytest.mark.parametrize("pattern", FILES)
def test_a_torn_file_is_no_proof_and_no_end(pattern: str, how: str, sweep) -> None:
    """As after a power cut on a disk that lied; of the checkpoints it is the newest."""
    sweep.plan(runs=2, steps=6)
    if pattern.endswith("result.json"):
        sweep.run()
    else:
        process = sweep.start()
        sweep.progress(process, 9)
        process.send_signal(signal.SIGTERM)
        sweep.settled(process)
    paths = sorted((sweep.root / "runs/fake").glob(pattern))
    sweep._newest.clear()  # what was torn is lost, down to the generation before
    assert paths
    for path in paths[-1:]:
        path.write_bytes(TEAR[how](path.read_bytes()))
    if pattern in ("events.jsonl", "*/train/result.json"):
        assert sweep.run()[0] == 0  # what is no longer proved is done again
    else:
        sweep.finish()


def in_namespace(*script: str) -> tuple[str, ...]:
    """Words that run what follows with mounts of its own; skips where that is not allowed."""
    words = ("unshare", "-Urm", "bash", "-c", " && ".join((*script, 'exec "$@"')), "bash")
    if not shutil.which("unshare"):
        pytest.skip("no unshare")
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    return words


def test_a_disk_that_is_full_stops_the_sweep_and_loses_nothing(sweep) -> None:
    """The runs lie on a disk of 96 kB, what is kept of them is copied off it."""
    sweep.plan(runs=6)
    runs, kept = sweep.root / "runs", sweep.root / "kept"
    runs.mkdir()
    kept.mkdir()
    prefix = in_namespace(f"mount -t tmpfs -o size=96k none '{runs}'")
    script = '"$@"; code=$?; cp -r "$0/." "$KEPT"; exit $code'
    process = sweep.start(prefix=(*prefix, "bash", "-c", script, str(runs)), KEPT=str(kept))
    out, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, -9), out
    assert "No space left on device" in out, out
    runs.rmdir()
    kept.rename(runs)
    sweep.observe()
    assert sweep.processes() == []
    sweep.finish()


@pytest.mark.parametrize("where", ["the root", pytest.param("a stage", marks=SLOW)])
def test_a_folder_that_cannot_be_written_is_a_line(where: str, sweep) -> None:
    sweep.plan(runs=2, steps=4)
    folder = sweep.root / "runs/fake"
    if where == "a stage":
        folder /= "n=0,seed=0/train"
    folder.mkdir(parents=True)
    prefix = in_namespace(
        f"mount --bind '{folder}' '{folder}'", f"mount -o remount,bind,ro '{folder}'"
    )
    process = sweep.start(prefix=prefix)
    out = sweep.settled(process)
    assert "Traceback" not in out
    assert process.returncode in (1, 74), out
    assert "Read-only file system" in out or "cannot be written" in out, out
    if where == "a stage":
        assert sweep.status("n=1,seed=1/judge").label == "done"
    sweep.finish()


@pytest.mark.parametrize("blocks", [1, pytest.param(4, marks=SLOW)])
def test_a_limit_on_the_size_of_files_loses_nothing(blocks: int, sweep) -> None:
    sweep.plan(runs=2, steps=4)
    process = sweep.start(prefix=("bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash"))
    out = sweep.settled(process)
    assert "Traceback" not in out, out
    sweep.finish()


CLERK = """#!/usr/bin/env bash
# In the place of python: the clerk, whose words come in pieces, a second and more apart.
if (( $# == 2 )); then exec "$REAL" "$@"; fi
printf 'sta'; sleep 1.4
printf 'rt 1 3 - '; sleep 1.2
printf '1\\nlog\\0touch\\0started\\0'
while read -r word id code; do
  [[ $word != ended ]] || { echo "$code" >code; printf 'qui'; sleep 1.3; printf 't 7\\n'; exit 7; }
done
"""


def test_a_word_that_comes_in_pieces_is_one_word(sweep) -> None:
    """The shell looks up once a second, and may do so in the middle of a line."""
    sweep.plan(runs=1)
    fake = sweep.root / "clerk"
    fake.write_text(CLERK)
    fake.chmod(0o755)
    code, out = sweep.run(PYTHON=str(fake), REAL=sweep.env["PYTHON"])
    assert (code, (sweep.root / "started").exists()) == (7, True), out
    assert (sweep.root / "code").read_text() == "0\n"
