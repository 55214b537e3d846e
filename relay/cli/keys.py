"""`relay keys`: keys for RELAY_API_KEYS. Keys kept in Redis, with `revoke` at once, are later work."""

import re
import secrets
import sys

import typer

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")  # no comma, no colon: they separate keys, and names from keys

app = typer.Typer(help="Make keys for RELAY_API_KEYS.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(tenant: str = typer.Option(..., help="whose key it is: letters, digits, . _ -")) -> None:
    """Make a key and print it once.

    As NAME:KEY, which is how RELAY_API_KEYS takes it. It is kept nowhere, and opens nothing before it
    stands there.

    Examples:

      relay keys create --tenant acme
    """
    if not _TENANT.fullmatch(tenant):
        raise typer.BadParameter(
            f"{tenant!r}; 1 to 64 letters, digits, dots, underscores or hyphens", param_hint="--tenant"
        )
    print(f"{tenant}:rk_{secrets.token_urlsafe(24)}")
    print(
        "relay keys: add it to RELAY_API_KEYS of every API node (commas between keys) and restart them; "
        f"{tenant} sends: Authorization: Bearer rk_...",
        file=sys.stderr,
    )


@app.command("list")
def list_() -> None:
    """Whose keys RELAY_API_KEYS holds, one a line.

    Examples:

      relay keys list
    """
    for name in _names():
        print(name)


@app.command()
def revoke(tenant: str = typer.Argument(..., metavar="NAME", help="as in the list")) -> None:
    """Say how to make the keys of NAME worthless.

    A command cannot take them out of the nodes' environment: exit 2, for nothing was revoked, or 1 when
    there is no such key.

    Examples:

      relay keys revoke acme
    """
    if tenant not in _names():
        print(
            f"relay keys: RELAY_API_KEYS holds no key of {tenant}; see: relay keys list",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    print(
        f"relay keys: take {tenant}:... out of RELAY_API_KEYS of every API node and restart them, "
        "one at a time: their readers resume at the others",
        file=sys.stderr,
    )
    raise typer.Exit(2)


def _names() -> list[str]:
    from relay.settings import load  # noqa: PLC0415 - imported for this command alone

    keys = (key.get_secret_value().rpartition(":")[0] for key in load().api_keys)
    return [name or "(no name)" for name in keys]
