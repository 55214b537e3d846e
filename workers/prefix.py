"""What a lost worker left behind: the text it delivered, and how many tokens that took.

The journal has the text, not the tokens. So each renewal of a lease notes a pair in the meta, the tokens
and the bytes of content that they made; what came after the last note is estimated by that rate.
"""

from relay import scripts
from relay.events import Channel
from relay.journal import Journal
from workers.sources.base import Prefix

SPENT = "spent"  # the field of the meta: "TOKENS BYTES"
BYTES_PER_TOKEN = 4.0  # of a worker that was lost before its first renewal


def post_spent(journal: Journal, tokens: int, text_bytes: int) -> None:
    """Note how many tokens made so much content, without waiting; a lost note is replaced by the next."""
    scripts.post_note(journal.wire, journal.keys, SPENT, f"{tokens} {text_bytes}")


async def delivered(journal: Journal, head: int) -> Prefix:
    """What is in the journal up to `head`, the end of an epoch: at most `max_response_bytes`."""
    noted = await journal.wire.call("HGET", journal.keys.meta, SPENT)
    text: dict[Channel, list[bytes]] = {Channel.CONTENT: [], Channel.REASONING: []}
    others: set[Channel] = set()
    async for placed in journal.read(0, head):
        for _end, (channel, payload) in placed:
            if channel in text:
                text[channel].append(payload)
            else:
                others.add(channel)
    content = b"".join(text[Channel.CONTENT])
    return Prefix(
        content.decode(),
        b"".join(text[Channel.REASONING]).decode(),
        tool_calls=not others.isdisjoint((Channel.TOOL_CALL, Channel.TOOL_ARGUMENTS)),
        extra=Channel.EXTRA in others,
        tokens=tokens_of(len(content), noted),
    )


def tokens_of(text_bytes: int, noted: bytes | None) -> int:
    """How many tokens made so much content, by what was noted of a part of it. Pure."""
    tokens, _, noted_bytes = (noted or b"0 0").partition(b" ")
    if int(noted_bytes) == 0 or int(tokens) == 0:
        return round(text_bytes / BYTES_PER_TOKEN)
    return round(text_bytes * int(tokens) / int(noted_bytes))
