"""`expc rule`: the manual page of a rule."""

from __future__ import annotations

import click


@click.command(short_help="explain a rule of lint")
@click.argument("name", metavar="CODE|NAME", required=False)
@click.option("--all", "every", is_flag=True, help="List every rule; with --format md, every page.")
@click.option(
    "--format", "form", type=click.Choice(["text", "md"]), default="text", show_default=True
)
def command(name: str | None, every: bool, form: str) -> int:
    """Explain a rule: what is wrong, why it matters, a bad spec and a good one."""
    from expc.lint.engine import page, rules

    if every == bool(name):
        raise click.UsageError("Name one rule, or say --all.")
    if name:
        try:
            click.echo(page(name).rstrip())
        except KeyError as error:
            said = str(error.args[0])
            stop = "" if said.endswith("?") else "."
            raise click.UsageError(f"{said[0].upper()}{said[1:]}{stop}") from None
        return 0
    if form == "md":
        click.echo("\n\n".join(page(rule.code).rstrip() for rule in rules()))
        return 0
    wide = max(len(rule.name) for rule in rules())
    for rule in rules():
        about = (rule.__doc__ or "").strip().splitlines()[0]
        fix = "fix" if rule.fixable else "   "
        click.echo(f"{rule.code}  {rule.name:<{wide}}  {rule.severity:<7}  {fix}  {about}")
    return 0
