"""What `docs/diagnosis.md` shows, on real runs of compiled specs: a NaN, a leak, and what is said.

The words that are asked for here stand on that page.
"""

import os
import re
import resource
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from expc.cli import main as expc
from expc_runtime.checkpoint import Store
from expc_runtime.rerun import main as rerun
from expc_runtime.state import claim, read_result, read_status

torch.set_num_threads(1)

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"

SPECTRUM = '''"""The lab's own net and readings."""

import torch
from torch import Tensor, nn


class Spectrum(nn.Module):
    """point (B, 2) -> (B, 32): the share that each wave has of the energy."""

    def __init__(self, waves: int = 32) -> None:
        super().__init__()
        self.waves = nn.Linear(2, waves)
        self.energies = Energies()
        self.out_features = waves

    def forward(self, point: Tensor) -> Tensor:
        """Features of each point."""
        return self.energies(self.waves(point))


class Energies(nn.Module):
    def forward(self, wave: Tensor) -> Tensor:
        energy = wave.square()
        return energy / energy.sum(-1, keepdim=True)


class Readings:
    """Points of a sensor, two of which it took at another gain."""

    columns = {"point": "features", "upper": "prob"}

    def tensors(self) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(7)
        point = torch.randn(640, 2, generator=draw)
        point[[41, 300]] *= 4000
        return {"point": point, "upper": (point.sum(1) > 0).float()}
'''

WATCHED = '''"""The lab's own net, with something to look at its hidden states."""

import torch
from torch import Tensor, nn


class Blocks(nn.Module):
    """sequence (B, 64, 256) -> (B, 256)."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.LayerNorm(256) for _ in range(depth)])
        self.out_features = 256
        self._seen: list[Tensor] = []
        for block in self.blocks:
            block.register_forward_hook(self._see)

    def _see(self, block: nn.Module, given: object, made: Tensor) -> None:
        self._seen.append(made.detach())

    def forward(self, sequence: Tensor) -> Tensor:
        """What is left of a sequence."""
        for block in self.blocks:
            sequence = sequence + block(sequence)
        return sequence.mean(1)


class Sequences:
    columns = {"sequence": "features", "up": "prob"}

    def tensors(self) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(7)
        sequence = torch.randn(192, 64, 256, generator=draw)
        return {"sequence": sequence, "up": (sequence.mean((1, 2)) > 0).float()}
'''

SPEC = """expc: 1
name: {name}
about: A run that goes wrong.
stages:
  tell:
    kind: supervised
    data: {{use: "{lab}.models:{source}", batch: 64{split}}}
    model:
      trunk: {{use: "{lab}.models:{net}"}}
    heads:
      {head}: {{use: linear_head, out: 1}}
    loss:
      {head}: {{use: bce}}
    optim: {{use: adam, lr: 1.0e-3}}
    precision: {precision}
    until: {{epochs: {epochs}}}
"""


def project(root: Path, text: str, **values: object) -> Path:
    """Somebody's project with one compiled spec; the module to run."""
    (root / "pyproject.toml").touch()
    package = root / str(values["lab"])
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(text)
    (root / "specs").mkdir()
    name = str(values["name"])
    (root / "specs" / f"{name}.yaml").write_text(SPEC.format(**values))
    code, said = in_child(root, lambda: expc(["compile", f"specs/{name}.yaml"]))
    assert code == 0, said
    return root / "generated" / name / "tell.py"


def run(
    root: Path, module: Path, out: str, *flags: str, faults: str = "", room: int = 0
) -> tuple[int, str]:
    """Exit code of a run, and what it said; ``room`` is the bytes that it may ask for, if not 0."""

    def work() -> int:
        if faults:
            os.environ["EXPC_FAULTS"] = faults
        if room:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + room
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.argv = [str(module), "--out", out, "--device", "cpu", *flags]
        try:
            runpy.run_path(str(module), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 70

    return in_child(root, work)


def in_child(root: Path, work: Callable[[], int]) -> tuple[int, str]:
    """Exit code of ``work`` in a process of its own, and what it said; torch is imported once."""
    said = root / "said"
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.chdir(root)
            told = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(told, 1)
            os.dup2(told, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w")
            code = work()
        except Exception:  # noqa: BLE001  said where the test looks
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, said.read_text()


def assert_on_the_page(text: str) -> None:
    """Every line of it, but for numbers that another machine or torch rounds otherwise."""
    page = plain(PAGE.read_text())
    for line in text.splitlines():
        assert plain(line) in page, line


def plain(text: str) -> str:
    return " ".join(re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "N", text).split())


@pytest.fixture(scope="module")
def sensor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run whose readings are too large for float16: its folder, exit code and words."""
    root = tmp_path_factory.mktemp("sensor")
    module = project(
        root,
        SPECTRUM,
        name="sensor",
        lab="lab",
        source="Readings",
        net="Spectrum",
        head="upper",
        split=", split: {val: 0.1}",
        precision="16-mixed",
        epochs=3,
    )
    out = root / "runs" / "sensor" / "seed=0" / "tell"
    code, said = run(root, module, str(out.relative_to(root)))
    return out, code, said


def test_a_nan_of_float16_is_blamed_on_its_module_and_op_and_rows(
    sensor: tuple[Path, int, str],
) -> None:
    out, code, said = sensor
    assert code == 65
    assert "`trunk.energies` (Energies) gave 27 NaN of 2048 values (float16)" in said
    assert "its input is float16, -" in said
    assert "the op: `pow` (aten.pow.Tensor_Scalar) gave 27 infinite of 2048 values" in said
    assert "called at lab/models.py:23, from specs/sensor.yaml:9:7 (tell.model.trunk)" in said
    assert "of its infinity `div` made NaN" in said
    assert "bad rows of the batch: 0\n" in said
    assert "in float32 the same batch is finite: float16 is the cause" in said
    assert "rows 300 of the source" in said  # that of the other gain
    assert "python -m expc_runtime.rerun runs/sensor/seed=0/tell" in said
    status = read_status(out)
    assert status is not None and status.label == "failed(diverged)"
    assert status.reason in said and status.source == "specs/sensor.yaml:9:7 (tell.model.trunk)"
    assert_on_the_page(said[said.index("failed(") :])


def test_it_can_be_seen_again(
    sensor: tuple[Path, int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerun([str(sensor[0])]) == 0
    told = capsys.readouterr().out
    half, whole = told.split("precision 32")
    assert "trunk.energies  Energies  float16" in half and "2021 of 2048" in half
    assert "upper_head" not in half  # up to the first that is bad
    assert "upper_head.layers.1  gradient  float32" in whole
    assert "all of it is finite" in whole
    assert_on_the_page(told)


def test_what_is_left_of_it_is_small_and_read_without_running_code(
    sensor: tuple[Path, int, str],
) -> None:
    [left] = (sensor[0] / "checkpoints").glob("diverged-*.pt")
    held = torch.load(left, weights_only=True)["state"]
    assert {"model", "batch", "draws", "config", "precision"} <= held.keys()
    assert "optimizer" not in held
    assert all(value.isfinite().all() for value in held["model"].values())


def test_what_a_graphics_card_left_is_seen_on_the_cpu(
    sensor: tuple[Path, int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(sensor[0] / "checkpoints")
    found = store.left()
    assert found is not None
    state, _ = found
    draws = [*state["draws"], ["cuda", torch.zeros(16, dtype=torch.uint8)]]
    path = store.leave({**state, "device": "cuda:0", "draws": draws, "update": 5}, step=5)
    try:
        assert rerun([str(sensor[0]), "--update", "5"]) == 0
        told = capsys.readouterr().out
        assert "update 5 of optimizer `model`: 16-mixed on cuda:0, here on cpu" in told
        assert "the op: `pow`" in told
    finally:
        path.unlink()


def test_a_stage_that_did_not_diverge_has_nothing_to_see(
    watched: tuple[Path, int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerun([str(watched[0])]) == 66
    assert "no update that met a NaN was left in" in capsys.readouterr().err


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run whose hooks keep 17 MB of every batch, until there is no memory left."""
    root = tmp_path_factory.mktemp("watched")
    module = project(
        root,
        WATCHED,
        name="watched",
        lab="rig",  # another name: this process has imported the first one
        source="Sequences",
        net="Blocks",
        head="up",
        split="",
        precision="32",
        epochs=4,
    )
    out = root / "runs" / "watched" / "seed=0" / "tell"
    code, said = run(root, module, str(out.relative_to(root)), faults="*=oom@7")
    return out, code, said


def test_a_hook_that_keeps_what_it_sees_is_named_at_the_second_evaluation(
    watched: tuple[Path, int, str],
) -> None:
    out, _, said = watched
    told = said[: said.index("epoch 2  ")]
    named = (
        r"list `_seen` in a forward hook \(rig/models.py:18\) on `trunk.blocks.0` and 3 more holds "
        r"\d+ tensors \(\d+ MB\), 24 more than at the last evaluation"
    )
    assert len(re.findall(f"warning: {named}", told)) == 1
    assert re.search(named, (out / "log").read_text())
    assert_on_the_page(re.search(f"warning: {named}", told)[0])  # type: ignore[index]


def test_when_memory_then_runs_out_that_is_a_leak_of_this_hook(
    watched: tuple[Path, int, str],
) -> None:
    out, code, said = watched
    assert code == 72
    status = read_status(out)
    assert status is not None and status.label == "failed(leak)"
    assert "a leak: list `_seen` in a forward hook (rig/models.py:18)" in status.reason
    assert "hooks and lists 2" in status.reason
    assert "saved: the same command goes on from update 7" in status.reason
    assert_on_the_page(said[said.index("failed(") :])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux limits address space")
def test_where_memory_really_ends_there_is_enough_to_say_so_and_save(
    watched: tuple[Path, int, str],
) -> None:
    root = watched[0].parents[3]
    module = root / "generated" / "watched" / "tell.py"
    code, said = run(root, module, "runs/watched/seed=2/tell", "--epochs", "60", room=700 * 2**20)
    assert code == 72, said
    assert "can't allocate memory" in said
    assert "a leak: list `_seen` in a forward hook (rig/models.py:18)" in said
    assert re.search(r"saved: the same command goes on from update \d\d", said)


def test_a_run_that_leaks_and_ends_says_so_in_its_result(watched: tuple[Path, int, str]) -> None:
    out, _, _ = watched
    root = out.parents[3]
    code, said = run(root, root / "generated" / "watched" / "tell.py", "runs/watched/seed=1/tell")
    assert code == 0, said
    result = read_result(out.parents[1] / "seed=1" / "tell")
    assert result is not None
    assert [w for w in result.warnings if w.startswith("list `_seen` in a forward hook")]


def test_while_it_runs_its_status_says_so(tmp_path: Path) -> None:
    with claim(tmp_path / "tell", "key") as stage:
        stage.caution("list `_seen` holds 12 tensors")
        status = read_status(tmp_path / "tell")
        assert status is not None
        assert (status.state, status.reason) == ("running", "list `_seen` holds 12 tensors")
