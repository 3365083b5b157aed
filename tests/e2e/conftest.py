"""Swarms that tests share: a start of three nodes costs as much as most of what is done with them."""

from collections.abc import Iterator

import pytest

from tests.e2e.battered import Battered
from tests.e2e.processes import RunningSwarm, running_swarm
from tests.real_model import real_store


@pytest.fixture(scope="package")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSwarm]:
    """Three nodes, each with a third of the model, for tests that leave them as they found them."""
    real_store()
    with running_swarm(3, tmp_path_factory.mktemp("swarm")) as running:
        yield running


@pytest.fixture(scope="package")
def battered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battered]:
    """Three nodes of which tests kill some."""
    real_store()
    directory = tmp_path_factory.mktemp("battered")
    with running_swarm(3, directory) as running:
        battered = Battered(running, directory)
        try:
            yield battered
        finally:
            battered.end()
