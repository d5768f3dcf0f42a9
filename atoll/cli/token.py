"""`atoll token`."""

import click

from atoll.base.names import check_label
from atoll.cli import output
from atoll.cli.commands import group
from atoll.cli.completing import tokens
from atoll.cli.context import run
from atoll.cli.output import Column
from atoll.cli.settings import Settings

token = group("token", "Tokens for access over HTTPS. The local socket needs none.")
COLUMNS = [
    Column("NAME", lambda each: each.name),
    Column("USED", lambda each: each.used or "never"),
    Column("EXPIRES", lambda each: output.local_time(each.expires) if each.expires else "never"),
    Column("AGE", lambda each: output.age(each.created)),
]


@token.command(
    "create",
    examples=[
        "atoll token create laptop --days 30",
        "export ATOLL_TOKEN=$(atoll token create ci)",
    ],
)
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 36500), help="Until it expires (never).")
@click.pass_context
def create(ctx: click.Context, name: str, days: int | None) -> None:
    """Make a token and print it: this once, for the daemon keeps only its hash."""
    settings = ctx.ensure_object(Settings)
    check_label(name, what="token's name")
    made = run(settings, lambda client: client.tokens.create(name, days=days))

    def table() -> None:
        click.echo(made.secret)
        if not settings.quiet:
            click.echo(f"keep it: it is not shown again; take it back with atoll token revoke {name}", err=True)

    output.emit(settings, made, table)


@token.command("list", examples=["atoll token list"])
@click.pass_context
def list_(ctx: click.Context) -> None:
    """List tokens, never their secrets."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.tokens.list())
    output.emit_rows(settings, found, COLUMNS, name=lambda each: each.name, none="no tokens")


@token.command("revoke", examples=["atoll token revoke laptop"])
@click.argument("name", shell_complete=tokens)
@click.pass_context
def revoke(ctx: click.Context, name: str) -> None:
    """Make a token worthless at once."""
    settings = ctx.ensure_object(Settings)
    run(settings, lambda client: client.tokens.revoke(name))
    told = {"name": name, "revoked": True}
    output.emit(settings, told, lambda: None if settings.quiet else click.echo(f"token {name} revoked"))
