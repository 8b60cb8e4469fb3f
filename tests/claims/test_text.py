"""What the claims on real text say about costs."""

from __future__ import annotations

from turnout.claims.text import _costs


def _record(routed: float) -> dict[str, object]:
    def row(what: str, arm: str, ms: float) -> dict[str, object]:
        return {"what": what, "arm": arm, "ms": ms, "length": 500, "batch": 2}

    return {"savings": {"rows": [row("prefill", "routed", routed), row("prefill", "dense", 4.0),
                                 row("prefill", "static_hybrid", 1.0)]}}  # fmt: skip


def test_costs_are_per_token_and_relative_to_dense_attention_in_the_same_run() -> None:
    words = _costs([_record(2.0), _record(2.0), {}])
    assert words == "prefill 2.000 ± 0.000 us/token, 2.00x dense, 0.50x static hybrid (n=2)"


def test_runs_without_costs_say_nothing_about_them() -> None:
    assert _costs([{}]) == ""
