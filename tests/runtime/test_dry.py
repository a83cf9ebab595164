"""What a dry run counts, against what a real step of the same module holds."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from expc_runtime.dry import answer
from expc_runtime.dry.headers import header_of, tensors_of
from expc_runtime.module import Module

MODULES = Path(__file__).parent / "modules"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dry_{name}", MODULES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def asked(module: str, columns: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What the child says of one module in a batch of 64."""
    build = {
        "module": f"{module}.py",
        "flags": [],
        "columns": columns,
        "source": None,
        "feed": {"batch": 64},
        "parts": [],
        "heads": [],
        "starts": [],
        "chosen": False,
    }
    spec = {"root": str(MODULES), "folder": str(MODULES), "builds": [build | more]}
    (told,) = answer({"specs": [spec]})["specs"][0]["builds"]
    assert not told["faults"] and not told["unchecked"]
    sizes: dict[str, Any] = told["sizes"]
    return sizes


DIGITS: list[dict[str, Any]] = [
    {"name": "image", "shape": [1, 8, 8], "dtype": "float32"},
    {"name": "digit", "shape": [], "dtype": "int64"},
    {"name": "loop", "shape": [], "dtype": "float32"},
]


class Saved:
    """Bytes that a real step saves, by the address of each storage, each once."""

    def __init__(self, beside: list[Tensor]) -> None:
        self.beside = {t.untyped_storage().data_ptr() for t in beside}
        self.bytes: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.beside:
            self.bytes[storage.data_ptr()] = storage.nbytes()
            self.alive.append(tensor)
        return tensor


def real_step(module: Module, batch: tuple[Tensor, ...], half: Any) -> int:
    """One real update; the most bytes that were saved for one backward pass."""
    saved, most = Saved([*module.parameters(), *module.buffers(), *batch]), [0]

    def step(named: tuple[str, Tensor]) -> None:
        most[0] = max(most[0], sum(saved.bytes.values()))
        saved.bytes.clear()
        saved.alive.clear()
        with torch.autocast("cpu", enabled=False):
            named[1].backward()  # type: ignore[no-untyped-call]
        drive = module.drive(named[0].removeprefix("total_"))
        drive.optimizer.step()
        drive.drop()

    hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept)
    autocast = torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None)
    with module.rehearsal(half=False, totals=step), hooks, autocast:
        module.update(batch)
    return most[0]


HALF = {"32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@pytest.mark.parametrize("precision", HALF)
def test_what_is_kept_for_backward_is_what_a_real_step_keeps(precision: str) -> None:
    sizes = asked("read_mse", DIGITS)
    made = load("read_mse")
    torch.manual_seed(0)
    module = made.Read(made.Config())
    module.start("32", total_updates=1, updates_per_epoch=1)
    batch = (torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,)), torch.rand(64))
    real = real_step(module, batch, HALF[precision])
    assert sizes["kept"][precision] == pytest.approx(real, rel=0.05)
    assert sizes["kept"]["16-mixed"] < sizes["kept"]["32"]


def test_weights_and_the_optimizer_s_state_are_counted_exactly() -> None:
    sizes = asked("read_mse", DIGITS)
    made = load("read_mse")
    module = made.Read(made.Config())
    module.start("32", total_updates=1, updates_per_epoch=1)
    batch = (torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,)), torch.rand(64))
    real_step(module, batch, None)
    state = [v for s in module.drive("model").optimizer.state.values() for v in s.values()]
    assert sizes["parameters"] == sum(p.numel() for p in module.parameters())
    assert sizes["trained"] == sizes["parameters"]
    assert sizes["weights"] == sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
    assert sizes["optimizer"] == sum(v.nbytes for v in state) > 8 * sizes["parameters"]
    assert sizes["batch"] == sum(t.nbytes for t in batch)
    assert sizes["gradients"] == 4 * sizes["parameters"]
    parts = [sizes[name] for name in ("weights", "gradients", "optimizer", "batch")]
    assert sizes["peak"]["32"] == sum(parts) + sizes["kept"]["32"]


def test_a_world_keeps_the_graph_of_one_optimizer_at_a_time() -> None:
    shapes: dict[str, list[int]] = {"image": [6, 64, 64, 3], "action": [6, 5]}
    columns: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": shapes.get(name, [6]),
            "dtype": "bool" if name == "is_first" else "float32",
        }
        for name in ("image", "action", "reward", "is_first", "cont")
    ]
    sizes = asked("world_tiny", columns, feed={"batch": 2}, actions=5, frame=[64, 64, 3])
    made = load("world_tiny")
    torch.manual_seed(0)
    module = made.Train(made.Config())
    module.start("32", total_updates=1, updates_per_epoch=1)
    batch = (
        torch.rand(2, 6, 64, 64, 3),
        torch.eye(5)[torch.zeros(2, 6, dtype=torch.int64)],
        torch.rand(2, 6),
        torch.zeros(2, 6, dtype=torch.bool),
        torch.ones(2, 6),
    )
    real = real_step(module, batch, None)
    assert sizes["kept"]["32"] == pytest.approx(real, rel=0.05)
    state = [
        v
        for name in module.drive_names()
        for s in module.drive(name).optimizer.state.values()
        for v in s.values()
    ]
    assert sizes["optimizer"] == sum(v.nbytes for v in state)
    each = [
        sum(p.nbytes for g in module.drive(n).optimizer.param_groups for p in g["params"])
        for n in module.drive_names()
    ]
    assert sizes["gradients"] == max(each)


# Headers.


def test_a_file_tells_its_shapes_before_its_rows(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    np.savez(
        tmp_path / "rows.npz",
        board=np.zeros((7, 9, 9), np.uint8),
        label=np.zeros(7, np.int16),
        share=np.zeros((7, 4), np.float64),
    )
    meanings = {"board": "features", "label": "class", "share": "prob"}
    params = {"file": "rows.npz", "columns": meanings}
    header = header_of("expc_runtime.data.arrays:Arrays", params, tmp_path)
    assert header is not None and header.rows == 7
    assert header.columns == {
        "board": ((9, 9), torch.uint8),
        "label": ((), torch.int64),
        "share": ((4,), torch.float32),
    }
    from expc_runtime.data.arrays import Arrays

    real = Arrays(str(tmp_path / "rows.npz"), meanings).tensors()
    assert {n: (tuple(t.shape[1:]), t.dtype) for n, t in real.items()} == header.columns


def test_safetensors_and_csv_headers_agree_with_their_readers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from expc_runtime.data.arrays import Arrays

    save_file({"x": torch.zeros(3, 2, dtype=torch.float16)}, tmp_path / "x.safetensors")
    assert tensors_of(tmp_path / "x.safetensors") == {"x": ((3, 2), torch.float16)}
    (tmp_path / "t.csv").write_text("a,b,c\n1,0.5,2\n3,4,5\n")
    meanings = {"b": "features", "c": "class", "a": "features"}
    params = {"file": "t.csv", "columns": meanings}
    header = header_of("expc_runtime.data.arrays:Arrays", params, tmp_path)
    assert header is not None and header.rows is None
    real = Arrays(str(tmp_path / "t.csv"), meanings).tensors()
    for name, told in header.columns.items():
        assert told == (tuple(real[name].shape[1:]), real[name].dtype)
    assert "a" not in header.columns  # a fraction may follow: only the rows say


@pytest.mark.parametrize("name", ["no.npz", "torn.npz", "torn.safetensors"])
def test_a_file_that_is_none_is_a_message(tmp_path: Path, name: str) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 9)
    params = {"file": name, "columns": {"x": "features"}}
    with pytest.raises(ValueError, match=name.partition(".")[0]):
        header_of("expc_runtime.data.arrays:Arrays", params, tmp_path)


# What can't be built.


def test_a_module_that_is_not_there_is_a_fault_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import not_installed_at_all\n")
    build = {"module": "bad.py", "flags": []}
    spec = {"root": str(tmp_path), "folder": str(tmp_path), "builds": [build]}
    (told,) = answer({"specs": [spec]})["specs"][0]["builds"]
    (fault,) = told["faults"]
    assert (fault["what"], fault["line"]) == ("import", 1)
    assert fault["message"] == "ModuleNotFoundError: No module named 'not_installed_at_all'"
    assert told["sizes"] is None


def test_the_project_s_modules_are_forgotten_after_it(tmp_path: Path) -> None:
    """Another spec of the same question may have a module of the same name."""
    specs = []
    for number in (1, 2):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "lab_of_it.py").write_text(f"raise ValueError('lab {number}')\n")
        (root / "it.py").write_text("import lab_of_it\n")
        build = {"module": "it.py", "flags": []}
        specs.append({"root": str(root), "folder": str(root), "builds": [build]})
    told = answer({"specs": specs})["specs"]
    assert [each["builds"][0]["faults"][0]["message"] for each in told] == ["lab 1", "lab 2"]
    assert "lab_of_it" not in sys.modules and str(tmp_path / "1") not in sys.path
