"""Every benchmark in turn, a process each, so that none inherits what another has loaded.

python -m benchmarks    # exits with 1 if a budget is missed
"""

import subprocess
import sys

from benchmarks.project import ROOT

BENCHMARKS = ("startup", "step", "save", "launch", "pinpad_env")


def main() -> int:
    codes = [
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=False
        ).returncode
        for name in BENCHMARKS
    ]
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
