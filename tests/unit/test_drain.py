"""A node that drains takes no new readers, and a process may open as many files as it is let."""

import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.metrics import Metrics
from api.node import Node
from relay.errors import Draining
from relay.settings import Settings
from relay.topology import Topology


async def test_a_draining_node_takes_no_reader() -> None:
    """It would hold a reader that nobody tells to go; 503 sends it to another node at once."""
    topology = SimpleNamespace(on_change=lambda _recover: None)
    node = Node(Settings(), cast("Topology", topology), Metrics())
    node.drain()
    nothing: Any = None
    with pytest.raises(Draining) as refused:
        await node.attach(nothing, nothing, name=None, position=None, window=None)
    assert refused.value.retryable
    assert refused.value.retry_after_s is not None
    assert node.consumers == []


SHOW = """
import resource
from relay import process
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
process.settle()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 4096), (4096, 4096)])
def test_the_soft_limit_of_open_files_is_raised(soft: int, hard: int) -> None:
    """To the hard one: a thousand readers are more than the usual soft limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < hard:
        pytest.skip("this machine lets nobody open so many files")
    shown = subprocess.run(
        [sys.executable, "-c", SHOW.format(soft=soft, hard=hard)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(hard), str(hard)]
