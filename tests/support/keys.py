"""The key-leak check: a key without a TTL is memory that nobody gives back."""

from redis import Redis

from relay.keys import PERMANENT

_SCAN_BATCH = 500
_NO_TTL = -1  # https://redis.io/docs/latest/commands/pttl/


def leaked_keys(client: Redis) -> list[str]:
    """Every key of the database that has no TTL and is not on the short list of permanent keys."""
    keys = [_text(key) for key in client.scan_iter(count=_SCAN_BATCH)]
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.pttl(key)
    return sorted(
        key
        for key, ttl in zip(keys, pipeline.execute(), strict=True)
        if ttl == _NO_TTL and key not in PERMANENT
    )


def assert_no_leaks(client: Redis) -> None:
    """Fails and names them when keys would stay for ever."""
    leaked = leaked_keys(client)
    assert not leaked, (
        f"{len(leaked)} keys have no TTL and are not in relay.keys.PERMANENT: {', '.join(leaked)}"
    )


def _text(key: bytes | str) -> str:
    return key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
