"""The real network: libp2p over TCP, Noise and yamux, with a Kademlia DHT. Nothing else imports libp2p."""

from p2pgrid.net.libp2p_transport.opening import open_libp2p

__all__ = ["open_libp2p"]
