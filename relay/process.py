"""What every long-running process of ours does to the interpreter."""

import asyncio
import gc
import random
import resource
import sys
from collections.abc import Coroutine
from contextlib import suppress

import uvloop

from relay import logs, tracing
from relay.errors import RelayError, SettingsInvalid, Unavailable
from relay.settings import Settings

# Connections and futures come and go by the thousand and are freed by reference counts; the collector's
# default of a look at every 700 allocations costs up to a tenth of the CPU and finds nothing. What does go
# round is old when it dies, and by these thresholds it would wait for a million others: `tidy` frees it.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50
_TIDY_S = 60.0
_OPEN_FILES = 131_072  # over the most consumers that a node may be set to serve


def run(name: str, settings: Settings, serve: Coroutine[None, None, None]) -> int:
    """Run a process of ours to its end, with logs and traces. Returns the exit code; one line says why not 0.

    0 is an end that was asked for, 2 a setting that cannot be, 1 whatever else.
    """
    logs.configure(settings)
    try:
        tracing.configure(settings, f"relay-{name}")
        uvloop.run(serve)
    except RelayError as error:
        hint = "; start it, or set RELAY_REDIS_URL to where it is" if isinstance(error, Unavailable) else ""
        print(f"relay {name}: {error.message}{hint}", file=sys.stderr)
        return 2 if isinstance(error, SettingsInvalid) else 1
    finally:
        serve.close()  # where it did not come to run
        tracing.shutdown()
    return 0


def settle() -> None:
    """Call once when the process is set up: what lives for ever is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    _raise_open_files()


async def tidy() -> None:
    """Collect everything once a minute, until cancelled: some milliseconds with a thousand readers."""
    while True:
        # Jitter, so that the processes of a machine do not stand still together.
        await asyncio.sleep(_TIDY_S * random.uniform(0.75, 1.25))
        gc.collect()


def _raise_open_files() -> None:
    """Every reader and every upstream is a descriptor; the usual soft limit of 1024 is for `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS names a hard limit that its kernel does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
