"""Keys: who gets in, for what, how often; and what of them lies on the disk."""

import stat
from pathlib import Path

import pytest
import trio

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.gateway.access import Access, check_exposure
from p2pgrid.gateway.keys import FILE_NAME, KeyStore, Scope, new_key
from tests.gateway.kit import Reply, door
from tests.swarm_kit import wall

GIVEN = "a-key-from-the-command-line"


def made(store: KeyStore, *scopes: Scope, requests_per_min: int = 0, tokens_per_day: int = 0) -> dict[str, str]:
    """The header of a key that is in the store now."""
    key, record = new_key("x", scopes, requests_per_min=requests_per_min, tokens_per_day=tokens_per_day, now_s=0.0)
    store.add(record)
    return {"authorization": f"Bearer {key}"}


async def test_without_any_keys_nobody_needs_one(autojump_clock: object) -> None:
    async with door() as here:
        assert (await here.get("/v1/models")).status == 200
        assert (await here.chat(max_tokens=2)).status == 200


WRONG = ["", "Bearer ", "Bearer wrong", f"Basic {GIVEN}", f"Bearer {GIVEN}x", "Bearer p2p-1-2"]


@pytest.mark.parametrize("header", WRONG)
async def test_without_the_right_key_there_is_no_answer(header: str, tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path)
    made(store, "chat")
    async with door(0, access=Access(wall, store, (GIVEN,))) as here:
        for path in ("/v1/models", "/v1/models/toy", "/metrics"):
            reply = await here.get(path, authorization=header)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.error["code"] == "invalid_api_key"
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            assert (await here.post(path, b"{", authorization=header)).status == 401
        for path in ("/healthz", "/readyz", "/health"):
            assert (await here.get(path)).status in (200, 503)


async def test_a_key_is_good_for_its_scopes_alone(tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path)
    chat, models = made(store, "chat"), made(store, "models")
    async with door(access=Access(wall, store)) as here:
        assert (await here.post("/v1/chat/completions", b"{", **chat)).status == 400
        assert (await here.get("/v1/models", **models)).status == 200
        for refused in (await here.get("/v1/models", **chat), await here.get("/metrics", **models)):
            assert (refused.status, refused.error["code"]) == (403, "insufficient_scope")


async def test_a_revoked_key_is_worthless_at_once(tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path)
    header = made(store, "models")
    async with door(0, access=Access(wall, store)) as here:
        assert (await here.get("/v1/models", **header)).status == 200
        (record,) = KeyStore(tmp_path).records()
        KeyStore(tmp_path).revoke(record.id)
        assert (await here.get("/v1/models", **header)).status == 401
        assert (await here.get("/v1/models")).status == 401, "a file without keys still asks for one"


async def test_requests_beyond_a_keys_rate_are_told_when_to_come_again(tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path)
    header = made(store, "models", requests_per_min=3)
    async with door(0, access=Access(wall, store)) as here:
        replies = [await here.get("/v1/models", **header) for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert replies[3].headers["retry-after"] == "20"
        await trio.sleep(20)
        assert (await here.get("/v1/models", **header)).status == 200
        assert (await here.get("/v1/models", **header)).status == 429


async def test_tokens_of_prompts_and_answers_count_for_the_day(tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path)
    header = made(store, "completions", tokens_per_day=20)
    document = {"model": "toy", "prompt": "hello", "max_tokens": 6, "temperature": 0}
    access = Access(lambda: now_s, store)
    now_s = wall()
    async with door(access=access) as here:
        statuses = [(await here.post("/v1/completions", document, **header)).status for _ in range(3)]
        assert statuses == [200, 200, 429], "11 tokens each, and the second one begins with 9 left"
        now_s += 86_400
        assert (await here.post("/v1/completions", document, **header)).status == 200


async def test_two_keys_share_no_prompts(tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path)
    one, other = made(store, "completions"), made(store, "completions")
    document = {"model": "toy", "prompt": "x" * 150, "max_tokens": 2}

    async def cached(header: dict[str, str]) -> int:
        reply = await here.post("/v1/completions", document, **header)
        found: int = reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    async with door(access=Access(wall, store)) as here:
        assert await cached(one) == 0
        assert await cached(one) > 0
        assert await cached(other) == 0


async def test_a_strangers_name_for_this_machine_is_refused_where_no_key_is_needed(autojump_clock: object) -> None:
    async with door(0) as here:
        for host in ("evil.example", "evil.example:8080", "10.1.2.3:8080"):
            refused = await here.get("/healthz", host=host)
            assert (refused.status, refused.error["code"]) == (403, "wrong_host")
        for host in ("localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", ""):
            assert (await here.get("/healthz", host=host)).status == 200
    async with door(0, access=Access(wall, given=(GIVEN,))) as here:
        assert (await here.get("/healthz", host="grid.example")).status == 200


PAGE = "https://chat.example"
STRANGERS = (
    "https://evil.example",
    "http://chat.example",
    "https://chat.example:8443",
    "https://chat.example.evil",
    "https://a.chat.example",
    "null",
)


def preflight(origin: str) -> dict[str, str]:
    """What a browser asks before a page's script may send a chat as OpenAI's client does."""
    wanted = "authorization,content-type,x-stainless-lang"
    method = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    return {"origin": origin, **method}


def cors_headers(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


async def test_pages_of_other_origins_are_let_in_only_when_named(autojump_clock: object) -> None:
    async with door(0) as here:
        for origin in (PAGE, *STRANGERS):
            asked = await here.ask("OPTIONS", "/v1/chat/completions", headers=preflight(origin))
            assert (asked.status, cors_headers(asked)) == (405, {})
            assert not cors_headers(await here.get("/v1/models", origin=origin))
    async with door(0, cors=(PAGE,)) as here:
        asked = await here.ask("OPTIONS", "/v1/chat/completions", headers=preflight(PAGE))
        assert asked.status == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == preflight(PAGE)["access-control-request-headers"]
        for reply in (await here.get("/v1/models", origin=PAGE), await here.post("/v1/nothing", {}, origin=PAGE)):
            assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (PAGE, "Origin")
            assert "access-control-allow-credentials" not in reply.headers
        for origin in STRANGERS:
            asked = await here.ask("OPTIONS", "/v1/chat/completions", headers=preflight(origin))
            assert asked.status == 400
            assert "access-control-allow-origin" not in asked.headers
            assert "access-control-allow-origin" not in (await here.get("/v1/models", origin=origin)).headers


# ── what lies on the disk, and where a gateway may listen ────────────────────────────────────────────────


def test_the_file_has_no_key_in_it_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    secret = made(store, "chat")["authorization"].split("-", 2)[2]  # it may have dashes of its own
    path = tmp_path / FILE_NAME
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(LocalFault, match="chmod 600"):
        KeyStore(tmp_path).records()


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text('{"format": 1, "keys": [{"id": "x"}]}')
    path.chmod(0o600)
    with pytest.raises(LocalFault, match="move it away"):
        KeyStore(tmp_path).find("p2p-x-y")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "grid.example"])
def test_a_public_address_needs_a_good_key(host: str, tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    with pytest.raises(BadInput, match="p2pgrid keys add"):
        check_exposure(host, Access(wall, store), "--listen")
    with pytest.raises(BadInput, match="shorter than 16"):
        check_exposure(host, Access(wall, store, ("secret",)), "--listen")
    check_exposure(host, Access(wall, store, (GIVEN,)), "--listen")
    made(store, "chat")
    check_exposure(host, Access(wall, store), "--listen")
    store.revoke(store.records()[0].id)
    with pytest.raises(BadInput, match="p2pgrid keys add"):
        check_exposure(host, Access(wall, store), "--listen")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_none(host: str, tmp_path: Path) -> None:
    check_exposure(host, Access(wall, KeyStore(tmp_path)), "--listen")
