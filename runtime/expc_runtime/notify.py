"""A word to people, through a webhook, when something in a sweep has ended. Standard library only.

The address is a secret, so a spec names the environment variable that holds it. It is given to
nothing but the connection: no message, log, exception or command line ever holds it.

What is posted, by form:

- ``plain``: ``{"text": ..., "event": ..., <facts>}``, for a program to read
- ``discord``: ``{"content": ..., "allowed_mentions": {"parse": []}}``: no run's name rings anybody
- ``slack``: ``{"text": ...}``, escaped as Slack asks
"""

import http.client
import json
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from expc_runtime.state.files import plain

__all__ = ["EVENTS", "FORMS", "Notifier"]

EVENTS = ("failed", "done", "end")
_TIMEOUT = 10.0  # seconds for one answer
_TRIES = 3
_LONGEST = 60.0  # seconds that a server may ask us to wait
_QUEUE = 100  # messages that wait; what comes beyond them is counted
_DISCORD = 2000  # UTF-16 units of a message
_SLACK = 4000
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_AGENT = "expc-notify/1"  # some services turn Python's own name away


class Notifier:
    """Posts what happens in a sweep; never blocks whoever says it, never raises.

    Args:
        form: ``plain``, ``discord`` or ``slack``.
        variable: environment variable that holds the address: https, or http on this machine.
        on: events to post, of ``failed``, ``done`` and ``end``.
        say: takes a line for the log of the sweep: that there is no address, that a post failed.

    One thread posts in the order of `send`. An answer 429 or 5xx, or none, is tried twice again, after
    the time that ``Retry-After`` asks for. Redirects are not followed: the body would go wherever
    the answer says.
    """

    def __init__(
        self,
        form: str,
        variable: str,
        on: Collection[str],
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._form = FORMS[form]
        self._variable = variable
        self._on = frozenset(on)
        self._say = say or _to_stderr
        self._queue: deque[bytes] = deque()
        self._dropped = 0
        self._told: set[str] = set()
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._until = float("inf")  # of the monotonic clock, once it is closing
        self._thread: threading.Thread | None = None
        self._address = os.environ.get(variable, "").strip()
        wrong = _wrong(self._address)
        if wrong:
            self._address = ""
            self._tell(f"no notifications: the environment variable {variable} {wrong}")

    def send(self, event: str, text: str, **facts: Any) -> None:
        """Have ``text`` posted if ``event`` is one to post; ``facts`` go along in the plain form."""
        if event not in self._on or not self._address:
            return
        body = self._form(event, text, plain(facts))
        with self._change:
            if len(self._queue) >= _QUEUE:
                self._dropped += 1
                return
            self._queue.append(json.dumps(body, default=str).encode(errors="replace"))
            self._change.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
                with suppress(RuntimeError):  # no thread to be had: the sweep matters more
                    self._thread.start()

    def close(self, seconds: float = 10.0) -> None:
        """Post what waits, for at most that long; the newest message first, it says how all ended."""
        with self._change:
            self._until = time.monotonic() + seconds
            self._closing.set()
            self._change.notify()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(seconds)
        with self._change:
            left = self._dropped + len(self._queue)
            self._queue.clear()
        if left:
            self._tell(f"{left} notification{'s' * (left != 1)} could not be posted in time")

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._closing.is_set())
                if not self._queue:
                    return
                newest = self._closing.is_set()
                body = self._queue.pop() if newest else self._queue.popleft()
            why = self._deliver(body)
            if why:
                self._tell(f"a notification was not posted ({self._variable}): {why}")

    def _deliver(self, body: bytes) -> str:
        """Post ``body``; why it could not be, or nothing."""
        for number in range(1, _TRIES + 1):
            left = self._until - time.monotonic()
            if left <= 0:
                return "no time left"
            wait, why = _post(self._address, body, min(_TIMEOUT, left))
            if wait is None:
                return why
            pause = wait or 2.0 ** (number - 1)
            if number == _TRIES or self._rest(pause):
                break
        return why

    def _rest(self, seconds: float) -> bool:
        """Wait; whether that takes longer than there is time, since the sweep ends."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if end > self._until:
                return True
            if self._closing.is_set():
                time.sleep(end - now)
            else:
                self._closing.wait(end - now)
        return False

    def _tell(self, text: str) -> None:
        """Say each thing once: a dead address fails with every message."""
        if text not in self._told:
            self._told.add(text)
            with suppress(Exception):  # a log that can't be written is told elsewhere
                self._say(text)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _wrong(address: str) -> str:
    """Why ``address`` is none, in words that do not repeat it."""
    if not address:
        return "is not set"
    if not address.isascii() or not address.isprintable() or " " in address:
        return "does not hold an address"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return "does not hold an address"
    if not parts.hostname or port == 0:
        return "does not hold an address"
    if parts.username is not None or parts.password is not None:
        return "holds an address with a password in front of its host; write a token into the path"
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return ""
    return "must hold an https address"


# ------------------------------------------------------------------------------------------------ forms


def _plain(event: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, "event": event, "text": text}


def _discord(event: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": _cut(text, _DISCORD), "allowed_mentions": {"parse": []}}


def _slack(event: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    cut = _cut(text, _SLACK)
    return {"text": cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


FORMS: Mapping[str, Callable[[str, str, Mapping[str, Any]], dict[str, Any]]] = {
    "plain": _plain,
    "discord": _discord,
    "slack": _slack,
}


def _cut(text: str, most: int) -> str:
    """At most that many UTF-16 units: what a service counts as characters."""
    whole = text.encode("utf-16-le", errors="replace")
    if len(whole) <= 2 * most:
        return whole.decode("utf-16-le")
    return whole[: 2 * (most - 3)].decode("utf-16-le", errors="ignore") + "..."


# ------------------------------------------------------------------------------------------------- post


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _post(address: str, body: bytes, timeout: float) -> tuple[float | None, str]:
    """One try: seconds until the next is worth it (0: as you like; None: it is not), and what went wrong."""
    request = urllib.request.Request(
        address,
        body,
        {"Content-Type": "application/json", "User-Agent": _AGENT},
        method="POST",
    )
    proxies = {name: url for name, url in urllib.request.getproxies().items() if name == "https"}
    opener = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(request, timeout=timeout):
            return None, ""
    except urllib.error.HTTPError as error:
        return _answered(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _unanswered(error)


def _answered(error: urllib.error.HTTPError) -> tuple[float | None, str]:
    code = error.code
    with suppress(Exception):
        error.close()
    if 300 <= code < 400:
        return None, f"answer {code}: the address has moved; set the new one"
    why = f"answer {code} {http.client.responses.get(code, '')}".strip()
    if code == 429 or code >= 500:
        return _asked(error.headers.get("Retry-After", "")), why
    return None, why


def _unanswered(error: Exception) -> tuple[float | None, str]:
    """What went wrong, in words of our own: the exception's may hold the address."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return None, "no answer in time; it may have come through"
    if isinstance(cause, ssl.SSLError):
        return None, "its certificate is not trusted, or it does not speak TLS"
    if isinstance(cause, OSError):
        known = cause.errno is not None and cause.errno > 0
        why = os.strerror(cause.errno or 0) if known else "the host is not known"
        return 0.0, f"no connection: {why}"
    return None, f"no answer that makes sense ({type(cause).__name__})"


def _asked(after: str) -> float:
    """Seconds of a ``Retry-After``, which may be a date; 0 for none."""
    with suppress(ValueError):
        return min(_LONGEST, max(0.0, float(after)))
    with suppress(ValueError, TypeError):
        moment = parsedate_to_datetime(after).timestamp()
        return min(_LONGEST, max(0.0, moment - time.time()))
    return 0.0
