"""A checkpoint on disk is whole, or it is not there.

The kill tests use real processes and SIGKILL: a server imports torch once and forks a child for each
kill, which saves without end, or dies at its n-th call into the file system.
"""

import errno
import json
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from expc_runtime.checkpoint import Checkpoint, Store, fault_of, load_weights
from expc_runtime.errors import DiskFull, Diverged, MissingInput, failure_of, known

SERVER = r"""
import os, signal, sys
import torch
from expc_runtime.checkpoint import Store

torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    mode, folder, step = line.split()
    step, pid = int(step), os.fork()
    if pid:
        print("child", pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)
        continue
    store, left = Store(folder), [int(mode)]

    def die(event, args):
        if event in ("open", "os.rename", "os.remove", "os.scandir") and folder in str(args[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if left[0]:
        sys.addaudithook(die)
    while True:
        step += 1
        # every value of a state is its step: a mixture of two generations shows
        state = {"model": {str(i): torch.full((64, 1024), float(step)) for i in range(12)}}
        store.save(state, step=step)
        os.write(1, b"saved %d\n" % step)  # in one piece, or not at all
        if left[0] > 0:
            os._exit(0)
"""


class Saver:
    """Starts children that save into ``folder``; ``tmpdir`` is their $TMPDIR."""

    def __init__(self, folder: Path, tmpdir: Path) -> None:
        self.folder = folder
        self.step = 0  # newest step a child said was saved
        environ = os.environ | {"TMPDIR": str(tmpdir), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert self._line() == ["ready"]

    def _line(self) -> list[str]:
        assert self.server.stdout is not None
        words = self.server.stdout.readline().split()
        assert words, "the server died"
        return words

    def start(self, calls: int = 0) -> int:
        assert self.server.stdin is not None
        self.server.stdin.write(f"{calls} {self.folder} {self.step}\n")
        self.server.stdin.flush()
        word, pid = self._line()
        assert word == "child"
        return int(pid)

    def join(self) -> int:
        """Wait for the child's end; how many saves it finished."""
        saves = 0
        while (words := self._line()) != ["gone"]:
            self.step = int(words[1])
            saves += 1
        return saves

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)


@pytest.fixture(params=["same file system", "another file system"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Saver]:
    folder, tmpdir = tmp_path / "checkpoints", tmp_path / "tmp"
    if request.param == "another file system":
        shm = Path("/dev/shm")
        if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second file system")
        tmpdir = Path(tempfile.mkdtemp(dir=shm))
    else:
        tmpdir.mkdir()
    saver = Saver(folder, tmpdir)
    yield saver
    saver.close()
    left = list(tmpdir.iterdir())
    shutil.rmtree(tmpdir)
    assert left == []  # nothing is staged outside the folder


def assert_whole(saver: Saver) -> None:
    loaded = Store(saver.folder).load()
    assert loaded is not None
    state, manifest = loaded
    assert manifest.step >= saver.step  # a save that returned is never lost
    assert len(state["model"]) == 12
    assert all(bool((t == manifest.step).all()) for t in state["model"].values())
    generations = sorted(saver.folder.glob("*.pt"))
    assert all(fault_of(p) is None for p in generations)
    assert len(generations) <= 3  # two kept, and the one whose predecessor was not yet deleted
    assert len(list(saver.folder.glob(".*"))) <= 2  # this kill's temp files; not the last kill's
    saver.step = manifest.step


def test_kill_at_forty_random_moments(saver: Saver) -> None:
    moments = random.Random(0)
    saver.start(calls=10**6)  # one save, then a clean exit: there is a generation to lose
    assert saver.join() == 1
    saves = inside = 0
    for _ in range(40):
        pid = saver.start()
        time.sleep(moments.uniform(0.002, 0.12))
        os.kill(pid, signal.SIGKILL)
        saves += saver.join()
        assert_whole(saver)
        inside += any(saver.folder.glob(".*.tmp"))
    assert saves > 0
    assert inside > 0  # some of the kills hit a file half written


def test_kill_at_each_call_into_the_file_system(saver: Saver) -> None:
    saver.start(calls=10**6)
    assert saver.join() == 1
    points = 0
    while True:
        points += 1
        saver.start(calls=points)
        finished = saver.join()
        assert_whole(saver)
        if finished and points > 10:
            break
        assert points < 200
    assert points > 10  # open, rename, remove of the file and of its pointer were all there


def weights(step: int) -> dict[str, object]:
    return {"model": {"w": torch.full((50, 50), float(step))}, "epoch": step}


def newest(folder: Path, tag: str = "last") -> Path:
    return max(folder.glob(f"{tag}-*.pt"))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.randn(3, 4), "n": torch.tensor(7), "h": torch.randn(2).bfloat16()},
        "optimizers": {"model": {"state": {0: {"step": 3.0}}, "param_groups": [{"lr": 0.1}]}},
        "rng": [torch.get_rng_state(), (1, 2, "x", None, True)],
    }
    store = Store(tmp_path / "new" / "checkpoints")
    assert store.load() is None
    path = store.save(state, step=12)
    loaded, manifest = Store(path.parent).load() or pytest.fail("nothing to load")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert torch.equal(loaded["model"]["h"], state["model"]["h"])  # type: ignore[index]
    assert loaded["optimizers"] == state["optimizers"]
    assert loaded["rng"][1] == (1, 2, "x", None, True)
    assert (manifest.step, manifest.tensors, manifest.file) == (12, 4, path.name)
    pointer = json.loads((path.parent / "last.json").read_text())
    assert (pointer["file"], pointer["step"]) == (path.name, 12)


def test_two_generations_are_kept_of_each_series(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (0, 10, 20, 30):
        store.save(weights(step), step=step)
        store.save(weights(step + 1), step=step + 1, tag="best")
        store.save(weights(step + 2), step=step + 2, tag="best_value")
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "best-0003-step21.pt",
        "best-0004-step31.pt",
        "best_value-0003-step22.pt",
        "best_value-0004-step32.pt",
        "last-0003-step20.pt",
        "last-0004-step30.pt",
    ]
    for tag, step in ((None, 30), ("best", 31), ("best_value", 32)):
        loaded = store.load(tag)
        assert loaded is not None and loaded[0]["epoch"] == step
    assert store.load("best_policy") is None


def test_fewer_than_two_generations_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        Checkpoint(keep=1)
    with pytest.raises(ValueError, match="fewer than two"):
        Store(tmp_path, keep=1)


def test_the_newest_save_counts_not_the_highest_step(tmp_path: Path) -> None:
    """After falling back from step 100 to 80 the run goes on to 90: 90 is the newest."""
    store = Store(tmp_path)
    for step in (80, 100, 90):
        store.save(weights(step), step=step)
    loaded = store.load()
    assert loaded is not None and loaded[1].step == 90


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((4,), 2.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)


def replace_by_text(path: Path) -> None:
    path.write_text("not a checkpoint")


@pytest.mark.parametrize("damage", [truncate, empty, flip, replace_by_text])
def test_a_damaged_newest_falls_back_one_generation_and_says_so(
    damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.save(weights(1), step=1)
    path = store.save(weights(2), step=2)
    damage(path)
    with caplog.at_level(logging.WARNING):
        loaded = Store(tmp_path).load()
    assert loaded is not None and loaded[1].step == 1
    assert torch.equal(loaded[0]["model"]["w"], torch.full((50, 50), 1.0))
    assert f"{path} is not whole" in caplog.text
    assert "went back to" in caplog.text and "step 1" in caplog.text


def test_a_damaged_generation_does_not_count_among_the_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        Store(tmp_path).save(weights(step), step=step)
    truncate(newest(tmp_path))
    store = Store(tmp_path)  # a new process: it takes nothing for verified
    store.save(weights(3), step=3)
    whole = [p.name for p in sorted(tmp_path.glob("*.pt")) if fault_of(p) is None]
    assert whole == ["last-0001-step1.pt", "last-0003-step3.pt"]
    store.save(weights(4), step=4)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_no_readable_generation_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2):
        truncate(store.save(weights(step), step=step))
    with pytest.raises(MissingInput, match=r"last-0002-step2.pt: .*\n.*last-0001-step1.pt: "):
        Store(tmp_path).load()


def test_no_flipped_bit_changes_what_is_loaded(tmp_path: Path) -> None:
    """Each flip is found, or it was in padding and the values are those that were saved."""
    store = Store(tmp_path)
    store.save(weights(1), step=1)
    path = store.save({"model": {"w": torch.arange(64.0)}, "epoch": 2}, step=2)
    good = path.read_bytes()
    draw = random.Random(0)
    places = [draw.randrange(8 * len(good)) for _ in range(300)]
    # And every bit of what the directory at the file's end says of the tensor's record.
    end = good.rindex(b"/data/0")
    places += range(8 * good.rindex(b"PK\x01\x02", 0, end), 8 * end)
    found = 0
    for place in places:
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        state, manifest = Store(tmp_path).load() or pytest.fail("nothing to load")
        if manifest.step == 1:
            found += 1
            assert torch.equal(state["model"]["w"], torch.full((50, 50), 1.0))
        else:
            assert torch.equal(state["model"]["w"], torch.arange(64.0))
            assert state["epoch"] == 2
    assert found > 50


def test_a_file_is_a_zip_as_others_read_them(tmp_path: Path) -> None:
    """CRCs are ours, not torch's: `unzip -t` and a plain `torch.load` find nothing to say."""
    state = {"w": torch.randn(400_000), "b": torch.randn(3), "none": torch.empty(0), "n": 7}
    path = Store(tmp_path).save(state, step=1)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        data = path.read_bytes()
        for entry in archive.infolist():
            header = struct.unpack("<4sHHHHHIIIHH", data[entry.header_offset :][:30])
            assert header[2] == entry.flag_bits
            end = entry.header_offset + 30 + header[-2] + header[-1] + entry.file_size
            if entry.file_size:
                described = b"PK\x07\x08" + struct.pack("<I", zlib.crc32(archive.read(entry)))
                assert data[end : end + 8] == described
    assert torch.serialization.get_crc32_options()
    assert torch.equal(torch.load(path, weights_only=True)["state"]["w"], state["w"])


def test_a_flipped_bit_of_a_large_tensor_is_found(tmp_path: Path) -> None:
    path = Store(tmp_path).save({"w": torch.arange(400_000.0)}, step=1)
    good = path.read_bytes()
    header = good.index(b"archive/data/0") - 30
    data = good.index(torch.arange(400_000.0).numpy().tobytes())
    entry = good.rindex(b"PK\x01\x02", 0, good.rindex(b"archive/data/0"))
    draw = random.Random(0)
    # Its bytes; in its header the lengths that lead to them; in the directory CRC, sizes and place.
    places = [8 * data + draw.randrange(8 * 1_600_000) for _ in range(40)]
    places += range(8 * (header + 26), 8 * (header + 30))
    places += [
        *range(8 * (entry + 16), 8 * (entry + 28)),
        *range(8 * (entry + 42), 8 * (entry + 46)),
    ]
    for place in places:
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        assert fault_of(path) is not None, place
    path.write_bytes(good)
    assert fault_of(path) is None


def test_what_does_not_read_back_is_never_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes everything and keeps something else."""
    store = Store(tmp_path)
    store.save(weights(1), step=1)
    before = sorted(os.listdir(tmp_path))
    honest = os.preadv

    def other(descriptor: int, buffers: "list[bytearray]", offset: int) -> int:
        count = honest(descriptor, buffers, offset)
        if count > 1000:
            buffers[0][999] ^= 1
        return count

    monkeypatch.setattr(os, "preadv", other)
    with pytest.raises(OSError, match="reads back as it was not written"):
        store.save({"w": torch.randn(100_000)}, step=2)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tag", [None, "best"])
def test_weights_that_are_not_finite_are_refused(
    value: float, tag: str | None, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.save(weights(1), step=1, tag=tag)
    before = sorted(os.listdir(tmp_path))
    state = weights(2)
    state["model"]["w"][3, 3] = value  # type: ignore[index]
    with pytest.raises(Diverged, match=r"model\.w has [01] NaN and [01] infinite of 2500") as info:
        store.save(state, step=2, tag=tag)
    assert info.value.code == 65
    assert sorted(os.listdir(tmp_path)) == before
    loaded = store.load(tag)
    assert loaded is not None and loaded[1].step == 1


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn]
)
def test_a_nan_is_seen_in_every_precision(dtype: "torch.dtype", tmp_path: Path) -> None:
    good = torch.ones(5).to(dtype)
    bad = torch.tensor([1.0, 1.0, float("nan")]).to(dtype)
    Store(tmp_path).save({"a": good, "b": good}, step=0)
    with pytest.raises(Diverged, match="b has 1 NaN and 0 infinite of 3"):
        Store(tmp_path).save({"a": good, "b": bad}, step=1)


def test_large_values_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    Store(tmp_path).save({"w": torch.full((100,), 3e38), "h": torch.full((9,), 6e4).half()}, step=0)


def test_an_attention_mask_is_not_a_divergence(tmp_path: Path) -> None:
    mask = torch.full((4, 4), -torch.inf).triu(1)
    Store(tmp_path).save({"model": {"mask": mask}}, step=0)
    with pytest.raises(Diverged):
        Store(tmp_path).save({"model": {"bias": torch.full((4,), -torch.inf)}}, step=0)


@pytest.mark.parametrize("value", [object(), lambda: 0, Path("x")])
def test_what_could_not_be_read_back_is_refused_at_once(value: object, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(weights(1), step=1)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(TypeError, match="cannot give back"):
        store.save(weights(2) | {"extra": value}, step=2)
    assert sorted(os.listdir(tmp_path)) == before


def test_only_temp_files_older_than_the_run_are_cleared(tmp_path: Path) -> None:
    old, own = tmp_path / ".last-0001-step5.pt.77.tmp", tmp_path / "notes.tmp"
    old.write_bytes(b"half")
    own.write_bytes(b"mine")
    os.utime(old, (1, 1))
    store = Store(tmp_path)
    other = tmp_path / ".best-0001-step5.pt.78.tmp"
    other.write_bytes(b"being written")
    os.utime(other, (time.time() + 60,) * 2)
    store.save(weights(1), step=1)
    assert not old.exists()
    assert own.exists() and other.exists()


FULL = r"""
import resource, sys
import torch
from expc_runtime.checkpoint import Store
from expc_runtime.errors import StageError

folder, limit, tensors, values = sys.argv[1], *map(int, sys.argv[2:])
store = Store(folder)
for step in (1, 2):
    store.save({"w": torch.full((1000,), float(step))}, step=step)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store.save({"w": [torch.randn(values) for _ in range(tensors)]}, step=3)
except StageError as error:
    print(error)
    raise SystemExit(error.code)
"""


def run_full(
    folder: Path, *prefix: str, limit: int = 0, tensors: int = 1, values: int = 500_000
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", FULL, *map(str, (folder, limit, tensors, values))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )


def assert_intact(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["last-0001-step1.pt", "last-0002-step2.pt", "last.json"]
    loaded = Store(folder).load()
    assert loaded is not None
    assert torch.equal(loaded[0]["w"], torch.full((1000,), 2.0))


def test_a_file_size_limit_ends_in_disk_full_and_loses_nothing(tmp_path: Path) -> None:
    done = run_full(tmp_path, limit=1_000_000)
    assert done.returncode == 74, done.stderr
    assert "File too large; the checkpoints before this one are intact" in done.stdout
    assert_intact(tmp_path)


# Many small tensors pass for 40 kB until they are written, each with a record of its own.
@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [(10_000, 1, "No space left on device"), (1, 500_000, "1.9 MiB needed")],
)
def test_a_full_disk_ends_in_disk_full_and_loses_nothing(
    tensors: int, values: int, message: str, tmp_path: Path
) -> None:
    disk, seen = tmp_path / "disk", tmp_path / "seen"
    disk.mkdir()
    seen.mkdir()
    script = (
        'mount -t tmpfs -o size=1M none "$1" && "${@:3}"; code=$?; cp -r "$1/." "$2"; exit $code'
    )
    namespace = ["unshare", "-Urm", "bash", "-c", script, "bash", str(disk), str(seen)]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    done = run_full(disk, *namespace, tensors=tensors, values=values)
    assert done.returncode == 74, done.stderr
    assert message in done.stdout
    assert_intact(seen)


def test_the_codes_that_mean_a_full_disk() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert isinstance(known(OSError(code, os.strerror(code), "x.pt")), DiskFull)
    assert known(OSError(errno.EACCES, "no", "x.pt")) is None
    assert [failure_of(c) for c in (74, 65, 3, 137, -9, 1)] == [
        "disk_full",
        "diverged",
        "gate",
        "killed",
        "killed",
        "crash",
    ]


def test_names_are_free_of_the_compiler_wrapper(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    net = Net()
    net.backbone = torch.compile(net.backbone)
    assert any("_orig_mod" in key for key in net.state_dict())
    Store(tmp_path).save({"model": net.state_dict()}, step=0)
    loaded = Store(tmp_path).load()
    assert loaded is not None
    plain = Net()
    assert list(loaded[0]["model"]) == list(plain.state_dict())
    assert loaded[0]["model"]._metadata == plain.state_dict()._metadata
    plain.load_state_dict(loaded[0]["model"])
    wrapped = Net()
    wrapped.backbone = torch.compile(wrapped.backbone)
    load_weights(wrapped, loaded[0]["model"])
    for one, two in zip(net.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(plain, {})
