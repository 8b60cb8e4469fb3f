"""Colours: fixed, visible on both pages, told apart without hue or by shape."""

from __future__ import annotations

import itertools

import pytest

from turnout.report.groups import LEARNED
from turnout.report.palette import PALETTE, assign, base_name, ink, layer_inks

LIGHT_PANEL, DARK_PANEL = "#ffffff", "#1b1f24"
# Drawn together in one scatter more often than any others.
TOGETHER = ("linear", "random", "frozen", "static_hybrid", "oracle", "dense", "local")


def _linear(colour: str) -> tuple[float, float, float]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return red, green, blue


def _contrast(a: str, b: str) -> float:
    weights = (0.2126, 0.7152, 0.0722)
    first, second = (sum(w * c for w, c in zip(weights, _linear(x), strict=True)) + 0.05 for x in (a, b))
    return max(first, second) / min(first, second)


def _as_deuteranope(colour: str) -> tuple[float, float, float]:
    """Machado et al. (2009), severity 1."""
    matrix = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
    rgb = _linear(colour)
    red, green, blue = (sum(m * c for m, c in zip(row, rgb, strict=True)) for row in matrix)
    return red, green, blue


@pytest.mark.parametrize("name", sorted(PALETTE))
def test_every_colour_is_visible_on_its_page(name: str) -> None:
    assert _contrast(PALETTE[name].light, LIGHT_PANEL) >= 3
    assert _contrast(PALETTE[name].dark, DARK_PANEL) >= 3


def test_layer_colours_are_visible_and_distinct_for_any_depth() -> None:
    for layers in (1, 2, 4, 12, 48):
        inks = layer_inks(layers)
        assert len({entry.light for entry in inks}) == layers
        for entry in inks:
            assert _contrast(entry.light, LIGHT_PANEL) >= 3 and _contrast(entry.dark, DARK_PANEL) >= 3


def test_mechanisms_drawn_together_differ_by_shape_or_for_a_deuteranope() -> None:
    for a, b in itertools.combinations(TOGETHER, 2):
        first, second = PALETTE[a], PALETTE[b]
        seen = zip(_as_deuteranope(first.light), _as_deuteranope(second.light), strict=True)
        apart = sum((x - y) ** 2 for x, y in seen) ** 0.5
        assert first.marker != second.marker or apart > 0.1, (a, b)


def test_round_marks_are_the_learned_routers_and_only_they() -> None:
    assert {name for name, entry in PALETTE.items() if entry.marker == "circle"} == set(LEARNED)


def test_options_and_spelling_do_not_change_a_colour() -> None:
    assert ink("random:p=0.01,seed=3") == ink("random") == PALETTE["random"]
    assert base_name("Static-hybrid") == base_name("static hybrid") == "static_hybrid"


def test_an_unknown_name_has_one_colour_for_ever() -> None:
    assert ink("my_router") == ink("my_router:size=3") or ink("my_router").light.startswith("#")
    assert (ink("my_router").light, ink("my_router").marker) == (ink("my_router").light, ink("my_router").marker)
    assert ink("my_router") != ink("your_router")
    assert _contrast(ink("my_router").light, LIGHT_PANEL) >= 3


def test_two_labels_of_one_router_get_two_colours_and_one_label_gets_one() -> None:
    inks = assign([("linear, cost=1", ("linear",)), ("linear, cost=2", ("linear",)), ("linear, cost=1", ("linear",))])
    assert inks["linear, cost=1"] == PALETTE["linear"] != inks["linear, cost=2"]
