"""Start many runs cheaply: fork each one from a server that has torch and Lightning loaded.

``python -m expc_runtime.launch serve SOCKET PARENT`` is the server, for as long as process PARENT
lives; ``python launch.py run SOCKET -- module.py flags`` stands where ``python module.py flags``
would. The run has the caller's standard
descriptors, folder, environment and arguments, its own process group, and its exit code or signal
becomes the caller's. TERM, INT, HUP, QUIT, USR1 and USR2 are passed on to it.

- the caller dies: its run's process group is killed;
- the server dies or cannot be reached: the run is ended and the caller exits 69, upon which a
  sweep runs the same command with plain python;
- what differs from plain python: ``PYTHON*`` variables and ``LD_*`` are the server's.

The caller's half must cost next to nothing, so this file imports the standard library sparingly at
the top and the server's needs inside its functions.
"""

import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

__all__ = ["main"]

UNAVAILABLE = 69  # no server, or it died
_CONNECT = 10.0  # seconds that a server may take to open its socket
_SAVE = 30.0  # seconds that a run has to save and end after its server died
_FORWARD = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_NUMBER = struct.Struct("<i")
_PRELOAD = (
    "torch",
    "torch.optim",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "pytorch_lightning",
    "torchmetrics",
    "numpy",
    "rich.console",
    "expc_runtime.fit",
    "expc_runtime.data.feed",
    "expc_runtime.replay",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    match words:
        case ["serve", path, parent, *modules] if parent.isdigit():
            return _serve(path, int(parent), tuple(modules) or _PRELOAD)
        case ["run", path, "--", _, *_]:
            return _run(path, words[3:])
    usage = "launch serve SOCKET PARENT [MODULE...] | launch run SOCKET -- FILE FLAGS..."
    print(f"usage: {usage}", file=sys.stderr)
    return 2


# The caller's half.


def _run(path: str, argv: list[str]) -> int:
    """Have ``argv`` run by the server at ``path``; returns its exit code, or dies by its signal."""
    signals = _forwarded()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is someone to pass them on to
    try:
        server = _connect(path)
        _ask(server, argv)
        pid = _answer(server)
    except OSError:
        return UNAVAILABLE
    for number in signals:
        signal.signal(number, lambda received, _: _signal(pid, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        code = _answer(server)
    except OSError:
        _end(pid)
        return UNAVAILABLE
    if code < 0:
        _die(-code)
    return code


def _forwarded() -> list[signal.Signals]:
    return [getattr(signal, name) for name in _FORWARD]


def _connect(path: str) -> socket.socket:
    deadline = time.monotonic() + _CONNECT
    while True:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(path)
            return server
        except (FileNotFoundError, ConnectionRefusedError):
            server.close()
            if time.monotonic() > deadline or not os.path.isdir(os.path.dirname(path)):
                raise
            time.sleep(0.02)


def _ask(server: socket.socket, argv: list[str]) -> None:
    env = [name + b"=" + value for name, value in os.environb.items()]
    words = [os.fsencode(os.getcwd()), b"%d" % len(argv), *map(os.fsencode, argv), *env]
    payload = b"\0".join(words)
    socket.send_fds(server, [_NUMBER.pack(len(payload))], [0, 1, 2])
    server.sendall(payload)


def _require_alive(caller: socket.socket) -> None:
    """Raise ConnectionError if ``caller`` was killed while it waited for us to load."""
    patience = caller.gettimeout()
    caller.settimeout(0.0)
    with suppress(BlockingIOError):
        if not caller.recv(1, socket.MSG_PEEK):
            raise ConnectionError
    caller.settimeout(patience)


def _answer(server: socket.socket) -> int:
    number: int = _NUMBER.unpack(_exactly(server, _NUMBER.size))[0]
    return number


def _exactly(connection: socket.socket, size: int) -> bytes:
    """``size`` bytes; ConnectionError if the other side ends before."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def _kill(group: int, number: int) -> None:
    with suppress(ProcessLookupError):  # just ended; its code is on the way
        os.killpg(group, number)


def _signal(pid: int, number: int) -> None:
    """As `_kill`, of a run that is not reaped and may not lead its group yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _end(group: int) -> None:
    """End a run whose server is gone: nobody could tell its exit code any more."""
    _kill(group, signal.SIGTERM)
    deadline = time.monotonic() + _SAVE
    while _present(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill(group, signal.SIGKILL)


def _present(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True


def _die(number: int) -> None:
    """End as the run ended, without a second core file."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


# The server's half.


class Server:
    """Forks a process for each caller and tells it how that ended. One thread, no blocking calls."""

    def __init__(self, listener: socket.socket) -> None:
        import selectors

        self._listener = listener
        self._callers: dict[int, socket.socket] = {}  # by the pid that runs for them
        self._selector = selectors.DefaultSelector()
        self._wake, waker = os.pipe()
        os.set_blocking(waker, False)
        os.set_blocking(self._wake, False)
        self._own = (self._wake, waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._read = selectors.EVENT_READ

    def serve(self, parent: int) -> Callable[[], int] | None:
        """Serve while ``parent`` is our parent process; in a forked process, returns what to run.

        The parent's pid is told, not asked for: it may have died while we were loading.
        """
        while self._callers or os.getppid() == parent:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    if (program := self._accept()) is not None:
                        return program
                elif key.fileobj == self._wake:
                    os.read(self._wake, 4096)
                    self._reap()
                else:
                    self._hung_up(key.data)
        return None

    def stop(self) -> None:
        """Kill what runs."""
        for pid in self._callers:
            _signal(pid, signal.SIGKILL)

    def _accept(self) -> Callable[[], int] | None:
        caller, _ = self._listener.accept()
        caller.settimeout(5.0)
        fds: list[int] = []
        try:
            head, fds, _, _ = socket.recv_fds(caller, _NUMBER.size, 3)
            words = _exactly(caller, _NUMBER.unpack(head)[0]).split(b"\0")
            _require_alive(caller)
            held = signal.pthread_sigmask(signal.SIG_BLOCK, _forwarded())
            try:  # a signal that the caller passes on is not for our handlers
                pid = os.fork()
                if pid == 0:
                    return self._become(caller, fds, words)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        except (OSError, struct.error):
            caller.close()
            return None
        finally:
            for fd in fds:
                os.close(fd)
        self._callers[pid] = caller
        self._selector.register(caller, self._read, pid)
        with suppress(OSError):  # it is dead: the selector says so next, and its run ends
            caller.sendall(_NUMBER.pack(pid))
        return None

    def _become(
        self, caller: socket.socket, fds: list[int], words: list[bytes]
    ) -> Callable[[], int]:
        """In the forked process: let go of the server's things, take the caller's."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for connection in (self._listener, caller, *self._callers.values()):
            connection.close()
        for fd in self._own:
            os.close(fd)
        for standard, fd in enumerate(fds):
            os.dup2(fd, standard)
        count = int(words[1])
        argv = [os.fsdecode(word) for word in words[2 : 2 + count]]
        env = dict(word.split(b"=", 1) for word in words[2 + count :])
        return lambda: _execute(argv, os.fsdecode(words[0]), env)

    def _reap(self) -> None:
        """Tell the callers whose runs have ended; WNOHANG on our own pids only."""
        for pid in list(self._callers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            _kill(pid, signal.SIGKILL)  # what it left behind
            caller = self._callers.pop(pid)
            if caller in self._selector.get_map():
                self._selector.unregister(caller)
            with suppress(OSError):  # the caller was killed at the same moment
                caller.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
            caller.close()

    def _hung_up(self, pid: int) -> None:
        """The caller of ``pid`` is dead: so is its run. Reaped like any other."""
        self._selector.unregister(self._callers[pid])
        _signal(pid, signal.SIGKILL)


def _serve(path: str, parent: int, modules: tuple[str, ...]) -> int:
    """Load ``modules``, then fork a run for each caller until process ``parent`` is gone."""
    import gc

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)  # at once, so that callers wait here while the modules load
    listener.listen(64)
    _preload(modules)
    gc.collect()
    gc.freeze()  # a collection in a run would copy every page of the loaded modules
    server = Server(listener)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    owner = os.getpid()
    try:
        program = server.serve(parent)
    finally:
        if os.getpid() == owner:
            server.stop()
            os.unlink(path)
    if program is not None:
        _leave(program())
    return 0


def _preload(modules: tuple[str, ...]) -> None:
    """Import what is installed; a run that misses the rest says so itself."""
    import importlib

    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"launch: {name}: {error}", file=sys.stderr)


def _execute(argv: list[str], folder: str, env: dict[bytes, bytes]) -> int:
    """Run the script ``argv[0]`` as ``python`` would, in this process; returns its exit code."""
    import random

    os.environb.clear()
    os.environb.update(env)
    os.chdir(folder)
    _reopen(unbuffered=bool(os.environ.get("PYTHONUNBUFFERED")))
    script = os.path.abspath(argv[0])
    sys.path[0] = os.path.dirname(script)
    sys.argv = argv
    random.seed()
    _threads(os.environ.get("OMP_NUM_THREADS", ""))
    try:
        _main(script)
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt as error:
        _report(error, script)
        _die(signal.SIGINT)
    except BaseException as error:  # noqa: BLE001 -- as the interpreter would
        _report(error, script)
        return 1
    return 0


def _main(script: str) -> None:
    """Run ``script`` as ``__main__``, which stays in place for what runs at exit (runpy's does not)."""
    import types

    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"{sys.executable}: can't open file {script!r}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    module = types.ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    exec(compile(source, script, "exec"), module.__dict__)  # noqa: S102 -- it is `python script`


def _reopen(*, unbuffered: bool) -> None:
    """Text streams on the caller's descriptors, buffered as a fresh interpreter would."""
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=unbuffered)
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    sys.stderr.reconfigure(line_buffering=True)


def _threads(count: str) -> None:
    """OpenMP read the variable when torch was loaded; say it again."""
    if count.isdigit() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(count))


def _leave(code: int) -> NoReturn:
    """End as `multiprocessing` ends its forks: to tear down every module costs 0.2 CPU seconds."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _report(error: BaseException, script: str) -> None:
    """The traceback from the script's first line on, without the frames of the launcher."""
    sys.stdout.flush()
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != script:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


if __name__ == "__main__":
    raise SystemExit(main())
