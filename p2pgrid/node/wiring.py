"""Settings become adapters here and nowhere else: identity, libp2p, the model store, the onnxruntime stage."""

import random
import secrets
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from importlib import resources
from pathlib import Path

import msgspec
import psutil
import trio

import p2pgrid
from p2pgrid.core.placement import layers_that_fit, positions_that_fit
from p2pgrid.engine.ort_stage import OrtStage, open_stage
from p2pgrid.errors import BadInput
from p2pgrid.ids import ModelId, Span
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.node.client import ModelDescription, fetch_description
from p2pgrid.node.peer import Peer, open_peer
from p2pgrid.settings import StageSettings
from p2pgrid.storage.blobs import DIGEST
from p2pgrid.storage.catalogue import catalogue
from p2pgrid.storage.identity import claim_identity, ephemeral_identity
from p2pgrid.storage.models import ModelStore
from p2pgrid.storage.paths import data_dir
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.manifest import Manifest
from p2pgrid.wire.signing import Identity

MEMORY_SHARE = 0.5
"""Of the memory that is free at the start, when `--memory` does not say."""

Advance = Callable[[int, int], None]


def model_store() -> ModelStore:
    return ModelStore(data_dir())


def own_identity(role: str, *, ephemeral: bool) -> AbstractContextManager[Identity]:
    """Ours for as long as the context lasts: kept on this machine for the next start, unless `ephemeral`."""
    return nullcontext(ephemeral_identity()) if ephemeral else claim_identity(data_dir(), role)


def default_bootstrap() -> list[str]:
    """The peers list that ships with p2pgrid (`bootstrap/peers.toml`); empty until there is a public peer."""
    packaged = resources.files(p2pgrid) / "data" / "bootstrap_peers.toml"
    checkout = Path(p2pgrid.__file__).parent.parent / "bootstrap" / "peers.toml"
    source = packaged if packaged.is_file() else checkout
    try:
        peers = tomllib.loads(source.read_text(encoding="utf-8")).get("peers", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"cannot read the list of bootstrap peers {source}: {error}") from error
    return [str(peer) for peer in peers]


def listen_for(peers: Sequence[str]) -> str:
    """Where a node listens when it was not told: on every interface, unless all its bootstrap peers are on loopback."""
    on_loopback = bool(peers) and all(peer.startswith(("/ip4/127.", "/ip6/::1/")) for peer in peers)
    return f"/ip4/{'127.0.0.1' if on_loopback else '0.0.0.0'}/tcp/0"


@asynccontextmanager
async def open_network(bootstrap: Sequence[str]) -> AsyncIterator[Peer]:
    """A client of the real network, which `bootstrap` peers lead to; see `open_node_network` for the errors."""
    async with open_node_network(bootstrap, ephemeral_identity(), ["/ip4/127.0.0.1/tcp/0"], serves=False) as peer:
        yield peer


@asynccontextmanager
async def open_node_network(
    bootstrap: Sequence[str],
    identity: Identity,
    listen: Sequence[str],
    *,
    serves: bool = True,
    announce: Sequence[str] = (),
    tracer: Tracer = NO_TRACE,
) -> AsyncIterator[Peer]:
    """A participant of the real network; without any bootstrap peer it looks on the local network by mDNS.

    It tells others to dial it at `announce`, or where it listens when that is empty.

    Raises BadInput for a wrong address, PeerUnavailable when no bootstrap peer answers, LocalFault for a port.
    """
    async with (
        open_libp2p(identity, listen, bootstrap, dht_server=serves, mdns=not bootstrap, announce=announce) as transport,
        open_peer(transport, identity, wall=time.time, rng=random.Random(secrets.randbits(64)), tracer=tracer) as peer,
    ):
        yield peer


def resolve_model(store: ModelStore, name: str) -> ModelId:
    """The model that `name` stands for: a name on this machine, one of the catalogue, or a model id itself.

    Raises BadInput for anything else, LocalFault when what is here is damaged.
    """
    if DIGEST.fullmatch(name):
        return ModelId(name)
    if name not in store.names() and name in catalogue():
        return catalogue()[name].model
    return store.manifest(name)[0]


def known_models(store: ModelStore) -> dict[ModelId, str]:
    """Every model that has a name here, in the store or in the catalogue."""
    known = {entry.model: name for name, entry in catalogue().items()}
    return known | {one.model: one.name for one in store.models() if one.model is not None}


async def describe_model(store: ModelStore, name: str, peer: Peer | None = None) -> ModelDescription:
    """What `name` stands for: from this machine if it is here, else from the swarm of `peer`.

    Raises BadInput for an unknown name, NoRoute when the model is not here and nobody serves it, LocalFault
    when what is here is damaged.
    """
    model = resolve_model(store, name)
    if store.blobs.find(model) is not None:
        manifest = store.manifest(model)[1]
        return ModelDescription(model, manifest, store.tokenizer(model))
    if peer is None:
        raise BadInput(f"model {name} is not on this machine: run `p2pgrid models pull {name}` first")
    return await fetch_description(peer, model)


def public_blobs(model: ModelDescription) -> Callable[[str], bytes | None]:
    """What a node of `model` gives away on request: its manifest and its tokenizer."""
    blobs = {model.id: model.manifest.to_bytes(), model.manifest.tokenizer: model.tokenizer.to_bytes()}
    return blobs.get


async def build_stage(
    store: ModelStore, model: ModelDescription, span: Span, settings: StageSettings, advance: Advance | None = None
) -> OrtStage:
    """Build a stage off the event loop, or take what was built before. Raises LocalFault."""
    checkpoint, kept = store.checkpoint(model.id), data_dir() / "graphs"
    work = partial(open_stage, checkpoint, model.manifest, span, settings, advance, cache=kept)
    # A build cannot be stopped half-way; whoever no longer waits for it is about to leave the process.
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def fit_memory(
    manifest: Manifest, memory_bytes: int | None, span: Span | None, span_max: int | None, settings: StageSettings
) -> tuple[int, Callable[[Span], StageSettings]]:
    """The most layers to take, and the stage settings for a span of them, within `memory_bytes`.

    Raises BadInput when not even one layer, or not all of the `span` asked for, fits.
    """
    context_max = min(settings.context_max, manifest.context)
    if memory_bytes is None:
        memory_bytes = int(psutil.virtual_memory().available * MEMORY_SHARE)
    fitting = layers_that_fit(manifest, memory_bytes, context_max)
    if span is not None and span.stop > manifest.layers:
        raise BadInput(f"--layers {span}: this model has layers 0:{manifest.layers}")
    wanted = 1 if span is None else len(span)
    if fitting < wanted:
        raise BadInput(
            f"{wanted} layer(s) of this model do not fit into {memory_bytes // 10**6} MB ({fitting} do): give more"
            " --memory or fewer --layers"
        )

    def settings_for(chosen: Span) -> StageSettings:
        positions = positions_that_fit(manifest, chosen, memory_bytes, context_max, settings.kv_positions)
        return msgspec.structs.replace(settings, context_max=context_max, kv_positions=positions)

    return min(fitting, span_max or fitting), settings_for
