"""A node behind a port forward tells others the address of the forward, and never its own."""

import pytest

from p2pgrid.errors import BadInput
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.net.libp2p_transport.host import live_connections
from tests.net.peers import identity

OUTSIDE = "/ip4/192.0.2.1/tcp/4001"
SECOND = "/dns4/node.example/tcp/4002"


async def test_others_hear_the_announced_addresses_and_no_other() -> None:
    key = "/p2pgrid/model"
    async with (
        open_libp2p(identity(1), [], [], dht_server=True) as first,
        open_libp2p(identity(2), [], first.addresses, dht_server=True, announce=[OUTSIDE, SECOND]) as inside,
        open_libp2p(identity(3), [], first.addresses, dht_server=False) as client,
    ):
        assert inside.addresses == tuple(f"{address}/p2p/{inside.peer}" for address in (OUTSIDE, SECOND))
        await inside.announce(key)
        (found,) = await client.find_providers(key)
        assert found.peer == inside.peer
        assert {address.split("/p2p/")[0] for address in found.addresses} == {OUTSIDE, SECOND}
        assert live_connections(inside._host, first._host.get_id())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("announce", "said"),
    [
        (["nonsense"], "nonsense"),
        ([f"{OUTSIDE}/p2p/{identity(2).peer}"], "leave /p2p/"),
        (["/ip4/192.0.2.1/tcp/0"], "others can dial"),
        (["/ip4/0.0.0.0/tcp/4001"], "others can dial"),
        ([f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, 18)], "16 at most"),
    ],
)
async def test_what_nobody_could_dial_is_not_announced(announce: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        async with open_libp2p(identity(1), [], [], dht_server=True, announce=announce):
            pass
