"""What an emulated link is like: a few that are common, and any other from text."""

import re
from typing import Literal

import msgspec

from p2pgrid.errors import BadInput

MBIT = 125_000
"""Bytes."""


class Profile(msgspec.Struct, frozen=True):
    """A node's connection to the network. `up` leads out of the node, `down` into it."""

    name: str
    rtt_s: float
    """There and back, without the time that the bytes take at the link's rate."""
    up_bytes_s: float
    down_bytes_s: float
    jitter_s: float = 0.0
    """A round trip takes up to so much longer or shorter, half of it in each direction; nothing overtakes."""
    loss: float = 0.0
    """The share of segments of 1460 bytes that are lost."""
    on_loss: Literal["freeze", "reset"] = "freeze"
    """What a loss does: hold back that direction as TCP's repair does, or break the connection."""

    @property
    def one_way_s(self) -> float:
        return self.rtt_s / 2


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("lan", rtt_s=0.002, up_bytes_s=1000 * MBIT, down_bytes_s=1000 * MBIT),
        Profile("metro", rtt_s=0.004, up_bytes_s=100 * MBIT, down_bytes_s=100 * MBIT),
        Profile("wan", rtt_s=0.1, up_bytes_s=100 * MBIT, down_bytes_s=100 * MBIT),
        Profile("home", rtt_s=0.03, up_bytes_s=20 * MBIT, down_bytes_s=50 * MBIT),
        # Between Catchpoint's median ping of 55 ms over LTE (calendar.perfplanet.com/2013/network-latency-4g) and
        # WebPageTest's profile "LTE" of 70 ms and 12 Mbit/s each way; more down than up, as plans are sold since.
        # The jitter is our own choice: Catchpoint's standard deviation was larger still.
        Profile("mobile", rtt_s=0.06, up_bytes_s=10 * MBIT, down_bytes_s=30 * MBIT, jitter_s=0.015),
    )
}

_HOW = "name one of {names}, or write it like rtt=80ms,jitter=5ms,up=20Mbit,down=50Mbit,loss=0.1%,on_loss=reset"
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"kbit": MBIT / 1000, "mbit": MBIT, "gbit": 1000 * MBIT}
_SHARES = {"%": 0.01, "": 1.0}
_UNITS = {"rtt": _TIMES, "jitter": _TIMES, "up": _RATES, "down": _RATES, "loss": _SHARES}
_LIMITS = {"rtt": (0, 5), "jitter": (0, 5), "up": (1000, 1e10), "down": (1000, 1e10), "loss": (0, 0.5)}


def parse_profile(text: str) -> Profile:
    """One of `PROFILES` by its name, or a custom one, which needs `rtt`, `up` and `down`. Raises BadInput."""
    if text in PROFILES:
        return PROFILES[text]
    how = _HOW.format(names=", ".join(PROFILES))
    values: dict[str, float] = {}
    on_loss: Literal["freeze", "reset"] = "freeze"
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name == "on_loss" and value in ("freeze", "reset"):
            on_loss = "reset" if value == "reset" else "freeze"
        elif name in values:
            raise BadInput(f"link profile {text!r}: {name} is given twice")
        else:
            values[name] = _quantity(text, name, value, how)
    if missing := {"rtt", "up", "down"} - values.keys():
        raise BadInput(f"link profile {text!r} lacks {', '.join(sorted(missing))}: {how}")
    if values.get("jitter", 0.0) > values["rtt"]:
        raise BadInput(f"link profile {text!r}: the jitter is more than the round trip")
    return Profile(
        "custom",
        values["rtt"],
        values["up"],
        values["down"],
        jitter_s=values.get("jitter", 0.0),
        loss=values.get("loss", 0.0),
        on_loss=on_loss,
    )


def _quantity(text: str, name: str, value: str, how: str) -> float:
    """`value` in seconds, bytes/s or as a share, whichever `name` is measured in."""
    units = _UNITS.get(name, {})
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(|[a-z]+|%)", value.lower())
    if found is None or found[2] not in units:
        raise BadInput(f"link profile {text!r}: {how}")
    quantity = float(found[1]) * units[found[2]]
    least, most = _LIMITS[name]
    if not least <= quantity <= most:
        raise BadInput(f"link profile {text!r}: no link of such {name} is emulated")
    return quantity
