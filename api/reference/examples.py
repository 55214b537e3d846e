"""Examples of what is sent and answered, as they are on the wire. Data, no code."""

from typing import Any

Json = dict[str, Any]
ID = "rs_69227a1b0123456789abcdef"
RESPONSE_ID = "resp_69227a1b0123456789abcdef"
SHA = "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969"
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}

CREATE: Json = {
    "model": "simulated",
    "prompt": "hello",
    "simulation": {"tokens": 40, "tokens_per_second": 20, "seed": 1},
}
CREATED: Json = {
    "id": ID,
    "status": "queued",
    "model": "simulated",
    "created_at": 1763867163.25,
    "events_url": f"/v1/streams/{ID}/events",
    "text_url": f"/v1/streams/{ID}/text",
    "token": "e8Qd0cVbmXo2Jk1yJ5rPzA",
}
CONSUMER: Json = {
    "id": "phone",
    "position": 3998,
    "lag_bytes": 213,
    "lag_entries": 2,
    "idle_ms": 40,
    "state": "live",
}
STATUS: Json = {
    "id": ID,
    "status": "running",
    "model": "simulated",
    "created_at": 1763867163.25,
    "ended_at": None,
    "position": 4211,
    "epoch": 1,
    "claims": 1,
    "text_bytes": 3905,
    "level": 0,
    "finish_reason": None,
    "sha256": None,
    "usage": None,
    "error": None,
    "metadata": {},
    "consumers": [CONSUMER],
}
EVENTS = f"""\
: ok

event: start
id: 83-1
data: {{"id":"{ID}","model":"simulated","created_at":1763867163.25}}

event: delta
id: 143-1
data: {{"channel":"content","text":"Hello"}}

event: done
id: 331-1
data: {{"finish_reason":"stop","text_bytes":5,"sha256":"{SHA}","usage":{{}}}}

"""
MANY = f"""\
: ok

event: connection
data: {{"connection":"ev_0123456789abcdef0123456789abcdef","streams":["{ID}"]}}

event: joined
data: {{"stream":"{ID}","consumer":"c-9e8ce770c906","position":"0-1"}}

event: delta
id: 143-1
data: {{"stream":"{ID}","position":"143-1","channel":"content","text":"Hello"}}

"""
CHANGE: Json = {"add": [f"{ID}@143-1"], "remove": []}
CHANGED: Json = {"connection": "ev_0123456789abcdef0123456789abcdef", "add": [ID], "remove": []}

MODEL: Json = {"id": "simulated", "object": "model", "created": 1735689600, "owned_by": "relay"}
CHAT: Json = {
    "model": "simulated",
    "messages": [{"role": "user", "content": "Say hello."}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
_CHUNK = (
    'data: {{"id":"chatcmpl-69227a1b0123456789abcdef","object":"chat.completion.chunk","created":1763867163,'
    '"model":"simulated","choices":[{{"index":0,"delta":{},"logprobs":null,"finish_reason":{}}}]}}\n\n'
)
CHUNKS = (
    _CHUNK.format('{"role":"assistant","content":""}', "null")
    + _CHUNK.format('{"content":"Hello"}', "null")
    + _CHUNK.format("{}", '"stop"')
    + "data: [DONE]\n\n"
)
COMPLETION: Json = {
    "id": "chatcmpl-69227a1b0123456789abcdef",
    "object": "chat.completion",
    "created": 1763867163,
    "model": "simulated",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
ASK: Json = {"model": "simulated", "input": "Say hello.", "background": True, "stream": True}
_PART: Json = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
_MESSAGE: Json = {
    "id": "mes_69227a1b0123456789abcdef",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [_PART],
}
RESPONSE: Json = {
    "id": RESPONSE_ID,
    "object": "response",
    "created_at": 1763867163,
    "status": "completed",
    "background": True,
    "model": "simulated",
    "output": [_MESSAGE],
    "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
}
RESPONSE_EVENTS = """\
event: response.output_text.delta
data: {"type":"response.output_text.delta","item_id":"mes_69227a1b0123456789abcdef","output_index":0,\
"content_index":0,"delta":"Hello","logprobs":[],"sequence_number":146432}

"""
METRICS = """\
# HELP relay_consumers Readers served by this node.
# TYPE relay_consumers gauge
relay_consumers{state="live"} 3.0
"""
