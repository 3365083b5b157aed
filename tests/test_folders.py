"""Folders for work in progress: whose they are, and what becomes of them when their process is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pgrid.folders import has_owner, own_folder, sweep_folders, temporary_folder

DIES = """
import os, signal, sys
from pathlib import Path
from p2pgrid.folders import own_folder
with own_folder(Path(sys.argv[1]), "work-") as folder:
    (folder / "half").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_a_folder_is_its_process_s_alone_and_gone_afterwards(tmp_path: Path) -> None:
    with own_folder(tmp_path, "work-") as folder:
        (folder / "deep").mkdir()
        assert has_owner(folder)
        assert sweep_folders(tmp_path, "work-") == 0
        assert folder.name.startswith("work-") and folder.is_dir()
    assert names(tmp_path) == []
    assert not has_owner(folder)


def test_what_a_killed_process_left_goes_when_the_next_one_comes_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "work-file").touch()
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    [left] = [path for path in tmp_path.iterdir() if (path / "half").exists()]
    assert not has_owner(left)
    with own_folder(tmp_path, "work-") as folder:
        assert names(tmp_path) == sorted(["other", "work-file", folder.name])


def test_a_link_that_somebody_put_there_leads_a_sweep_nowhere(tmp_path: Path) -> None:
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear" / "letter").touch()
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "work-1").symlink_to(tmp_path / "dear")
    assert sweep_folders(tmp_path / "parent", "work-") == 0
    assert (tmp_path / "dear" / "letter").exists()


def test_another_user_s_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work-1").mkdir()
    uid = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: uid)
    assert sweep_folders(tmp_path, "work-") == 0
    assert names(tmp_path) == ["work-1"]


def test_temporary_folders_lie_where_the_system_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith("p2pgrid-")
