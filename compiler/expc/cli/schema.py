"""`expc schema`: what a spec may hold, for editors and for other tools."""

from __future__ import annotations

import click


@click.command(short_help="print what a spec may hold, as JSON Schema")
@click.argument("component", required=False)
def command(component: str | None) -> int:
    """Print the JSON Schema of a spec, or of one COMPONENT such as `bce`.

    Editors complete and check specs with it. Save it, `expc schema > specs/spec.schema.json`, and
    begin a spec with `# yaml-language-server: $schema=spec.schema.json`.
    """
    from expc import schema
    from expc.cli.project import near

    found = schema.component(component) if component else schema.spec()
    if found is None:
        raise click.UsageError(
            f"There is no component `{component}`.{near(str(component), schema.names())}"
        )
    click.echo(schema.text(found), nl=False)
    return 0
