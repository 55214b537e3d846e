"""Who may do what: keys make an owner, a token opens one response, and everything else is refused."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.auth import ANYONE, Caller, Locks, token_digest
from relay.errors import Forbidden, SettingsInvalid, Unauthorized
from relay.settings import Settings, load

KEYS = "alice:alice-secret-1,bob:bob-secret-22,nameless-secret"
META = {"owner": "alice", "token": token_digest("the-token")}


def locks(keys: str = KEYS, **settings: object) -> Locks:
    """The locks of a deployment with these keys."""
    return Locks(Settings.model_validate({"api_keys": keys, **settings}))


def a_request(authorization: str | None = None, *, query: str = "", cookie: str | None = None) -> Request:
    """A request with these credentials."""
    given_headers = {"authorization": authorization, "cookie": cookie}
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": query.encode(),
            "headers": [
                (name.encode(), value.encode("latin-1"))
                for name, value in given_headers.items()
                if value is not None
            ],
        }
    )


@pytest.mark.parametrize(
    ("authorization", "owner"),
    [
        ("Bearer alice-secret-1", "alice"),
        ("bearer alice-secret-1", "alice"),
        ("BEARER  alice-secret-1 ", "alice"),
        ("Bearer bob-secret-22", "bob"),
        ("Bearer nameless-secret", hashlib.sha256(b"nameless-secret").hexdigest()[:16]),
    ],
)
def test_a_key_stands_for_its_owner(authorization: str, owner: str) -> None:
    """A key's name is the owner of what it makes; a key without one goes by its digest, never by itself."""
    assert locks().owner(a_request(authorization)) == owner


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer wrong-secret",
        "Bearer alice",
        "Bearer alice:alice-secret-1",
        "Bearer alice-secret-1x",
        "Bearer ALICE-SECRET-1",
        "Bearer alice-secret-1,bob-secret-22",
        "Bearer \xff\xfe",
    ],
)
def test_a_wrong_key_is_refused(authorization: str) -> None:
    """A key that is not known is refused at once, also where a token would have done."""
    for query in ("", "token=the-token"):
        with pytest.raises(Unauthorized):
            locks().caller(a_request(authorization, query=query))


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic YWxpY2U6YWxpY2Utc2VjcmV0LTE=", "alice-secret-1"]
)
def test_no_key_is_no_owner(authorization: str | None) -> None:
    """Without a bearer key a call that needs an owner is refused, and says what it needs."""
    with pytest.raises(Unauthorized, match="Bearer"):
        locks().owner(a_request(authorization))


@pytest.mark.parametrize("key", ["schlüssel-größe", "ключ-от-дома", "clé-à"])
def test_a_key_beyond_ascii(key: str) -> None:
    """Its bytes as UTF-8 open, as curl and our client send them, also where one looks like a space."""
    key = f"long-{key}"
    assert locks(f"eva:{key}").owner(a_request("Bearer " + key.encode().decode("latin-1"))) == "eva"
    with pytest.raises(Unauthorized):
        locks(f"eva:{key}").owner(a_request("Bearer " + key[:-1].encode().decode("latin-1")))


def test_a_key_sent_as_latin_1() -> None:
    """Python's http.client and browsers send Latin-1: the same characters are the same key."""
    assert locks("eva:schlüssel-größe").owner(a_request("Bearer schlüssel-größe")) == "eva"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters=","), max_size=80))
def test_only_a_key_opens(key: str) -> None:
    """Whatever else is sent as a key, in any bytes a header can hold, is refused and raises nothing else."""
    try:
        owner = locks().owner(a_request(f"Bearer {key}"))
    except Unauthorized:
        return
    assert key in {"alice-secret-1", "bob-secret-22", "nameless-secret"}
    assert owner


def test_without_keys_everyone_is_the_same() -> None:
    """Where no keys are configured, only loopback is served, and all share what they make."""
    open_house = locks(keys="")
    for request in (a_request(), a_request("Bearer whatever-it-is"), a_request(query="token=x")):
        assert open_house.caller(request) == Caller(ANYONE, None)
        assert open_house.owner(request) == ANYONE
    open_house.may_open(open_house.caller(a_request()), {"owner": ANYONE})


def test_required_keys_that_are_not_there_open_nothing() -> None:
    """Keys demanded and none configured: nobody gets in, rather than everybody."""
    with pytest.raises(Unauthorized):
        locks(keys="", require_keys=True).owner(a_request())
    with pytest.raises(Unauthorized):
        locks(keys="", require_keys=True).owner(a_request("Bearer a-guess-or-two"))


@pytest.mark.parametrize(
    "request_",
    [
        a_request(query="token=the-token"),
        a_request(cookie="relay_token=the-token"),
        a_request(query="token=", cookie="other=1; relay_token=the-token"),
        a_request("Basic eDp5", query="after=1-1&token=the-token"),
    ],
    ids=["query", "cookie", "empty-query", "beside-basic"],
)
def test_a_token_opens_its_response_alone(request_: Request) -> None:
    """A response's token, in the query or a cookie, opens that response, makes nothing and owns nothing."""
    house = locks()
    caller = house.caller(request_)
    assert caller == Caller(None, "the-token")
    house.may_open(caller, META)
    with pytest.raises(Forbidden):
        house.may_open(caller, {**META, "token": token_digest("another")})
    with pytest.raises(Unauthorized):
        house.owner(request_)


@pytest.mark.parametrize("token", ["x", "the-token ", "THE-TOKEN", META["token"], "\udcff", "流" * 1000])
def test_another_token_is_refused(token: str) -> None:
    """Neither a guess nor the digest that is kept opens a response."""
    with pytest.raises(Forbidden):
        locks().may_open(Caller(None, token), META)


def test_a_response_without_a_token_is_opened_by_none() -> None:
    """A response that was made without a token is its owner's alone."""
    with pytest.raises(Forbidden):
        locks().may_open(Caller(None, "x"), {"owner": "alice"})
    with pytest.raises(Unauthorized):
        locks().may_open(Caller(None, ""), {"owner": "alice"})


def test_another_owner_is_refused() -> None:
    """A good key does not open what another key made, even with that response's token beside it."""
    house = locks()
    house.may_open(house.caller(a_request("Bearer alice-secret-1")), META)
    with pytest.raises(Forbidden):
        house.may_open(house.caller(a_request("Bearer bob-secret-22", query="token=the-token")), META)


def test_a_caller_without_anything_is_told_what_opens() -> None:
    """No key and no token: 401, for there is something to send."""
    with pytest.raises(Unauthorized, match="token"):
        locks().may_open(Caller(None, None), META)


def test_who_sends_nothing_is_refused_before_anything_is_looked_up() -> None:
    """Without key and token it is 401 for every response, also for one that never was."""
    for request in (a_request(), a_request("Basic eDp5"), a_request(query="token=")):
        with pytest.raises(Unauthorized):
            locks().caller(request)


def test_two_keys_may_share_an_owner() -> None:
    """While a key is replaced by its next, both stand for one owner."""
    house = locks("alice:the-old-key-1,alice:the-new-key-2")
    assert house.owner(a_request("Bearer the-old-key-1")) == house.owner(a_request("Bearer the-new-key-2"))


def test_a_short_key_is_refused_without_being_shown() -> None:
    """A key that can be guessed ends the process at its start, and its text is not repeated."""
    with pytest.raises(SettingsInvalid) as caught:
        load(api_keys="alice:short")
    assert "RELAY_API_KEYS" in caught.value.message
    assert "short" not in caught.value.message
