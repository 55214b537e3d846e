"""Every way this system says no, in one tree.

RelayError
├── the caller's doing
│   ├── Malformed          the request cannot be read at all
│   ├── InvalidValue       it can be read, and one field is wrong (param names it)
│   ├── Unauthorized       no key, or not one of ours
│   ├── Forbidden          a good key, for something else
│   ├── NotFound           no such response, consumer or route
│   ├── Conflict           the request contradicts what is
│   ├── Expired            it was here, and its retention has ended
│   ├── TooLarge           over a bound on size
│   └── Overloaded         over a bound on rate or number: try again after retry_after_s
├── ours
│   ├── Unavailable        Redis is not to be had now
│   │   ├── ConnectionLost    the reply to a command was lost: it may or may not have run
│   │   ├── Redirected        another node of the cluster has the key: the command did not run
│   │   └── Draining          this node is going away
│   ├── OutOfMemory        Redis refuses writes (maxmemory): pressure, not failure
│   ├── ServerUnfit        a server that cannot carry us: too old, evicting, absent
│   └── SettingsInvalid    a setting with a value that is not allowed
├── the journal's
│   ├── Fenced             a newer epoch owns this response: stop writing, do not retry
│   ├── Gap                the log lost bytes that were acknowledged: resend from .head
│   ├── StreamLost         the response's keys are gone
│   ├── Refused            the server refused one command; .prefix says why (NOGROUP, NOPERM, ...)
│   └── WireProtocol       the server answered what the protocol does not allow
└── the source's
    └── SourceFailed       the generator could not go on; .code says why, .retryable whether to try again
"""

from typing import Any, ClassVar


class RelayError(Exception):
    """The root. `code` is stable and public, `type` is the OpenAI-style family, `retryable` a promise."""

    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class Malformed(RelayError):
    """The request cannot be read: broken JSON, a broken Last-Event-ID."""

    code = "malformed_request"
    type = "invalid_request_error"


class InvalidValue(RelayError):
    """One field holds what it may not; `param` names it."""

    code = "invalid_value"
    type = "invalid_request_error"


class Unauthorized(RelayError):
    """No credentials, or none that we know."""

    code = "unauthorized"
    type = "authentication_error"


class Forbidden(RelayError):
    """Known credentials that do not open this."""

    code = "forbidden"
    type = "permission_error"


class NotFound(RelayError):
    """No such thing."""

    code = "not_found"
    type = "invalid_request_error"


class Conflict(RelayError):
    """The request contradicts the state of the thing."""

    code = "conflict"
    type = "invalid_request_error"


class Expired(RelayError):
    """The thing existed; its retention has ended."""

    code = "expired"
    type = "invalid_request_error"


class TooLarge(RelayError):
    """Over a bound on size."""

    code = "too_large"
    type = "invalid_request_error"


class Overloaded(RelayError):
    """Over a bound on number or rate: come back after `retry_after_s`."""

    code = "overloaded"
    type = "rate_limit_error"
    retryable = True


class Unavailable(RelayError):
    """Redis cannot be reached now."""

    code = "unavailable"
    retryable = True


class ConnectionLost(Unavailable):
    """The connection broke with the command in flight: it may or may not have run."""

    code = "connection_lost"


class Redirected(Unavailable):
    """The cluster says MOVED, or ASK for this command alone (`asking`): it did not run here.

    `host` is empty where the server does not name it: then it is the one that answered.
    """

    code = "redirected"

    slot = 0
    host = ""
    port = 0
    asking = False

    @classmethod
    def said(cls, message: str) -> "Redirected":
        """Read the server's answer: `MOVED slot host:port`."""
        kind, slot, endpoint = message.split(" ")[:3]
        redirected = cls(message)
        redirected.host, _, port = endpoint.rpartition(":")
        redirected.slot, redirected.port, redirected.asking = int(slot), int(port), kind == "ASK"
        return redirected


class Draining(Unavailable):
    """This node takes no new work: it is going away."""

    code = "draining"


class OutOfMemory(RelayError):
    """Redis is at maxmemory and refuses writes: wait, nothing is lost."""

    code = "redis_out_of_memory"
    retryable = True


class ServerUnfit(RelayError):
    """The Redis server cannot carry us: absent, too old, or set to evict."""

    code = "server_unfit"


class SettingsInvalid(RelayError):
    """A setting holds a value that is not allowed."""

    code = "settings_invalid"


class Fenced(RelayError):
    """Another worker holds a newer epoch: this writer must stop, a retry cannot succeed."""

    code = "fenced"


class Gap(RelayError):
    """The journal ends before the writer's base: resend from `head`."""

    code = "gap"

    def __init__(self, head: int) -> None:
        super().__init__(f"the journal ends at {head}: resend from there")
        self.head = head


class StreamLost(RelayError):
    """The response's keys are gone from Redis."""

    code = "stream_lost"
    retryable = True


class Refused(RelayError):
    """The server refused one command. `prefix` is the first word of its error: NOGROUP, WRONGTYPE."""

    code = "refused"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.prefix = message.partition(" ")[0]


class WireProtocol(RelayError):
    """A peer sent what the protocol does not allow here."""

    code = "wire_protocol"


class SourceFailed(RelayError):
    """The source cannot go on. The code is the instance's, because upstreams fail in many ways."""

    type = "upstream_error"

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        retry_after_s: float | None = None,
        upstream: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.failure_code = code
        self.failure_retryable = retryable
        # Of a rejection: what the upstream told the caller, {"status","message","type","code","param"}.
        self.upstream = upstream

    @property
    def logged(self) -> dict[str, str]:
        """Fields of a log line. What the upstream said may repeat a prompt: it is in `said` alone."""
        is_quoted = self.failure_code in ("upstream_rejected", "upstream_error")
        ours = self.message.partition(": ")[0] if is_quoted else self.message
        return {"code": self.failure_code, "error": ours, "said": self.message}
