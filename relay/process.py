"""What every long-running process of ours does to the interpreter."""

import gc
import resource
from contextlib import suppress

# Connections and futures come and go by the thousand and are freed by reference counts; the collector's
# default of a look at every 700 allocations costs up to a tenth of the CPU and finds nothing.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50
_OPEN_FILES = 131_072  # over the most consumers that a node may be set to serve


def settle() -> None:
    """Call once when the process is set up: what lives for ever is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    _raise_open_files()


def _raise_open_files() -> None:
    """Every reader and every upstream is a descriptor; the usual soft limit of 1024 is for `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS names a hard limit that its kernel does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
