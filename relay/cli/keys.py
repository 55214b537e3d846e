"""`relay keys`: the place of keys that are kept in Redis."""

import sys

import typer

app = typer.Typer(
    help="Keys of tenants, kept in Redis (a later version).", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def create(tenant: str = typer.Option(..., help="whose key it is")) -> None:  # noqa: ARG001 - its place
    """Make a key and print it once.

    Examples:

      relay keys create --tenant acme
    """
    _later()


@app.command("list")
def list_() -> None:
    """The keys there are, without the keys themselves.

    Examples:

      relay keys list
    """
    _later()


@app.command()
def revoke(key_id: str = typer.Argument(..., help="as in the list")) -> None:  # noqa: ARG001 - its place
    """Make a key worthless, everywhere within seconds.

    Examples:

      relay keys revoke k_123
    """
    _later()


def _later() -> None:
    print(
        "relay keys: comes with a later version; until then set RELAY_API_KEYS=NAME:KEY,NAME:KEY",
        file=sys.stderr,
    )
    raise typer.Exit(2)
