"""The trained module of a finished stage: in Python, as safetensors, as ONNX.

python -m expc_runtime.export RUN --format safetensors|onnx -o FILE
"""

import argparse
import importlib.util
import inspect
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expc_runtime.checkpoint import LAST, Manifest, Store, load_weights
from expc_runtime.data.packed import Packed
from expc_runtime.errors import MissingInput, StageError
from expc_runtime.flags import Run
from expc_runtime.generated import configured, imported, only
from expc_runtime.module import Module
from expc_runtime.provenance import project_root
from expc_runtime.state import Result, read_result, resolve

__all__ = ["Column", "built", "columns_of", "load", "main", "to_onnx", "to_safetensors"]


@dataclass(frozen=True)
class Column:
    """One input: shape of a row, without the batch axis, and the name of its torch dtype."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def rows(self, count: int) -> Tensor:
        """``count`` rows of zeros."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.zeros(count, *self.shape, dtype=dtype)


def load(run: str | Path, *, best: str | None = None) -> nn.Module:
    """The trained module of the stage folder ``run``, on the CPU, in eval mode.

    Calling it is the module's ``forward``: the outputs of its heads. Its weights are those that the
    figures of result.json are about: the best of the first monitor; without a monitor, the last. ``best``
    names another monitor, or is ``last``.

    Raises MissingInput: no result or checkpoint there, or the module was compiled anew since.
    """
    return _load(Path(run), best)[0]


def to_safetensors(run: str | Path, path: str | Path, *, best: str | None = None) -> Path:
    """Write the weights of ``run``, with module, program, config and step as metadata."""
    from safetensors.torch import save_file

    module, result, manifest = _load(Path(run), best)
    # Clones: the format holds no two names for one memory, as tied weights are.
    weights = {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}
    about = {
        "module": result.module,
        "program": result.program,
        "key": result.key,
        "state": result.state,  # two updates of a smoke run train nothing
        "config": json.dumps(dict(result.config), sort_keys=True),
        "step": str(manifest.step),
        "series": manifest.series,
    }
    with _replacing(Path(path)) as temp:
        save_file(weights, temp, metadata=about)
    return Path(path)


def to_onnx(
    run: str | Path,
    path: str | Path,
    *,
    best: str | None = None,
    inputs: Mapping[str, Column] | None = None,
) -> Path:
    """Write ``forward`` of ``run``; inputs are its parameters, outputs its heads, any number of rows.

    ``inputs`` says the shape of a row of each parameter; where it does not, the columns recorded in
    result.json do.

    Raises MissingInput: the package onnx is missing, or a shape is not known.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingInput("ONNX export needs the package onnx: pip install 'expc[onnx]'")
    import onnx

    module, result, _ = _load(Path(run), best)
    known = _recorded(result) | dict(inputs or {})
    names = list(inspect.signature(module.forward).parameters)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise MissingInput(
            f"the shape of {', '.join(unknown)} is not recorded in {run}; "
            f"give it by --input {unknown[0]}=1x8x8"
        )
    # Two rows: with one, a batch axis and an axis of one cannot be told apart.
    example = tuple(known[name].rows(2) for name in names)
    heads = _heads(module, example)
    # Without gradients a net takes the way it takes when it is used, not the one of its training.
    with _replacing(Path(path)) as temp, warnings.catch_warnings(), torch.no_grad():
        # The exporter that replaces this one needs a package more, onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Our nets check the shapes they are given, which a trace leaves out; a test counts rows.
        warnings.filterwarnings("ignore", module=r"expc_runtime\.models\.")
        torch.onnx.export(
            module,
            example,
            str(temp),
            dynamo=False,
            input_names=names,
            output_names=heads,
            dynamic_axes={name: {0: "rows"} for name in (*names, *heads)},
        )
        onnx.checker.check_model(str(temp))
    return Path(path)


def columns_of(columns: Mapping[str, Tensor | Packed]) -> dict[str, dict[str, Any]]:
    """Shape of a row and dtype of each column, as result.json keeps them for `to_onnx`."""
    return {
        name: {"shape": list(column.shape[1:]), "dtype": str(column.dtype).removeprefix("torch.")}
        for name, column in columns.items()
    }


def _recorded(result: Result) -> dict[str, Column]:
    columns = result.extra.get("columns", {})
    return {name: Column(tuple(c["shape"]), c["dtype"]) for name, c in columns.items()}


def _load(run: Path, best: str | None) -> tuple[nn.Module, Result, Manifest]:
    if not run.is_dir():
        raise MissingInput(f"there is no folder {run}")
    folder = resolve(run)
    result = read_result(folder)
    if result is None:
        raise MissingInput(f"{run} has no result.json: {_why_not(folder)}")
    store = Store(folder / "checkpoints")
    series = best or result.extra.get("weights", LAST)
    found = store.load(series)
    if found is None:
        raise MissingInput(f"no {series} checkpoint in {store.folder}")
    state, manifest = found
    module = built(folder, result)
    load_weights(module, state["model"])
    return module.eval(), result, manifest


def _why_not(folder: Path) -> str:
    stages = sorted(file.parent.name for file in folder.glob("*/result.json"))
    return f"name a stage of it, {' or '.join(stages)}" if stages else "the stage is not done"


def built(folder: Path, result: Result) -> Module:
    """The module of a result of the stage ``folder``, with the weights it begins with.

    Raises MissingInput: its file is not there, or was compiled anew since.
    """
    path = project_root(folder) / result.module
    if not path.is_file():
        raise MissingInput(f"{folder} was made by {path}, which is not there")
    root = str(project_root(path))
    if root not in sys.path:
        sys.path.append(root)  # a user's own classes are imported from the root
    python = imported(path)
    program = getattr(python, "PROGRAM", "")
    if program != result.program:
        raise MissingInput(
            f"{path} was compiled anew since: it is program {program}, the run is {result.program}; "
            "its provenance.json names the commit"
        )
    build, config = only(python, Module), only(python, Run)
    torch_state = torch.get_rng_state()
    try:
        module: Module = build(configured(config, result.config))
    finally:
        torch.set_rng_state(torch_state)  # loading a model must not change the caller's draws
    return module


def _heads(module: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """``losses`` takes the heads first, in the order in which ``forward`` gives them."""
    with torch.no_grad():
        given = module(*example)
    count = len(given) if isinstance(given, tuple) else 1
    losses = getattr(module, "losses", None)
    names = list(inspect.signature(losses).parameters) if losses else []
    return names[:count] if len(names) >= count else [f"output_{i}" for i in range(count)]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.touch()
        mode = temp.stat().st_mode
        yield temp
        temp.chmod(mode)  # safetensors makes files that only their owner reads
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _column(text: str) -> tuple[str, Column]:
    name, equals, shape = text.partition("=")
    shape, _, dtype = shape.partition(":")
    try:
        sizes = tuple(int(size) for size in shape.split("x") if size)
    except ValueError:
        equals = ""
    if not equals or not isinstance(getattr(torch, dtype or "float32", None), torch.dtype):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=1x8x8 or NAME=1x8x8:int64")
    return name, Column(sizes, dtype or "float32")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m expc_runtime.export", description=__doc__)
    parser.add_argument(
        "run", type=Path, help="folder of a finished stage: runs/EXPERIMENT/RUN/STAGE"
    )
    parser.add_argument("--format", choices=("safetensors", "onnx"), default="safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--best", metavar="MONITOR", help="its best weights, or `last`; else those of the figures"
    )
    parser.add_argument(
        "--input",
        type=_column,
        action="append",
        default=[],
        metavar="NAME=SHAPE[:DTYPE]",
        help="one row of an input of forward, for ONNX, if the run did not record it",
    )
    given = parser.parse_args(argv)
    try:
        if given.format == "onnx":
            to_onnx(given.run, given.output, best=given.best, inputs=dict(given.input))
        else:
            to_safetensors(given.run, given.output, best=given.best)
    except StageError as error:
        print(error, file=sys.stderr)
        return error.code
    print(given.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
