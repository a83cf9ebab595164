"""docs/rules.md is what the rules say of themselves."""

from pathlib import Path

from click.testing import CliRunner

from expc.cli.rule import command

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_rules_is_fresh() -> None:
    said = CliRunner().invoke(command, ["--all", "--format", "md"])
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == said.output
