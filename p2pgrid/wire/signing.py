"""Ed25519 identities and signatures over adverts.

A peer id is the identity multihash of the protobuf-encoded public key, in base58
(https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md), so a signature and a connection name the
same peer without asking the network library.
"""

from functools import lru_cache

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import PeerId
from p2pgrid.wire.adverts import Advert, SignedAdvert
from p2pgrid.wire.codec import decode, encode

# identity multihash (0x00) of 36 bytes: protobuf {type: Ed25519 (1), data: 32 bytes}
_PEER_ID_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_ADVERT_CONTEXT = b"p2pgrid advert 1\0"
OPENED_MAX = 4096
"""Adverts that were opened lately and need not be checked again."""


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


class Identity:
    """A node's key pair, from its 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()
        self.peer = peer_id_of(self.public_key)

    def sign_advert(self, advert: Advert) -> SignedAdvert:
        payload = encode(advert)
        return SignedAdvert(payload, self.public_key, self._key.sign(_ADVERT_CONTEXT + payload))


@lru_cache(OPENED_MAX)  # the same advert comes from many peers
def open_advert(signed: SignedAdvert) -> Advert:
    """The advert inside, once its signature and its peer id are found to belong together.

    Raises PeerMisbehaved otherwise. Does not look at the clock: expiry is the view's business.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(signed.public_key)
        key.verify(signed.signature, _ADVERT_CONTEXT + signed.advert)
    except (InvalidSignature, ValueError) as error:
        raise PeerMisbehaved("an advert with a wrong signature") from error
    advert: Advert = decode(signed.advert, Advert)
    if advert.peer != peer_id_of(signed.public_key):
        raise PeerMisbehaved(f"an advert for {advert.peer} signed by another key")
    if any(span is not None and span.stop > advert.layers for span in (advert.span, advert.moving_to)):
        raise PeerMisbehaved(f"an advert of {advert.peer} for layers that the model does not have")
    return advert
