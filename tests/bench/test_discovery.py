"""Discovery measured: what counts as found, peers that only advertise, and that no process is left."""

import json
import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.bench.discovery_member import AnnouncingTransport, advert_for
from p2pgrid.bench.processes import open_crew, runs, state_of
from p2pgrid.bench.scenario import Options
from p2pgrid.bench.scenarios import discovery
from p2pgrid.bench.scenarios.discovery import MODEL, MODULE, sighting
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.peer import open_peer
from p2pgrid.swarm.processes import wait_for_phase
from tests.bench.kept import KeptBench
from tests.net.peers import identity
from tests.swarm_kit import joined, wall

NAMES = st.sets(st.sampled_from("abcdefgh"))


@settings(max_examples=100, deadline=None)
@given(known=NAMES, living=NAMES.filter(bool), dead=NAMES)
def test_the_dead_are_never_counted_as_found(known: set[str], living: set[str], dead: set[str]) -> None:
    dead -= living
    assert sighting(known | dead, living, dead).found_share == sighting(known - dead, living, dead).found_share
    assert sighting(known | dead, living, dead).enough == sighting(known - dead, living, dead).enough
    assert sighting(known - dead, living, dead).dead_share == 0


def test_all_but_one_are_enough_and_one_fewer_are_not() -> None:
    living = set("abcd")
    assert sighting("abc", living, ()).enough
    assert not sighting("ab", living, ()).enough
    assert not sighting("", {"a"}, ()).enough
    assert sighting("ab", living, ()).found_share == 0.5


async def test_a_member_is_found_by_whoever_looks_for_its_model(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    own = identity(1)
    async with (
        network.open(own) as inner,
        open_peer(AnnouncingTransport(inner), own, wall=wall, rng=random.Random(1)) as member,
        joined(network, 2) as client,
    ):
        assert isinstance(member.transport, AnnouncingTransport)
        await member.discovery.publish(lambda: advert_for(MODEL))
        await member.transport.announced.wait()
        found = await client.discovery.wait_until(MODEL, lambda: bool(client.view.adverts(MODEL)), 10)
        assert found
        assert [advert.peer for advert in client.view.adverts(MODEL)] == [own.peer]


@pytest.mark.e2e
async def test_a_real_member_says_how_long_it_took_and_ends_with_its_crew() -> None:
    async with open_crew() as crew:
        member = await crew.start_module(MODULE, ["--model", MODEL])
        other = await crew.start_module(MODULE, ["--model", MODEL])
        with trio.fail_after(30):
            state = await wait_for_phase(member, "published")
        said = json.loads(member.state_file.read_text())
        assert said["join_s"] > 0
        assert said["publish_s"] > 0
        assert state.pid == member.process.pid
        assert runs(state.pid)
        await crew.kill(other)
        assert crew.living == [member]
        assert state_of(other, "published") is None
        assert len(crew.left_behind()) == 2
    assert crew.left_behind() == []
    assert crew.last_note() == "3 processes were started, none was left running"


@pytest.mark.e2e
async def test_a_real_member_ends_when_whoever_started_it_is_gone() -> None:
    async with open_crew() as crew:
        member = await crew.start_module(MODULE, ["--model", MODEL])
        assert member.process.stdin is not None
        await member.process.stdin.aclose()
        with trio.fail_after(30):
            assert await member.process.wait() == 0


@pytest.mark.alone
@pytest.mark.e2e
async def test_peers_that_live_are_found_when_others_have_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "QUICK_SIZES", (4,))
    bench = KeptBench(Options(quick=True, repeat=1))
    await discovery.run(bench)
    assert bench.rows["found_share@4"][0] >= 0.75
    assert bench.rows["found_share_after_kill@4"][0] >= 2 / 3
    assert len(bench.rows["join_s@4"]) == len(bench.rows["publish_s@4"]) == 4
    assert bench.notes == [
        "4 peers, 1 of them killed before the second lookups; 5 processes were started, none was left running"
    ]
