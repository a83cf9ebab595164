"""Log lines that can be sent to others: no colours, no secrets, no machine's paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Cleaner", "tail"]

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_WIDEST = 400  # characters of a line
_TAIL = 1 << 15  # bytes of a log that are looked at
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|WEBHOOK|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # characters of a value that can be told from a word
_IN_TEXT = re.compile(
    r"https?://[^/\s:@]+:[^/\s@]+@"  # a password in an address
    r"|https?://(?:hooks\.slack\.com|(?:\w+\.)?discord(?:app)?\.com/api/webhooks)/[^\s'\"<>]+"
    r"|\b(?:hf_|ghp_|github_pat_|xox[abp]-|sk-|AKIA)[A-Za-z0-9_-]{12,}"
)


_INTERPRETER = re.compile(r"^\$ \S*/(?=python[0-9.]* )", re.MULTILINE)  # the first line of a log


class Cleaner:
    """Takes out of a text what is this machine's alone: values of secret variables, addresses that let one in, the paths
    of the project and of the person."""

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        secrets = {
            v: f"[${k}]" for k, v in known.items() if _SECRET.search(k) and len(v) >= _SHORTEST
        }
        paths = {f"{root.resolve()}/": "", str(root.resolve()): "."}
        home = known.get("HOME", "")
        if len(home) > 1:
            paths[home.rstrip("/") + "/"] = "~/"
        longest = sorted(secrets | paths, key=len, reverse=True)
        self._names = secrets | paths
        self._pattern = re.compile("|".join(map(re.escape, longest)))

    def whole(self, value: Any) -> Any:
        """What JSON can hold, with each of its texts cleaned."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {self.whole(name): self.whole(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return tuple(map(self.whole, value))
        return value

    def __call__(self, text: str) -> str:
        text = self._pattern.sub(lambda found: self._names[found[0]], text)
        return _INTERPRETER.sub("$ ", _IN_TEXT.sub("[left out: a secret]", text))


def tail(path: Path, count: int = 20) -> list[str]:
    """The last ``count`` lines of a log that say something, without colours; a progress bar's last state alone."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = text.split("\n")
    lines = lines[1:] if size > _TAIL else lines
    said = [
        _CONTROL.sub("", _ESCAPE.sub("", line.rstrip("\r").rpartition("\r")[2])) for line in lines
    ]
    kept = [line.rstrip() for line in said if line.strip()]
    return [line if len(line) <= _WIDEST else f"{line[:_WIDEST]} ..." for line in kept[-count:]]
