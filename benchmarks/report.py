"""The cost of `expc report`: CPU seconds, peak memory and the size of the file, for many runs.

    python -m benchmarks.report

The runs are fabricated through the functions that stages use, in a folder that is removed afterwards.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from expc_runtime.state import Result, claim

SIZES = ((40, 5, 300), (250, 4, 40), (4, 5, 20_000))
"""Conditions, seeds, and lines of metrics.jsonl of each run."""

METRICS = 12


def fabricate(root: Path, conditions: int, seeds: int, lines: int) -> None:
    """Runs of one stage with curves, figures and floors."""
    draw = random.Random(0)
    (root / "pyproject.toml").write_text("[project]\nname = 'many'\n")
    for condition in range(conditions):
        for seed in range(seeds):
            folder = root / "runs" / "many" / f"lr={condition},seed={seed}" / "read"
            with claim(folder, "0123456789abcdef") as stage:
                with (folder / "metrics.jsonl").open("w") as file:
                    for line in range(lines):
                        figures = {
                            f"train/loss_{i}": (1 + i) / (1 + line) + 0.05 * draw.random()
                            for i in range(METRICS)
                        }
                        told = {"step": 10 * line, "epoch": 0, "split": "train", **figures}
                        file.write(json.dumps(told) + "\n")
                metrics = {f"val/m{i}": draw.random() for i in range(METRICS)}
                floors = dict.fromkeys(metrics, 0.1)
                stage.finish(Result(metrics=metrics, floors=floors, step=10 * lines))


def measure(root: Path) -> tuple[float, float, float]:
    """CPU seconds, peak megabytes and megabytes of the file."""
    command = [sys.executable, "-m", "expc", "report", "many"]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"expc report ended with {process.returncode}")
    size = (root / "runs" / "many" / "report.html").stat().st_size
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, size / 1e6


def main() -> int:
    """Measure each size once."""
    for conditions, seeds, lines in SIZES:
        with tempfile.TemporaryDirectory(prefix="expc-report-") as folder:
            fabricate(Path(folder), conditions, seeds, lines)
            seconds, memory, size = measure(Path(folder))
        print(
            f"{conditions * seeds:5,} runs, {lines:6,} lines of {METRICS} metrics: "
            f"{seconds:5.1f} s, {memory:4.0f} MB at most, {size:.1f} MB written"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
