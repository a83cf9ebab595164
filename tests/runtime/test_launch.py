"""The launcher stands where ``python`` would: same output, same codes, nobody left behind."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import expc_runtime
from expc_runtime import launch
from expc_runtime.state import alive, process_start

LAUNCH = Path(expc_runtime.__file__).with_name("launch.py")
ENV = os.environ | {"PYTHONPATH": str(LAUNCH.parent.parent)}

Call = Callable[..., "subprocess.Popen[str]"]


def wait_for(there: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def serve(*words: object) -> list[str]:
    return [sys.executable, "-m", "expc_runtime.launch", "serve", *map(str, words)]


class Server:
    """A launcher with ``modules`` loaded, on a socket of its own."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.socket = folder / "launch"
        words = serve(self.socket, os.getpid(), *modules)
        self.process = subprocess.Popen(words, env=ENV, start_new_session=True)

    def command(self, *argv: object) -> list[str]:
        head = [sys.executable, "-I", "-S", str(LAUNCH), "run", str(self.socket), "--"]
        return [*head, *map(str, argv)]

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since the path of a socket holds 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="expc."))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder, "json")
    yield server
    server.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "stage.py"
        path.write_text(text)
        return path

    return write


WORLD = """
import json, os, sys
import beside
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "name": __name__,
    "file": __file__, "beside": beside.HERE, "stdin": sys.stdin.read(),
    "fds": sorted(map(int, os.listdir("/proc/self/fd")))[:4],
}, sort_keys=True))
print("to stderr", file=sys.stderr)
"""


def test_a_run_sees_what_plain_python_would_give_it(
    server: Server, script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script(WORLD)
    (tmp_path / "beside.py").write_text("HERE = 1")
    argv = ["stage.py", "--text", "a 'b' \"c\"\n$HOME ü", ""]
    env = ENV | {"ONLY": "this run's\nown", "EMPTY": ""}
    commands = [[sys.executable, *argv], server.command(*argv)]
    plain, forked = (
        subprocess.run(
            command,
            cwd=path.parent,
            env=env,
            input="said",
            capture_output=True,
            text=True,
            check=True,
        )
        for command in commands
    )
    assert forked.stdout == plain.stdout
    assert forked.stderr == plain.stderr == "to stderr\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "raise SystemExit(7)",
        "raise SystemExit",
        "raise SystemExit('said so')",
        "raise SystemExit(256 + 9)",
        "import sys\nprint('first')\nsys.exit(True)",
        "def deep():\n    raise ValueError('no such column')\nprint('out')\ndeep()",
        "this is no python",
        "import os\nos._exit(70)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
        "import os\nos.abort()",
        "import atexit\natexit.register(print, 'at the end')",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.2), print('t'))).start()",
        "raise SystemExit(69)",
        "raise KeyboardInterrupt",
        "import os, sys\nprint(sys.modules['__main__'].__dict__ is globals(), __spec__)",
    ],
)
def test_codes_signals_and_output_pass_through(
    server: Server, script: Callable[[str], Path], text: str
) -> None:
    path = script(text)
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    forked = subprocess.run(server.command(path), capture_output=True, text=True, check=False)
    assert forked.returncode == plain.returncode
    assert forked.stdout == plain.stdout
    assert forked.stderr == plain.stderr


def test_order_of_output_in_one_file_is_kept(
    server: Server, script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script("import sys\nprint('out')\nraise ValueError('err')")
    with (tmp_path / "log").open("w") as log:
        code = subprocess.call(server.command(path), stdout=log, stderr=subprocess.STDOUT)
    lines = (tmp_path / "log").read_text().splitlines()
    assert code == 1
    assert (lines[0], lines[-1]) == ("out", "ValueError: err")


def test_runs_do_not_see_each_other(server: Server, script: Callable[[str], Path]) -> None:
    path = script("import json, sys\nprint(hasattr(json, 'mark'))\njson.mark = sys.argv[1:]")
    runs = [subprocess.check_output(server.command(path, n), text=True) for n in range(3)]
    assert runs == ["False\n"] * 3


WAIT = """
import os, signal, subprocess, sys, time
worker = subprocess.Popen(["sleep", "600"])
if sys.argv[1] == "save":
    def save(number, _):
        worker.kill()
        worker.wait()
        os.write(1, f"saved on {signal.Signals(number).name}\\n".encode())
        os._exit(75)
    for name in ("SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), save)
print(os.getpid(), worker.pid, flush=True)
time.sleep(600)
"""


def waiting(
    server: Server, path: Path, how: str
) -> "tuple[subprocess.Popen[str], list[tuple[int, int]]]":
    """A caller whose run sleeps; the pids of the run and of its worker, each with its start."""
    caller = subprocess.Popen(server.command(path, how), stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    pids = map(int, caller.stdout.readline().split())
    return caller, [(pid, process_start(pid)) for pid in pids]


def gone(processes: list[tuple[int, int]]) -> bool:
    return not any(alive(pid, start) for pid, start in processes)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_run_which_may_answer(
    server: Server, script: Callable[[str], Path], sign: signal.Signals
) -> None:
    caller, processes = waiting(server, script(WAIT), "save")
    caller.send_signal(sign)
    out, _ = caller.communicate(timeout=20)
    assert (caller.returncode, out) == (75, f"saved on {sign.name}\n")
    assert gone(processes)


def test_signal_that_ends_the_run_ends_the_caller(
    server: Server, script: Callable[[str], Path]
) -> None:
    caller, processes = waiting(server, script(WAIT), "die")
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(timeout=20) == -signal.SIGTERM
    wait_for(lambda: gone(processes), "end of the worker, killed with its leader's group")


def test_killed_caller_takes_its_run_with_it_and_no_other(
    server: Server, script: Callable[[str], Path]
) -> None:
    path = script(WAIT)
    victim, doomed = waiting(server, path, "save")
    other, kept = waiting(server, path, "save")
    victim.kill()
    victim.wait()
    wait_for(lambda: gone(doomed), "end of the run and its worker")
    assert all(alive(pid, start) for pid, start in kept)
    wait_for(lambda: server.children() == [kept[0][0]], "reaped run; no zombie")
    other.terminate()
    assert other.wait(timeout=20) == 75
    wait_for(lambda: server.children() == [], "reaped run; no zombie")


def test_a_caller_killed_while_the_server_loads_has_no_run(
    server: Server, script: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its request lies in the socket all the same; the run would be nobody's, and never end."""
    wait_for(server.socket.exists, "server")
    server.process.send_signal(signal.SIGSTOP)  # as it is while it imports torch
    with launch._connect(str(server.socket)) as caller:
        path = script("from pathlib import Path\nPath(__file__).with_name('orphan').touch()")
        launch._ask(caller, [str(path)])
    server.process.send_signal(signal.SIGCONT)
    (tmp_path / "next.py").touch()
    assert subprocess.call(server.command(tmp_path / "next.py")) == 0
    assert not (tmp_path / "orphan").exists()
    assert server.children() == []


def test_a_signal_that_came_while_the_server_loads_reaches_the_run(
    server: Server, script: Callable[[str], Path]
) -> None:
    wait_for(server.socket.exists, "server")
    server.process.send_signal(signal.SIGSTOP)
    caller = subprocess.Popen(server.command(script(WAIT), "save"), stdout=subprocess.DEVNULL)
    blocked = f"SigBlk:\t{sum(1 << (n - 1) for n in launch._forwarded()):016x}"
    wait_for(lambda: blocked in Path(f"/proc/{caller.pid}/status").read_text(), "mask")
    caller.terminate()
    server.process.send_signal(signal.SIGCONT)
    assert caller.wait(timeout=20) in (75, -signal.SIGTERM)
    wait_for(lambda: server.children() == [], "end of the run")


def test_killed_server_ends_its_runs_and_callers_fall_back(
    server: Server, script: Callable[[str], Path]
) -> None:
    caller, processes = waiting(server, script(WAIT), "save")
    server.process.kill()
    server.process.wait()
    out, _ = caller.communicate(timeout=40)
    assert (caller.returncode, out) == (69, "saved on SIGTERM\n")
    wait_for(lambda: gone(processes), "end of the run")


def test_stopped_server_leaves_nothing(server: Server, script: Callable[[str], Path]) -> None:
    caller, processes = waiting(server, script(WAIT), "save")
    server.close()
    assert caller.wait(timeout=40) == 69
    wait_for(lambda: gone(processes), "end of the run")
    assert not server.socket.exists()


PARENT = """
import os, subprocess, sys, time
words = [word.replace("PARENT", str(os.getpid())) for word in sys.argv[1:]]
print(subprocess.Popen(words, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("loaded", [True, False], ids=["serving", "while loading"])
def test_server_ends_with_its_parent(
    folder: Path, script: Callable[[str], Path], loaded: bool
) -> None:
    marks = script(
        "import os, time\nopen('loading', 'w').close()\n" + "time.sleep(1)\n" * (not loaded)
    )
    env = ENV | {"PYTHONPATH": os.pathsep.join([ENV["PYTHONPATH"], str(marks.parent)])}
    words = [sys.executable, "-c", PARENT, *serve(folder / "launch", "PARENT", marks.stem)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env, cwd=folder)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    start = process_start(pid)
    wait_for((folder / "loading").exists, "server that loads")
    if loaded:
        forked = [sys.executable, "-I", "-S", str(LAUNCH), "run", str(folder / "launch"), "--"]
        subprocess.check_call([*forked, str(script("pass"))])
    parent.kill()
    parent.communicate(timeout=20)
    wait_for(lambda: not alive(pid, start), "end of the server")
    assert not (folder / "launch").exists()


def test_no_server_is_told_at_once(folder: Path, script: Callable[[str], Path]) -> None:
    command = [sys.executable, "-I", "-S", str(LAUNCH), "run", str(folder / "gone/launch"), "--"]
    assert subprocess.call([*command, str(script("print('never')"))]) == 69


def test_callers_that_say_nothing_harm_no_one(
    server: Server, script: Callable[[str], Path]
) -> None:
    import socket

    wait_for(server.socket.exists, "server")
    for data in (b"", b"\x01", b"\xff\xff\xff\x7f"):
        with socket.socket(socket.AF_UNIX) as mute:
            mute.connect(str(server.socket))
            mute.sendall(data)
    assert subprocess.call(server.command(script("raise SystemExit(5)"))) == 5


TORCH = """
import pytorch_lightning, torch
model = torch.nn.Linear(64, 64)
optim = torch.optim.AdamW(model.parameters(), lr=1e-3)
torch.set_num_threads(2)  # forked from a process with threads of its own, this would hang
model(torch.ones(4096, 64)).sum().backward()
optim.step()
torch.utils.data.DataLoader
print(round(float(model.weight.sum()), 6), torch.get_num_threads())
"""


def seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def test_forked_start_costs_a_fraction_of_a_cold_one(
    folder: Path, script: Callable[[str], Path]
) -> None:
    pytest.importorskip("torch")
    path = script("import torch\ntorch.manual_seed(0)\n" + TORCH)
    before = seconds(resource.getrusage(resource.RUSAGE_CHILDREN))
    cold_output = subprocess.check_output([sys.executable, path], text=True)
    cold = seconds(resource.getrusage(resource.RUSAGE_CHILDREN)) - before

    server = Server(folder)
    try:
        subprocess.check_call(server.command(path))  # waits for the server to have loaded
        tasks = os.listdir(f"/proc/{server.process.pid}/task")
        assert len(tasks) == 1  # a fork keeps one thread; the others' locks would stay shut
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        used = sum(map(int, fields[11:15]))
        before = seconds(resource.getrusage(resource.RUSAGE_CHILDREN))
        for _ in range(4):
            assert subprocess.check_output(server.command(path), text=True) == cold_output
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = (sum(map(int, fields[11:15])) - used) / os.sysconf("SC_CLK_TCK")
        forked = (ticks + seconds(resource.getrusage(resource.RUSAGE_CHILDREN)) - before) / 4
    finally:
        server.close()
    print(f"CPU seconds per start: cold {cold:.2f}, forked {forked:.3f}")
    assert forked < cold / 5  # a ratio of CPU times, not of clocks; measured: 1/40


CUDA = """
import torch
calls = []
def seen(name, value):
    return lambda *_, **__: calls.append(name) or value
# A build with CUDA and two GPUs, as far as anyone can ask.
torch.cuda._is_compiled = lambda: True
torch._C._cuda_getCurrentRawStream = seen("stream", 0)
torch._C._cuda_getDeviceCount = seen("device count", 2)
torch._C._cuda_init = seen("init", None)
torch.cuda._lazy_init = seen("lazy init", None)
from expc_runtime import launch
launch._preload(launch._PRELOAD)
import sys
assert "expc_runtime.fit" in sys.modules
print(calls, torch.cuda.is_initialized())
torch.cuda.device_count()
print(calls)
"""


def test_what_is_loaded_before_the_fork_asks_nothing_of_cuda() -> None:
    """A process forked from one that has talked to the driver can't use a GPU any more."""
    pytest.importorskip("pytorch_lightning")
    command = [sys.executable, "-W", "ignore", "-c", CUDA]
    said = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[0] == "[] False", said.stderr
    assert "device count" in said.stdout.splitlines()[1]  # who asks is seen


def test_each_run_sees_the_gpus_that_its_caller_was_given(
    server: Server, script: Callable[[str], Path]
) -> None:
    path = script("import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])")
    for gpus in ("1", "0,3"):
        env = ENV | {"CUDA_VISIBLE_DEVICES": gpus}
        assert subprocess.check_output(server.command(path), text=True, env=env) == f"{gpus}\n"
