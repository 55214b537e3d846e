"""The console script before its command line is there."""

import signal
import subprocess
import sys
from importlib import metadata

# Ctrl-C comes exactly when the command line is being imported.
_INTERRUPTED_IMPORT = """
import os, signal, sys
from relay.cli import entry

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "relay.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
entry.main()
"""


def test_ctrl_c_while_it_is_loading_prints_nothing() -> None:
    """It ends as any interrupted program does, and not with a traceback of imports."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IMPORT], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_console_script_begins_there() -> None:
    """What pip installs as `relay`."""
    (script,) = metadata.entry_points(group="console_scripts", name="relay")
    assert script.value == "relay.cli.entry:main"
