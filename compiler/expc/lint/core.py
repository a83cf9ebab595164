"""What a rule is: a code, a name, a page with a bad and a good spec, and a check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from expc.findings import Edit, Finding, Note, Span

if TYPE_CHECKING:
    from expc.experiment import Experiment, Stage
    from expc.resolve import Document
    from expc.source import Source
    from expc.sweep import Space, Variant

Severity = Literal["error", "warning"]

_CODE = re.compile(r"XC\d{3}$")
_NAME = re.compile(r"[a-z]+(-[a-z0-9]+)*$")


class Rule:
    """One thing that can be wrong with a spec.

    The docstring is the manual page: its first line says what is wrong, then why it matters, then a `## Bad` and a
    `## Good` block, which are the rule's test. `name` reads well after "allow". `fixable` promises that `--fix`
    turns Bad into Good. `environment` marks findings that depend on what is installed: they are never cached. `hides`
    marks faults that other rules can't see past: which allows are needed is not known then.
    """

    code: ClassVar[str] = ""
    name: ClassVar[str] = ""
    severity: ClassVar[Severity] = "error"
    fixable: ClassVar[bool] = False
    environment: ClassVar[bool] = False
    hides: ClassVar[bool] = False

    registry: ClassVar[dict[str, type[Rule]]] = {}

    def __init_subclass__(cls, *, base: bool = False) -> None:
        if base:
            return
        page = cls.__doc__ or ""
        if not _CODE.match(cls.code) or not _NAME.match(cls.name):
            raise TypeError(f"{cls.__name__} needs a code such as XC301 and a kebab-case name")
        if "## Bad\n" not in page or "## Good\n" not in page:
            raise TypeError(f"the page of {cls.code} needs a `## Bad` and a `## Good` block")
        taken = [rule for rule in Rule.registry.values() if rule.name == cls.name]
        if cls.code in Rule.registry or taken:
            raise TypeError(f"{cls.code} ({cls.name}) is taken")
        Rule.registry[cls.code] = cls

    def finding(
        self,
        message: str,
        span: Span,
        *,
        why: str = "",
        help: str = "",
        notes: tuple[Note, ...] = (),
        fix: tuple[Edit, ...] = (),
        spans: tuple[Span, ...] = (),
    ) -> Finding:
        """A finding of this rule."""
        return Finding(self.code, message, span, why, help, notes, fix, spans)


class TextRule(Rule, base=True):
    """Reads one file as it stands, before anything is bound."""

    def check(self, source: Source) -> Iterator[Finding]:
        """What is wrong with the text."""
        raise NotImplementedError


class StageRule(Rule, base=True):
    """Reads one resolved stage; runs for every structural variant of the sweep, and for its extreme values."""

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        """What is wrong with the stage."""
        raise NotImplementedError


class SpecRule(Rule, base=True):
    """Relates the stages of one resolved spec; runs for every structural variant of the sweep."""

    def check(self, experiment: Experiment) -> Iterator[Finding]:
        """What is wrong with the experiment."""
        raise NotImplementedError


class AxisRule(Rule, base=True):
    """Reads the sweep as it is written, before it is spread out."""

    def check(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        """What is wrong with the axes."""
        raise NotImplementedError


class SweepRule(Rule, base=True):
    """Reads the sweep spread out over its structural variants."""

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        """What is wrong with the variants."""
        raise NotImplementedError


class FolderRule(Rule, base=True):
    """Compares the generated folder with the spec, by hashes: nothing is rendered."""

    def check(self, experiment: Experiment, space: Space) -> Iterator[Finding]:
        """What is wrong with the folder."""
        raise NotImplementedError


class ToldRule(Rule, base=True):
    """Found by the reader, the resolver or a lowering, which can't go on without it; this holds the page."""


class DryRule(ToldRule, base=True):
    """Found by `expc plan --check`, which builds every stage; this holds the page."""


def rules() -> list[type[Rule]]:
    """Every rule, by code."""
    import expc.lint.rules  # noqa: F401  # registers them

    return [Rule.registry[code] for code in sorted(Rule.registry)]


def rule(code: str) -> type[Rule] | None:
    """The rule of a code or a name."""
    return next((each for each in rules() if code.upper() == each.code or code == each.name), None)
