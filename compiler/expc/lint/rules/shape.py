"""XC1: keys, values and names. The reader and the resolver find most of these; their pages are here."""

from __future__ import annotations

import re
from collections.abc import Iterator

from expc.findings import Finding, Span
from expc.lint.core import TextRule, ToldRule
from expc.source import Scalar, Source


class UnknownKey(ToldRule):
    """A key that its owner does not take.

    Two of the studies had documented options that were accepted and never read (`gce-parameter`, `start-epoch`,
    `train_on_split`): a run "with" them was the run without. Here an unread key is an error. `--fix` takes the
    spelling that is meant when one is near.

    ## Bad
    ```yaml
    optim: {use: adamw, lr: 3.0e-3, wieght_decay: 0.1}
    ```

    ## Good
    ```yaml
    optim: {use: adamw, lr: 3.0e-3, weight_decay: 0.1}
    ```
    """

    code, name, fixable = "XC101", "unknown-key", True


class MissingKey(ToldRule):
    """A key that must be there is not.

    Nothing that decides a result has a hidden default: the data, the loss, the optimizer and the budget are written.

    ## Bad
    ```yaml
    data: {use: digits, split: {val: 0.2, test: 0.2}}
    ```

    ## Good
    ```yaml
    data: {use: digits, batch: 64, split: {val: 0.2, test: 0.2}}
    ```
    """

    code, name = "XC102", "missing-key"


class WrongValue(ToldRule):
    """A value has the wrong type, or lies outside the range it may have.

    Nothing is converted in silence: `"64"` is not 64, and 1.5 epochs are not one.

    ## Bad
    ```yaml
    data: {use: digits, batch: "64", split: {val: 0.2, test: 0.2}}
    ```

    ## Good
    ```yaml
    data: {use: digits, batch: 64, split: {val: 0.2, test: 0.2}}
    ```
    """

    code, name = "XC103", "wrong-value"


class UnknownComponent(ToldRule):
    """There is no such kind of stage, data, model, loss, metric or optimizer.

    One study wrote its configuration folder first and learned afterwards that the environment's name was unknown to
    the factory.

    ## Bad
    ```yaml
    optim: {use: adamv, lr: 3.0e-3}
    ```

    ## Good
    ```yaml
    optim: {use: adam, lr: 3.0e-3}
    ```
    """

    code, name, fixable, environment = "XC104", "unknown-component", True, True


class BadName(ToldRule):
    """A name is not a plain lower-case word, or is a word of Python.

    Names of stages, heads, losses and metrics become variables, flags, log keys and folders of the generated code.

    ## Bad
    ```yaml
    metrics:
      Top-1: {use: accuracy, of: digit}
    ```

    ## Good
    ```yaml
    metrics:
      top_1: {use: accuracy, of: digit}
    ```
    """

    code, name = "XC105", "bad-name"


class OwnCodeNotFound(ToldRule):
    """Your own class or function is not where `use:` says, or does not have the signature it needs.

    It is looked up in the source text, from the project root and among installed packages; nothing is imported.

    ```python ownlab/scores.py
    class Calibration:
        higher_is_better = False

        def __init__(self, bins: int = 10) -> None: ...

        def update(self, pred: "ClassLogits", target: "ClassId") -> None: ...
    ```

    ## Bad
    ```yaml
    metrics:
      calibration: {use: "ownlab.scores:Calibraton", of: digit}
    ```

    ## Good
    ```yaml
    metrics:
      calibration: {use: ownlab.scores:Calibration, of: digit}
    ```
    """

    code, name, fixable, environment = "XC106", "own-code-not-found", True, True


_SECRETS = (
    (
        "a webhook's address",
        re.compile(
            r"https?://[^\s]*webhook|discord(app)?\.com/api/webhooks/|hooks\.slack\.com/\w",
            re.IGNORECASE,
        ),
    ),
    (
        "a password in an address",
        re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s@]+@", re.IGNORECASE),
    ),
    ("a GitHub token", re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}")),
    ("an OpenAI or Anthropic key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("an AWS key", re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("a Google key", re.compile(r"\bAIza[A-Za-z0-9_-]{30,}")),
    ("a Slack token", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("a signed token", re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
)
_SECRET_KEYS = re.compile(
    r"(^|_)(password|passwd|secret|api_?key|access_?key|token)$", re.IGNORECASE
)


class LiteralSecret(TextRule):
    """A password, key, token or webhook stands in the spec, be it in a comment.

    One project's webhook address lay in its repository for months, and specs are copied into every run's folder. Whoever
    is to be told of a sweep is named by a variable of the environment: `run: {notify: {webhook: EXPC_WEBHOOK}}`.

    ## Bad
    ```yaml
    about: tell https://discord.com/api/webhooks/123456/abcdef when it is done
    ```

    ## Good
    ```yaml
    about: tell the channel when it is done
    ```
    """

    code, name = "XC107", "literal-secret"

    def check(self, source: Source) -> Iterator[Finding]:
        told: set[int] = set()
        for scalar in source.scalars:
            what = _secret(scalar)
            if what:
                told |= {scalar.span.line, scalar.span.end_line}
                yield self._told(what, scalar.span, _instead(scalar))
        for number, line in enumerate(source.text.splitlines(), 1):
            for what, first, last in _in_comment(line) if number not in told else ():
                yield self._told(what, Span(source.file, number, first + 1, number, last + 1))

    def _told(self, what: str, span: Span, instead: str = "") -> Finding:
        return self.finding(
            f"this holds {what}",
            span,
            why="a spec is committed, and copied into every run's folder",
            help="; ".join(filter(None, ["take it out and revoke it", instead])),
        )


def _in_comment(line: str) -> Iterator[tuple[str, int, int]]:
    """What a comment holds, and from which column to which: a `#` that a blank is before, or nothing."""
    comment = re.search(r"(?:^|\s)#", line)
    if comment is None:
        return
    for what, pattern in _SECRETS:
        found = pattern.search(line, comment.end())
        if found is not None:
            yield what, found.start(), found.end()
            return


def _instead(scalar: Scalar) -> str:
    """How a spec names a secret that it does not hold."""
    if scalar.path and scalar.path[-1] == "webhook":
        return "write the name of a variable that holds it, `webhook: EXPC_WEBHOOK`"
    return "name an environment variable as `env:NAME`"


def _secret(scalar: Scalar) -> str:
    if not isinstance(scalar.value, str) or scalar.value.startswith("env:"):
        return ""
    for what, pattern in _SECRETS:
        if pattern.search(scalar.value):
            return what
    key = str(scalar.path[-1]) if scalar.path else ""
    value = scalar.value
    if key == "webhook" and "://" in value:
        return "a webhook's address"
    if _SECRET_KEYS.search(key) and len(value) >= 12 and re.search(r"\d", value):
        return f"the literal value of `{key}`"
    return ""
