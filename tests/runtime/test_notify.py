"""Words to people, posted to a real server on this machine that answers as each test wants."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from expc_runtime.notify import EVENTS, Notifier

VARIABLE = "EXPC_TEST_WEBHOOK"
SECRET = "T0K3N-of-the-hook"


@dataclass
class Answer:
    """What the server says to one post."""

    code: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None
    garbage: bool = False


class Hook:
    """A server that keeps what it was sent; answers in turn, the last of them for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [Answer()]
        self.posts: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = hook.answers[0] if len(hook.answers) == 1 else hook.answers.pop(0)
                hook.posts.append((self.path, dict(self.headers), json.loads(body)))
                if answer.wait is not None:
                    answer.wait.wait(60)
                if answer.garbage:
                    self.wfile.write(b"what?\r\n\r\n")
                    return
                self.send_response(answer.code)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hooks/{SECRET}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.posts]


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    hook = Hook()
    monkeypatch.setenv(VARIABLE, hook.address)
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


@pytest.fixture
def said() -> list[str]:
    """The sweep's log."""
    return []


@pytest.fixture
def notifier(said: list[str]) -> Callable[..., Notifier]:
    def make(form: str = "plain", on: tuple[str, ...] = EVENTS) -> Notifier:
        return Notifier(form, VARIABLE, on, say=said.append)

    return make


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries pass in no time."""
    monkeypatch.setattr(Notifier, "_rest", lambda self, seconds: False)


# ------------------------------------------------------------------------------------------------ forms


def test_the_plain_form_holds_the_text_the_event_and_the_facts(hook: Hook, notifier, said) -> None:
    one = notifier()
    one.send(
        "failed", "lr=1/read failed", experiment="digits", run="lr=1", code=65, loss=float("nan")
    )
    one.close()
    assert hook.bodies == [
        {"text": "lr=1/read failed", "event": "failed", "experiment": "digits", "run": "lr=1",
         "code": 65, "loss": None}
    ]  # fmt: skip
    path, headers, _ = hook.posts[0]
    assert path == f"/hooks/{SECRET}"
    assert headers["Content-Type"] == "application/json"
    assert not headers["User-Agent"].startswith("Python-urllib")  # which Discord turns away
    assert said == []


def test_discord_takes_content_and_rings_nobody(hook: Hook, notifier) -> None:
    one = notifier("discord")
    one.send("end", "@everyone", experiment="digits")
    one.close()
    assert hook.bodies == [{"content": "@everyone", "allowed_mentions": {"parse": []}}]


def test_slack_takes_escaped_text(hook: Hook, notifier) -> None:
    one = notifier("slack")
    one.send("end", "<!channel> a & b", experiment="digits")
    one.close()
    assert hook.bodies == [{"text": "&lt;!channel&gt; a &amp; b"}]


@pytest.mark.parametrize("letter", ["x", "é", "🦜"])
def test_a_message_to_discord_has_at_most_two_thousand_characters(
    hook: Hook, notifier, letter: str
) -> None:
    one = notifier("discord")
    one.send("end", letter * 5000)
    one.close()
    content = hook.bodies[0]["content"]
    assert len(content.encode("utf-16-le")) // 2 in (1999, 2000)
    assert content == letter * (len(content) - 3) + "..."


def test_only_the_events_asked_for_are_posted_in_their_order(hook: Hook, notifier) -> None:
    one = notifier(on=("failed", "end"))
    for event in ("done", "failed", "done", "end"):
        one.send(event, event)
    until(lambda: len(hook.posts) == 2)
    one.close()
    assert [body["event"] for body in hook.bodies] == ["failed", "end"]


def test_text_that_is_no_unicode_is_posted_all_the_same(hook: Hook, notifier) -> None:
    for form in ("plain", "discord", "slack"):
        one = notifier(form)
        one.send("end", "file \udcff", path=Path("runs"), run="\udcff")
        one.close()
    assert len(hook.posts) == 3


# ------------------------------------------------------------------------------------------------ trouble


def test_without_an_address_it_says_so_once_and_goes_on(monkeypatch, notifier, said) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    one = notifier()
    for _ in range(3):
        one.send("failed", "x")
    one.close()
    assert said == [f"no notifications: the environment variable {VARIABLE} is not set"]


@pytest.mark.parametrize(
    "address",
    [
        f"http://example.org/{SECRET}",
        f"ftp://localhost/{SECRET}",
        f"file:///{SECRET}",
        f"https:///{SECRET}",
        f"https://user:{SECRET}@example.org/",
        f"https://example.org:port/{SECRET}",
        f"https://[::1/{SECRET}",
        f"https://example.org/{SECRET}\r\nHost: other",
        f"https://example.org/a b/{SECRET}",
        SECRET,
    ],
)
def test_a_bad_address_is_refused_in_words_that_do_not_hold_it(
    monkeypatch, notifier, said, address: str
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    one = notifier()
    one.send("end", "x")
    one.close()
    assert len(said) == 1
    assert VARIABLE in said[0] and SECRET not in said[0]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_twice_again(hook: Hook, notifier, said, at_once, code: int) -> None:
    hook.answers = [Answer(code), Answer(code), Answer(200)]
    one = notifier()
    one.send("end", "x")
    until(lambda: len(hook.posts) == 3)
    one.close()
    assert len(hook.posts) == 3 and said == []


def test_a_server_that_stays_broken_is_told_of_once(hook: Hook, notifier, said, at_once) -> None:
    hook.answers = [Answer(500)]
    one = notifier()
    for _ in range(2):
        one.send("failed", "x")
    until(lambda: len(hook.posts) == 6)
    one.close()
    assert len(said) == 1
    assert "500" in said[0] and SECRET not in said[0]


def test_it_waits_as_long_as_the_server_asks(hook: Hook, notifier, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Notifier, "_rest", lambda self, s: bool(waited.append(s)))
    hook.answers = [
        Answer(429, {"Retry-After": "7.5"}),
        Answer(429, {"Retry-After": "9000"}),
        Answer(),
    ]
    one = notifier()
    one.send("end", "x")
    until(lambda: len(hook.posts) == 3)
    one.close()
    assert waited == [7.5, 60.0]  # nobody makes us wait for ever


@pytest.mark.parametrize("code", [400, 401, 404])
def test_what_will_not_get_better_is_not_tried_again(hook: Hook, notifier, said, code) -> None:
    hook.answers = [Answer(code)]
    one = notifier()
    one.send("end", "x")
    one.close()
    assert len(hook.posts) == 1
    assert str(code) in said[0]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirects_are_not_followed(hook: Hook, notifier, said, code: int) -> None:
    other = Hook()
    hook.answers = [Answer(code, {"Location": other.address})]
    one = notifier()
    one.send("end", "x")
    one.close()
    other.server.shutdown()
    other.server.server_close()
    assert other.posts == [] and len(hook.posts) == 1
    assert "moved" in said[0] and SECRET not in said[0]


def test_an_answer_that_is_no_http_is_told(hook: Hook, notifier, said) -> None:
    hook.answers = [Answer(garbage=True)]
    one = notifier()
    one.send("end", "x")
    one.close()
    assert len(said) == 1 and SECRET not in said[0]


def test_a_refused_connection_is_tried_again_and_told(hook: Hook, notifier, said, at_once) -> None:
    hook.server.shutdown()
    hook.server.server_close()
    one = notifier()
    one.send("end", "x")
    one.close()
    assert said == [
        f"a notification was not posted ({VARIABLE}): no connection: Connection refused"
    ]


def test_a_slow_server_holds_up_neither_the_sweep_nor_its_end(hook: Hook, notifier, said) -> None:
    never = threading.Event()
    hook.answers = [Answer(wait=never)]
    one = notifier()
    for number in range(300):
        one.send("failed", f"run {number}")  # would take for ever if it waited for an answer
    one.close(seconds=0.2)
    assert len(hook.posts) == 1
    assert any("could not be posted in time" in line for line in said)
    never.set()


def test_at_the_end_the_newest_word_comes_first(hook: Hook, notifier) -> None:
    first = threading.Event()
    hook.answers = [Answer(wait=first), Answer()]
    one = notifier()
    one.send("failed", "first")
    until(lambda: len(hook.posts) == 1)
    for text in ("second", "third"):
        one.send("failed", text)
    one.send("end", "the sweep has ended")
    closing = threading.Thread(target=one.close)
    closing.start()
    until(one._closing.is_set)
    first.set()
    closing.join(60)
    assert [body["text"] for body in hook.bodies] == [
        "first", "the sweep has ended", "third", "second",
    ]  # fmt: skip


def test_a_log_that_cannot_be_written_harms_nothing(hook: Hook) -> None:
    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    hook.answers = [Answer(404)]
    one = Notifier("plain", VARIABLE, EVENTS, say=full)
    one.send("end", "x")
    one.close()
    assert len(hook.posts) == 1


def test_a_process_that_ends_without_close_is_not_held_up(hook: Hook) -> None:
    """The thread is a daemon: a crash of the sweep is not kept alive by a dead server."""
    never = threading.Event()
    hook.answers = [Answer(wait=never)]
    code = f"from expc_runtime.notify import Notifier\nNotifier('plain', '{VARIABLE}', ['end']).send('end', 'x')"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True
    )
    never.set()
    assert done.returncode == 0 and SECRET not in done.stdout + done.stderr


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is bound to happen."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
