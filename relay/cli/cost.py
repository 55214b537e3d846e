"""`relay cost`: what a load needs and costs, with relay and without the pattern."""

from pathlib import Path
from typing import Annotated

import typer

from relay.cost import Constants, Load, Prices, Sizing, estimate
from relay.cost_bench import with_bench
from relay.cost_report import PAGE_LOADS, page, text

_LOAD, _PRICES, _SIZING = Load(1), Prices(), Sizing()


def cost(
    *,
    requests_per_day: Annotated[int, typer.Option("--requests-per-day", "-n", min=1, max=10**10)] = 100_000,
    tokens: Annotated[float, typer.Option(min=1, max=1e6, help="Of an answer, mean.")] = _LOAD.tokens,
    prompt_tokens: Annotated[float, typer.Option(min=0, max=1e7)] = _LOAD.prompt_tokens,
    tokens_per_s: Annotated[float, typer.Option(min=0.1, max=10_000)] = _LOAD.tokens_per_s,
    peak: Annotated[float, typer.Option(min=1, max=1000, help="Over the day's mean.")] = _LOAD.peak,
    abandoned: Annotated[float, typer.Option(min=0, max=1, help="Readers who leave.")] = _LOAD.abandoned,
    told: Annotated[float, typer.Option(min=0, max=1, help="Of those, with a DELETE.")] = _LOAD.told,
    cut: Annotated[float, typer.Option(min=0, max=1, help="Connections that break.")] = _LOAD.cut,
    stalled: Annotated[float, typer.Option(min=0, max=1, help="Readers who stop.")] = _LOAD.stalled,
    abandon_after_s: Annotated[float, typer.Option(min=0.1)] = _LOAD.abandon_after_s,
    window_bytes: Annotated[float, typer.Option(min=1024)] = _LOAD.window_bytes,
    retention_s: Annotated[float, typer.Option(min=10)] = _LOAD.retention_s,
    log_entries: Annotated[float, typer.Option(min=16)] = _LOAD.log_entries,
    utilisation: Annotated[float, typer.Option(min=0.05, max=1, help="Of a core.")] = _SIZING.utilisation,
    spare: Annotated[int, typer.Option(min=1, help="Least nodes and workers.")] = _SIZING.spare,
    core_hour: Annotated[float, typer.Option(min=0, help="$")] = _PRICES.core_hour,
    gib_hour: Annotated[float, typer.Option(min=0, help="$")] = _PRICES.gib_hour,
    egress_gib: Annotated[float, typer.Option(min=0, help="$")] = _PRICES.egress_gib,
    output_million: Annotated[float, typer.Option(min=0, help="$ of tokens made")] = _PRICES.output_million,
    input_million: Annotated[float, typer.Option(min=0, help="$ of tokens read")] = _PRICES.input_million,
    bench: Annotated[
        list[Path] | None, typer.Option(help="JSON of relay bench latency, capacity or backpressure.")
    ] = None,
    whole_page: Annotated[bool, typer.Option("--page", help="ops/cost-analysis.md, with 4 loads.")] = False,
) -> None:
    """What a load needs and costs, with relay and without.

    Its constants are measured; the committed ones say by which command, and --bench puts yours there.
    """
    constants = Constants()
    for path in bench or ():
        constants = with_bench(constants, path)
    prices = Prices(core_hour, gib_hour, egress_gib, output_million, input_million)
    sizing = Sizing(utilisation, spare)

    def of(count: int) -> Load:
        return Load(
            count, tokens, prompt_tokens, tokens_per_s, peak, abandoned, told, cut, stalled,
            abandon_after_s, window_bytes, retention_s, log_entries,
        )  # fmt: skip

    if whole_page:
        several = [estimate(of(count), constants, prices, sizing) for count in PAGE_LOADS]
        typer.echo(page(several, constants, prices, sizing), nl=False)
    else:
        typer.echo(text(estimate(of(requests_per_day), constants, prices, sizing), constants, prices, sizing))
