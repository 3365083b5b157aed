"""One fixed message of every kind; `golden_frames.txt` holds their bytes on the wire."""

from pathlib import Path

from p2pgrid.ids import ModelId, SessionId, Span
from p2pgrid.wire import adverts as a
from p2pgrid.wire import messages as m
from p2pgrid.wire import transfer_messages as t
from p2pgrid.wire.signing import Identity

IDENTITY = Identity(bytes(range(32)))
SESSION = SessionId("0123456789abcdef" * 2)
MODEL = ModelId("ab" * 32)
ADDRESS = "/ip4/192.0.2.1/tcp/4001"

ADVERT = a.Advert(
    peer=IDENTITY.peer,
    addresses=(ADDRESS,),
    model=MODEL,
    layers=30,
    state="serving",
    span=Span(0, 10),
    span_max=20,
    sequence=7,
    expires_at_s=1.5e9,
    step_ms=3.25,
    sessions_free=8,
    model_name="m",
    agent="a",
    moving_to=Span(10, 20),
    since_s=1.4e9,
    queue_ms=0.5,
    positions_free=4096,
    delays_ms={IDENTITY.peer: 12.5},
    tokens_per_s=40.0,
    tokens_per_s_max=200.0,
    canary_at_s=1.45e9,
    sessions_open=2,
    positions_max=8192,
)
SIGNED = IDENTITY.sign_advert(ADVERT)
LOST = a.Lost(IDENTITY.peer, 7)
ROUTE = (m.Hop(IDENTITY.peer, Span(0, 10), (ADDRESS,)), m.Hop(IDENTITY.peer, Span(10, 30)))
OPEN = m.Open(
    SESSION,
    1,
    MODEL,
    ROUTE,
    1,
    m.Sampling(0.5, 0.9, 40, 2**62, 1.5, -1.5, ((7, -100.0),)),
    (2,),
    positions=640,
    prefix=bytes(range(16)),
    cache_scope="k",
    wire="auto",
    exact=True,
    logprobs=20,
    prompt_length=600,
    json_schema="{}",
)

LINK_MESSAGES: tuple[m.LinkMessage, ...] = (
    m.Hello("p2pgrid/1", 16 * 1024 * 1024),
    m.Ping(7),
    m.Pong(7),
    m.Credit(2304),
    m.Goodbye("done"),
    OPEN,
    m.Opened(SESSION, 1, 1, 64, 32),
    m.Step(SESSION, 1, 5, b"\1\0\0\0\2\0\0\0", b"\0\0\x80?" * 2, "token", b"\3\0\0\0" * 2, 64, "fp16", True, 2),
    m.Token(SESSION, 1, 6, 42, -0.5, b"\2\0\0\0", b"\0\0\0\xbf"),
    m.Scores(SESSION, 1, 5, b"\1\0\0\0", b"\0\0\x80?", b"\1\0\0\0", b"\0\0\0\xbf"),
    m.OutOfSync(SESSION, 1, 1, 3),
    m.Busy(SESSION, 1, 1, 0.5),
    m.Failed(SESSION, 1, 1, "x"),
    m.Lost(SESSION, 1, 1, IDENTITY.peer, "x"),
    m.Moved(SESSION, 1, 1, ROUTE[1]),
    m.Replay(SESSION, 1, 64, 128, 2),
    m.Close(SESSION),
)
ADVERT_MESSAGES: tuple[a.AdvertMessage, ...] = (
    a.Exchange(MODEL, (SIGNED,), bytes(range(16)), (LOST,)),
    a.Adverts((SIGNED,), (LOST,)),
)
BLOB_MESSAGES: tuple[t.BlobMessage, ...] = (
    t.BlobRequest("cd" * 32, 2**40, 1024 * 1024),
    t.BlobPiece(3, b"abc"),
    t.BlobMissing(),
)
DIRECT_MESSAGES: tuple[t.DirectMessage, ...] = (
    t.DirectRequest(m.STAGE_PROTOCOL),
    t.DirectOffer(4002, bytes(range(16))),
)
PROTOCOLS = (
    (m.LinkMessage, LINK_MESSAGES),
    (a.AdvertMessage, ADVERT_MESSAGES),
    (t.BlobMessage, BLOB_MESSAGES),
    (t.DirectMessage, DIRECT_MESSAGES),
)

GOLDEN = Path(__file__).with_name("golden_frames.txt")


def golden_frames() -> dict[str, bytes]:
    """The recorded frame of each kind of message, by the kind's name on the wire."""
    lines = GOLDEN.read_text().splitlines()
    return {name: bytes.fromhex(frame) for name, frame in (line.split() for line in lines if line[0] != "#")}
