"""Whether somebody may come in: their key, what it is good for, and how much of it is left."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from p2pgrid.errors import BadInput
from p2pgrid.gateway.faults import ApiError, too_busy
from p2pgrid.gateway.keys import SCOPES, KeyRecord, KeyStore, Scope, same_text, short_name

DAY_S = 86_400
PUBLIC_KEY_LENGTH_MIN = 16
QUOTAS_MAX = 10_000


class Quota:
    """What a key may still use: requests as they drip back, tokens until midnight UTC. In memory: a restart forgets."""

    def __init__(self, requests_per_min: int, tokens_per_day: int, now_s: float) -> None:
        """A limit of 0 is none."""
        self._requests_per_min = requests_per_min
        self._tokens_per_day = tokens_per_day
        self._requests_left = float(requests_per_min)
        self._at_s = now_s
        self._day = now_s // DAY_S
        self._tokens = 0

    def take_request(self, now_s: float) -> None:
        """One more request. Raises ApiError 429."""
        if self._day != now_s // DAY_S:
            self._day, self._tokens = now_s // DAY_S, 0
        if self._tokens_per_day and self._tokens >= self._tokens_per_day:
            message = f"this key has used its {self._tokens_per_day} tokens of today (UTC)"
            raise too_busy(message, (self._day + 1) * DAY_S - now_s, "insufficient_quota")
        if not self._requests_per_min:
            return
        per_s = self._requests_per_min / 60
        back = max(now_s - self._at_s, 0.0) * per_s
        self._requests_left, self._at_s = min(self._requests_left + back, self._requests_per_min), now_s
        if self._requests_left < 1:
            message = f"this key is good for {self._requests_per_min} requests a minute"
            raise too_busy(message, (1 - self._requests_left) / per_s, "rate_limit_exceeded")
        self._requests_left -= 1

    def use_tokens(self, tokens: int) -> None:
        """They are counted when they come: a request that has begun is not cut short."""
        self._tokens += tokens


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    id: str = ""
    """Of the key; empty where none is needed. Prompts are kept apart by it."""
    scopes: tuple[Scope, ...] = SCOPES
    quota: Quota | None = None

    def use_tokens(self, tokens: int) -> None:
        if self.quota is not None:
            self.quota.use_tokens(tokens)


@dataclass
class Access:
    """Keys are needed as soon as there are any: `given` ones, good for everything, or a keys file."""

    wall: Callable[[], float]
    """Unix seconds."""
    store: KeyStore | None = None
    given: Sequence[str] = ()
    _quotas: dict[str, tuple[KeyRecord, Quota]] = field(default_factory=dict)

    @property
    def needs_key(self) -> bool:
        return bool(self.given) or (self.store is not None and self.store.exists)

    def admit(self, request: HTTPConnection, scope: Scope) -> Caller:
        """Raises ApiError 401 without a good key, 403 when it is not good for `scope`, 429 when it is used up."""
        if not self.needs_key:
            return Caller()
        caller = self._caller(request.headers.get("authorization", ""))
        if scope not in caller.scopes:
            message = f"this key is not good for {scope}, only for {', '.join(caller.scopes)}"
            raise ApiError(403, message, type="permission_error", code="insufficient_scope")
        if caller.quota is not None:
            caller.quota.take_request(self.wall())
        return caller

    def _caller(self, header: str) -> Caller:
        scheme, _, key = header.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized("no API key came: send the header Authorization: Bearer KEY")
        if any([same_text(key, given) for given in self.given]):  # noqa: C419 - all are compared: time tells nothing
            return Caller(f"given-{short_name(key)}")
        record = self.store.find(key) if self.store is not None else None
        if record is None:
            raise _unauthorized("the API key is not known here, or no longer")
        return Caller(record.id, record.scopes, self._quota(record))

    def _quota(self, record: KeyRecord) -> Quota | None:
        if not record.requests_per_min and not record.tokens_per_day:
            return None
        known, quota = self._quotas.get(record.id, (None, None))
        if quota is None or known != record:
            quota = Quota(record.requests_per_min, record.tokens_per_day, self.wall())
            self._quotas[record.id] = (record, quota)
        return quota


def check_exposure(host: str, access: Access, option: str) -> None:
    """Raises BadInput for a gateway that strangers could reach without a key."""
    if is_loopback(host):
        return
    if not access.needs_key or (not access.given and access.store is not None and not access.store.records()):
        raise BadInput(
            f"{option} {host}: whoever reaches this machine could use it, so give a key: make one with"
            " `p2pgrid keys add NAME`, or bring one with --api-key; or listen on 127.0.0.1"
        )
    if any(len(key) < PUBLIC_KEY_LENGTH_MIN for key in access.given):
        raise BadInput(
            f"--api-key is shorter than {PUBLIC_KEY_LENGTH_MIN} characters, and {host} is open to strangers: make a"
            " better one with `p2pgrid keys add NAME`"
        )


def check_origin(origin: str) -> None:
    """Raises BadInput for what no browser sends as the origin of a page, and for a star, which would be any page."""
    if re.fullmatch(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?", origin) is None:
        raise BadInput(f"--cors {origin}: write an origin in small letters, without a path, like https://chat.example")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _unauthorized(message: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, type="authentication_error", code="invalid_api_key", headers=headers)
