"""The TypeScript client: built, packed, installed, and live in Node and in Chromium on real processes."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.embedded import free_port
from tests.support.browser import Tab, chromium, needs
from tests.support.stage import Stage, text_of
from tests.support.system import Api
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients/typescript"
TOKENS, SEED, PAUSE_MS = 2500, 9, 40
# The same in a page, with the client that the console brings along.
IN_A_PAGE = """async ([id, pauseMs]) => {
  const { Client } = await import("/console/client/index.js");
  const client = new Client("", { backoffMs: 100, retries: 30 });
  const stream = client.stream(id, { window: 2048, manualAck: true });
  const seen = { text: "", verified: null, notices: [], connections: 0, events: 0 };
  let hasBeenHeld = false;
  for await (const event of stream) {
    seen.events += 1;
    if (event.type === "delta") {
      seen.text += event.text;
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
    if (event.type === "notice") seen.notices.push(event.kind);
    if (event.type === "done") seen.verified = event.verified;
    stream.ack(stream.position);
    if (!hasBeenHeld && stream.position.offset > 1500) {
      hasBeenHeld = true;
      await new Promise((resolve) => { window.goOn = resolve; });
    }
  }
  seen.connections = stream.connections;
  window.result = seen;
}"""


def run(*command: str, cwd: Path, within_s: float = 180) -> str:
    """What it prints. Raises AssertionError with its output when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=within_s, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder as it is, installed and tested in a copy of the tree."""
    npm = needs("npm", "nodejs npm")
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "tests/vectors", tree / "tests/vectors")
    there = tree / "clients/typescript"
    left_out = shutil.ignore_patterns("node_modules", "dist", "build", "*.tgz")
    shutil.copytree(CLIENT, there, ignore=left_out)
    run(npm, "ci", "--prefer-offline", cwd=there)
    run(npm, "test", cwd=there)
    return there


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own with the packed client in it; no registry is asked, for it depends on nothing."""
    project = tmp_path_factory.mktemp("project")
    (name,) = json.loads(run("npm", "pack", "--json", "--pack-destination", str(project), cwd=built))
    files = {one["path"] for one in name["files"]}
    assert {"package.json", "LICENSE", "README.md", "dist/index.js", "dist/index.d.ts"} <= files
    assert not [path for path in files if path.startswith(("src/", "test/", "node_modules/"))]
    (project / "package.json").write_text('{"name": "user", "private": true, "type": "module"}')
    run("npm", "install", "--offline", f"./{name['filename']}", cwd=project)
    shutil.copy(ROOT / "tests/support/live_reader.mjs", project)
    return project


def test_the_console_ships_what_the_build_makes(built: Path) -> None:
    """`npm run console` has been run: the files of the page are those of the build."""
    made = {path.name: path.read_bytes() for path in (built / "dist").glob("*.js")}
    shipped = {path.name: path.read_bytes() for path in (ROOT / "api/console/client").iterdir()}
    assert made == shipped, "run `npm run console` in clients/typescript"


def test_its_types_hold_in_a_strict_project(built: Path, installed: Path) -> None:
    """What is installed has types that a strict user's build takes, and they tell events apart."""
    (installed / "user.ts").write_text(
        'import { Client, type RelayEvent } from "relay-client";\n'
        'const stream = new Client("http://127.0.0.1:1").stream("rs_0", { window: 1024, manualAck: true });\n'
        "export const text = (event: RelayEvent): string => (event.type === 'delta' ? event.text : '');\n"
        "export const position: number = stream.position.offset;\n"
    )
    options = ["--noEmit", "--strict", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable"]
    run(str(built / "node_modules/.bin/tsc"), *options, "user.ts", cwd=installed)


def at_a_fixed_port(scene: Stage) -> Api:
    """A node that can come back: nobody's connection is given its port meanwhile, for it is not ephemeral."""
    return scene._stack.enter_context(Api(scene.redis.url, "--port", str(free_port())))


def restarted_in_mid_stream(scene: Stage, api: Api, response_id: str, go_on: Callable[[], Any]) -> None:
    """The node is killed while its reader holds the source, and comes back at its address.

    The reader waits in mid-stream, else it might have read all before a busy machine comes to the kill. It
    goes on when the node is gone.
    """
    told = wait_until(lambda: held_up(api, response_id), "the source waits for a reader that has some", 60)
    assert told["position"] - told["consumers"][0]["position"] < 12_000
    api.kill()
    go_on()
    scene._stack.enter_context(Api(scene.redis.url, "--port", str(api.port)))


def held_up(api: Api, response_id: str) -> dict[str, Any]:
    told = api.status(response_id)
    has_some = told["consumers"] and told["consumers"][0]["position"] > 1500
    return told if has_some and told["status"] == "paused" else {}


def check(seen: dict[str, Any]) -> None:
    """Everything once, with a digest that fits, over two connections, and the slow loop was felt."""
    assert seen["text"] == text_of(SEED, TOKENS)
    assert seen["verified"] is True
    assert seen["connections"] >= 2
    assert {"pacing", "paused"} & set(seen["notices"]), seen["notices"]


def test_live_in_node(scene: Stage, installed: Path) -> None:
    """A slow loop with explicit acks slows the source; kill -9 of the node in mid-stream costs nothing."""
    api = at_a_fixed_port(scene)
    scene.worker(pause_max_s=300, abandon_after_s=300)
    made = api.create(tokens=TOKENS, rate=0, seed=SEED, window_bytes=4096)
    command = ["node", "live_reader.mjs", f"http://127.0.0.1:{api.port}", made["id"], str(PAUSE_MS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=installed, text=True, **pipes) as reader:
        try:
            restarted_in_mid_stream(
                scene, api, made["id"], lambda: print("go on", file=reader.stdin, flush=True)
            )
            out, _ = reader.communicate(timeout=150)
        finally:
            reader.kill()
    check(json.loads(out))


def test_live_in_chromium(scene: Stage) -> None:
    """The same in a page, from the console's own files."""
    api = at_a_fixed_port(scene)
    scene.worker(pause_max_s=300, abandon_after_s=300)
    made = api.create(tokens=TOKENS, rate=0, seed=SEED, window_bytes=4096)
    with chromium() as browser:
        tab = Tab(browser, f"http://127.0.0.1:{api.port}/")
        tab.page.evaluate(f"(given) => {{ ({IN_A_PAGE})(given); }}", [made["id"], PAUSE_MS])
        restarted_in_mid_stream(scene, api, made["id"], lambda: tab.page.evaluate("() => window.goOn()"))
        tab.page.wait_for_function("() => window.result", timeout=150_000)
        check(tab.page.evaluate("() => window.result"))
        assert tab.foreign == []
        tab.close()
