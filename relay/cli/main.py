"""The console script: `relay COMMAND`. Every command has a module of its own beside this one.

Those modules import no more than typer at the top, so that `relay --help` is immediate. Every failure is
one line on stderr that says what to do. Exit codes: 0 done, 1 it did not work, 2 used or set wrongly,
130 interrupted.
"""

import sys
from importlib import metadata
from typing import Annotated

import typer

from relay.cli import bench_entry, cost, demo, doctor, keys, serve, settings, tail, top, up
from relay.errors import InvalidValue, Malformed, RelayError, SettingsInvalid

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

# The base of what typer raises for a wrong command line; typer carries click inside and names it nowhere.
_UsageTrouble: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="relay",
    help="A self-hosted relay for LLM token streams whose first principle is backpressure.",
    epilog="Start with: relay demo",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts in a third of the time and can be piped
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("api")(serve.api)
app.command("worker")(serve.worker)
app.command("tail")(tail.tail)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
app.command("settings")(settings.settings)
app.command("cost")(cost.cost)
app.command("bench", **bench_entry.AS_IS)(bench_entry.bench)
app.add_typer(keys.app, name="keys")


@app.callback()
def _relay(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"relay {metadata.version('llm-stream-relay')}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command line; the exit code. Errors we know are told in one line, others are bugs and raise."""
    try:
        code = app(args, prog_name="relay", standalone_mode=False)
    except (SettingsInvalid, Malformed, InvalidValue) as error:
        return _say(error, MISUSED)
    except RelayError as error:
        return _say(error, FAILED)
    except _UsageTrouble as error:
        return _misused(error)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else OK


def _say(error: Exception, code: int) -> int:
    print("relay: " + " ".join(str(error).split()), file=sys.stderr)
    return code


def _misused(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "relay"
    message = str(getattr(error, "format_message", error.__str__)())
    if message.startswith("Usage:"):  # no command at all: its help is the message
        print(message, file=sys.stderr)
        return MISUSED
    message = " ".join(message.split())
    print(f"{path}: {message.rstrip('.')}. Try: {path} --help", file=sys.stderr)
    return MISUSED


if __name__ == "__main__":
    main()
