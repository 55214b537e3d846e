"""The commands as a user has them: an exit code, lines on two outputs, and nothing left behind."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from relay import simulation
from relay.cli import supervisor
from relay.cli.processes import Child, ChildEnded
from relay.cli.supervisor import Plan
from relay.embedded import EmbeddedServer, free_port
from relay.settings import Settings
from tests.support.servers import may_skip
from tests.support.wait import wait_until

COMMANDS = [
    "demo",
    "up",
    "api",
    "worker",
    "tail",
    "top",
    "doctor",
    "settings",
    "keys create",
    "keys list",
    "keys revoke",
]
RELAY = [sys.executable, "-m", "relay.cli.main"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}

pytestmark = pytest.mark.timeout(240)
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


def relay(*args: str, cwd: Path, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, in a folder without an .env."""
    return subprocess.run(
        [*RELAY, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**CLEAN, **env},
        timeout=timeout_s,
        check=False,
    )


def in_a_terminal(*args: str, cwd: Path, columns: int, **env: str) -> str:
    """What one command that ends well shows in a terminal of that width, without the colours."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    with subprocess.Popen(
        [*RELAY, *args], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd,
        env={**CLEAN, "TERM": "xterm-256color", **env},
    ) as process:  # fmt: skip
        os.close(theirs)
        with (
            os.fdopen(ours, "rb") as terminal,
            contextlib.suppress(OSError),
        ):  # EIO: its last writer has ended
            said = b""
            while part := terminal.read1(65_536):
                said += part
        assert process.wait(60) == 0, said
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).replace("\r\n", "\n")


def descendants(pid: int) -> set[int]:
    """Every process under `pid`, and itself."""
    found = {pid}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                found |= descendants(int(child))
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run: a zombie whose parent has not looked yet does not."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


class Up:
    """A running `relay up`, or whatever else stays up and prints a ready line."""

    def __init__(self, cwd: Path, *args: str, **env: str) -> None:
        self.port = free_port()
        self.errors = cwd / f"stderr-{self.port}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*RELAY, "up", "--port", str(self.port), *args],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=cwd,
                env={**CLEAN, **env},
            )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One HTTP call: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def create(self, tokens: int, rate: float = 0, **more: object) -> str:
        """A simulated response; its id."""
        script = {"tokens": tokens, "tokens_per_second": rate, "seed": 5}
        status, answer = self.call(
            "POST", "/v1/streams", {"model": "simulated", "prompt": "x", "simulation": script, **more}
        )
        assert status == 201, answer
        return str(json.loads(answer)["id"])

    def child(self, kind: str) -> int:
        """The pid of the child that runs `relay KIND`."""
        for pid in descendants(self.process.pid) - {self.process.pid}:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                # Its guard is a shell with the same words behind it.
                if (
                    words[0] == sys.executable.encode()
                    and b"relay.cli.main" in words
                    and kind.encode() in words
                ):
                    return pid
        return 0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `relay up` for the tests that only use it."""
    with Up(tmp_path_factory.mktemp("up")) as running:
        yield running


@pytest.mark.parametrize("group", ["", "bench", "keys"])
def test_help_is_whole(group: str, tmp_path: Path) -> None:
    """The list of commands says of each what it does, in a line that fits a terminal of 80 columns."""
    done = relay(*group.split(), "--help", cwd=tmp_path, COLUMNS="80")
    commands = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert commands
    assert all(re.fullmatch(r"  [a-z]+ +[A-Z].*\w[.]", line) for line in commands), commands


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, tmp_path: Path) -> None:
    """Every command explains itself, with an example that can be copied."""
    done = relay(*command.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"relay {command}" in done.stdout.partition("Examples:")[2]
    assert done.stderr == ""


def test_the_version_is_the_package_s(tmp_path: Path) -> None:
    """On standard output, for scripts and reports."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    done = relay("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"relay {project['version']}\n")


def test_help_is_fast(tmp_path: Path) -> None:
    """The list of commands is there within 300 ms of processor time: nothing heavy is imported for it."""
    before = os.times()
    assert relay("--help", cwd=tmp_path).returncode == 0
    after = os.times()
    used_s = after.children_user - before.children_user + after.children_system - before.children_system
    assert used_s < 0.3


@pytest.mark.parametrize(
    "args", [["nonsense"], ["up", "--nonsense"], ["up", "--port", "x"], ["tail"], ["api", "--port", "70000"]]
)
def test_wrong_command_line(args: list[str], tmp_path: Path) -> None:
    """A wrong command line is one line that says where the help is, and exit 2."""
    done = relay(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "--help" in done.stderr


def test_settings(tmp_path: Path) -> None:
    """Every setting is listed, one a line when piped, with what was set marked and .env read."""
    (tmp_path / ".env").write_text("RELAY_LOG_ENTRIES=300\n")
    done = relay("settings", cwd=tmp_path, RELAY_FLUSH_MS="40")
    assert done.returncode == 0
    heading, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading == ["name", "value", "default", "allowed", "meaning"]
    table = {row[0]: row[1:] for row in rows}
    assert set(table) == {f"RELAY_{name.upper()}" for name in Settings.model_fields}
    assert table["RELAY_FLUSH_MS"][:3] == ["40 *", "15", "0 to 500 ms"]
    assert table["RELAY_LOG_ENTRIES"][0] == "300 *"


def test_settings_in_a_terminal(tmp_path: Path) -> None:
    """In 80 columns no line breaks off or is wider, and each setting stands there as it would be set."""
    columns, text = 80, in_a_terminal("settings", cwd=tmp_path, columns=80, RELAY_FLUSH_MS="40")
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) < 2 * len(Settings.model_fields)
    assert "RELAY_FLUSH_MS=40 *" in text
    assert "default 15" in text
    assert "RELAY_MODELS_FILE= " in text


def test_a_benchmark_in_a_terminal(tmp_path: Path) -> None:
    """Its table is the last that is seen: the JSON goes to a pipe or a file, and the table says so."""
    said = in_a_terminal("bench", "latency", "-n", "1", "--tokens", "5", cwd=tmp_path, columns=80)
    assert "CPU per token" in said
    assert "{" not in said
    assert "--json" in said.splitlines()[-1]


def test_settings_hide_secrets(tmp_path: Path) -> None:
    """No key and no password is ever shown."""
    done = relay(
        "settings",
        cwd=tmp_path,
        RELAY_API_KEYS="me:very-secret-1,very-secret-2",
        RELAY_UPSTREAM_API_KEY="very-secret-3",
        RELAY_REDIS_URL="redis://user:very-secret-4@127.0.0.1:6379/0?ssl_password=very-secret-5",
    )
    assert done.returncode == 0
    assert "very-secret" not in done.stdout + done.stderr
    assert "user:(hidden)@127.0.0.1" in done.stdout


@pytest.mark.parametrize("command", ["settings", "up", "api", "worker"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("RELAY_FLUSH_MS", "soon"), ("RELAY_LEASE_RENEW_S", "9"), ("RELAY_REDIS_URL", "http://x")],
)
def test_bad_setting(command: str, name: str, value: str, tmp_path: Path) -> None:
    """A bad setting ends every command with one line that names it, and exit 2."""
    done = relay(command, cwd=tmp_path, **{name: value})
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert name in line


@pytest.mark.parametrize("command", ["api", "worker"])
def test_bad_models_file(command: str, embedded_url: str, tmp_path: Path) -> None:
    """A models file that cannot be used is a bad setting: one line that names it, and exit 2."""
    models = tmp_path / "models.toml"
    models.write_text('[models.a]\nsource = "nowhere"\n')
    done = relay(command, cwd=tmp_path, RELAY_MODELS_FILE=str(models), RELAY_REDIS_URL=embedded_url)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"RELAY_MODELS_FILE={models}" in line


@pytest.mark.parametrize("command", ["api", "worker"])
def test_misspelt_variable(command: str, tmp_path: Path) -> None:
    """A variable that no setting has is one warning that names the nearest; others of ours are none."""
    done = relay(
        command,
        cwd=tmp_path,
        RELAY_REDIS_URL="redis://127.0.0.1:1/0",
        RELAY_MAX_ACTIV="3",
        RELAY_URL="http://127.0.0.1",
        RELAY_API_SERVICE_HOST="10.0.0.1",
        RELAY_API_PORT_8000_TCP="tcp://10.0.0.1:8000",
    )
    assert done.returncode == 1
    warning, _ = done.stderr.splitlines()
    assert json.loads(warning)["nearest"] == {"RELAY_MAX_ACTIV": "RELAY_MAX_ACTIVE"}
    assert json.loads(warning)["level"] == "warning"


def test_open_to_the_world(tmp_path: Path) -> None:
    """Without a key only this machine is served: another address is refused with what to do."""
    done = relay("up", "--host", "0.0.0.0", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "RELAY_API_KEYS" in line


@pytest.mark.parametrize("command", ["up", "api"])
def test_port_in_use(command: str, tmp_path: Path) -> None:
    """A port that is taken is one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = relay(command, "--port", str(port), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"--port {port}: in use" in line


def test_keys(tmp_path: Path) -> None:
    """A key is made once, as the setting takes it; the list names it, and revoking says where it stands."""
    made = [relay("keys", "create", "--tenant", name, cwd=tmp_path) for name in ("acme", "acme", "b.c")]
    assert [done.returncode for done in made] == [0, 0, 0]
    keys = [done.stdout.strip() for done in made]
    assert len(set(keys)) == 3
    assert all("RELAY_API_KEYS" in done.stderr and keys[0] not in done.stderr for done in made)
    api_keys = ",".join(keys)
    loaded = Settings(api_keys=api_keys)  # type: ignore[arg-type]
    assert [key.get_secret_value() for key in loaded.api_keys] == keys
    listed = relay("keys", "list", cwd=tmp_path, RELAY_API_KEYS=api_keys)
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "acme\nacme\nb.c\n", "")
    there = relay("keys", "revoke", "acme", cwd=tmp_path, RELAY_API_KEYS=api_keys)
    assert (there.returncode, len(there.stderr.splitlines())) == (2, 1)
    assert "RELAY_API_KEYS" in there.stderr
    assert relay("keys", "revoke", "other", cwd=tmp_path, RELAY_API_KEYS=api_keys).returncode == 1


@pytest.mark.parametrize("name", ["", "a,b", "a:b", "a b"])
def test_keys_of_no_name(name: str, tmp_path: Path) -> None:
    """A name that would be read as something else in the setting is refused."""
    done = relay("keys", "create", "--tenant", name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def test_doctor_on_a_good_server(embedded_url: str, tmp_path: Path) -> None:
    """The embedded server passes, with warnings about what it does not keep."""
    done = relay("doctor", cwd=tmp_path, RELAY_REDIS_URL=embedded_url)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^ok +Valkey \d", done.stdout, re.MULTILINE)
    assert "0 errors" in done.stdout
    assert re.search(r"^warning .*no persistence.*\n +-> ", done.stdout, re.MULTILINE)


def test_doctor_on_an_evicting_server(tmp_path: Path) -> None:
    """A server that evicts keys is an error with its remedy, and exit 1."""
    with EmbeddedServer(extra_args=["--maxmemory-policy", "allkeys-lru"]) as server:
        done = relay("doctor", cwd=tmp_path, RELAY_REDIS_URL=server.url)
    assert done.returncode == 1
    assert re.search(r"^error .*allkeys-lru.*\n +-> CONFIG SET maxmemory-policy", done.stdout, re.MULTILINE)


def test_doctor_without_a_server(tmp_path: Path) -> None:
    """A server that cannot be reached is one finding beside the others, its password hidden."""
    url = f"redis://me:very-secret@127.0.0.1:{free_port()}/0"
    done = relay("doctor", cwd=tmp_path, RELAY_REDIS_URL=url)
    assert done.returncode == 1
    assert "1 errors" in done.stdout
    assert "very-secret" not in done.stdout + done.stderr
    assert "models: simulated" in done.stdout


def test_doctor_on_settings_and_models(tmp_path: Path) -> None:
    """A bad setting, one that there is not, and a model whose key is not set are findings with a remedy."""
    done = relay("doctor", cwd=tmp_path, RELAY_MAX_ACTIV="3")
    assert re.search(r"^warning +RELAY_MAX_ACTIV .*\n +-> .*RELAY_MAX_ACTIVE$", done.stdout, re.MULTILINE)
    assert relay("doctor", cwd=tmp_path, RELAY_FLUSH_MS="x").returncode == 1
    models = tmp_path / "models.toml"
    models.write_text('[models.m]\nsource = "openai"\nbase_url = "http://x"\napi_key_env = "NOT_SET_HERE"\n')
    done = relay("doctor", cwd=tmp_path, RELAY_MODELS_FILE=str(models))
    assert re.search(r"^error +model m: NOT_SET_HERE", done.stdout, re.MULTILINE)


def test_up_serves(up: Up) -> None:
    """One command is a whole relay: its ready line is true when it comes."""
    assert up.ready == f"ready {up.url}"
    assert up.call("GET", "/readyz")[0] == 200
    assert "responses are gone when this ends" in up.errors.read_text()


def test_tail(up: Up, tmp_path: Path) -> None:
    """The text goes to stdout exactly, what is said about it to stderr."""
    done = relay("tail", up.create(200), "--url", up.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == simulation.text(5, 0, 200)
    assert "digest verified" in done.stderr


def test_tail_of_a_cancelled_response(up: Up, tmp_path: Path) -> None:
    """A response that was not completed is exit 1."""
    response_id = up.create(5000, rate=10)
    assert up.call("DELETE", f"/v1/streams/{response_id}")[0] == 202
    assert relay("tail", response_id, "--url", up.url, cwd=tmp_path).returncode == 1


def test_tail_of_nothing(up: Up, tmp_path: Path) -> None:
    """A response that is not there is one line and exit 1; a position that is none, exit 2."""
    done = relay("tail", "rs_none", "--url", up.url, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert relay("tail", "rs_none", "--after", "12", "--url", up.url, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("command", ["top", "tail rs_none"])
def test_nobody_there(command: str, tmp_path: Path) -> None:
    """A relay that is not there is soon one line that says what to do; an address that is none, exit 2."""
    done = relay(*command.split(), "--url", f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no answer from http://127.0.0.1" in line
    assert "relay up" in line
    assert relay(*command.split(), "--url", "localhost:8000", cwd=tmp_path).returncode == 2


def test_top_piped(up: Up, tmp_path: Path) -> None:
    """When piped, one table, tab-separated, with the newest responses."""
    response_id = up.create(50)
    done = relay("top", "--url", up.url, cwd=tmp_path)
    assert done.returncode == 0
    heading, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading[:3] == ["id", "model", "status"]
    assert [response_id, "simulated"] in [row[:2] for row in rows]


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_up_ends_cleanly(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """A signal drains it, readers and generations included; no process is left, and no traceback."""
    with Up(tmp_path) as up:
        tree = descendants(up.process.pid)
        assert len(tree) > 4
        up.create(5000, rate=10)
        up.process.send_signal(number)
        assert up.process.wait(60) == code
        wait_until(lambda: not alive(tree), "every process of the tree has ended")
        assert "Traceback" not in up.errors.read_text()


@linux
def test_up_killed(tmp_path: Path) -> None:
    """When the supervisor is killed without a chance to clean up, all that it started ends too."""
    with Up(tmp_path, "--workers", "2") as up:
        tree = descendants(up.process.pid)
        up.process.kill()
        up.process.wait(30)
        wait_until(lambda: not alive(tree), "every process of the tree has ended")


def kill_child(up: Up, kind: str) -> int:
    """SIGKILL for the child that runs `relay KIND`; its pid."""
    pid = up.child(kind)
    assert pid, f"no child runs relay {kind}"  # 0 would be our own process group
    os.kill(pid, signal.SIGKILL)
    return pid


@linux
def test_up_starts_the_dead_again(tmp_path: Path) -> None:
    """A child that dies is started again, and the relay works as before."""
    with Up(tmp_path) as up:
        for kind in ("worker", "api"):
            victim = kill_child(up, kind)
            wait_until(lambda k=kind, v=victim: up.child(k) not in {0, v}, f"another {kind}")  # type: ignore[misc]
        wait_until(lambda: _reachable(up), "the API node serves again")
        done = relay("tail", up.create(50), "--url", up.url, cwd=tmp_path)
        assert done.stdout == simulation.text(5, 0, 50)
        assert "was killed by signal 9" in up.errors.read_text()


@linux
@pytest.mark.parametrize("kind", ["api", "worker"])
def test_tail_across_a_death(kind: str, tmp_path: Path) -> None:
    """A reader does not notice when the API node or the worker under it is killed in the middle."""
    with Up(tmp_path, RELAY_LEASE_S="3", RELAY_LEASE_RENEW_S="0.5") as up:
        response_id = up.create(400, rate=60)
        with subprocess.Popen(
            [*RELAY, "tail", response_id, "--url", up.url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, cwd=tmp_path, env=CLEAN,
        ) as tail:  # fmt: skip
            assert tail.stdout is not None
            try:
                first = tail.stdout.read(1)
                kill_child(up, kind)
                rest, errors = tail.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{up.call('GET', f'/v1/streams/{response_id}')}\n{up.errors.read_text()}")
            finally:
                tail.kill()
    assert tail.returncode == 0, errors.decode()
    assert (first + rest).decode() == simulation.text(5, 0, 400)
    assert b"digest verified" in errors


def _reachable(up: Up) -> bool:
    try:
        return up.call("GET", "/readyz")[0] == 200
    except OSError:
        return False


def test_up_without_its_server(tmp_path: Path) -> None:
    """When nothing can start, the command ends at once with exit 1 instead of trying for ever."""
    began = time.monotonic()
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = relay("up", "--port", str(free_port()), cwd=tmp_path, RELAY_REDIS_URL=url)
    assert done.returncode == 1
    assert "ended before it was ready" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 30


class Dying(Plan):
    """Children of one line of shell: they become ready, and some die at once."""

    def api(self) -> Child:
        """One that stays."""
        return Child("API node", ["/bin/sh", "-c", "echo ready; exec sleep 600"], env=self.env)

    def all_workers(self) -> list[Child]:
        """One that does not."""
        return [Child("worker 1", ["/bin/sh", "-c", "echo ready; exit 3"], env=self.env)]


async def test_a_child_that_keeps_dying(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A child that dies too often ends everything with one line, instead of being started for ever."""
    monkeypatch.setattr(supervisor, "_BACKOFF_S", 0.001)
    with pytest.raises(ChildEnded, match="worker 1 died 6 times within a minute"):
        async with supervisor.running(Dying("127.0.0.1", 1, drain_s=1, worker_drain_s=1)):
            await asyncio.Event().wait()
    assert capfd.readouterr().err.count("ended with code 3; starting it again") == 5


async def test_a_child_that_will_not_stop() -> None:
    """A child that ignores SIGTERM is killed when its time is over, or at once in a hurry."""
    for grace_s, hurry in ((0.05, asyncio.Event()), (600, asyncio.Event())):
        child = Child(
            "deaf one", ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], env=CLEAN
        )
        await child.start()
        if grace_s > 1:
            hurry.set()
        async with asyncio.timeout(60):  # far less than the time that it is given
            await child.stop(grace_s, hurry)


@linux
def test_demo(tmp_path: Path) -> None:
    """The demo ends by itself, both readers have the text that was made, and the slow one lagged."""
    done = relay("demo", cwd=tmp_path, RELAY_API_KEYS="not:for-the-demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equals done") == 2
    assert "exactly the text that was made" in done.stdout
    lag = {row[0]: int(row[3].replace(",", "")) for row in _summary(done.stdout)}
    assert lag["slow"] > 5 * max(lag["fast"], 20)


def _summary(stdout: str) -> list[list[str]]:
    return [line.split() for line in stdout.splitlines() if line.startswith(("fast ", "slow "))]


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the demo ends everything, without a traceback or a file left behind."""
    with subprocess.Popen(
        [*RELAY, "demo"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**CLEAN, "TMPDIR": str(tmp_path)},
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        assert any(line.startswith("--") for line in demo.stdout)
        tree = descendants(demo.pid)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert errors == ""
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not alive(tree), "every process of the tree has ended")


@pytest.mark.llm
@linux
def test_demo_with_a_model(tmp_path: Path) -> None:
    """The same with a real model: what it wrote reaches both readers exactly."""
    if importlib.util.find_spec("xllamacpp") is None and may_skip():
        pytest.skip("the model is not installed: make install-llm")
    done = relay("demo", "--llm", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equals done") == 2
