import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import Span
from p2pgrid.wire.adverts import SignedAdvert
from p2pgrid.wire.codec import encode
from p2pgrid.wire.signing import Identity, open_advert, peer_id_of
from tests.wire.samples import ADVERT, IDENTITY, SIGNED


def test_a_signed_advert_opens_to_what_was_signed() -> None:
    assert open_advert(SIGNED) == ADVERT


@given(st.sampled_from(["advert", "public_key", "signature"]), st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_anywhere_is_refused(field: str, data: st.DataObject) -> None:
    value = bytearray(getattr(SIGNED, field))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerMisbehaved):
        open_advert(msgspec.structs.replace(SIGNED, **{field: bytes(value)}))


def test_a_signature_of_another_key_is_refused() -> None:
    other = Identity(bytes(32))
    signed = other.sign_advert(ADVERT)
    with pytest.raises(PeerMisbehaved, match="wrong signature"):
        open_advert(msgspec.structs.replace(SIGNED, signature=signed.signature))


def test_an_advert_in_another_peers_name_is_refused() -> None:
    with pytest.raises(PeerMisbehaved, match="signed by another key"):
        open_advert(Identity(bytes(32)).sign_advert(ADVERT))


def test_an_advert_for_layers_beyond_the_model_is_refused() -> None:
    for beyond in ({"span": Span(20, 31)}, {"moving_to": Span(20, 31)}):
        advert = msgspec.structs.replace(ADVERT, **beyond)
        with pytest.raises(PeerMisbehaved, match="layers that the model does not have"):
            open_advert(IDENTITY.sign_advert(advert))


def test_a_signature_over_something_else_does_not_pass_for_an_advert() -> None:
    payload = encode(ADVERT)
    bare = IDENTITY._key.sign(payload)
    with pytest.raises(PeerMisbehaved, match="wrong signature"):
        open_advert(SignedAdvert(payload, IDENTITY.public_key, bare))


@given(st.binary(max_size=100))
@settings(max_examples=50, deadline=None)
def test_signed_nonsense_is_misbehaviour(payload: bytes) -> None:
    signature = IDENTITY._key.sign(b"p2pgrid advert 1\0" + payload)
    with pytest.raises(PeerMisbehaved):
        open_advert(SignedAdvert(payload, IDENTITY.public_key, signature))


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_a_peer_id_is_the_one_that_libp2p_gives_the_same_seed(seed: bytes) -> None:
    pair = create_new_key_pair(seed)
    identity = Identity(seed)
    assert identity.public_key == pair.public_key.to_bytes()
    assert identity.peer == ID.from_pubkey(pair.public_key).to_string()


def test_the_key_and_its_peer_id_are_those_of_the_standards() -> None:
    """RFC 8032, section 7.1, test 1: the public key of a secret one."""
    identity = Identity(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.peer == peer_id_of(identity.public_key)
    assert identity.peer.startswith("12D3KooW")
