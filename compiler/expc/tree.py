"""A spec's data with the place and origin of every key: what `extends`, sharing and overrides act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from expc.findings import Span
from expc.source import KeyPath, Source

Origin = Literal["spec", "extends", "sweep", "default"]


@dataclass(frozen=True, slots=True)
class Where:
    """Where a key and its value stand, and who set them."""

    key: Span
    value: Span
    origin: Origin


@dataclass(frozen=True)
class Tree:
    """Nested plain data and, for every path in it, where it comes from."""

    data: dict[str, Any]
    where: Mapping[KeyPath, Where]

    def get(self, path: KeyPath, default: Any = None) -> Any:
        """The value at a path."""
        node: Any = self.data
        for key in path:
            if isinstance(node, dict):
                held = key in node
            else:
                held = isinstance(node, list) and isinstance(key, int) and key < len(node)
            if not held:
                return default
            node = node[key]
        return node

    def at(self, path: KeyPath) -> Where:
        """Where a path stands: its own place, or the nearest one above it."""
        while path and path not in self.where:
            path = path[:-1]
        return self.where[path]

    def leaves(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
        """Every scalar, or list, below a path."""
        value = self.get(path)
        if isinstance(value, dict):
            for key in value:
                yield from self.leaves((*path, key))
        else:
            yield path, value

    def under(self, path: KeyPath, base: Tree) -> Tree:
        """This tree with `base` (rooted at the same path) filled in below: own keys win, by key.

        A map that names another component (`use`) replaces the base's map whole.
        """
        where = {**self.where}
        data = _merge(self.get(path, {}), base.get(path, {}), path, where, base.where)
        return Tree(_put(self.data, path, data), where)

    def override(self, path: KeyPath, value: Any, where: Where) -> Tree:
        """This tree with one value set, and everything below it said to come from `where`."""
        places = {
            known: place
            for known, place in self.where.items()
            if known[: len(path)] != path or known == path
        }
        for depth in range(1, len(path)):
            places.setdefault(path[:depth], where)
        places.update(dict.fromkeys(paths(value, path), where))
        return Tree(_put(self.data, path, value), places)

    def replaced(self, path: KeyPath, value: Any) -> Tree:
        """This tree with other data at a path and the same places."""
        return Tree(_put(self.data, path, value), self.where)

    def relocated(self, places: Mapping[KeyPath, Where]) -> Tree:
        """This tree with places added."""
        return Tree(self.data, {**self.where, **places})


def from_source(source: Source, origin: Origin) -> Tree:
    """A tree of one file's data."""
    top = Span(source.file, 1, 1, 1, 1, 0, 0)
    where = {
        path: Where(source.keys.get(path, value), value, origin)
        for path, value in source.values.items()
    }
    where[()] = Where(top, top, origin)
    return Tree(source.data, where)


def extend(tree: Tree, base: Tree) -> Tree:
    """A spec laid over the one it extends."""
    return tree.under((), base)


def _merge(
    own: Any,
    base: Any,
    path: KeyPath,
    where: dict[KeyPath, Where],
    base_where: Mapping[KeyPath, Where],
) -> Any:
    if not (isinstance(own, dict) and isinstance(base, dict)):
        return own
    if "use" in own and "use" in base and own["use"] != base["use"]:
        return own
    merged = {}
    for key in [*base, *(key for key in own if key not in base)]:
        here = (*path, key)
        if key not in own:
            merged[key] = base[key]
            where.update({p: w for p, w in base_where.items() if p[: len(here)] == here})
        elif key in base:
            merged[key] = _merge(own[key], base[key], here, where, base_where)
        else:
            merged[key] = own[key]
    return merged


def _put(data: Any, path: KeyPath, value: Any) -> Any:
    if not path:
        return value
    head, *rest = path
    if isinstance(data, list) and isinstance(head, int) and head < len(data):
        return [*data[:head], _put(data[head], tuple(rest), value), *data[head + 1 :]]
    node = data if isinstance(data, dict) else {}
    return {**node, head: _put(node.get(head), tuple(rest), value)}


def paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """A path, and every one below it in the value that stands there."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, (*path, index))
