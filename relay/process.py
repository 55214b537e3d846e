"""What every long-running process of ours does to the interpreter."""

import gc

# Connections and futures come and go by the thousand and are freed by reference counts; the collector's
# default of a look at every 700 allocations costs up to a tenth of the CPU and finds nothing.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50


def settle() -> None:
    """Call once when the process is set up: what lives for ever is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
