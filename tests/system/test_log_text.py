"""What real processes log of real requests, at every level: nothing that anybody wrote or was told."""

import json

import pytest

from tests.support.stage import Stage
from tests.support.system import Api, Reader
from tests.support.upstream import answer, refuse

PROMPT, ANSWER = "the-prompt-of-a-caller", "the-answer-of-a-model"
ECHO = {"error": {"message": f"cannot take: {PROMPT}", "type": "invalid_request_error"}}
BODY = {"model": "m", "prompt": PROMPT}


def run(api: Api) -> tuple[str, Reader]:
    """A response from its create to its end."""
    made = api.call("POST", "/v1/streams", BODY).json
    with Reader(api.port, made["events_url"]) as reader:
        return made["id"], reader.run()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("asked_for", [False, True], ids=["default", "log_text"])
def test_no_text_is_logged_unless_it_is_asked_for(scene: Stage, asked_for: bool) -> None:
    """An answer, a refusal that repeats the prompt, a body that is refused: at debug, of both processes."""
    upstream = scene.upstream(answer(ANSWER), refuse(400, ECHO))
    settings = {"log_level": "debug", "log_text": asked_for, "upstream_base_url": upstream.base_url}
    api, worker = scene.api(**settings), scene.worker(**settings)
    _, whole = run(api)
    assert ANSWER in whole.text
    failed, refused = run(api)
    assert PROMPT in refused.named("error")[0].data["message"]  # the caller is told
    assert api.call("POST", "/v1/streams", BODY | {"odd": 1}).status == 422
    logged = api.stderr + worker.stderr
    (line,) = [line for line in map(json.loads, logged.splitlines()) if line["event"] == "source_failed"]
    assert (line["response"], line["code"]) == (failed, "upstream_rejected")
    assert (PROMPT in logged) is asked_for
    assert ANSWER not in logged
