"""Where the console script begins: before the command line and what it imports are there to catch Ctrl-C."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C while it is still loading ends the process like any other program."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # and not what a shell told its background job: to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from relay.cli.main import main as command_line  # noqa: PLC0415

    signal.signal(signal.SIGINT, handler)
    command_line()
