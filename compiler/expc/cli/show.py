"""`expc show`: the resolved spec, and where each value is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from expc.experiment import Experiment
    from expc.findings import Span
    from expc.source import KeyPath

_COLUMN = 48
"""Where origins begin, unless a line is longer."""


@click.command(short_help="print a spec with everything filled in")
@click.argument("spec", type=click.Path(path_type=Path))
def command(spec: Path) -> int:
    """Print SPEC with `extends` laid over, the shared model filled in, and every default written out.

    Each line ends in where its value is from: a line of the spec, a file that it extends, or a
    default. What is printed is a spec itself, and compiles to the same experiment.
    """
    from expc.build import load
    from expc.sweep import axes, places

    document, experiment = load(spec)
    swept = {
        place: span
        for axis in axes(document.tree)
        for path, span in zip(axis.paths, axis.spans[0] if axis.spans else (), strict=False)
        for place in places(path, experiment)
    }
    click.echo("\n".join(_lines(experiment, swept)))
    return 0


def _lines(experiment: Experiment, swept: Mapping[KeyPath, Span]) -> Iterator[str]:
    laid_over = {key: value for key, value in experiment.tree.data.items() if key != "extends"}
    for text, origin in _map(laid_over, (), experiment, swept):
        yield f"{text:<{_COLUMN}}  # {origin}" if origin else text


def _map(
    data: Mapping[str, Any], path: KeyPath, experiment: Experiment, swept: Mapping[KeyPath, Span]
) -> Iterator[tuple[str, str]]:
    indent = "  " * len(path)
    for key, value in data.items():
        here = (*path, key)
        name = _flow(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _map(value, here, experiment, swept)
        else:
            yield f"{indent}{name}: {_flow(value)}", _origin(here, experiment, swept)


def _origin(path: KeyPath, experiment: Experiment, swept: Mapping[KeyPath, Span]) -> str:
    place = experiment.where(*path)
    if place.origin == "default":
        said = "default"
    elif place.value.file == experiment.file:
        said = f"line {place.value.line}"
    else:
        said = f"extends {place.value.file}:{place.value.line}"
    axis = swept.get(path)
    return said if axis is None else f"{said}, swept at line {axis.line}"


def _flow(value: Any) -> str:
    """A leaf on one line, as YAML reads it back."""
    import yaml

    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
