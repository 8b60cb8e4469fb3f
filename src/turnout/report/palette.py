"""One fixed colour and one marker per mechanism, in every figure of every report.

Learned routers are blues and greens with round markers; controls are the warm and grey colours with other shapes, so
that the shape alone tells them apart. The hues come from Okabe and Ito's and Tol's colour-blind-safe sets, each with a
lighter twin for dark pages. A name that is not listed gets a colour computed from its letters, the same everywhere.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Ink:
    """How one mechanism is drawn: colour on a light page, colour on a dark page, marker shape."""

    light: str
    dark: str
    marker: str


MARKERS = ("circle", "square", "diamond", "triangle", "down", "cross", "plus")

PALETTE: dict[str, Ink] = {
    "linear": Ink(light="#0072b2", dark="#4db3e6", marker="circle"),
    "mlp": Ink(light="#332288", dark="#a99cf0", marker="circle"),
    "ema": Ink(light="#117733", dark="#4cc38a", marker="circle"),
    "threshold": Ink(light="#008b8b", dark="#44d0d0", marker="circle"),
    "expert_choice": Ink(light="#4477aa", dark="#88aadd", marker="circle"),
    "routed": Ink(light="#0072b2", dark="#4db3e6", marker="circle"),
    "dense": Ink(light="#1a1a1a", dark="#f2f2f2", marker="square"),
    "always": Ink(light="#666666", dark="#b3b3b3", marker="square"),
    # A train step with both tracks computed everywhere.
    "dense_phase": Ink(light="#4d5b6b", dark="#9fb0c3", marker="square"),
    "static_hybrid": Ink(light="#b37400", dark="#f0b030", marker="square"),
    "local": Ink(light="#8c6d46", dark="#c9a67a", marker="down"),
    "never": Ink(light="#6f7300", dark="#bfc44d", marker="down"),
    "random": Ink(light="#d55e00", dark="#ff8c42", marker="cross"),
    "periodic": Ink(light="#c2569a", dark="#f09acb", marker="cross"),
    "frozen": Ink(light="#aa3377", dark="#e77fb9", marker="diamond"),
    "shuffled": Ink(light="#882255", dark="#d98cae", marker="plus"),
    "oracle": Ink(light="#009e73", dark="#3fd9ac", marker="triangle"),
    "joint": Ink(light="#cc3311", dark="#ff7a5c", marker="diamond"),
}

_SAME = {
    "static": "static_hybrid",
    "hybrid": "static_hybrid",
    "attention": "dense",
    "conv": "local",
    "local_only": "local",
}


def base_name(mechanism: str) -> str:
    """The name without options and in one spelling: `random:p=0.01` → `random`, `Static-hybrid` → `static_hybrid`."""
    name = mechanism.partition(":")[0].strip().lower().replace("-", "_").replace(" ", "_")
    return _SAME.get(name, name)


def ink(mechanism: str) -> Ink:
    """Colour and marker of a mechanism, or of any other name (then computed from its letters)."""
    known = PALETTE.get(base_name(mechanism))
    if known:
        return known
    return _computed(mechanism)


def assign(labels: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, Ink]:
    """One distinct ink for each label of a figure.

    Args:
        labels: (label, names), in drawing order; the first name that the palette knows and nobody took yet wins.
    Returns:
        label → ink. A label without a free palette entry gets the colour computed from the label itself.
    """
    chosen: dict[str, Ink] = {}
    for label, names in labels:
        if label in chosen:
            continue
        known = (PALETTE.get(base_name(name)) for name in names)
        free = [candidate for candidate in known if candidate and candidate not in chosen.values()]
        chosen[label] = free[0] if free else _computed(label)
    return chosen


def layer_inks(layers: int) -> list[Ink]:
    """Colours of layers 0 … layers-1: from violet (near the input) to orange (near the output)."""
    inks = []
    for layer in range(layers):
        share = layer / max(1, layers - 1)
        hue = (265 + 125 * share) % 360 / 360
        inks.append(Ink(light=_hls(hue, 0.40, 0.75), dark=_hls(hue, 0.70, 0.80), marker="circle"))
    return inks


def _computed(name: str) -> Ink:
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=4).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    return Ink(light=_hls(hue, 0.34, 0.55), dark=_hls(hue, 0.70, 0.55), marker=MARKERS[digest[2] % len(MARKERS)])


def _hls(hue: float, lightness: float, saturation: float) -> str:
    channels = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
