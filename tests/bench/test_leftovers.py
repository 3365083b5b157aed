"""What a run leaves behind: files of nobody, and rows that nodes hold for nobody."""

import random
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from p2pgrid.bench.leftovers import Files, Held, held_rows
from p2pgrid.folders import own_folder
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import open_session
from p2pgrid.services.pipeline import Terms
from tests.net.peers import identity
from tests.swarm_kit import LAYERS, MODEL, WHOLE, answer_of, generation, joined, living


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for name in ("data/run", "data/graphs", "tmp"):
        (tmp_path / name).mkdir(parents=True)
    return Files(tmp_path / "data", tmp_path / "tmp")


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as taken:
        taken.bind(str(path))
        taken.listen(1)
        yield


def test_a_socket_and_a_folder_are_left_once_their_process_is_gone(files: Files) -> None:
    before = files.paths()
    with listening(files.data / "run" / "a.sock"), own_folder(files.temporary, "p2pgrid-work-") as folder:
        (folder / "log").touch()
        assert files.left_since(before) == []
    assert files.left_since(before) == [files.data / "run" / "a.sock"]
    (folder / "deep").mkdir(parents=True)
    assert files.left_since(before) == [files.data / "run" / "a.sock", folder]


def test_what_was_there_before_and_what_is_not_ours_is_not_counted(files: Files) -> None:
    (files.data / "run" / "old.sock").touch()
    before = files.paths()
    (files.temporary / "letter").touch()
    assert files.left_since(before) == []
    (files.data / "run" / "old.sock").unlink()
    assert files.left_since(before) == []


def test_built_graphs_stay_on_purpose_and_half_built_ones_do_not(files: Files) -> None:
    before = files.paths()
    for name in ("a" * 64, ".work-x"):
        (files.data / "graphs" / name).mkdir()
        (files.data / "graphs" / name / "stage.onnx").touch()
    assert files.left_since(before) == [files.data / "graphs" / ".work-x"]


def test_a_directory_of_data_that_is_not_there_yet_is_no_leftover_when_it_comes(tmp_path: Path) -> None:
    files = Files(tmp_path / "data", tmp_path)
    before = files.paths()
    (tmp_path / "data" / "run").mkdir(parents=True)
    (tmp_path / "data" / "graphs").mkdir()
    assert files.left_since(before) == []


async def test_rows_are_held_while_a_client_is_there_and_prefixes_are_none(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    nodes = [identity(1).peer]
    async with living(network, 1, WHOLE) as life, joined(network, 900) as watcher, joined(network, 901) as client:
        await life.reached("serving")
        await client.discovery.refresh(MODEL)
        async with open_session(client, MODEL, LAYERS, Terms(positions=64)) as session:
            await answer_of(session, generation(list(range(40)), 16))
            assert await held_rows(watcher, MODEL, nodes, 20.0) == Held(1, 64)
        assert life.peer.worker is not None
        await trio.sleep(0.1)
        assert await held_rows(watcher, MODEL, nodes) == Held()


async def test_whoever_does_not_say_what_it_holds_is_not_taken_for_empty(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with living(network, 1, WHOLE) as life, joined(network, 900) as watcher:
        await life.reached("serving")
        nodes = [identity(1).peer, identity(2).peer]
        assert await held_rows(watcher, MODEL, nodes, 20.0) is None
