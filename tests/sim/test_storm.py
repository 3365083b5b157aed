"""Storms as plans: what they spare, and the command that replays them."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from p2pgrid.sim.faults import Fault, struck_by
from p2pgrid.sim.storm import plan_storm


def test_a_seed_is_one_plan() -> None:
    assert plan_storm(3) == plan_storm(3)
    assert len({repr(plan_storm(seed)) for seed in range(50)}) == 50


def test_of_every_span_one_node_is_spared_and_all_others_are_struck() -> None:
    for seed in range(50):
        plan = plan_storm(seed)
        struck = {node for fault in plan.faults for node in struck_by(fault)}
        spared = [span for i, span in enumerate(plan.spans) if i not in struck]
        assert sorted(spared) == sorted(set(plan.spans))
        assert [layer for span in sorted(spared) for layer in range(span.start, span.stop)] == list(range(plan.layers))


def test_storms_have_everything_in_them() -> None:
    kinds = {type(fault) for seed in range(20) for fault in plan_storm(seed).faults}
    assert kinds == set(get_args(Fault))


def test_storms_have_eight_to_forty_nodes_and_most_of_them_few() -> None:
    sizes = sorted(plan_storm(seed).nodes for seed in range(100))
    assert sizes[0] == 8
    assert sizes[50] <= 12
    assert 38 <= sizes[-1] <= 40


@pytest.mark.parametrize("options", [["--storm"], []])
def test_the_command_replays_a_seed(options: list[str]) -> None:
    command = [sys.executable, "-m", "p2pgrid", "sim", "--seed", "9", "--json", *options]
    one, two = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert one == two
    document = json.loads(one)
    assert all(document["right"])
    assert (sum(document["recoveries"]) > 0) == bool(options)
