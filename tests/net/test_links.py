"""Links over the network in memory, on a virtual clock."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.net.links import Delivery, Links
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import STAGE_PROTOCOL, Contact, Credit, Goodbye, Hello, Token
from tests.net.hostile import assert_survives, payloads
from tests.net.peers import SESSION, Node, identity, linked, step, token

SMALL = LinkSettings(window_bytes=64 * 1024)


@asynccontextmanager
async def swarm(
    count: int, network: MemoryNetwork | None = None, settings: LinkSettings | None = None, *, hold: bool = False
) -> AsyncIterator[list[Node]]:
    network = network or MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(count):
            transport = await stack.enter_async_context(network.open(identity(number)))
            nodes.append(await stack.enter_async_context(linked(transport, settings, hold=hold)))
        yield sorted(nodes, key=lambda node: node.peer)


async def test_messages_arrive_in_order_both_ways(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2) as (a, b):
        await a.links.connect(b.contact)
        for position in range(100):
            await a.links.send(b.peer, token(position))
        await b.arrival(100)
        for position in range(100):
            await b.links.send(a.peer, token(position))
        await a.arrival(100)
        assert b.positions(a.peer) == a.positions(b.peer) == list(range(100))
        assert a.links.peers() == [b.peer]
        assert b.links.is_up(a.peer)


async def test_a_link_knows_its_round_trip_time(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2, MemoryNetwork(random.Random(1), latency_s=0.05)) as (a, b):
        assert a.links.rtt_s(b.peer) is None
        await a.links.connect(b.contact)
        await trio.sleep(1)
        assert a.links.rtt_s(b.peer) == pytest.approx(0.1)


async def test_connecting_twice_makes_one_link(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2) as (a, b):
        async with trio.open_nursery() as tasks:
            for _ in range(5):
                tasks.start_soon(a.links.connect, b.contact)
        await a.links.connect(b.contact)
        assert a.links.peers() == [b.peer]
        assert b.links.peers() == [a.peer]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("late_s", [0.0, 0.001, 0.0025, 0.004, 0.006])
async def test_dialling_each_other_at_once_ends_with_one_link_and_loses_nothing(
    autojump_clock: trio.abc.Clock, seed: int, late_s: float
) -> None:
    network = MemoryNetwork(random.Random(seed), latency_s=0.001, jitter_s=0.003)

    async def dial_and_send(one: Node, other: Node, after_s: float) -> None:
        await trio.sleep(after_s)
        await one.links.connect(other.contact)
        for position in range(50):
            await one.links.send(other.peer, token(position))

    async with swarm(2, network) as (a, b):
        first, second = (a, b) if seed % 2 else (b, a)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(dial_and_send, first, second, 0.0)
            tasks.start_soon(dial_and_send, second, first, late_s)
        await trio.sleep(10)
        assert a.positions(b.peer) == b.positions(a.peer) == list(range(50))
        assert not a.lost
        assert not b.lost
        assert a.links.is_up(b.peer)
        assert b.links.is_up(a.peer)


async def test_nobody_at_the_other_end_is_peer_unavailable(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(1) as (a,):
        with pytest.raises(PeerUnavailable, match="nobody answers"):
            await a.links.connect(Contact(identity(99).peer))
        with pytest.raises(PeerUnavailable, match="no link"):
            await a.links.send(identity(99).peer, token(0))


async def test_a_dial_into_the_void_ends_at_its_deadline(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1), dial_s_max=60)
    async with swarm(2, network) as (a, b):
        network.freeze(b.peer, True)
        started = trio.current_time()
        with pytest.raises(PeerUnavailable):
            await a.links.connect(b.contact)
        assert trio.current_time() - started == pytest.approx(LinkSettings().dial_s_max)


async def test_a_node_may_talk_to_itself(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(1) as (a,):
        await a.links.connect(a.contact)
        message = step(100)
        await a.links.send(a.peer, message)
        await a.arrival(1)
        assert a.arrived == [(a.peer, message)]
        assert a.arrived[0][1] is message
        assert a.links.is_up(a.peer)
        assert a.links.peers() == []


async def test_messages_to_oneself_wait_for_room_too(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(1, settings=SMALL, hold=True) as (a,):
        with trio.move_on_after(5):
            for _ in range(100):
                await a.links.send(a.peer, step(10_000))
        assert len(a.arrived) == 6
        for delivery in a.held:
            delivery.release()
        await a.links.send(a.peer, step(10_000))


async def test_a_killed_peer_is_lost_once_and_at_once(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(2, network) as (a, b):
        await a.links.connect(b.contact)
        await trio.sleep(1)
        started = trio.current_time()
        network.kill(b.peer)
        await a.loss()
        assert trio.current_time() - started < 0.1
        assert not a.links.is_up(b.peer)
        with pytest.raises(PeerUnavailable):
            await a.links.send(b.peer, token(0))
        await trio.sleep(10)
        assert [peer for peer, _ in a.lost] == [b.peer]


async def test_a_frozen_peer_is_noticed_within_the_allowed_silence(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(2, network) as (a, b):
        await a.links.connect(b.contact)
        await trio.sleep(30)
        assert not a.lost, "a quiet link lives on heartbeats"
        started = trio.current_time()
        network.freeze(b.peer, True)
        await a.loss()
        assert trio.current_time() - started <= LinkSettings().silence_s_max + 0.2
        assert "silent" in a.lost[0][1]
        network.freeze(b.peer, False)
        await trio.sleep(1)
        await a.links.connect(b.contact)
        await a.links.send(b.peer, token(3))
        await b.arrival(1)


async def test_both_sides_of_a_partition_notice_and_meet_again(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(2, network) as (a, b):
        await a.links.connect(b.contact)
        cut = network.partition([a.peer], [b.peer])
        await a.loss()
        await b.loss()
        network.heal(cut)
        await b.links.connect(a.contact)
        assert a.links.is_up(b.peer)
        assert (len(a.lost), len(b.lost)) == (1, 1)


async def test_a_peer_that_comes_again_replaces_its_half_dead_link(autojump_clock: trio.abc.Clock) -> None:
    """The peer is started anew on another machine while the old one is unreachable but not known to be dead."""
    network = MemoryNetwork(random.Random(1))
    quiet = LinkSettings(heartbeat_s=0.5, silence_s_max=1000)
    async with (
        network.open(identity(1)) as transport,
        linked(transport, quiet) as a,
        network.open(identity(2)) as peer,
    ):
        old = await peer.open_stream(a.contact, STAGE_PROTOCOL)
        await old.send_all(frame(Hello("it will never answer a ping", 2**20)))
        await trio.sleep(1)
        assert a.links.is_up(peer.peer)
        async with linked(peer, quiet) as new:
            started = trio.current_time()
            await new.links.connect(a.contact)
            assert trio.current_time() - started < 1
            assert a.lost == [(new.peer, "the peer made a new link")]
            await a.links.send(new.peer, token(1))
            await new.arrival(1)


async def test_a_second_stream_beside_a_living_link_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2) as (a, b):
        await a.links.connect(b.contact)
        stream = await a.transport.open_stream(b.contact, STAGE_PROTOCOL)
        await stream.send_all(frame(Hello("again", 2**20)))
        assert await stream.receive_some() == frame(Goodbye("another stream is the link"))
        assert not b.lost
        await b.links.send(a.peer, token(4))
        await a.arrival(1)


async def test_a_sender_waits_while_the_peer_consumes_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2, settings=SMALL, hold=True) as (a, b):
        await a.links.connect(b.contact)
        sent = 0
        with trio.move_on_after(20):
            while True:
                await a.links.send(b.peer, step(10_000, sent))
                sent += 1
        assert sent == 6, "64 KiB hold six messages of 10 kB"
        assert not a.lost, "heartbeats pass a full window"
        b.held.pop(0).release()
        b.held.pop(0).release()
        await a.links.send(b.peer, step(10_000, sent))


async def test_a_message_of_the_whole_window_does_not_starve(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2, settings=SMALL) as (a, b):
        await a.links.connect(b.contact)
        for _ in range(5):
            await a.links.send(b.peer, token(0))
            await a.links.send(b.peer, step(65_000))
        await b.arrival(10)
        with pytest.raises(PeerUnavailable, match="takes no message"):
            await a.links.send(b.peer, step(70_000))


async def test_release_twice_counts_once(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2, settings=SMALL, hold=True) as (a, b):
        await a.links.connect(b.contact)
        for _ in range(6):
            await a.links.send(b.peer, step(10_000))
        await b.arrival(6)
        for _ in range(3):
            for delivery in b.held[:2]:
                delivery.release()
        with trio.move_on_after(20) as waiting:
            for _ in range(3):
                await a.links.send(b.peer, step(10_000))
        assert waiting.cancelled_caught
        assert len(b.arrived) == 8
        assert not a.lost


async def test_trying_to_send_never_waits_and_says_when_it_would(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2, settings=SMALL, hold=True) as (a, b):
        await a.links.connect(b.contact)
        for to in (a, b):
            sent = 0
            while a.links.try_send(to.peer, step(10_000, sent)):
                sent += 1
            assert sent == 6, "64 KiB hold six messages of 10 kB"
        await a.arrival(6)
        await b.arrival(6)
        for node in (a, b):
            node.held.pop(0).release()
            node.held.pop(0).release()
        await trio.sleep(2)
        assert a.links.try_send(a.peer, step(10_000, 6))
        assert a.links.try_send(b.peer, step(10_000, 6))
        with pytest.raises(PeerUnavailable, match="takes no message"):
            a.links.try_send(b.peer, step(70_000))
    with pytest.raises(PeerUnavailable, match="no link"):
        a.links.try_send(b.peer, token(0))


async def test_what_has_more_behind_it_goes_out_with_the_last(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(2) as (a, b):
        await a.links.connect(b.contact)
        await trio.sleep(0.1)
        assert a.links.try_send(b.peer, token(0), more=True)
        assert a.links.try_send(b.peer, token(1), more=True)
        await trio.sleep(0.1)
        assert not b.arrived
        assert a.links.try_send(b.peer, token(2))
        await b.arrival(3)
        assert a.links.try_send(b.peer, token(3), more=True)
        a.links.flush(b.peer)
        a.links.flush(b.peer)
        await b.arrival(4)
        assert [message.position for _, message in b.arrived] == [0, 1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("to_itself", [False, True])
async def test_who_tries_does_not_overtake_who_waits(autojump_clock: trio.abc.Clock, to_itself: bool) -> None:
    async with swarm(2, settings=SMALL, hold=True) as (a, other):
        await a.links.connect(other.contact)
        b = a if to_itself else other
        for position in range(6):
            assert a.links.try_send(b.peer, step(10_000, position))
        async with trio.open_nursery() as tasks:
            for position in range(6, 9):
                tasks.start_soon(a.links.send, b.peer, step(10_000, position))
                await trio.testing.wait_all_tasks_blocked()
            while not a.links.try_send(b.peer, token(9)):
                while b.held:
                    b.held.pop(0).release()
                await trio.sleep(0.001)
        await b.arrival(10)
        assert [message.position for _, message in b.arrived] == list(range(10))  # type: ignore[union-attr]


async def test_what_is_taken_at_once_keeps_its_place_among_what_is_not(autojump_clock: trio.abc.Clock) -> None:
    """Even positions are taken by the reader itself, odd ones need a handler that sleeps."""
    network = MemoryNetwork(random.Random(1))
    order: list[tuple[int, str]] = []

    def on_message_nowait(delivery: Delivery) -> bool:
        assert isinstance(delivery.message, Token)
        if delivery.message.position % 2:
            return False
        order.append((delivery.message.position, "at once"))
        delivery.release()
        return True

    async def on_message(delivery: Delivery) -> None:
        assert isinstance(delivery.message, Token)
        await trio.sleep(0.01)
        order.append((delivery.message.position, "later"))
        delivery.release()

    async with swarm(1, network, SMALL) as (a,), network.open(identity(7)) as transport, trio.open_nursery() as tasks:
        links = Links(
            transport,
            SMALL,
            on_message=on_message,
            on_lost=lambda peer, reason: None,
            on_message_nowait=on_message_nowait,
        )
        await tasks.start(links.run)
        await a.links.connect(Contact(transport.peer))
        for position in range(200):  # more than the window: every release counts
            await a.links.send(transport.peer, token(position))
            if position % 5 == 0:
                await trio.sleep(0.1)
        await trio.sleep(10)
        assert [position for position, _ in order] == list(range(200))
        assert {how for position, how in order if position % 2 == 0} == {"at once", "later"}
        assert {how for position, how in order if position % 2} == {"later"}
        tasks.cancel_scope.cancel()


async def test_misbehaviour_that_is_seen_at_once_cuts_the_link(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    taken: list[Delivery] = []

    def on_message_nowait(delivery: Delivery) -> bool:
        taken.append(delivery)
        raise PeerMisbehaved("not this")

    async def on_message(delivery: Delivery) -> None:
        taken.append(delivery)

    async with swarm(1, network) as (a,), network.open(identity(7)) as transport, trio.open_nursery() as tasks:
        lost: list[str] = []
        links = Links(
            transport,
            LinkSettings(),
            on_message=on_message,
            on_lost=lambda peer, reason: lost.append(reason),
            on_message_nowait=on_message_nowait,
        )
        await tasks.start(links.run)
        await a.links.connect(Contact(transport.peer))
        for position in range(3):
            a.links.try_send(transport.peer, token(position))
        await a.loss()
        assert lost == ["not this"]
        assert len(taken) == 1, "nothing of a peer is delivered once its link was cut"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("bandwidth_bytes_s", [2e6, 10e6, 40e6])
async def test_a_link_knows_what_it_carries_once_something_large_was_sent(
    autojump_clock: trio.abc.Clock, bandwidth_bytes_s: float
) -> None:
    network = MemoryNetwork(random.Random(1), latency_s=0.0005, bandwidth_bytes_s=bandwidth_bytes_s)
    async with swarm(2, network) as (a, b):
        await a.links.connect(b.contact)
        for position in range(100):
            await a.links.send(b.peer, token(position))
            await trio.sleep(0.01)
        assert a.links.bandwidth_bytes_s(b.peer) is None
        await a.links.send(b.peer, step(295_000))
        await trio.sleep(1)
        assert a.links.bandwidth_bytes_s(b.peer) == pytest.approx(bandwidth_bytes_s, rel=0.15)
        assert b.links.bandwidth_bytes_s(a.peer) is None, "each direction for itself"
        assert a.links.rtt_s(b.peer) == pytest.approx(0.001, rel=0.1), "a burst makes no longer way"
        assert a.links.bandwidth_bytes_s(a.peer) is None
        assert a.links.bandwidth_bytes_s(identity(99).peer) is None


async def test_a_trace_has_every_event_of_a_step_in_order_and_nothing_else(autojump_clock: trio.abc.Clock) -> None:
    notes: list[tuple[str, int]] = []

    class Notes:
        def note(self, event: str, session: str, position: int, at_s: float | None = None) -> None:
            assert session == SESSION
            notes.append((event, position))

    async def on_message(delivery: Delivery) -> None:
        delivery.release()

    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as one, network.open(identity(2)) as other, trio.open_nursery() as tasks:
        everyone = [
            Links(transport, LinkSettings(), on_message=on_message, on_lost=lambda peer, reason: None, tracer=Notes())
            for transport in (one, other)
        ]
        for links in everyone:
            await tasks.start(links.run)
        await everyone[0].connect(Contact(other.peer))
        for message in (token(1), step(5000, 2), token(3), step(100_000, 4), step(5, 5)):
            await everyone[0].send(other.peer, message)
        await trio.sleep(1)
        for position in (2, 4, 5):
            of_step = [event for event, at in notes if at == position]
            assert of_step == ["queued", "written", "read", "decoded", "delivered"]
        assert {at for _, at in notes} == {2, 4, 5}
        notes.clear()
        await everyone[0].send(one.peer, step(5, 6))
        await trio.sleep(1)
        assert notes == [("queued", 6), ("delivered", 6)]
        tasks.cancel_scope.cancel()


async def test_a_slow_handler_of_one_peer_does_not_hold_up_another(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    at: dict[int, float] = {}

    async def on_message(delivery: Delivery) -> None:
        assert isinstance(delivery.message, Token)
        if delivery.message.position == 0:
            await trio.sleep(60)
        at[delivery.message.position] = trio.current_time()

    async with swarm(2, network) as (a, b), network.open(identity(7)) as transport, trio.open_nursery() as tasks:
        links = Links(transport, LinkSettings(), on_message=on_message, on_lost=lambda peer, reason: None)
        await tasks.start(links.run)
        contact = Contact(transport.peer)
        await a.links.connect(contact)
        await b.links.connect(contact)
        started = trio.current_time()
        await a.links.send(transport.peer, token(0))
        await b.links.send(transport.peer, token(1))
        await trio.sleep(100)
        assert at[1] - started < 1 < at[0] - started
        assert not a.lost, "heartbeats go on while a handler is slow"
        tasks.cancel_scope.cancel()


async def test_closing_says_goodbye_and_is_quick(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(1, network) as (a,):
        async with network.open(identity(50)) as transport:
            async with linked(transport) as b:
                await a.links.connect(b.contact)
                await b.links.send(a.peer, token(1))
                started = trio.current_time()
            assert trio.current_time() - started <= LinkSettings().close_s_max
            assert not b.lost, "our own shutdown is no loss"
        await a.loss()
        assert a.positions(b.peer) == [1], "what was sent before goodbye still arrives"
        assert "goodbye" in a.lost[0][1]


async def test_closing_beside_a_frozen_peer_keeps_its_deadline(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(1, network) as (a,), network.open(identity(50)) as transport:
        async with linked(transport) as b:
            await b.links.connect(a.contact)
            network.freeze(a.peer, True)
            for position in range(1000):
                await b.links.send(a.peer, token(position))
            started = trio.current_time()
        assert trio.current_time() - started <= LinkSettings().close_s_max + 0.01


async def test_a_cancelled_send_does_not_hurt_the_link(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1), bandwidth_bytes_s=1e6)
    async with swarm(2, network) as (a, b):
        await a.links.connect(b.contact)
        sent = 0
        while sent < 20:
            with trio.move_on_after(0.3):
                await a.links.send(b.peer, step(500_000, sent))
                sent += 1
        await a.links.send(b.peer, token(99))
        await trio.sleep(20)
        assert b.positions(a.peer) == [99]
        assert [m.position for _, m in b.arrived[:-1]] == list(range(20))  # type: ignore[union-attr]
        assert not a.lost


async def test_sending_beyond_the_window_cuts_the_link(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(1, network, SMALL, hold=True) as (a,), network.open(identity(60)) as rogue:
        stream = await rogue.open_stream(a.contact, STAGE_PROTOCOL)
        await stream.send_all(frame(Hello("rogue", 1024)) + 7 * frame(step(10_000)))
        await a.loss()
        assert "window" in a.lost[0][1]


async def test_inventing_credit_cuts_the_link(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(1, network) as (a,), network.open(identity(60)) as rogue:
        stream = await rogue.open_stream(a.contact, STAGE_PROTOCOL)
        await stream.send_all(frame(Hello("rogue", 1024)) + frame(Credit(1)))
        await a.loss()
        assert "credit" in a.lost[0][1]


async def test_a_stream_without_hello_is_dropped(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(1, network) as (a,), network.open(identity(60)) as rogue:
        silent = await rogue.open_stream(a.contact, STAGE_PROTOCOL)
        early = await rogue.open_stream(a.contact, STAGE_PROTOCOL)
        await early.send_all(frame(token(0)))
        for stream in (silent, early):
            with pytest.raises(PeerUnavailable):
                assert await stream.receive_some() == b""
                raise PeerUnavailable("the polite way")
        assert not a.arrived
        assert not a.lost


async def test_cancelling_everything_in_the_middle_leaves_no_link(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with swarm(2, network) as (a, b):
        with trio.move_on_after(0.003):
            await a.links.connect(b.contact)
        await trio.sleep(5)
        assert a.links.peers() == [b.peer], "a dial goes on for the others who may want it"
    assert a.links.peers() == []


@given(payloads=payloads())
@settings(max_examples=60, deadline=None)
def test_no_bytes_hurt_a_node(payloads: list[bytes]) -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(1))
        async with (
            swarm(2, network, SMALL) as (a, b),
            network.open(identity(70)) as rogue,
        ):
            await a.links.connect(b.contact)
            await assert_survives(a.transport, rogue, STAGE_PROTOCOL, payloads)
            await b.links.send(a.peer, token(5))
            await trio.sleep(10)
            assert a.positions(b.peer) == [5]
            assert [peer for peer, _ in a.lost if peer == b.peer] == []

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
