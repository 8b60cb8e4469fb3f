"""RP13 and RP20: what the study says about why routing works, read off the runs of the other claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.claims.routing_paradox import GROUP, SOURCE, best_lr
from turnout.stats import Estimate, mean_over_seeds

# Arms whose runs are read: claim that owns them, name without the scale.
READ = (
    ("RP1", "raw, key"),
    ("RP1", "raw, key, N(0,1) embeddings"),
    ("RP1", "raw, key, 1 head"),
    ("RP1", "raw, key, 16 heads"),
    ("RP1", "raw, key, no norm"),
    ("RP7", "shift, value"),
    ("RP6", "attention, key"),
    ("RP6", "attention, value"),
    ("RP6", "attention causal, key"),
    ("RP7", "attention reading only its predecessor, value"),
)


def _shared_arms() -> list[Arm]:
    from turnout.claims.routing_paradox import arms_for

    found = []
    for owner, name in READ:
        found += [replace(arm, owner=owner) for arm in arms_for(owner) if arm.name.rpartition(", ")[0] == name]
    return found


def _largest_scale(seen: Summaries) -> dict[str, list[dict[str, Any]]]:
    """Arm -> records, of the largest scale at which any arm was measured."""
    from turnout.recipes.routing_paradox import SCALES

    for scale in reversed(SCALES):
        found = {name.rpartition(", ")[0]: r for name, r in seen.items() if name.endswith(f", {scale}")}
        if found:
            return found
    return {}


def _values(records: list[dict[str, Any]], key: str) -> Estimate:
    rate = best_lr(records)
    runs = [next(run for run in record["runs"] if run["lr"] == rate) for record in records]
    return mean_over_seeds([float(run[key]) for run in runs if key in run])


def _words(arms: dict[str, list[dict[str, Any]]], key: str, percent: bool = False) -> str:
    scale = 100 if percent else 1
    parts = []
    for name, records in arms.items():
        found = _values(records, key)
        if found.n:
            spread = f" ± {scale * (found.high - found.mean):.2g}" if found.high == found.high else ""
            parts.append(f"{name} {scale * found.mean:.3g}{spread}")
    return "; ".join(parts)


def _judge_mechanics(seen: Summaries) -> list[Finding]:
    arms = _largest_scale(seen)
    if not arms:
        return []
    n = min(len(records) for records in arms.values())
    width = next(iter(arms.values()))[0]["config"]["model"]["width"]
    nulls = seen.get("untrained null", [])
    null_words = _null_words(nulls) if nulls else ""
    untrained = _words(arms, "k90_untrained")
    return [
        Finding(
            statement=f"the trained score form has 90 % of its energy in few dimensions (of {width})",
            quoted="34 of 128 (untrained null not given)",
            measured=f"k90 {_words(arms, 'k90')}",
            n=n, interval="± 95 % over seeds",
            control=f"untrained, same width: {untrained}" + (f"; untrained 128: {null_words}" if nulls else ""),
            verdict=_lower_verdict(arms),
            detail=f"of the router's input: {_words(arms, 'k90_input')}",
        ),
        Finding(
            statement="matching tokens are less similar than random ones on the router's input",
            quoted="cosine gap -0.154",
            measured=_words(arms, "cosine_gap"),
            n=n, interval="± 95 % over seeds", control="raw with label key: the same token, so the gap is positive",
            verdict=_sign_verdict(arms),
            detail="cos(query, evidence) - cos(query, random token), before the selector's weights",
        ),
        Finding(
            statement="random W_q, W_k destroy routing",
            quoted="98.4 -> 2.6 %",
            measured=f"P@k %: independent random weights {_words(arms, 'pk_random_weights', True)}",
            n=n, interval="± 95 % over seeds",
            control=f"random W_q = W_k: {_words(arms, 'pk_random_twin', True)}; "
            f"trained, random quarter of the directions: {_words(arms, 'pk_random_quarter', True)}",
            verdict=_random_verdict(arms),
            detail=f"trained, top quarter of the directions: {_words(arms, 'pk_top_quarter', True)}; any trained "
            "bilinear form fails with independent random weights, so this does not say where the information is",
        ),
    ]  # fmt: skip


def _null_words(nulls: list[dict[str, Any]]) -> str:
    ranks = {(how, h): [float(k) for r in nulls for k in r["k90"][how][h]] for how in nulls[0]["k90"] for h in "1248"}
    return "; ".join(f"{how} averaged over {h} heads {sum(k) / len(k):.1f}" for (how, h), k in ranks.items())


def _sign_verdict(arms: dict[str, list[dict[str, Any]]]) -> str:
    """A negative gap: its interval lies below zero, at every arm or at some."""
    below = [_values(r, "cosine_gap").high < 0 for r in arms.values()]
    return "holds" if all(below) else "holds with changes" if any(below) else "does not hold"


def _random_verdict(arms: dict[str, list[dict[str, Any]]]) -> str:
    """Destroyed: below a fifth of what the trained weights reach."""
    gone = [_values(r, "pk_random_weights").mean < 0.2 * _values(r, "pk").mean for r in arms.values()]
    return "holds" if all(gone) else "holds with changes" if any(gone) else "does not hold"


def _lower_verdict(arms: dict[str, list[dict[str, Any]]]) -> str:
    """Concentrated means: k90 at most two thirds of the untrained form's, 34 of 48 being 71 %."""
    low = [_values(r, "k90").mean <= 0.75 * _values(r, "k90_untrained").mean for r in arms.values()]
    return "holds" if all(low) else "holds with changes" if any(low) else "does not hold"


def jump_at(records: list[dict[str, Any]], lr: float) -> Any:
    """The transitions of all seeds at one learning rate."""
    from turnout.probe.transition import over_seeds

    return over_seeds([next(run for run in record["runs"] if run["lr"] == lr)["curve"] for record in records])


def _judge_transition(seen: Summaries) -> list[Finding]:
    arms = _largest_scale(seen)
    parts, without, spans = [], [], []
    for name, records in arms.items():
        for lr in (run["lr"] for run in records[0]["runs"]):
            jump = jump_at(records, lr)
            if jump.jumping < len(records):
                continue
            start, width = jump.start, jump.width
            parts.append(f"{name} at lr {lr:g}: plateau {start.mean:.0f}, rise {width.mean:.0f} steps")
            spans.append(
                f"{name} at {lr:g}: plateau {start.low:.0f}-{start.high:.0f}, rise {width.low:.0f}-{width.high:.0f}"
            )
            if "attention" not in name:
                without.append(name)
    if not arms:
        return []
    return [
        Finding(
            statement="only attention shows a phase transition (plateau at chance, then a jump)",
            quoted="2.8 -> 99.4 % in one epoch (epoch 10); no other condition",
            measured="; ".join(parts) or "no transition in any arm",
            n=min(len(records) for records in arms.values()),
            interval="; ".join(spans),
            control="arms without attention that jump at every seed: " + (", ".join(sorted(set(without))) or "none"),
            verdict="does not hold" if without else "holds" if parts else "not measured",
            detail="10 to 90 % of the rise of P@k on held-out sequences, interpolated between evaluations",
        )
    ]


def _null_arm() -> Arm:
    from turnout.recipes import routing_paradox_extra as extra

    return Arm(
        name="untrained null",
        config=lambda seed: extra.NullRunConfig(seed=seed),
        together=extra.run_nulls,
        control=True,
    )


claim(
    Claim(
        id="RP13", source=SOURCE, title="34 of 128 dimensions; cosine gap; random projections", group=GROUP, seeds=3,
        arms=lambda: [_null_arm(), *_shared_arms()], judge=_judge_mechanics,
    )
)  # fmt: skip
claim(
    Claim(
        id="RP20", source=SOURCE, title="a phase transition only with attention", group=GROUP, seeds=3,
        arms=_shared_arms, judge=_judge_transition,
    )
)  # fmt: skip
