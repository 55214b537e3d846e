"""nginx and HAProxy as ops/ ships them, as processes of this machine: only the addresses are others.

with balanced("nginx", api.port) as port: ...
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.embedded import free_port
from tests.support.browser import needs
from tests.support.system import call
from tests.support.wait import wait_until

_OPS = Path(__file__).parents[2] / "ops"
NAMES = ("nginx", "haproxy")


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Each of these exactly once: a configuration that has changed is noticed here."""
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the configuration"
        text = text.replace(old, new)
    return text


def _nginx(folder: Path, port: int, api: int) -> list[str]:
    config = folder / "nginx.conf"
    shipped = (_OPS / "nginx/nginx.conf").read_text()
    addresses = (
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        ("http://api:8000", f"http://127.0.0.1:{api}"),
        ("pid /tmp/nginx.pid", f"pid {folder}/nginx.pid"),
    )
    config.write_text(_replaced(shipped, *addresses).replace("_path /tmp/", f"_path {folder}/"))
    return [needs("nginx", "nginx-light"), "-e", "stderr", "-c", str(config), "-g", "daemon off;"]


def _haproxy(folder: Path, port: int, api: int) -> list[str]:
    config = folder / "haproxy.cfg"
    shipped = (_OPS / "haproxy/haproxy.cfg").read_text()
    lines = [line for line in shipped.splitlines() if line.strip().startswith("server-template ")]
    assert len(lines) == 1
    config.write_text(
        _replaced(
            shipped,
            ("bind :8080", f"bind 127.0.0.1:{port}"),
            (lines[0], f"  server api 127.0.0.1:{api} check"),
        )
    )
    return [needs("haproxy", "haproxy"), "-db", "-f", str(config)]


@contextmanager
def balanced(name: str, api: int) -> Iterator[int]:
    """The port of a proxy before the node at port `api`, once it has found it."""
    with tempfile.TemporaryDirectory(prefix=f"relay-{name}-") as made:
        folder, port = Path(made), free_port()
        folder.chmod(0o755)  # nginx's workers are another user
        command = (_nginx if name == "nginx" else _haproxy)(folder, port, api)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: _is_ready(process, port), f"{name} has found the node", 60)
            yield port
        except BaseException as error:
            error.add_note((folder / "log").read_text()[-2000:])
            raise
        finally:
            process.terminate()
            process.wait(60)


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, f"it ended with code {process.returncode}"
    try:
        return call(port, "GET", "/readyz").status == 200
    except OSError:
        return False
