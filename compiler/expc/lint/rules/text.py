"""XC0: the text of a spec, and YAML's traps."""

from __future__ import annotations

import re
from collections.abc import Iterator

from expc.findings import Edit, Finding, Note
from expc.lint.core import TextRule, ToldRule
from expc.source import Scalar, Source

_EXPONENT = re.compile(
    r"(?P<sign>[-+]?)(?P<whole>\d*)(?P<point>\.?)(?P<part>\d*)[eE](?P<power>[-+]?\d+)$"
)
_OCTAL = re.compile(r"[-+]?0[0-7_]+$")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$")


class ExponentWithoutPoint(TextRule):
    """A number such as `3e-4` is text to YAML: an exponent needs a point before it and a sign after it.

    PyYAML reads `lr: 3e-4` as the text `3e-4`. A tool that does not look trains with whatever a later step makes of
    that text, or stops hours later. Write `3.0e-4`; put it in quotes where text is meant.

    ## Bad
    ```yaml
    optim: {use: adamw, lr: 3e-3}
    ```

    ## Good
    ```yaml
    optim: {use: adamw, lr: 3.0e-3}
    ```
    """

    code, name, fixable = "XC001", "exponent-without-point", True

    def check(self, source: Source) -> Iterator[Finding]:
        for scalar in source.scalars:
            meant = number_meant(scalar)
            if meant:
                yield self.finding(
                    f"`{scalar.text}` is text, not a number",
                    scalar.span,
                    why="YAML wants a point before the exponent and a sign after it",
                    help=f"write `{meant}`",
                    fix=(Edit(scalar.span, meant),),
                )


def number_meant(scalar: Scalar) -> str:
    """The number, as YAML writes it, that a text such as `3e-4` was meant to be; empty for any other scalar."""
    match = _EXPONENT.match(scalar.text) if scalar.plain else None
    if match is None or not isinstance(scalar.value, str) or not (match["whole"] or match["part"]):
        return ""
    power = match["power"]
    signed = power if power[0] in "+-" else f"+{power}"
    return f"{match['sign']}{match['whole'] or '0'}.{match['part'] or '0'}e{signed}"


class YesNo(TextRule):
    """`yes`, `no`, `on` and `off` are true and false to YAML.

    A condition called `no`, or a country code, turns into `false` without a word. Write `true` or `false`, or quote
    the word where text is meant.

    ## Bad
    ```yaml
    compile: off
    ```

    ## Good
    ```yaml
    compile: false
    ```
    """

    code, name, fixable = "XC002", "yes-no", True

    def check(self, source: Source) -> Iterator[Finding]:
        for scalar in source.scalars:
            if scalar.plain and isinstance(scalar.value, bool) and _is_word(scalar):
                meant = str(scalar.value).lower()
                yield self.finding(
                    f"`{scalar.text}` is `{meant}` to YAML",
                    scalar.span,
                    why="a name that happens to be such a word would be lost in silence",
                    help=f"write `{meant}`, or quote the word if text is meant",
                    fix=(Edit(scalar.span, meant),),
                )


def _is_word(scalar: Scalar) -> bool:
    return scalar.text.lower() in ("yes", "no", "on", "off", "y", "n")


class NumberInDisguise(TextRule):
    """`1:30` is 90 to YAML, and `010` is 8.

    YAML 1.1 reads digits with colons in base 60 and digits after a zero in base 8. The value that trains is then not
    the one on the page. Write the number that is meant, or quote it.

    ## Bad
    ```yaml
    optim: {use: adamw, weight_decay: 0.1}
    until: {minutes: 1:30}
    ```

    ## Good
    ```yaml
    optim: {use: adamw, weight_decay: 0.1}
    until: {minutes: 90}
    ```
    """

    code, name = "XC003", "number-in-disguise"

    def check(self, source: Source) -> Iterator[Finding]:
        for scalar in source.scalars:
            if not scalar.plain or isinstance(scalar.value, str):
                continue
            if _OCTAL.match(scalar.text) and len(scalar.text.strip("+-0_")) > 0:
                base = "base 8"
            elif _SEXAGESIMAL.match(scalar.text):
                base = "base 60"
            else:
                continue
            yield self.finding(
                f"`{scalar.text}` is {scalar.value} to YAML, which reads it in {base}",
                scalar.span,
                why="the value that trains would not be the one on the page",
                help=f"write `{scalar.value}` if that is meant, or quote it",
            )


class DuplicateKey(TextRule):
    """A map holds the same key twice.

    Plain YAML takes the last one in silence, so an edit to the first does nothing. One study's options were read from
    the wrong of two places for weeks.

    ## Bad
    ```yaml
    clip: 1.0
    optim: {use: adamw, lr: 3.0e-3, lr: 1.0e-3}
    ```

    ## Good
    ```yaml
    clip: 1.0
    optim: {use: adamw, lr: 1.0e-3}
    ```
    """

    code, name = "XC004", "duplicate-key"

    def check(self, source: Source) -> Iterator[Finding]:
        for duplicate in source.duplicates:
            key = duplicate.path[-1]
            yield self.finding(
                f"`{key}` is here twice",
                duplicate.span,
                why="one of the two would do nothing",
                help="keep one",
                notes=(Note(duplicate.first, f"the first `{key}`"),),
            )


class KeyNotText(ToldRule):
    """A key must be plain text: no merge key `<<`, no list or map for a key.

    `<<` copies keys from somewhere else in the file, so that a value has no place of its own and no message could
    point at it. `extends`, the shared `model` and the sweep's overrides do the same in the open.

    ## Bad
    ```yaml
    optim:
      <<: {use: adamw}
      lr: 3.0e-3
    ```

    ## Good
    ```yaml
    optim:
      use: adamw
      lr: 3.0e-3
    ```
    """

    code, name = "XC005", "key-not-text"


class NotYaml(ToldRule):
    """The file is not YAML, or unfolds to more than a person could read.

    Aliases that name aliases can make a short file fill the memory ("billion laughs"); such a file is refused before
    it is unfolded.

    ## Bad
    ```yaml
    optim: {use: adamw, lr: 3.0e-3
    ```

    ## Good
    ```yaml
    optim: {use: adamw, lr: 3.0e-3}
    ```
    """

    code, name = "XC006", "not-yaml"


class NotASpec(ToldRule):
    """The file is not there, not text, too large, empty, or not a map of keys.

    A spec names data, it does not hold it.

    ## Bad
    ```yaml whole
    - expc
    - example
    ```

    ## Good
    ```yaml
    name: example
    ```
    """

    code, name = "XC007", "not-a-spec"


class AllowWithoutReason(ToldRule):
    """An allow does not say why.

    Whoever reads the result must know that a fault is meant, and what for. A metric with its threshold at 0, allowed
    without a word, is how a value accuracy of 0.5418 in every epoch came to be believed.

    ## Bad
    ```yaml
    # expc: allow accumulate-beyond-epoch
    accumulate: 50
    ```

    ## Good
    ```yaml
    # expc: allow accumulate-beyond-epoch -- one step for two passes is what is studied here
    accumulate: 50
    ```
    """

    code, name = "XC008", "allow-without-reason"


class UnusedAllow(ToldRule):
    """An allow covers nothing.

    It would hide the next fault of that name. `--fix` takes the comment out.

    ## Bad
    ```yaml
    clip: 1.0  # expc: allow rate-too-high -- tried on 3 seeds
    ```

    ## Good
    ```yaml
    clip: 1.0
    ```
    """

    code, name, severity, fixable = "XC009", "unused-allow", "warning", True


class UnknownAllow(ToldRule):
    """An allow names a rule that does not exist.

    The fault that it was written for is reported all the same, or was never one.

    ## Bad
    ```yaml
    accumulate: 50  # expc: allow accumulate-beyond-epochs -- one step for two passes is what is studied
    ```

    ## Good
    ```yaml
    accumulate: 50  # expc: allow accumulate-beyond-epoch -- one step for two passes is what is studied
    ```
    """

    code, name, fixable = "XC010", "unknown-allow", True
