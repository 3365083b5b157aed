"""Checks of this machine: libraries, processor, memory, disk, models."""

import hashlib
import os
import platform
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil

from p2pgrid import __version__
from p2pgrid.checkup.finding import Finding
from p2pgrid.core.placement import layers_that_fit
from p2pgrid.engine.kernels import rows_that_agree
from p2pgrid.errors import LocalFault
from p2pgrid.node.wiring import MEMORY_SHARE
from p2pgrid.settings import StageSettings
from p2pgrid.storage.models import ModelStore, StoredModel

Advance = Callable[[int, int], None]
"""Hears of progress: `(done, total)` bytes."""

LIBRARIES = ("libp2p", "onnxruntime", "trio", "msgspec", "tokenizers", "numpy")
DISK_BYTES_MIN, DISK_BYTES_WANTED = 300 * 10**6, 2 * 10**9
MEMORY_BYTES_MIN, MEMORY_BYTES_WANTED = 400 * 10**6, 10**9
"""Below the first not even a few layers of the smallest model fit beside the program itself."""
FILES_WANTED = 1024
"""A node has up to so many connections, each an open file."""
CPUINFO = Path("/proc/cpuinfo")
FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "asimddp": "dot"}
HASH_BYTES = 1024 * 1024


def libraries() -> Finding:
    """Whether what the network and the engine rest on is what p2pgrid was made with."""
    found, missing = {}, []
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    says = ", ".join([f"p2pgrid {__version__}", f"Python {platform.python_version()}", *map(" ".join, found.items())])
    remedy = "install p2pgrid again: pip install --force-reinstall p2pgrid"
    if missing:
        return Finding("versions", "problem", f"{', '.join(missing)} not installed; {says}", remedy)
    pinned = _pinned("libp2p")
    if pinned not in (None, found["libp2p"]):
        wrong = f"libp2p is {found['libp2p']}, and p2pgrid was tested with {pinned} only; {says}"
        return Finding("versions", "warning", wrong, remedy)
    return Finding("versions", "ok", says)


def _pinned(library: str) -> str | None:
    try:
        required = metadata.requires("p2pgrid") or []
    except metadata.PackageNotFoundError:
        return None
    found = [re.match(rf"{library}==([\w.]+)", line) for line in required]
    return next((match[1] for match in found if match), None)


def processor(flags: frozenset[str], cores: int, four_bits: int) -> Finding:
    """What the instruction set means: how fast, and with which machines the answers agree to the last bit.

    `flags` are the kernel's names of features; `four_bits`: see `engine.kernels.rows_that_agree`.
    """
    features = ", ".join(name for flag, name in FLAGS.items() if flag in flags)
    which = f"{cores} cores, {features or 'no vector instructions that are known here'}"
    if platform.machine() in ("x86_64", "AMD64"):
        if "avx2" not in flags:
            slow = f"{which}: steps take many times as long as on machines with AVX2"
            remedy = "use it as a client or a bootstrap peer, or for few layers"
            return Finding("processor", "warning", slow, remedy)
        kind = "with AVX-512" if "avx512f" in flags else "with AVX2 and no AVX-512"
    else:
        kind = f"of kind {platform.machine()}"
    codes = ("4-bit codes kept in 8 bits", "4-bit codes as they are", "4-bit codes, a row alone computed twice")[
        four_bits
    ]
    same = f"answers are the same, bit for bit, on machines {kind}; near ties may fall otherwise on others"
    return Finding("processor", "ok", f"{which}: {same}; {codes}")


def own_processor() -> Finding:
    """The same for this machine."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = frozenset(found[1].split()) if found else frozenset()
    return processor(flags, len(os.sched_getaffinity(0)), rows_that_agree(4))


def memory(available_bytes: int, holds: str = "") -> Finding:
    """Whether layers fit; `holds` says how many of which model, where that is known."""
    says = f"{_gb(available_bytes)} available{holds}"
    if available_bytes < MEMORY_BYTES_MIN:
        return Finding("memory", "problem", says, "close other programs; a client needs no weights and little memory")
    if available_bytes < MEMORY_BYTES_WANTED:
        return Finding("memory", "warning", says, "give the node few layers: p2pgrid node --span-max 4")
    return Finding("memory", "ok", says)


def own_memory(store: ModelStore) -> Finding:
    """The same for this machine and the models on it."""
    available_bytes = psutil.virtual_memory().available
    holds = [_layers_held(one, int(available_bytes * MEMORY_SHARE)) for one in store.models()]
    known = ", ".join(filter(None, holds))
    return memory(available_bytes, f": a node takes half by itself, which holds {known}" if known else "")


def _layers_held(one: StoredModel, nbytes: int) -> str:
    if one.manifest is None:
        return ""
    context_max = min(StageSettings().context_max, one.manifest.context)
    layers = min(layers_that_fit(one.manifest, nbytes, context_max), one.manifest.layers)
    return f"{layers} of {one.manifest.layers} layers of {one.name}"


def disk(home: Path) -> Finding:
    """Whether there is room below `home`, and whether we may write there."""
    there = next(path for path in (home, *home.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        own = "set P2PGRID_HOME to a directory of your own"
        return Finding("disk", "problem", f"{home} cannot be written", own)
    free = shutil.disk_usage(there).free
    says = f"{_gb(free)} free for {home}"
    elsewhere = "free some space, or set P2PGRID_HOME to another disk"
    if free < DISK_BYTES_MIN:
        return Finding("disk", "problem", says, elsewhere)
    if free < DISK_BYTES_WANTED:
        return Finding("disk", "warning", says, elsewhere)
    return Finding("disk", "ok", says)


def open_files() -> Finding:
    """Whether the system lets us have as many connections as a node may come to have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and most < FILES_WANTED:
        says = f"this process may open {most} files, and each connection is one"
        remedy = f"ulimit -n {4 * FILES_WANTED}, or LimitNOFILE= of a service"
        return Finding("open files", "warning", says, remedy)
    return Finding("open files", "ok", "unlimited" if most == resource.RLIM_INFINITY else f"{most} at most")


def models(store: ModelStore, advance: Advance) -> Iterator[Finding]:
    """Every model in the store, its weights read and hashed."""
    try:
        here = store.models()
    except LocalFault as error:
        yield Finding("models", "problem", str(error), "see above")
        return
    if not here:
        get_one = "a client needs none; for a node: p2pgrid models pull smollm2-135m-instruct"
        yield Finding("models", "ok", f"none on this machine; {get_one}")
    for one in here:
        yield _model(store, one, advance)


def _model(store: ModelStore, one: StoredModel, advance: Advance) -> Finding:
    about = f"model {one.name}"
    again = f"p2pgrid models remove {one.name}, then get it again with p2pgrid models pull or import"
    if one.model is None or one.manifest is None:
        return Finding(about, "problem", one.problem, again)
    try:
        store.tokenizer(one.model)
        path = store.checkpoint(one.model)
        found = _sha256(path, one.manifest.weights_bytes, advance)
    except (LocalFault, OSError) as error:
        return Finding(about, "problem", str(error), again)
    if found != one.manifest.weights:
        return Finding(about, "problem", f"{path} is damaged: it has another SHA-256 than when it came", again)
    size = _gb(one.manifest.weights_bytes)
    return Finding(about, "ok", f"{one.manifest.layers} layers, {size}, SHA-256 as it should be")


def _sha256(path: Path, total: int, advance: Advance) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
            done += len(piece)
            advance(done, total)
    return digest.hexdigest()


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:.0f} MB"
