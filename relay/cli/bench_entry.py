"""`relay bench`: hands over to the benchmarks, which are imported only then."""

from typing import Any

import typer

from relay.errors import Unavailable

# Options and --help belong to the benchmarks' own command line.
AS_IS: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}


def bench(context: typer.Context) -> None:
    """Measure this machine; JSON out.

    Examples:

      relay bench --help
    """
    try:
        from relay.cli.bench import app  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        if error.name != "relay.cli.bench":
            raise
        raise Unavailable("bench: the benchmarks are not in this build") from error
    code = app(context.args, prog_name="relay bench", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)
