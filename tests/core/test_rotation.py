from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.batching import PREFILL_POSITIONS_MAX
from p2pgrid.core.rotation import DECODES_MAX, ON_THE_WAY_S, PASSED_OVER_MAX, Rotation


@given(st.floats(0.001, 1), st.lists(st.floats(0.001, 1), min_size=1, max_size=9))
def test_a_prefill_step_is_due_after_a_round_or_after_as_long_as_the_last_one_took(
    prefill_s: float, decodes_s: list[float]
) -> None:
    rotation = Rotation().after("prefill", PREFILL_POSITIONS_MAX, prefill_s, 0.0)
    for at, took_s in enumerate(decodes_s):
        ran_s = sum(decodes_s[:at])
        if abs(ran_s - prefill_s) > 1e-6:  # where they are equal rounding decides
            assert rotation.prefill_is_due is (at >= DECODES_MAX or ran_s > prefill_s)
        rotation = rotation.after("decode", 1, took_s, 0.0)


def test_decode_steps_are_expected_soon_after_others_ran_and_not_because_of_what_was_before_a_reboot() -> None:
    rotation = Rotation().after("prefill", PREFILL_POSITIONS_MAX, 1.0, 50.0).after("decode", 1, 0.1, 51.0)
    assert rotation.holds_prefill_back(False, 51.0)
    assert not rotation.holds_prefill_back(False, 51.0 + ON_THE_WAY_S)
    assert not rotation.holds_prefill_back(False, 3.0)
    assert rotation.holds_prefill_back(True, 3.0)
    assert not rotation.after("decode", 1, 1.0, 51.0).holds_prefill_back(True, 51.0), "it is due"


@given(st.lists(st.integers(1, 2 * PREFILL_POSITIONS_MAX), min_size=1, max_size=9), st.booleans())
def test_short_prefill_steps_follow_each_other_until_they_are_as_long_as_may_be(
    positions: list[int], after_others: bool
) -> None:
    rotation = Rotation().after("prefill", PREFILL_POSITIONS_MAX, 1.0, 0.0).after("decode", 1, 0.1, 0.0)
    if not after_others:
        rotation = Rotation()
    for at, step in enumerate(positions):
        rotation = rotation.after("prefill", step, 1.0, 0.0)
        assert rotation.prefill_is_due is (sum(positions[: at + 1]) < PREFILL_POSITIONS_MAX)
    decoded = rotation.after("decode", 1, len(positions) - 0.5, 0.0)
    assert not decoded.prefill_is_due, "the answers have had less time than the prompts"
    assert decoded.after("decode", 1, 1.0, 0.0).prefill_is_due


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.floats(0, 2 * ON_THE_WAY_S))
def test_decode_steps_let_those_of_the_last_turn_go_first_if_they_come_soon_and_not_for_ever(
    passed: int, onward: int, stage: int, later_s: float
) -> None:
    rotation = Rotation().after("decode", 1, 0.1, 9.0, onward)
    since = rotation.turns
    for _ in range(passed):
        rotation = rotation.after("decode", 1, 0.1, 9.0, onward)
    comes = onward not in (0, stage) and 9.0 + later_s < 9.0 + ON_THE_WAY_S
    assert rotation.holds_decodes_back(stage, since, 9.0 + later_s) is (comes and passed < PASSED_OVER_MAX)
    after_prefill = rotation.after("prefill", 1, 0.1, 9.0)
    assert not after_prefill.holds_decodes_back(stage, since, 9.0), "nothing is on its way"
