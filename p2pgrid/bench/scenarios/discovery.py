"""How quickly peers join, are published and are found, and whether they are still found when many have died."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import trio

from p2pgrid.bench.discovery_member import MemberState
from p2pgrid.bench.processes import Crew, open_crew
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.errors import LocalFault
from p2pgrid.ids import ModelId
from p2pgrid.node.wiring import open_network
from p2pgrid.swarm.processes import Member, wait_for_phase

SIZES = (10, 25, 50)
QUICK_SIZES = (10,)
BATCH = 5
"""So many processes are started together; more would measure how they wait for the processor."""
START_S_MAX = 60.0
LOOKUP_S_MAX = 15.0
KILLED_SHARE = 0.3
MODEL = ModelId("be" * 32)
"""Nobody has it; peers only say that they do."""
MODULE = "p2pgrid.bench.discovery_member"
SYSTEM = "swarm"


@dataclass(frozen=True)
class Sighting:
    """Which of those that live, and of those that died, are among the peers that a client knows."""

    found_share: float
    dead_share: float
    enough: bool
    """All that live are found, but for one at most."""


def sighting(known: Collection[str], living: Collection[str], dead: Collection[str]) -> Sighting:
    """`known` are a client's peers. With nobody dead the share of them is 0."""
    found = len(set(known) & set(living))
    return Sighting(
        found_share=found / len(living),
        dead_share=len(set(known) & set(dead)) / max(len(dead), 1),
        enough=found >= max(len(living) - 1, 1),
    )


async def run(bench: Bench) -> None:
    sizes = QUICK_SIZES if bench.options.quick else SIZES
    for i, size in enumerate(sizes):
        bench.progress(i, len(sizes))
        await _measure(bench, size)
    bench.progress(len(sizes), len(sizes))


async def _measure(bench: Bench, size: int) -> None:
    async with open_crew() as crew:
        members = await _start(bench, crew, size)
        living = {state.peer_id for state in members.values()}
        await _look_up_often(bench, crew, living, (), size, "")
        dead = random.Random(size).sample(sorted(members), round(size * KILLED_SHARE))
        for member in crew.living:
            if member.name in dead:
                await crew.kill(member)
        gone = {members[name].peer_id for name in dead}
        await _look_up_often(bench, crew, living - gone, gone, size, "_after_kill")
    bench.note(f"{size} peers, {len(dead)} of them killed before the second lookups; {crew.last_note()}")


async def _start(bench: Bench, crew: Crew, size: int) -> dict[str, MemberState]:
    """`size` members that have published, by the name of their process, and the times that they took."""
    states: dict[str, MemberState] = {}

    async def wait_published(member: Member) -> None:
        await wait_for_phase(member, "published")
        states[member.name] = msgspec.json.decode(member.state_file.read_bytes(), type=MemberState)

    try:
        while len(states) < size:
            with trio.move_on_after(START_S_MAX) as deadline:
                async with trio.open_nursery() as waiting:
                    for _ in range(min(BATCH, size - len(states))):
                        member = await crew.start_module(MODULE, ["--model", MODEL])
                        waiting.start_soon(wait_published, member)
            if deadline.cancelled_caught:
                raise LocalFault(f"peers were not published within {START_S_MAX:.0f} s: is the machine overloaded?")
    finally:
        bench.keep(SYSTEM, f"join_s@{size}", "s", [state.join_s for state in states.values()])
        bench.keep(SYSTEM, f"publish_s@{size}", "s", [state.publish_s for state in states.values()])
    return states


async def _look_up_often(
    bench: Bench, crew: Crew, living: Collection[str], dead: Collection[str], size: int, when: str
) -> None:
    async def measure() -> dict[str, tuple[float, str]]:
        took_s, seen = await _look_up(crew.bootstrap, living, dead)
        figures = {f"found_share{when}@{size}": (seen.found_share, "share")}
        if seen.enough:
            figures[f"lookup{when}_s@{size}"] = (took_s, "s")
        if dead:
            figures[f"dead_share{when}@{size}"] = (seen.dead_share, "share")
        return figures

    for pair in range(bench.options.repeat):
        await bench.sample(SYSTEM, pair, measure)


async def _look_up(bootstrap: Sequence[str], living: Collection[str], dead: Collection[str]) -> tuple[float, Sighting]:
    """Seconds that a client that has just joined needs to find enough of the living, and what it knows then."""
    async with open_network(bootstrap) as client:

        def look() -> Sighting:
            return sighting([advert.peer for advert in client.view.adverts(MODEL)], living, dead)

        started_s = trio.current_time()
        await client.discovery.wait_until(MODEL, lambda: look().enough, LOOKUP_S_MAX)
        return trio.current_time() - started_s, look()


SCENARIO = Named("discovery", "joining, publishing and finding peers, before and after 30 % of them are killed", run)
