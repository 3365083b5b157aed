import multiprocessing
from pathlib import Path

import pytest

from p2pgrid.errors import LocalFault
from p2pgrid.storage.identity import ephemeral_identity, load_identity


def peer_in(directory: Path) -> str:
    return load_identity(directory).peer


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    first = load_identity(home)
    assert load_identity(home).peer == first.peer
    assert (home / "identity").stat().st_mode & 0o777 == 0o600
    assert (home / "identity").read_bytes() == first.seed
    assert [path.name for path in home.iterdir()] == ["identity"]


def test_processes_that_start_together_are_one_peer(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(peer_in, [tmp_path] * 6))) == 1


def test_a_write_that_died_half_way_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".identity.new").write_bytes(b"half")
    assert load_identity(tmp_path).peer == load_identity(tmp_path).peer
    assert not (tmp_path / ".identity.new").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_may_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    load_identity(tmp_path)
    (tmp_path / "identity").chmod(mode)
    with pytest.raises(LocalFault, match=rf"mode {mode:04o}.*chmod 600 {tmp_path}"):
        load_identity(tmp_path)


@pytest.mark.parametrize("seed", [b"", b"x" * 31, b"x" * 33])
def test_a_file_that_is_no_key_is_refused_and_left_alone(tmp_path: Path, seed: bytes) -> None:
    path = tmp_path / "identity"
    path.write_bytes(seed)
    path.chmod(0o600)
    with pytest.raises(LocalFault, match="not a key of 32 bytes"):
        load_identity(tmp_path)
    assert path.read_bytes() == seed


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LocalFault, match=r"cannot lock .*(P2PGRID_HOME|check that disk)"):
        load_identity(tmp_path / "file" / "home")


def test_ephemeral_identities_differ() -> None:
    assert ephemeral_identity().peer != ephemeral_identity().peer
