"""200 short runs, a tenth with failures of five classes, on this machine, on Slurm and on Ray."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks import sweep as trial

SHORT = 50  # has one failure of each class


def test_here_every_failure_ends_as_its_class_should(tmp_path: Path) -> None:
    made = trial.trials(tmp_path, SHORT, ["local"])
    assert trial.differences(made, SHORT) == []
    outcomes = made["local"][0].outcomes()
    assert outcomes["n=1,seed=19"] == ("done", 2, "precision=32")
    assert outcomes["n=2,seed=29"] == ("done", 3, "microbatch=0.25")
    assert outcomes["n=3,seed=39"] == ("failed(timed_out)", 1, "")


@pytest.mark.slow
def test_the_tables_of_all_back_ends_are_equal(
    tmp_path_factory: pytest.TempPathFactory, need: Callable[[str, bool, str], None]
) -> None:
    need("slurm", bool(shutil.which("slurmctld")), "Debian's slurm-wlm is not installed")
    need("ray", find_spec("ray") is not None, "expc[ray] is not installed")
    folder = tmp_path_factory.mktemp("t")  # short: it holds sockets
    names = ["local", "launcher", "slurm", "ray"]
    assert trial.differences(trial.trials(folder, 200, names), 200) == []
