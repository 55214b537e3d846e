"""First locks: static keys, and a token for each response.

A key's name, or its digest, is the owner of what it creates. Keys are compared by their digests in
constant time, all of them, so that time tells nothing.
"""

import hashlib
import hmac
from typing import NamedTuple

from starlette.requests import Request

from relay.errors import Forbidden, Unauthorized
from relay.settings import Settings

ANYONE = "anyone"  # the owner where no keys are configured: then only loopback is served


class Caller(NamedTuple):
    """Who asks. `token` opens one response alone, and is checked against that response."""

    owner: str | None
    token: str | None


class Locks:
    """The configured keys, as digests."""

    def __init__(self, settings: Settings) -> None:
        self.required = settings.require_keys or bool(settings.api_keys)
        self._owners: dict[bytes, str] = {}
        for secret in settings.api_keys:
            name, _, key = secret.get_secret_value().rpartition(":")
            digest = _digest(key)
            self._owners[digest] = name or digest.hex()[:16]

    def caller(self, request: Request) -> Caller:
        """Who sends this request, by bearer key, `?token=` or cookie.

        Raises Unauthorized for a bad key, and for none where one is needed.
        """
        if not self.required:
            return Caller(ANYONE, None)
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and credential:
            owner = self._owner(credential.strip(" \t"))  # not \xa0: it may be half of a character
            if owner is None:
                raise Unauthorized("this key is not known here")
            return Caller(owner, None)
        token = request.query_params.get("token") or request.cookies.get("relay_token")
        if not token:  # before anything is looked up: who may not ask does not learn what there is
            raise Unauthorized("this call needs a key: Authorization: Bearer KEY, or a response's token")
        return Caller(None, token)

    def owner(self, request: Request) -> str:
        """The owner that a key stands for. Raises Unauthorized without one."""
        owner = self.caller(request).owner
        if owner is None:
            raise Unauthorized("this call needs a key: Authorization: Bearer KEY")
        return owner

    def may_open(self, caller: Caller, meta: dict[str, str]) -> None:
        """Whether the caller may see and steer a response. Raises Unauthorized or Forbidden."""
        if caller.owner is not None:
            if caller.owner != meta["owner"]:
                raise Forbidden("this response belongs to another key")
        elif not caller.token:
            raise Unauthorized("this call needs a key, or the token of the response")
        elif not hmac.compare_digest(token_digest(caller.token), meta.get("token", "")):
            raise Forbidden("this token does not open this response")

    def _owner(self, key: str) -> str | None:
        # Headers are read as Latin-1. What a client sends for a key beyond ASCII is UTF-8, or Latin-1 indeed.
        digests, found = (hashlib.sha256(key.encode("latin-1")).digest(), _digest(key)), None
        for known, owner in self._owners.items():
            matches = [hmac.compare_digest(digest, known) for digest in digests]
            if any(matches):
                found = owner
        return found


def token_digest(token: str) -> str:
    """What is kept of a response's token."""
    return _digest(token).hex()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
