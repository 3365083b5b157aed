"""The command line around scenarios: what it refuses, what it writes, and how it ends."""

from pathlib import Path

import msgspec
import pytest

from p2pgrid.bench.document import Document
from p2pgrid.bench.scenario import Bench, Named, Options
from p2pgrid.bench.scenarios import ALL
from p2pgrid.cli import bench
from p2pgrid.cli.app import run
from p2pgrid.cli.bench import Wish, measure
from p2pgrid.errors import LocalFault
from tests.real_model import NAME, real_store

pytestmark = pytest.mark.model
WISH = Wish(nodes=None, model=NAME, repeat=None, quick=True, profile="")


def scenario(name: str, speed: float, *, fails: bool = False) -> Named:
    async def body(given: Bench) -> None:
        given.compare("swarm", "one_process")

        async def swarm() -> dict[str, tuple[float, str]]:
            return {"decode_tokens_per_s": (speed, "tokens/s")}

        async def one_process() -> dict[str, tuple[float, str]]:
            return {"decode_tokens_per_s": (100.0, "tokens/s")}

        for pair in range(given.options.repeat):
            await given.sample("swarm", pair, swarm)
            await given.sample("one_process", pair, one_process)
        if fails:
            raise LocalFault("node-1 ended with status 1: no room")

    return Named(name, "for a test", body)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["decode", "--nodes", "0"], "--nodes 0"),
        (["decode", "--nodes", "31"], "--nodes 31"),
        (["decode", "--repeat", "2"], "--repeat 2"),
        (["decode", "--model", "nope"], "nope"),
        (["decode", "--json", "/does/not/exist/a.json"], "--json /does/not/exist/a.json"),
        (["all", "--json", "/"], "--json /"),
        (["fly"], "fly"),
        (["compare", "/does/not/exist", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_starts(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    real_store()
    assert run(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_several_scenarios_write_a_list_and_one_that_fails_does_not_stop_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real_store()
    file = tmp_path / "all.json"
    made_up = [scenario("first", 80.0, fails=True), scenario("second", 90.0)]
    assert measure(made_up, WISH, str(file), as_list=True) == 1
    documents = msgspec.json.decode(file.read_bytes(), type=list[Document])
    assert [(d.scenario, d.complete) for d in documents] == [("first", False), ("second", True)]
    assert [d.ratios[0].median for d in documents] == pytest.approx([0.8, 0.9])
    out, err = capsys.readouterr()
    assert "first: 3 nodes" in out
    assert "decode_tokens_per_s  " in out
    assert "NOT COMPLETE" in out
    assert err.splitlines()[-1] == "p2pgrid: first: failed: node-1 ended with status 1: no room"


def test_a_dash_prints_the_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    real_store()
    assert measure([scenario("only", 80.0)], WISH, "-", as_list=False) == 0
    document = msgspec.json.decode(capsys.readouterr().out, type=Document)
    assert (document.scenario, document.nodes, document.environment.model) == ("only", 3, NAME)
    assert len(document.rows[0].samples) == bench.QUICK_REPEAT


def test_a_loss_between_two_runs_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real_store()
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for file, speed in ((old, 80.0), (new, 60.0)):
        assert measure([scenario("decode", speed)], WISH, str(file), as_list=False) == 0
    capsys.readouterr()
    assert run(["bench", "compare", str(old), str(new)]) == 1
    assert "decode_tokens_per_s" in capsys.readouterr().out
    assert run(["bench", "compare", str(old), str(new), "--threshold", "0.3"]) == 0
    assert run(["bench", "compare", str(new), str(old)]) == 0
    assert run(["bench", "report", str(old), str(new), "--out", str(tmp_path / "report")]) == 0


def test_names_are_given_once_and_each_scenario_leaves_room_for_a_default() -> None:
    names = [named.name for named in ALL]
    assert len(set(names)) == len(names)
    assert not {"all", "report", "compare"} & set(names)
    for named in ALL:
        assert WISH.options(named.defaults) == Options(named.defaults.nodes, NAME, bench.QUICK_REPEAT, True, "")
