"""Checkpoints that survive kill -9, a full disk and a diverged step.

Save: temp file in the same folder -> write -> fsync -> verify (zip CRC of every record, then names,
shapes and dtypes read back) -> `os.replace` -> fsync of the folder -> pointer last -> only then is
the oldest generation deleted. Reading back and syncing go on beside the writing. Load: newest first, verified before use; one that fails is said aloud
and the one before it is taken.

A generation is one file, ``<series>-<number>-step<step>.pt``; its series is ``last`` or a tag such
as ``best``. The number grows with every save, so a run that fell back and went on is still in order.
``<series>.json`` describes the newest one for people and shells; loading does not depend on it.
"""

import errno
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.serialization import get_crc32_options, set_crc32_options

from expc_runtime.clocks import Epochs, Minutes, Updates
from expc_runtime.durable import LARGE, Durable, Piece, crc32
from expc_runtime.errors import NO_SPACE, DiskFull, Diverged, MissingInput
from expc_runtime.state.files import sync

__all__ = ["LAST", "Checkpoint", "Manifest", "Sealed", "Store", "load_weights", "sha256"]

State = dict[str, Any]

LAST = "last"  # the series of what a run goes on from
DIVERGED = "diverged"  # what is left of an update that met a value that is not finite
EVIDENCE = 2  # of these are kept
_log = logging.getLogger(__name__)
_GENERATION = re.compile(r"(?P<series>[A-Za-z]\w*)-(?P<number>\d+)-step(?P<step>\d+)\.pt")
_DOS_FOLDER = 0x10  # torch gives memory that nobody wrote for a record with this attribute
_HEADER = struct.Struct("<26sHH")  # of a zip record; then its name and padding, of these lengths
_ENTRY = struct.Struct("<28sHHH12x")  # of it in the directory: name, padding and comment follow
_CRC = struct.Struct("<I")
_BEHIND, _IN_DIRECTORY = 4, 16  # where the CRC is in a record's description, and in its entry
_DESCRIBED = 0x08  # a record with a description behind it
_COMPILED = "_orig_mod."  # what torch.compile puts into the names of a wrapped module


@dataclass(frozen=True)
class Checkpoint:
    """When a stage saves (beside step 0, each best and the end), and how many it keeps.

    Raises ValueError for ``keep`` below two: with one file, a bad disk block is the end of the run.
    """

    every: Minutes | Epochs | Updates = Minutes(10)  # noqa: RUF009  Minutes is frozen
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise ValueError(f"keep={self.keep}: never fewer than two generations are kept")


@dataclass(frozen=True)
class Manifest:
    """What one generation holds."""

    file: str
    series: str
    number: int  # counts the saves of a series
    step: int
    tensors: int
    values: int  # elements in all tensors
    saved: str  # UTC, ISO 8601
    torch: str


@dataclass(frozen=True)
class Sealed:
    """A generation that a stage leaves for others."""

    file: str
    step: int
    sha256: str  # of the file


@dataclass(frozen=True)
class _Generation:
    path: Path
    number: int


class Store:
    """The generations of one stage, in one folder. One process writes; any may read.

    ``keep`` is the number of verified generations kept of each series, at least two.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep={keep}: never fewer than two generations are kept")
        self.folder = Path(folder)
        self.keep = keep
        self._started = time.time()
        self._swept = False
        self._whole: set[str] = set()  # files this process has verified

    def save(self, state: State, *, step: int, tag: str | None = None) -> Path:
        """Write a verified generation of ``state`` at ``step``; returns its file.

        ``state`` is a dict with string keys of tensors, numbers, strings, and lists, tuples and
        dicts of these: what `torch.load(weights_only=True)` reads back. ``_orig_mod.`` is taken out
        of its keys. The first save also clears temp files that a killed process left.

        Raises
        ------
        Diverged: a tensor holds NaN or infinity. A mask of zeros and -inf is not a divergence.
        DiskFull: no room, no quota, or a file size limit.
        TypeError: the state holds what a checkpoint cannot give back.

        All of them leave the earlier generations as they were.
        """
        series = tag or LAST
        if not re.fullmatch(r"[A-Za-z]\w*", series):
            raise ValueError(f"tag {series!r} is not a name")
        state = clean_keys(state)
        tensors = dict(_tensors(state))
        _refuse_nonfinite(tensors, series, step)
        with _disk_full(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
            self._require_space(tensors)
            number = max((g.number for g in self._generations(series)), default=0) + 1
            manifest = Manifest(
                file=f"{series}-{number:04d}-step{step}.pt",
                series=series,
                number=number,
                step=step,
                tensors=len(tensors),
                values=sum(t.numel() for t in tensors.values()),
                saved=datetime.now(UTC).isoformat(timespec="seconds"),
                torch=str(torch.__version__),
            )
            path = self.folder / manifest.file
            with self._temporary(path.name) as temp:
                _write(temp, {"manifest": asdict(manifest), "state": state}, tensors)
                os.replace(temp, path)
            sync(self.folder)
            self._whole.add(path.name)
            self._point(manifest)
        self._retire(series)
        return path

    def load(self, tag: str | None = None) -> tuple[State, Manifest] | None:
        """The newest generation that verifies, on the CPU; None if none was ever written.

        Raises MissingInput if there are generations and none of them can be read: starting again
        from nothing is for a person to decide.
        """
        series = tag or LAST
        tried: dict[str, str] = {}
        # A reader may be overtaken: the writer retires a file between our look and our read, and
        # then there is a newer one to look at.
        while untried := [g for g in self._generations(series) if g.path.name not in tried]:
            path = untried[0].path
            try:
                state, manifest = _read(path)
            except _NotWhole as fault:
                tried[path.name] = str(fault)
                _log.warning("checkpoint %s is not whole: %s", path, fault)
                continue
            self._whole.add(path.name)
            if tried:
                _log.warning("went back to %s, step %d", path, manifest.step)
            return state, manifest
        if tried:
            faults = "".join(f"\n  {name}: {fault}" for name, fault in tried.items())
            raise MissingInput(f"no {series} checkpoint in {self.folder} can be read:{faults}")
        return None

    def seal(self, tag: str | None = None) -> Sealed | None:
        """Read back the newest generation of a finished series; None if none was ever written.

        Its hash goes into ``<series>.json``. Raises MissingInput if it is not whole, even if one
        before it is: what others take is what the stage ended with.
        """
        series = tag or LAST
        newest = next(iter(self._generations(series)), None)
        if newest is None:
            return None
        try:
            _, manifest = _read(newest.path)
        except _NotWhole as fault:
            raise MissingInput(f"{newest.path} is not whole: {fault}") from fault
        sealed = Sealed(manifest.file, manifest.step, sha256(newest.path))
        with _disk_full(self.folder):
            self._point(manifest, sha256=sealed.sha256)
        return sealed

    def leave(self, state: State, *, step: int) -> Path:
        """Write ``diverged-<step>.pt``, proved as a generation is; NaN may be in it.

        No run goes on from it. The newest `EVIDENCE` of them are kept. Raises DiskFull, TypeError.
        """
        state = clean_keys(state)
        tensors = dict(_tensors(state))
        path = self.folder / f"{DIVERGED}-{step}.pt"
        with _disk_full(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
            self._require_space(tensors)
            manifest = Manifest(
                file=path.name,
                series=DIVERGED,
                number=0,
                step=step,
                tensors=len(tensors),
                values=sum(t.numel() for t in tensors.values()),
                saved=datetime.now(UTC).isoformat(timespec="seconds"),
                torch=str(torch.__version__),
            )
            with self._temporary(path.name) as temp:
                _write(temp, {"manifest": asdict(manifest), "state": state}, tensors)
                os.replace(temp, path)
            sync(self.folder)
        for old in self._left()[EVIDENCE:]:
            old.unlink(missing_ok=True)
        return path

    def left(self, step: int | None = None) -> tuple[State, Manifest] | None:
        """What `leave` wrote last, or at ``step``; None if nothing is there.

        Raises MissingInput if it cannot be read.
        """
        for path in self._left():
            if step is None or path.name == f"{DIVERGED}-{step}.pt":
                try:
                    return _read(path)
                except _NotWhole as fault:
                    raise MissingInput(f"{path} cannot be read: {fault}") from fault
        return None

    def _left(self) -> list[Path]:
        """Newest first; no generation of a series of that name is among them."""
        named = re.compile(rf"{DIVERGED}-\d+\.pt")
        found = [path for path in self.folder.glob("*.pt") if named.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _generations(self, series: str) -> list[_Generation]:
        """Newest first."""
        found = []
        for path in self._files():
            match = _GENERATION.fullmatch(path.name)
            if match and match["series"] == series:
                found.append(_Generation(path, int(match["number"])))
        return sorted(found, key=lambda g: g.number, reverse=True)

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("*-step*.pt")

    def _retire(self, series: str) -> None:
        """Delete what is older than the newest ``keep`` whole generations."""
        kept = 0
        for generation in self._generations(series):
            name = generation.path.name
            if kept >= self.keep:
                generation.path.unlink(missing_ok=True)
                self._whole.discard(name)
            elif name in self._whole or fault_of(generation.path) is None:
                self._whole.add(name)
                kept += 1

    def _clear(self) -> None:
        if self._swept:
            return
        for path in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < self._started:
                    path.unlink()
        # A process killed between its save and this step left one generation too many.
        for series in {m["series"] for p in self._files() if (m := _GENERATION.fullmatch(p.name))}:
            self._retire(series)
        self._swept = True

    def _require_space(self, tensors: Mapping[str, Tensor]) -> None:
        # The file in the making stands beside `keep` older ones; early is better than at hour nine.
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        missing = self.keep + 1 - len(list(self._files()))
        free = shutil.disk_usage(self.folder).free
        need = size * max(1, missing)
        if free < need:
            raise DiskFull(
                f"{self.folder}: {_mib(need)} needed for checkpoints of {_mib(size)}, "
                f"{_mib(free)} free"
            )

    @contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        # The same folder: a rename from another file system is a copy over the last good file.
        temp = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            yield temp
        finally:
            temp.unlink(missing_ok=True)

    def _point(self, manifest: Manifest, **more: str) -> None:
        pointer = self.folder / f"{manifest.series}.json"
        with self._temporary(pointer.name) as temp:
            with temp.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(manifest) | more, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, pointer)


def sha256(path: Path) -> str:
    """Of a whole file, in hex: what ``sha256sum`` says."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a saved state dict, strictly, into a module that may be wrapped by `torch.compile`."""
    own = {key.replace(_COMPILED, ""): key for key in module.state_dict()}
    if any(clean != key for clean, key in own.items()):
        weights = {own.get(key, key): value for key, value in weights.items()}
    module.load_state_dict(weights)


def clean_keys(state: State) -> State:
    """``state`` with ``_orig_mod.`` taken out of every key, at any depth."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            cleaned = {
                k.replace(_COMPILED, "") if isinstance(k, str) else k: clean(v)
                for k, v in value.items()
            }
            if len(cleaned) != len(value):
                raise ValueError("a module is in the state twice, compiled and not compiled")
            versions = getattr(value, "_metadata", None)  # of each module's state dict format
            if versions is None:
                return cleaned
            ordered = OrderedDict(cleaned)
            vars(ordered)["_metadata"] = {
                re.sub(r"\.?\b_orig_mod\b", "", k).lstrip("."): v for k, v in versions.items()
            }
            return ordered
        if type(value) in (list, tuple):
            return type(value)(clean(v) for v in value)
        return value

    cleaned: State = clean(state)
    return cleaned


def fault_of(path: Path, sums: Mapping[Piece, int] | None = None) -> str | None:
    """Why the file is not a whole checkpoint, by the CRC of every record; None if it is.

    ``sums`` are those of pieces of the file that have just been read.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            record = _bad_record(archive, file, entries, sums or {})
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  damage has as many names as zipfile has exceptions
        return _first_line(error)
    if record is not None:
        return f"bad CRC or size in {record}"
    for entry in entries:
        if entry.external_attr & _DOS_FOLDER:
            return f"{entry.filename} is marked as a folder"
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        return "no data.pkl in it"
    return None


def _bad_record(
    archive: zipfile.ZipFile,
    file: BinaryIO,
    entries: Iterable[zipfile.ZipInfo],
    sums: Mapping[Piece, int],
) -> str | None:
    """The name of a record whose bytes do not have its CRC, or not its size."""
    large: dict[Piece, zipfile.ZipInfo] = {}
    for entry in entries:
        with archive.open(entry) as record:  # compares its two headers
            stored = entry.compress_type == zipfile.ZIP_STORED
            if stored and entry.compress_size != entry.file_size:
                return entry.filename
            if stored and entry.file_size >= LARGE:
                large[_data(file, entry)] = entry
            else:
                record.read()
    unread = [piece for piece in large if piece not in sums]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        read = zip(unread, pool.map(lambda piece: crc32(file.fileno(), piece), unread), strict=True)
        found = dict(sums) | dict(read)
    bad = (entry.filename for piece, entry in large.items() if found[piece] != entry.CRC)
    return next(bad, None)


def _data(file: BinaryIO | Durable, entry: zipfile.ZipInfo) -> Piece:
    """Where the bytes of a stored record are: behind its header, a name and padding."""
    header = os.pread(file.fileno(), _HEADER.size, entry.header_offset)
    _, name, padding = _HEADER.unpack(header)
    return entry.header_offset + _HEADER.size + name + padding, entry.file_size


def _read(path: Path) -> tuple[State, Manifest]:
    """Raises _NotWhole."""
    try:
        fault = fault_of(path)
        if fault is None:
            held = torch.load(path, map_location="cpu", weights_only=True)
            return held["state"], Manifest(**held["manifest"])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  of the pickle, or of what it holds
        fault = _first_line(error)
    raise _NotWhole(fault)


class _NotWhole(Exception):
    """The file cannot be used; the text says why."""


def _write(path: Path, held: State, tensors: Mapping[str, Tensor]) -> None:
    """Stream to the file, fsync it, and prove by reading that it says what memory says."""
    with Durable(path) as file:
        try:
            with _no_crc():
                torch.save(held, file)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _cannot_hold(error) from error
        except RuntimeError as error:
            # torch ends its file whatever happened, and then says where it expected to be.
            raise error.__context__ or error from None
        _fill_in_crc(file)
        file.sync()
        _prove(path, tensors, file.sums)
        file.synced()


@contextmanager
def _no_crc() -> Iterator[None]:
    """torch sums a record before it writes it; here it is summed once, as it reads back."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _fill_in_crc(file: Durable) -> None:
    """Put the CRC of each record behind it and into the directory, where torch left zeros."""
    with zipfile.ZipFile(file) as archive:
        entries, at = archive.infolist(), archive.start_dir
    for entry in entries:
        piece = offset, size = _data(file, entry)
        crc = _CRC.pack(file.sums.get(piece) or crc32(file.fileno(), piece))
        if entry.flag_bits & _DESCRIBED:  # an empty record is not
            _put(file, offset + size + _BEHIND, crc)
        _put(file, at + _IN_DIRECTORY, crc)
        *_, name, padding, comment = _ENTRY.unpack(os.pread(file.fileno(), _ENTRY.size, at))
        at += _ENTRY.size + name + padding + comment


def _put(file: Durable, offset: int, data: bytes) -> None:
    if os.pwrite(file.fileno(), data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def _prove(path: Path, tensors: Mapping[str, Tensor], sums: Mapping[Piece, int]) -> None:
    if (fault := fault_of(path, sums)) is not None:
        raise OSError(f"{path}: written, but {fault} when read back")
    try:
        back = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state"]
    except pickle.UnpicklingError as error:
        raise _cannot_hold(error) from error
    if _signature(dict(_tensors(back))) != _signature(tensors):
        raise OSError(f"{path}: read back with other names, shapes or dtypes than were saved")


def _cannot_hold(error: Exception) -> TypeError:
    # torch's own text advises to load without weights_only; only its GLOBAL line says what is wrong.
    unknown = re.search(r"GLOBAL (\S+)", str(error))
    what = unknown[1] if unknown else _first_line(error)
    return TypeError(f"the state holds what a checkpoint cannot give back: {what}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (t.shape, t.dtype) for name, t in tensors.items()}


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor at any depth, by its dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{index}")


def _refuse_nonfinite(tensors: Mapping[str, Tensor], series: str, step: int) -> None:
    for name in _nonfinite(tensors):
        tensor = tensors[name]
        tensor = tensor if tensor.is_complex() else tensor.double()  # float8 has no isfinite
        if _is_mask(tensor):
            continue
        nan = int(tensor.isnan().sum())
        infinite = tensor.numel() - nan - int(tensor.isfinite().sum())
        raise Diverged(
            f"{series} checkpoint at step {step} refused: {name} has {nan} NaN and {infinite} "
            f"infinite of {tensor.numel()} values; the generation before it stays"
        )


def _nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    floating = {
        name: torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
        for name, t in tensors.items()
        if t.is_floating_point() or t.is_complex()
    }
    # NaN and infinity survive a sum, which reads memory once and stores nothing. A sum of finite
    # values may overflow: then, and only then, each value is looked at.
    sums: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in floating.items():
        wide = tensor.dtype if tensor.element_size() > 2 else torch.float32
        sums.setdefault(tensor.device, {})[name] = tensor.sum(dtype=wide).double()
    suspects: list[str] = []
    for group in sums.values():  # one transfer for each device, not one for each tensor
        finite = torch.stack(list(group.values())).isfinite().tolist()
        suspects += [name for name, ok in zip(group, finite, strict=True) if not ok]
    return [n for n in suspects if not bool(floating[n].double().isfinite().all())]


def _is_mask(tensor: Tensor) -> bool:
    """An additive attention mask: zeros and -inf, both present."""
    zero, closed = tensor == 0, tensor == -torch.inf
    return bool((zero | closed).all() & zero.any())


@contextmanager
def _disk_full(folder: Path) -> Iterator[None]:
    """torch.save reports a failed write as RuntimeError, with the OSError behind it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in NO_SPACE:
                raise DiskFull(
                    f"{folder}: {cause.strerror}; the checkpoints before this one are intact"
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
