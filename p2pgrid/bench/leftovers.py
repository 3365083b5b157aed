"""What a run leaves behind: files that no living process uses, and KV rows that nodes hold for nobody."""

import stat
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import trio

from p2pgrid.folders import has_owner
from p2pgrid.ids import ModelId, PeerId
from p2pgrid.node.control import answers
from p2pgrid.node.peer import Peer
from p2pgrid.node.survey import ask_around
from p2pgrid.services.worker.session import SUSPENDED_S_MAX
from p2pgrid.settings import DiscoverySettings
from p2pgrid.storage.blobs import DIGEST
from p2pgrid.storage.paths import data_dir

ROWS_S_MAX = SUSPENDED_S_MAX + 2 * DiscoverySettings().advert_renew_s
"""A row that waits for another route of its client has gone after so long, and its node has said so."""
LOOK_S = 1.0


@dataclass(frozen=True)
class Files:
    """All that p2pgrid has on the disk: below its data directory, and `p2pgrid-…` in the temporary one.

    Built graphs are left out: they stay on purpose.
    """

    data: Path = field(default_factory=data_dir)
    temporary: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def paths(self) -> set[Path]:
        graphs = self.data / "graphs"
        everything = {*self.data.rglob("*"), *self.temporary.glob("p2pgrid-*")}
        kept = {path for path in graphs.glob("*") if DIGEST.fullmatch(path.name)}
        return {path for path in everything if not kept & {path, *path.parents}} - {graphs, graphs.parent / "run"}

    def left_since(self, before: Collection[Path]) -> list[Path]:
        """What has come since, and belongs to nobody: of a folder with all that is in it only the folder."""
        new = self.paths() - set(before)
        return sorted(path for path in new if path.parent not in new and not _in_use(path))


def _in_use(path: Path) -> bool:
    """Whether a living process has it, or it has gone by now."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return True
    return has_owner(path) if stat.S_ISDIR(mode) else stat.S_ISSOCK(mode) and answers(path) is not False


@dataclass(frozen=True)
class Held:
    """What nodes hold for sessions, by their own word. Prefixes of finished ones stay on purpose, and do not count."""

    rows: int = 0
    positions: int = 0
    """Token positions that are reserved."""


async def held_rows(
    peer: Peer, model: ModelId, nodes: Collection[PeerId], patience_s: float = ROWS_S_MAX
) -> Held | None:
    """What `nodes` hold: as soon as that is nothing, or when the patience is over. None when not all of them said it.

    Only what they said after this was called counts.
    """
    since_ms = int(1000 * peer.discovery.now_s())

    def held() -> Held | None:
        said = {each.peer: each for each in peer.view.adverts(model, "serving") if each.sequence >= since_ms}
        if not said.keys() >= set(nodes):
            return None
        told = [said[node] for node in nodes]
        return Held(
            sum(each.sessions_open for each in told), sum(each.positions_max - each.positions_free for each in told)
        )

    with trio.move_on_after(patience_s):
        while held() != Held():
            await ask_around(peer, [model])
            await trio.sleep(LOOK_S)
    return held()
