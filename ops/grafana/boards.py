"""The five dashboards. `python -m ops.grafana` writes their JSON."""

from ops.grafana.panels import Board, Panel, Row

R = "[$__rate_interval]"
RUNNING = "clamp_min(sum(relay_worker_responses), 1)"


def quantile(share: float, name: str, by: str = "le") -> str:
    """A quantile of one of our histograms."""
    return f"histogram_quantile({share}, sum by ({by}) (rate({name}_bucket{R})))"


def rate(name: str, by: str = "") -> str:
    """A counter's speed, summed."""
    return f"sum by ({by}) (rate({name}{R}))" if by else f"sum(rate({name}{R}))"


READERS = Panel(
    "Readers",
    "short",
    "By state. Normal: live; a few slow or stalled ones are single clients, and the ladder deals with them.",
    (("sum by (state) (relay_consumers)", "{{state}}"),),
)
DELIVERY = Panel(
    "Delivery",
    "s",
    "From the append in Redis to the client's socket. Normal: p50 of a few ms, p99 under 0.25 s (the service level).",
    ((quantile(0.5, "relay_delivery_seconds"), "p50"), (quantile(0.99, "relay_delivery_seconds"), "p99")),
)
DELIVERY_BY_NODE = Panel(
    "Delivery p99 by node",
    "s",
    "Normal: all alike, under 0.25 s. One above the others is a busy or sick node; all together is Redis.",
    ((quantile(0.99, "relay_delivery_seconds", "le, instance"), "{{instance}}"),),
)
FIRST_TOKEN = Panel(
    "First token",
    "s",
    "From the create to the first text, the queue included. Normal: the source's own time; p95 under 2.5 s.",
    (
        (quantile(0.5, "relay_first_token_seconds"), "p50"),
        (quantile(0.95, "relay_first_token_seconds"), "p95"),
    ),
)
LAG_BYTES = Panel(
    "Lag in bytes",
    "bytes",
    "What readers lack, sampled each second. Normal: p90 near 0. Held at the window (RELAY_WINDOW_BYTES) by the ladder.",
    (
        (quantile(0.5, "relay_consumer_lag_bytes"), "p50"),
        (quantile(0.9, "relay_consumer_lag_bytes"), "p90"),
        ("max(relay_consumer_lag_bytes_max)", "largest"),
        ('max(relay_setting{name="window_bytes"})', "window"),
    ),
)
LAG_SECONDS = Panel(
    "Lag in seconds",
    "s",
    "Age of the oldest text that a reader lacks. Normal: p99 under 0.5 s; the largest is the worst single client.",
    (
        (quantile(0.99, "relay_consumer_lag_seconds"), "p99"),
        ("max(relay_consumer_lag_seconds_max)", "largest"),
    ),
)
PRESSURE = Panel(
    "Pressure on new work",
    "short",
    "Normal: 0. 1: fewer tokens; 2: the fallback model, no background work; 3: 429 for everything new.",
    (("max(relay_pressure_level)", "level"),),
    fault=True,
    most=3,
)
LADDER = Panel(
    "Ladder steps",
    "ops",
    "Steps of answers whose readers are slow. Normal: coalescing and pacing now and then; shortened is rare.",
    ((rate("relay_ladder_steps_total", "step"), "{{step}}"),),
    fault=True,
)
SHED = Panel(
    "Refused and degraded",
    "reqps",
    "Requests refused (429) or let in with less, by reason. Normal: 0.",
    (
        (rate("relay_shed_total", "reason"), "refused: {{reason}}"),
        (rate("relay_degraded_total", "step"), "{{step}}"),
    ),
    fault=True,
)
TOKENS = Panel(
    "Tokens from sources",
    "cps",
    "Tokens a second over all workers. Normal: follows the running answers; 0 with running ones is a source at a stand.",
    ((rate("relay_tokens_total"), "tokens"),),
)
GENERATIONS = Panel(
    "Answers ended",
    "ops",
    "Normal: completed, and cancelled by users who leave. failed burns the budget of completion.",
    ((rate("relay_generations_total", "outcome"), "{{outcome}}"),),
    fault=True,
)
BUDGETS = Panel(
    "Error budgets: speed of burning",
    "short",
    "Normal: under 1, which spends a month's budget in a month. Over 6 for hours is a ticket, over 14.4 a page. Empty without traffic.",
    (("relay:slo_errors:ratio_rate5m / on (slo) relay:slo_budget", "{{slo}}"),),
    fault=True,
)
OLDEST = Panel(
    "Wait in the queue",
    "s",
    "Age of the oldest job that nobody has taken. Normal: 0. 2, 5 and 15 s are the levels of pressure (interactive).",
    (("max by (priority) (relay_jobs_oldest_seconds)", "{{priority}}"),),
    fault=True,
)
SLOTS = Panel(
    "Slots in use",
    "percentunit",
    "Share of the workers' slots that run an answer. Normal: under 0.8; at 1 new jobs wait.",
    (("sum(relay_worker_responses) / sum(relay_worker_slots)", "used"),),
    most=1,
)
APPEND = Panel(
    "Append",
    "s",
    "From the write to Redis's reply. Normal: p99 of a few ms. The first thing to rise when Redis is slow.",
    ((quantile(0.5, "relay_append_seconds"), "p50"), (quantile(0.99, "relay_append_seconds"), "p99")),
)
MEMORY = Panel(
    "Memory of Redis",
    "bytes",
    "Normal: under 70 % of the budget (maxmemory, or RELAY_MEMORY_BUDGET_BYTES). From 80 % on new work is refused.",
    (("max(relay_redis_memory_bytes)", "used"), ("max(relay_redis_memory_budget_bytes)", "budget")),
)
FAILED_APPENDS = Panel(
    "Appends tried again",
    "ops",
    "Normal: 0. Redis is away, or at maxmemory; the workers hold the text meanwhile.",
    ((rate("relay_append_failures_total"), "failed"),),
    fault=True,
)
THROTTLED = Panel(
    "Sources not read, by cause",
    "percentunit",
    "Seconds of waiting for each second of running answers. Normal: near 0. window and pace are slow clients, memory is Redis.",
    (
        (
            f"{rate('relay_throttled_seconds_total', 'cause')} / on () group_left () {RUNNING}",
            "{{cause}}",
        ),
    ),
    fault=True,
)
STALLED = Panel(
    "Share of readers that are behind",
    "percentunit",
    "Slow and stalled readers among all. Normal: under 0.1. More is a network or a proxy, not single clients.",
    (('sum(relay_consumers{state=~"slow|stalled"}) / clamp_min(sum(relay_consumers), 1)', "behind"),),
    fault=True,
    most=1,
)
RECONNECTS = Panel(
    "Connections to Redis made again",
    "ops",
    "Normal: 0. A burst is a restart or a failover; a steady rate is a network or a timeout.",
    (("sum by (instance) (rate(relay_redis_reconnects_total[$__rate_interval]))", "{{instance}}"),),
    fault=True,
)

OVERVIEW = Board(
    "overview",
    "Is it well? Traffic, what users feel, and what is done about slow readers.",
    (
        Row(
            "Traffic",
            (
                READERS,
                TOKENS,
                Panel(
                    "Sent to readers",
                    "Bps",
                    "Bytes of events by kind. Normal: delta is nearly all of it.",
                    ((rate("relay_bytes_sent_total", "event"), "{{event}}"),),
                ),
            ),
        ),
        Row("What users feel", (FIRST_TOKEN, DELIVERY, GENERATIONS, LAG_BYTES, LAG_SECONDS, BUDGETS)),
        Row("What is done about it", (LADDER, PRESSURE, SHED)),
    ),
)
CONSUMERS = Board(
    "consumers",
    "The readers: where they stand, how they come back, why they go.",
    (
        Row("Where they stand", (READERS, LAG_BYTES, LAG_SECONDS, DELIVERY, DELIVERY_BY_NODE, STALLED)),
        Row(
            "How they come and go",
            (
                Panel(
                    "Readers by node",
                    "short",
                    "Normal: spread evenly. The bound of one node is RELAY_MAX_CONSUMERS.",
                    (("sum by (instance) (relay_consumers)", "{{instance}}"),),
                ),
                Panel(
                    "Resumed",
                    "ops",
                    "Connections that came back, by where they went on. Normal: single ones; a burst is a lost node or a deploy.",
                    ((rate("relay_resumes_total", "source"), "{{source}}"),),
                    fault=True,
                ),
                Panel(
                    "Connections ended",
                    "ops",
                    "Normal: terminal (they have it all) and disconnected. lost is a page.",
                    ((rate("relay_stream_endings_total", "reason"), "{{reason}}"),),
                    fault=True,
                ),
            ),
        ),
        Row(
            "What must not be",
            (
                Panel(
                    "Bytes missed",
                    "bytes",
                    "Must be 0, always.",
                    (("sum(relay_gap_bytes_total)", "missed"),),
                    fault=True,
                ),
                Panel(
                    "Holes in the log read from the journal",
                    "ops",
                    "Normal: single ones, at slow readers: nothing is lost. A steady rate: RELAY_LOG_ENTRIES is small.",
                    ((rate("relay_trims_repaired_total"), "repaired"),),
                    fault=True,
                ),
                Panel(
                    "Positions that Redis sees otherwise",
                    "ops",
                    "Normal: 0. A third party moves or acknowledges groups, or there is a defect.",
                    ((rate("relay_position_disagreements_total"), "differ"),),
                    fault=True,
                ),
            ),
        ),
    ),
)
WORKERS = Board(
    "workers",
    "The workers and the queue: is there room, do they keep up, what do they save.",
    (
        Row(
            "Room",
            (
                SLOTS,
                Panel(
                    "Answers in workers",
                    "short",
                    "Normal: running ones, well under the slots. Paused ones wait for their readers.",
                    (
                        ("sum by (state) (relay_worker_responses)", "{{state}}"),
                        ("sum(relay_worker_slots)", "slots"),
                    ),
                ),
                Panel(
                    "Jobs",
                    "short",
                    "Normal: none waits. Pending ones are taken and not finished: as many as run.",
                    (
                        ("max by (priority) (relay_jobs_waiting)", "waiting: {{priority}}"),
                        ("max by (priority) (relay_jobs_pending)", "pending: {{priority}}"),
                    ),
                    fault=True,
                ),
                OLDEST,
                FIRST_TOKEN,
                GENERATIONS,
            ),
        ),
        Row(
            "Flow",
            (
                Panel(
                    "Tokens by worker",
                    "cps",
                    "Normal: alike. One at 0 with running answers is stuck.",
                    ((rate("relay_tokens_total", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Tokens in one append",
                    "short",
                    "How much merging saves. Normal: about 1 on a quiet system, rising with load.",
                    ((f"{rate('relay_tokens_total')} / {rate('relay_appends_total')}", "tokens"),),
                ),
                THROTTLED,
                LADDER,
                Panel(
                    "Longest pause",
                    "s",
                    "Normal: under RELAY_PAUSE_MAX_S, at which an answer is shortened.",
                    (
                        ("max(relay_paused_seconds_max)", "longest"),
                        ('max(relay_setting{name="pause_max_s"})', "bound"),
                    ),
                    fault=True,
                ),
                Panel(
                    "Tokens not generated",
                    "cps",
                    "Saved by cancelling what nobody reads, and by shortening. Normal: what users leave.",
                    ((rate("relay_tokens_saved_total", "reason"), "{{reason}}"),),
                    fault=True,
                ),
            ),
        ),
        Row(
            "What must be rare",
            (
                Panel(
                    "Jobs taken over",
                    "ops",
                    "From workers that died or stood still past their lease. Normal: 0 outside of deploys.",
                    ((rate("relay_jobs_reclaimed_total"), "reclaimed"),),
                    fault=True,
                ),
                Panel(
                    "Writes refused by the fence",
                    "ops",
                    "Normal: 0. Each is a worker that came back after its lease.",
                    ((rate("relay_fenced_writes_total"), "fenced"),),
                    fault=True,
                ),
                Panel(
                    "How full journals end",
                    "percentunit",
                    "Share of RELAY_MAX_RESPONSE_BYTES. Normal: p99 under 0.5; at 1 answers are cut.",
                    ((quantile(0.99, "relay_journal_fill_ratio"), "p99"),),
                ),
            ),
        ),
    ),
)
REDIS = Board(
    "redis",
    "Redis as relay sees it: room, speed, trouble.",
    (
        Row(
            "Room and speed",
            (
                MEMORY,
                APPEND,
                Panel(
                    "Appends",
                    "ops",
                    "One is one Lua call. Normal: grows with the answers, and slower than their tokens: that is the merging.",
                    ((rate("relay_appends_total"), "appends"),),
                ),
                Panel(
                    "Commands without a reply yet",
                    "short",
                    "By process. Normal: tens. Standing high is a slow Redis; the bound is RELAY_WIRE_INFLIGHT.",
                    (("sum by (instance) (relay_redis_inflight)", "{{instance}}"),),
                    fault=True,
                ),
                Panel(
                    "Entries of a log at its end",
                    "short",
                    "Normal: under RELAY_LOG_ENTRIES and a little; the cap is approximate.",
                    ((quantile(0.95, "relay_stream_entries"), "p95"),),
                ),
                PRESSURE,
            ),
        ),
        Row(
            "Trouble",
            (
                FAILED_APPENDS,
                RECONNECTS,
                Panel(
                    "Bytes sent again",
                    "Bps",
                    "Normal: 0. After a failover: what Redis had acknowledged and lost.",
                    ((rate("relay_resent_bytes_total"), "resent"),),
                    fault=True,
                ),
                Panel(
                    "Evictions allowed",
                    "bool",
                    "Must be 0: any policy but noeviction deletes running answers.",
                    (("max(relay_redis_evicts)", "evicts"),),
                    fault=True,
                    most=1,
                ),
            ),
        ),
    ),
)
INCIDENTS = Board(
    "incidents",
    "Who is slow? The first row is what users feel; each row below is one suspect. See ops/runbook.md.",
    (
        Row("Effect", (FIRST_TOKEN, DELIVERY, BUDGETS)),
        Row(
            "The source?",
            (
                Panel(
                    "Tokens a second for each running answer",
                    "cps",
                    "Normal: what the model makes. Down with the other suspects at rest: the source is slow.",
                    (
                        (
                            f"{rate('relay_tokens_total')} / {RUNNING}",
                            "tokens",
                        ),
                    ),
                ),
                GENERATIONS,
                THROTTLED,
            ),
        ),
        Row("The workers?", (OLDEST, SLOTS, FAILED_APPENDS)),
        Row("Redis?", (APPEND, MEMORY, RECONNECTS)),
        Row(
            "A node?",
            (
                DELIVERY_BY_NODE,
                PRESSURE,
                Panel(
                    "Scraped",
                    "bool",
                    "Normal: 1. 0: down, stuck, or it refuses the key.",
                    (('up{job=~"relay-.+"}', "{{job}} {{instance}}"),),
                    most=1,
                ),
            ),
        ),
        Row("The clients?", (STALLED, LAG_BYTES, LADDER)),
    ),
)
BOARDS = (OVERVIEW, CONSUMERS, WORKERS, REDIS, INCIDENTS)
