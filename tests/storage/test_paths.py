from pathlib import Path

import pytest

from p2pgrid.storage.paths import data_dir


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("P2PGRID_HOME", str(tmp_path / "grid"))
    assert data_dir() == tmp_path / "grid"
    assert not data_dir().exists(), "nothing is made before it is needed"


def test_without_it_the_user_s_data_directory_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("P2PGRID_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_dir().name == "p2pgrid"
    assert tmp_path in data_dir().parents


def test_a_relative_home_does_not_depend_on_where_one_is_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P2PGRID_HOME", "grid")
    assert data_dir() == tmp_path / "grid"
