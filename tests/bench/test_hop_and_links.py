"""Scenarios about links: what they ask for, and that they measure real processes."""

from collections.abc import Awaitable, Callable, Sequence
from statistics import median

import psutil
import pytest
import trio

from p2pgrid.bench.child import Request
from p2pgrid.bench.conditioned_swarm import open_conditioned_swarm
from p2pgrid.bench.document import Limit
from p2pgrid.bench.one_process import answer_whole
from p2pgrid.bench.profiles import MBIT, PROFILES, Profile
from p2pgrid.bench.scenario import Options
from p2pgrid.bench.scenarios import hop, links
from p2pgrid.core.drawing import Drawer
from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.errors import BadInput, LocalFault, PeerUnavailable
from p2pgrid.ids import Span
from p2pgrid.node.wiring import build_stage, describe_model
from p2pgrid.services.local import LocalSession
from p2pgrid.settings import LinkSettings, StageSettings
from p2pgrid.storage.models import ModelStore
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import Sampling, Step
from tests.real_model import NAME, real_store


class Collected:
    """A `Bench` that keeps what it is given."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.samples: dict[tuple[str, str], list[float]] = {}
        self.limits: list[Limit] = []
        self.notes: list[str] = []
        self.compared: list[tuple[str, str]] = []
        self.on_progress: Callable[[], None] = lambda: None

    async def sample(
        self, system: str, pair: int, measure: Callable[[], Awaitable[dict[str, tuple[float, str]]]]
    ) -> None:
        for metric, (value, _) in (await measure()).items():
            if pair >= 0:
                self.samples.setdefault((system, metric), []).append(value)

    def keep(self, system: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        self.samples[system, metric] = list(samples)

    def compare(self, system: str, baseline: str) -> None:
        self.compared.append((system, baseline))

    def limit(self, limit: Limit) -> None:
        self.limits.append(limit)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def progress(self, done: int, total: int) -> None:
        self.on_progress()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


# ── hop ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hop_is_measured_at_every_size_beside_plain_tcp() -> None:
    bench = Collected(Options(repeat=2, quick=True))
    before = children()
    with trio.fail_after(60):
        await hop.run(bench)
    assert bench.compared == [(hop.DIRECT, hop.PLAIN_TCP), (hop.LIBP2P, hop.PLAIN_TCP)]
    for nbytes in hop.FRAME_BYTES:
        direct, libp2p, plain = (
            bench.samples[system, f"hop_s@{nbytes}"] for system in (hop.DIRECT, hop.LIBP2P, hop.PLAIN_TCP)
        )
        assert len(direct) == len(libp2p) == len(plain) == 2
        assert min(*direct, *libp2p, *plain) > 0
    metrics = [f"hop_s@{nbytes}" for nbytes in hop.FRAME_BYTES]
    assert [(limit.system, limit.metric) for limit in bench.limits] == [
        (system, metric) for system in (hop.DIRECT, hop.LIBP2P) for metric in metrics
    ]
    for limit in bench.limits:
        best, ours = (median(bench.samples[system, limit.metric]) for system in (hop.PLAIN_TCP, limit.system))
        assert (limit.limit, limit.share) == (best, best / ours)
    assert children() == before


async def test_an_interrupted_hop_leaves_no_process_behind() -> None:
    bench = Collected(Options(repeat=1000, quick=True))
    before = children()
    with trio.fail_after(60), trio.CancelScope() as scope:
        bench.on_progress = scope.cancel
        await hop.run(bench)
    assert scope.cancelled_caught
    assert children() == before


async def test_an_echo_process_that_dies_is_an_error_of_ours() -> None:
    async with hop.open_echo() as there:
        (process,) = [child for child in children() if "p2pgrid.bench.echo" in child.cmdline()]
        async with hop.open_plain_tcp(there.tcp_port) as go:
            await go(1000)
            process.kill()
            with pytest.raises(LocalFault, match="echo process has ended"):
                await go(1000)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "libp2p"])
async def test_a_peer_that_is_killed_is_lost_without_waiting_for_a_heartbeat(direct: bool) -> None:
    async with hop.open_echo() as there:
        (process,) = [child for child in children() if "p2pgrid.bench.echo" in child.cmdline()]
        async with hop.open_link(there.contact, direct=direct) as go:
            await go(1000)
            process.kill()
            with trio.fail_after(LinkSettings().silence_s_max / 2), pytest.raises(PeerUnavailable):
                await go(1000)


@pytest.mark.parametrize("nbytes", hop.FRAME_BYTES)
def test_a_frame_is_as_large_as_its_metric_says(nbytes: int) -> None:
    step = Step(hop.SESSION, 0, 0, b"\0\0\0\0", hidden=bytes(nbytes - hop.OVERHEAD_BYTES))
    assert len(frame(step)) == pytest.approx(nbytes, abs=16)


# ── links ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quick_look_takes_two_profiles_and_a_chosen_one_is_the_only_one() -> None:
    assert [p.name for p in links.profiles_of(Options(quick=True))] == ["lan", "wan"]
    assert links.profiles_of(Options()) == list(PROFILES.values())
    assert links.profiles_of(Options(profile="home")) == [PROFILES["home"]]
    with pytest.raises(BadInput, match="moon"):
        links.profiles_of(Options(profile="moon"))


def test_the_limit_is_one_round_of_the_ring_and_the_computing() -> None:
    assert links.decode_limit(PROFILES["wan"], 3, 0.01) == pytest.approx(1 / 0.16)
    assert links.decode_limit(PROFILES["wan"], 1, 0.01) == pytest.approx(100)  # a ring of one has no link


@pytest.mark.e2e
@pytest.mark.model
@pytest.mark.timeout(180)
def test_an_answer_behind_emulated_links_is_the_same_and_takes_their_time() -> None:
    store = real_store()
    trio.run(_compare_answers, store)


async def _compare_answers(store: ModelStore) -> None:
    profile = Profile("test", rtt_s=0.04, up_bytes_s=100 * MBIT, down_bytes_s=100 * MBIT)
    prompt = tuple(range(1000, 1016))
    description = await describe_model(store, NAME)
    stage = await build_stage(store, description, Span(0, description.manifest.layers), StageSettings())
    whole = LocalSession(stage, LaneExecutor(), Drawer(Sampling()))
    expected = await answer_whole(whole, Request(0, prompt, 8), context_max=64, run_ahead=False)
    stage.close()
    async with open_conditioned_swarm(NAME, 2, profile) as swarm:
        await swarm.system.ask(prompt, 2)
        passed_before = swarm.passed_bytes
        answer = await swarm.system.ask(prompt, 8)
        assert answer.token_ids == tuple(expected.token_ids)
        assert answer.decode_tokens_per_s < links.decode_limit(profile, 2, 0.0)
        assert swarm.passed_bytes > passed_before + 16 * 576 * 4  # the prompt's hidden states at least
        assert min(swarm.rtts_s()) > profile.rtt_s * 0.9
