"""What a gateway says of itself and of the models behind it."""

import trio

from tests.gateway.kit import NAME, Door, door
from tests.swarm_kit import LAYERS, MODEL


async def figures(here: Door) -> dict[str, str]:
    page = (await here.get("/metrics")).body.decode()
    return dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))


async def test_models_are_listed_with_their_state(autojump_clock: object) -> None:
    async with door() as here:
        listed = (await here.get("/v1/models")).json
        one = (await here.get(f"/v1/models/{NAME}")).json
        by_id = (await here.get(f"/v1/models/{MODEL}")).json
        unknown = await here.get("/v1/models/other")
    assert listed == {"object": "list", "data": [one]}
    assert by_id == one
    assert (one["id"], one["model_id"], one["layers"], one["object"]) == (NAME, MODEL, LAYERS, "model")
    assert unknown.error["code"] == "model_not_found"


async def test_readiness_is_that_of_the_swarm(autojump_clock: object) -> None:
    async with door(0) as here:
        assert (await here.get("/healthz")).status == 200
        assert [(await here.get(path)).status for path in ("/readyz", "/health")] == [503, 503]
        assert (await here.get(f"/v1/models/{NAME}")).status == 404
    async with door(1) as here:
        lacking = await here.get("/readyz")
        assert (lacking.status, lacking.json["status"]) == (503, "unavailable")
        assert "5:10" in lacking.json["models"][0]["reasons"][0]
    async with door() as here:
        assert (await here.get("/readyz")).json["status"] == "ready"
        assert (await here.get("/health")).status == 200
        for life in here.lives:
            here.network.kill(life.peer.transport.peer)
        await trio.sleep(90)
        assert (await here.get("/readyz")).status == 503


async def test_metrics_count_what_happened(autojump_clock: object) -> None:
    async with door() as here:
        await here.chat(max_tokens=5)
        await here.chat(model="other")
        await here.get("/v1/../secret")
        said = await figures(here)
    assert said['p2pgrid_http_requests_total{path="/v1/chat/completions",status="200"}'] == "1.0"
    assert said['p2pgrid_http_requests_total{path="/v1/chat/completions",status="404"}'] == "1.0"
    assert said['p2pgrid_http_requests_total{path="other",status="404"}'] == "1.0"
    assert said["p2pgrid_completion_tokens_total"] == "5.0"
    assert said["p2pgrid_time_to_first_token_seconds_count"] == "1.0"
    assert said["p2pgrid_inter_token_seconds_count"] == "4.0"
    assert said['p2pgrid_answers_running{state="running"}'] == "0.0"
    assert said['p2pgrid_nodes{model="toy",state="serving"}'] == "2.0"
    assert sum(name.startswith("p2pgrid_link_rtt_seconds") for name in said) == 2
    assert "p2pgrid_sessions_open" not in said, "there is no stage in this process"


async def test_metrics_of_a_gateway_in_a_node_are_those_of_its_stage_too(autojump_clock: object) -> None:
    async with door() as here, trio.open_nursery() as tasks:
        stage, other = here.lives
        beside = here.beside(stage)
        await trio.sleep(30)  # for the queue of its beginning to be forgotten
        calm = await figures(beside)
        call = beside.begin_chat(tasks, max_tokens=120, stream=True)
        await call.heard(8000)
        busy = await figures(beside)
        call.gone.set()
    assert float(busy["p2pgrid_sessions_open"]) >= 1  # a canary may be there too
    free, most = (float(busy[f"p2pgrid_kv_positions_{kind}"]) for kind in ("free", "max"))
    assert 0 < free < most == float(calm["p2pgrid_kv_positions_max"])
    assert free <= most - 120
    assert float(busy["p2pgrid_queue_seconds"]) > float(calm["p2pgrid_queue_seconds"])
    assert busy['p2pgrid_nodes{model="toy",state="serving"}'] == "2.0"
    assert busy['p2pgrid_model_usable{model="toy"}'] == "1.0"
    assert float(busy[f'p2pgrid_link_rtt_seconds{{peer="{other.peer.transport.peer}"}}']) > 0
