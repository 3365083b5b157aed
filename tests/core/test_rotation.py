from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.rotation import DECODES_MAX, ON_THE_WAY_S, Rotation


@given(st.floats(0.001, 1), st.lists(st.floats(0.001, 1), min_size=1, max_size=9))
def test_a_prefill_step_is_due_after_a_round_or_after_as_long_as_the_last_one_took(
    prefill_s: float, decodes_s: list[float]
) -> None:
    rotation = Rotation().after("prefill", prefill_s, 0.0)
    for at, took_s in enumerate(decodes_s):
        ran_s = sum(decodes_s[:at])
        if abs(ran_s - prefill_s) > 1e-6:  # where they are equal rounding decides
            assert rotation.prefill_is_due is (at >= DECODES_MAX or ran_s > prefill_s)
        rotation = rotation.after("decode", took_s, 0.0)


def test_decode_steps_are_expected_soon_after_others_ran_and_not_because_of_what_was_before_a_reboot() -> None:
    rotation = Rotation().after("prefill", 1.0, 50.0).after("decode", 0.1, 51.0)
    assert rotation.holds_prefill_back(False, 51.0)
    assert not rotation.holds_prefill_back(False, 51.0 + ON_THE_WAY_S)
    assert not rotation.holds_prefill_back(False, 3.0)
    assert rotation.holds_prefill_back(True, 3.0)
    assert not rotation.after("decode", 1.0, 51.0).holds_prefill_back(True, 51.0), "it is due"
