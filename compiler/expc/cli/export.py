"""`expc export`: trained weights as a file. torch runs in a child process, never here."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="write trained weights as safetensors or ONNX")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["safetensors", "onnx"]),
    default="safetensors",
    show_default=True,
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write."
)
@click.option(
    "--best",
    metavar="MONITOR",
    help="A monitor's best weights, or `last`; else those that the result's figures are about.",
)
def command(run: Path, kind: str, output: Path, best: str | None) -> int:
    """Write the trained module of RUN, the folder of a finished stage, to a file.

    RUN is runs/EXPERIMENT/RUN/STAGE. Weights are read from its verified checkpoint.
    """
    import subprocess
    import sys

    from expc.cli.needs import runtime

    runtime()
    words = [str(run), "--format", kind, "-o", str(output)]
    words += ["--best", best] if best else []
    code = subprocess.run(
        [sys.executable, "-m", "expc_runtime.export", *words], check=False
    ).returncode
    return code if code in (0, 2) else 1
