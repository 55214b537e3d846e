"""The estimate as text: one load as a table with its arithmetic, and the page for several loads."""

from collections.abc import Iterator
from dataclasses import fields, replace

from relay.cost import Constants, Estimate, Prices, Sizing, machines_of

COMMAND = "relay cost"
PAGE_LOADS = (1_000, 10_000, 100_000, 10_000_000)
_INTRODUCTION = (
    f"Printed by `{COMMAND} --page`, and a test holds this file to what it prints. For your own numbers: "
    f"`{COMMAND} --requests-per-day N --tokens T --bench FILE`, see `{COMMAND} --help`. The model is "
    "`relay/cost.py`: arithmetic over measured constants, which stand below with the commands that "
    "measured them."
)
_WITHOUT = (
    "*Without the pattern* is the obvious stack (FastAPI, sse-starlette, redis-py, a stream without a cap) "
    "for the same load, retention and network. It goes on generating for readers who left or stand still, "
    "and a connection that breaks asks for the answer again, from the beginning."
)
_LEFT_OUT = (
    "Left out: replicas of Redis (one each doubles its primaries and memory), TLS, the balancer, "
    "observability, the models' own machines, people."
)


def table(estimates: list[Estimate]) -> list[str]:
    """A Markdown table, one column for each load."""
    heads = [f"{estimate.load.requests_per_day:,}/day" for estimate in estimates]
    rows = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    columns = [list(_column(estimate)) for estimate in estimates]
    for index, (label, _) in enumerate(columns[0]):
        rows.append(f"| {label} | {' | '.join(column[index][1] for column in columns)} |")
    return rows


def _column(estimate: Estimate) -> Iterator[tuple[str, str]]:
    _, peak, machines, tokens, money = estimate
    yield "requests a second, at the peak", f"{peak.requests_per_s:,.2f}"
    yield "answers at once, at the peak", f"{peak.answers_at_once:,.1f}"
    yield "tokens a second, at the peak", f"{peak.tokens_per_s:,.0f}"
    yield "API nodes (cores used)", f"{machines.nodes} ({machines.api_cores:.2f})"
    yield "workers (cores used)", f"{machines.workers} ({machines.worker_cores:.2f})"
    yield "Redis primaries (cores used)", f"{machines.redis} ({machines.redis_cores:.2f})"
    yield "Redis memory, GiB", _small(machines.redis_gib)
    yield "nodes' and workers' memory, GiB", _small(machines.process_gib)
    yield "Redis network, Mbit/s", f"{machines.redis_mbit:,.1f}"
    yield "to clients, GiB a month", f"{machines.egress_gib_month:,.0f}"
    yield "**Redis, $ a month**", f"{money.redis:,.0f}"
    yield "**nodes and workers, $**", f"{money.processes:,.0f}"
    yield "**network to clients, $**", f"{money.egress:,.0f}"
    yield "**tokens for nobody, $**", f"{money.tokens_for_nobody:,.0f}"
    yield "**relay, all of it, $**", f"{money.relay:,.0f}"
    yield "without: machines, $", f"{money.without_machines:,.0f}"
    yield "without: tokens for nobody and made again, $", f"{money.without_tokens:,.0f}"
    yield "**without the pattern, all of it, $**", f"{money.without:,.0f}"
    yield "output tokens saved a month, million", f"{tokens.saved / 1e6:,.2f}"


def _small(value: float) -> str:
    return f"{value:,.3f}" if value < 1 else f"{value:,.1f}"


def arithmetic(estimate: Estimate, constants: Constants) -> list[str]:
    """How the tokens saved come about, with this load's numbers, a month of 30 days."""
    load, tokens = estimate.load, estimate.tokens
    requests = load.requests_per_day * 30
    window = load.window_bytes / constants.text_bytes
    absent = load.abandon_after_s * load.tokens_per_s
    left = f"{requests:,} requests x {load.abandoned:g} abandoned x {load.tokens:g} tokens left"
    still = f"{requests:,} x {load.stalled:g} stalled x {load.tokens:g} left"
    again = f"{requests:,} x {load.cut:g} cut"
    cut = f"(1 - e^-({min(window, absent):,.0f}/{load.tokens:g}))"
    noticed = (
        f"the same x (1 - {load.told:g}) not told by DELETE x {cut} made until it is noticed, "
        f"{load.abandon_after_s:g} s x {load.tokens_per_s:g} tokens/s or the window if that is less"
    )
    held = (
        f"the same x (1 - e^-({window:,.0f}/{load.tokens:g})) within the window of "
        f"{load.window_bytes:,.0f} B at {constants.text_bytes:g} B a token"
    )
    return [
        f"cancel on abandon, without: {left} = {tokens.abandoned_without:,.0f}",
        f"cancel on abandon, with: {noticed} = {tokens.abandoned_with:,.0f}",
        f"shorten, without: {still} = {tokens.stalled_without:,.0f}",
        f"shorten, with: {held} = {tokens.stalled_with:,.0f}",
        f"resume, not retry: {again} x {load.tokens:g} tokens made again = {tokens.again_out:,.0f}",
        f"resume, not retry: {again} x {load.prompt_tokens:g} read again = {tokens.again_in:,.0f}",
        f"saved: {tokens.saved:,.0f} output tokens",
    ]


def assumed(constants: Constants, prices: Prices, sizing: Sizing, estimate: Estimate) -> Iterator[str]:
    """Every number that went in, and where the measured ones are from."""
    skipped = {"requests_per_day", "sources"}
    for title, values in (
        ("load", estimate.load),
        ("sizing", sizing),
        ("prices, $", prices),
        ("measured", constants),
    ):
        told = [
            f"{field.name}={getattr(values, field.name):g}"
            for field in fields(values)
            if field.name not in skipped
        ]
        yield f"{title}: {', '.join(told)}"
    yield from (f"measured by: {source}" for source in constants.sources)


def text(estimate: Estimate, constants: Constants, prices: Prices, sizing: Sizing) -> str:
    """One load, for a terminal."""
    lines = [f"{label.replace('*', ''):<48}{value:>18}" for label, value in _column(estimate)]
    lines += ["", *arithmetic(estimate, constants), "", *assumed(constants, prices, sizing, estimate)]
    return "\n".join(lines)


def page(estimates: list[Estimate], constants: Constants, prices: Prices, sizing: Sizing) -> str:
    """ops/cost-analysis.md, whole."""
    shown = next(each for each in estimates if each.load.requests_per_day == 100_000)
    parts = [
        "# Cost analysis",
        "",
        _INTRODUCTION,
        "",
        *table(estimates),
        "",
        _WITHOUT,
        "",
        "## How to read it",
        "",
        *(f"- {line}" for line in _findings(estimates, constants, sizing)),
        "",
        "## Tokens saved: the arithmetic, for 100,000 requests a day",
        "",
        *(f"- {line}" for line in arithmetic(shown, constants)),
        "",
        "## What went in",
        "",
        *(f"- {line}" for line in assumed(constants, prices, sizing, shown)),
        "",
        _LEFT_OUT,
    ]
    return "\n".join(parts) + "\n"


def _findings(estimates: list[Estimate], constants: Constants, sizing: Sizing) -> Iterator[str]:
    least, most = estimates[0], estimates[-1]

    def memory(retention_s: float = most.load.retention_s, entries: float = most.load.log_entries) -> str:
        load = replace(most.load, retention_s=retention_s, log_entries=entries)
        return _small(machines_of(load, most.peak, constants, sizing).redis_gib)

    at_once = f"{least.peak.answers_at_once:.1f} answers at once"
    yield (
        f"At {least.load.requests_per_day:,} a day ({at_once}) the money buys the spare: the least that "
        "survives the loss of a process. Below some 10,000 a day, with these prices, relay is bought for "
        "what readers get, not for what it saves."
    )
    yield (
        f"Memory of Redis is retention: {most.load.retention_s:g} s of ended answers, beside which those "
        f"that run are nothing. At {most.load.requests_per_day:,} a day RELAY_RETENTION_S=600 makes "
        f"{memory(600)} of {memory()} GiB, and RELAY_LOG_ENTRIES=64 beside it "
        f"{memory(600, 64)}."
    )
    yield (
        "Cancel on abandon saves where the client tells with a DELETE. Noticed by absence alone it comes "
        f"after RELAY_ABANDON_AFTER_S, {most.load.abandon_after_s:g} s, by which an answer of "
        f"{most.load.tokens:g} tokens is nearly always whole: it pays for long answers."
    )
    yield (
        "Shorten saves nothing before the window is full, which is some 6,000 tokens: it is a bound, not a "
        "saving, until answers are that long. What pays at every length is resuming."
    )
    yield (
        "Redis and nodes are sized by tokens, and a busy node puts more of them in one frame: the constants "
        "are of a machine at two thirds of what it carries. Far below that a token costs up to half more "
        "(`--bench` of a small `relay bench latency`), near the limit a quarter less."
    )
