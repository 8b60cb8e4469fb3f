"""BL1: "seen before" as query router, against what is learned and what knows nothing, at equal usage.

An index answers "is there something to recall?" at a hash a token, so a router need not learn it. Its usage is what it
is; every other router of its row is given as much. Arms are called "<router> as <index>, <task>", an index and what has
no usage to set "<name>, <task>".
"""

from __future__ import annotations

import math
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim, get_claim
from turnout.recipes import seen_before as recipes
from turnout.recipes.seen_before import HARD, INDICES, RECALL, SHORT, SMALL, TEXT
from turnout.stats import mean_interval, mean_over_seeds

Records = list[dict[str, Any]]
TITLES = {
    RECALL: "recall as published (T=128, 46 noise ids)",
    HARD: "hard recall (8 pairs, 8 queries, T=512, 64 noise ids)",
    SHORT: "MQAR with random filler, 8,192 ids, T=64, 4 pairs",
    SMALL: "MQAR with random filler, 2,048 ids, T=64, 4 pairs, CPU",
    TEXT: "real text, six layers",
}
WORDS = {
    "tokens": "tokens",
    "bigrams": "bigrams",
    "rare": "tokens that occurred once or twice",
    "four bytes": "4-grams that occurred once or twice",
}
# Positions of a sequence that ask; nobody knows which bytes of a text do.
ASK = {RECALL: 1, HARD: 8, SHORT: 4, SMALL: 4}
# Of what the index opens this much must ask, for what occurred before to tell who needs attention.
TELLS = 0.5
MARGIN, FEWER, SAME = 0.01, 0.5, 1.1
# What other claims have trained on the same task: name there -> (claim, task); and their layouts.
THEIRS = {
    "our curriculum, published model": ("RA1", RECALL), "learned": ("RA6", HARD), "oracle": ("RA6", HARD),
    "static hybrid LA": ("RA6", HARD), "always": ("RA6", HARD), "learned, ema router": ("TX1", TEXT),
    "random": ("TX1", TEXT), "static hybrid": ("TX1", TEXT), "dense": ("TX1", TEXT), "dense + local": ("TX1", TEXT),
}  # fmt: skip
# At 256 tokens, 16 pairs: name -> (mixer, router).
LONG = {
    "bloom": ("unlearned", "bloom"), "random": ("unlearned", "random:p=0.0625"),
    "learned": ("routed", "linear:bias=0"), "attention": ("attention", "linear:bias=0"),
}  # fmt: skip
QUICK = (*INDICES, "ema as tokens", "ema at a quarter", "random as tokens")
TRAINED = {task: {HARD: ("LA",), TEXT: ("LLALLL", "AAAAAA")}.get(task, ()) for task in TITLES}
# The index of four bytes has the usage of a claim that was there before.
AT_A_SIXTH = ("learned, ema router", "random", "static hybrid")


def _arms() -> list[Arm]:
    found = [arm for task in recipes.PACES for arm in _task_arms(task)]
    found += [_long_arm(name, *options) for name, options in LONG.items()]
    return [*found, *(_their_arm(owner, name) for name, (owner, _) in THEIRS.items())]


def _long_arm(name: str, mixer: str, router: str) -> Arm:
    return Arm(
        name=f"{name}, T=256",
        config=lambda seed: recipes.from_large_embeddings(seed, mixer, router),
        control=name != "bloom",
        when="full",
    )


def _task_arms(task: str) -> list[Arm]:
    def arm(name: str, **options: Any) -> Arm:
        config = lambda seed: recipes.seen_before(seed, task, **options)  # noqa: E731
        return Arm(name=f"{name}, {task}", config=config, control=name not in INDICES, when=_when(name, task))

    arms = [arm(name, router=spec) for name, spec in INDICES.items() if name != "four bytes" or task == TEXT]
    for index, usage in recipes.USAGE[task].items():
        arms += [arm(f"{name} as {index}", router=name, usage=usage) for name in recipes.LEARNED]
        arms += [_blind(f"{name} as {index}", name, task, usage) for name in ("random", "periodic")]
    if task in (SHORT, SMALL):
        arms += [arm(f"{name} at a quarter", router=name, usage=recipes.QUARTER) for name in recipes.LEARNED]
    if task in (RECALL, SHORT, SMALL):
        arms += [arm("oracle", router="oracle"), arm("always", router="always")]
    layouts = dict.fromkeys(recipes.static_hybrid(task, usage) for usage in recipes.USAGE[task].values())
    return arms + [arm(f"static hybrid {layout}", layout=layout) for layout in layouts if layout not in TRAINED[task]]


def _blind(name: str, kind: str, task: str, usage: float) -> Arm:
    return Arm(
        name=f"{name}, {task}",
        config=lambda seed: recipes.seen_before(seed, task, router=recipes.control(kind, usage, seed)),
        control=True,
        when=_when(name, task),
    )


def _when(name: str, task: str) -> str:
    """A quick reproduction shows the small size, and of it what decides; all else takes minutes on a GPU."""
    return "always" if task == SMALL and name in QUICK else "full"


def _their_arm(owner: str, name: str) -> Arm:
    def config(seed: int) -> Any:
        return next(arm for arm in get_claim(owner).arms() if arm.name == name).config(seed)

    return Arm(name=name, config=config, control=True, owner=owner, when="full")


def _of(seen: Summaries, task: str) -> Summaries:
    """The runs of a task by name, without the task."""
    mine = {name.removesuffix(f", {task}"): records for name, records in seen.items() if name.endswith(f", {task}")}
    return mine | {name: seen[name] for name, (_, place) in THEIRS.items() if place == task and name in seen}


def _words(records: Records) -> str:
    usage = [r["usage"] for r in records if r["usage"] is not None]
    at = f" at {100 * sum(usage) / len(usage):.3g} %" if usage else ""
    if records[0]["chance"] is None:
        mean, half = mean_interval([r["loss"] for r in records])
        return f"{mean:.3f} ± {half:.3f} nats/byte{at}"
    return f"{_percent(records)}{at}"


def _percent(records: Records) -> str:
    """Mean accuracy and its interval."""
    seen = mean_over_seeds([r["accuracy"] for r in records], proportion_of=[r["n_eval"] for r in records])
    return f"{100 * seen.mean:.1f} ({100 * seen.low:.1f}-{100 * seen.high:.1f}) %"


def _accuracy(records: Records) -> float:
    return sum(r["accuracy"] for r in records) / len(records)


def _usage(records: Records) -> float:
    return sum(r["usage"] for r in records) / len(records)


def _list(records: Summaries) -> str:
    return "; ".join(f"{name} {_words(rs)}" for name, rs in records.items())


def _judge(seen: Summaries) -> list[Finding]:
    # What has fewer seeds than the rest, and too few, settles nothing and is not shown.
    least = min(3, max(map(len, seen.values()), default=0))
    seen = {name: records for name, records in seen.items() if len(records) >= least}
    findings = []
    for task in recipes.PACES:
        mine = _of(seen, task)
        for index in INDICES:
            same = _same(task, index, mine)
            if index in mine and any(map(_is_learned, same)):
                findings.append(_finding(task, index, mine, same))
    return findings + _long(seen) + _bigrams(seen) + _rare(seen) + _hypothesis(seen)


def _long(seen: Summaries) -> list[Finding]:
    """What an index finds from a start from which attention finds nothing."""
    mine = {name: seen[f"{name}, T=256"] for name in LONG if f"{name}, T=256" in seen}
    if not {"bloom", "attention"} <= mine.keys():
        return []
    records = mine.pop("bloom")
    return [
        Finding(
            statement="MQAR with random filler, 8,192 ids, T=256, 16 pairs, embeddings of N(0, 1), 4,000 steps: an "
            "index of tokens finds what attention everywhere finds",
            quoted="(ours)",
            measured=f"tokens {_words(records)}",
            n=min(len(records), *(len(rs) for rs in mine.values())),
            interval="in brackets, over seeds",
            control=_list(mine),
            verdict="holds" if _accuracy(records) >= _accuracy(mine["attention"]) - MARGIN else "does not hold",
            detail="neither attention nor the learned router, whose gates never had to close, found the task",
        )
    ]


def _same(task: str, index: str, mine: Summaries) -> Summaries:
    """What has the usage of that index."""
    if (task, index) == (TEXT, "four bytes"):
        return {name: mine[name] for name in AT_A_SIXTH if name in mine}
    return {name: records for name, records in mine.items() if name.endswith(f" as {index}")}


def _finding(task: str, index: str, mine: Summaries, same: Summaries) -> Finding:
    """One index beside what is learned at its usage."""
    records, equals = mine[index], {name: rs for name, rs in same.items() if _is_learned(name)}
    if task == TEXT:
        best = min(equals.values(), key=lambda rs: sum(r["loss"] for r in rs) / len(rs))
        gap, width = mean_interval(_paired(records, best))
        verdict = "holds" if gap <= 0 else "does not hold" if gap > width else "holds with changes"
        behind = f"{gap:+.3f} ± {width:.3f} nats/byte against the better of what is learned"
    else:
        gap = _accuracy(records) - max(map(_accuracy, equals.values()))
        verdict = "does not hold" if gap < -MARGIN else "holds"
        behind = f"{100 * gap:+.1f} points against the better of what is learned"
    others = {name: rs for name, rs in mine.items() if name not in same and " as " not in name and name != index}
    return Finding(
        statement=f"{TITLES[task]}: an index of {WORDS[index]} routes as well as what is learned at its usage",
        quoted="(ours; as a selector of segments a Bloom filter is quoted at 90.9 %)",
        measured=f"{index} {_words(records)}",
        n=min(len(rs) for rs in (records, *equals.values())),
        interval=behind,
        control=_list(same),
        verdict=verdict,
        detail=_off(equals, _usage(records)) + f"at usages of their own: {_list(others)}",
    )


def _off(equals: Summaries, usage: float) -> str:
    """Budgets that did not land where they should, in words."""
    off = [
        f"{name} {_usage(rs) / usage:.2f} x"
        for name, rs in equals.items()
        if not 1 / SAME <= _usage(rs) / usage <= SAME
    ]
    return f"not within a tenth of the index's usage: {', '.join(off)}; " if off else ""


def _paired(records: Records, other: Records) -> list[float]:
    """How much higher the loss is on the same seeds."""
    by_seed = {r["seed"]: r["loss"] for r in other}
    return [r["loss"] - by_seed[r["seed"]] for r in records if r["seed"] in by_seed]


def _bigrams(seen: Summaries) -> list[Finding]:
    """What must repeat: the token alone, or it and the one before."""
    statement = "where answers are recalled an index of bigrams routes as well as one of tokens"
    quoted = "(ours; a query repeats its key and not what stood before it)"
    return _beside(seen, "bigrams", tuple(ASK), statement, quoted, math.inf)


def _rare(seen: Summaries) -> list[Finding]:
    """What repeats often is seldom what is asked for: it may stay shut."""
    statement = (
        "where noise repeats, attending to what occurred once or twice finds what an index of tokens finds, at four "
        "fifths of its usage or less"
    )
    return _beside(seen, "rare", (RECALL, HARD), statement, "(ours)", 0.8)


def _beside(
    seen: Summaries, name: str, tasks: tuple[str, ...], statement: str, quoted: str, share: float
) -> list[Finding]:
    """An index as accurate as the one of tokens, at no more than a share of its usage, on how many of the tasks?"""
    both = {task: (_of(seen, task).get(name), _of(seen, task).get("tokens")) for task in tasks}
    found = {task: (mine, tokens) for task, (mine, tokens) in both.items() if mine and tokens}
    if not found:
        return []
    good = [
        _accuracy(mine) >= _accuracy(tokens) - MARGIN and _usage(mine) <= share * _usage(tokens)
        for mine, tokens in found.values()
    ]
    return [
        Finding(
            statement=statement,
            quoted=quoted,
            measured=_list({task: mine for task, (mine, _) in found.items()}),
            n=min(len(rs) for pair in found.values() for rs in pair),
            interval="in brackets, over seeds",
            control="tokens: " + _list({task: tokens for task, (_, tokens) in found.items()}),
            verdict="holds" if all(good) else "holds with changes" if any(good) else "does not hold",
        )
    ]


def _hypothesis(seen: Summaries) -> list[Finding]:
    """Learned routers only beat the index of tokens where most of what it opens asks for nothing."""
    words, agree, fewest, indices = [], [], [], {}
    for task, asking in ASK.items():
        mine = _of(seen, task)
        learned = {name: rs for name, rs in mine.items() if _is_learned(name)}
        if "tokens" not in mine or len(learned) < len(recipes.LEARNED):
            continue
        records = mine["tokens"]
        opened = sum(r["gates_per_seq"] / len(r["usage_layers"]) for r in records) / len(records)
        won = sorted((name for name, rs in learned.items() if _beats(rs, records)), key=lambda n: _usage(learned[n]))
        agree.append((asking / opened < TELLS) == bool(won))
        fewest += [len(records), *(len(rs) for rs in learned.values())]
        indices[task] = records
        words.append(
            f"{task}: {100 * asking / opened:.0f} % of what the index opens asks, "
            + (f"beaten by {_list({won[0]: learned[won[0]]})}" if won else "not beaten")
        )
    if not words:
        return []
    return [
        Finding(
            statement="learned routers beat an index of tokens only where what occurred before does not tell who asks",
            quoted="(our hypothesis; beaten: more than a point better at its usage, or as good at half of it)",
            measured="; ".join(words),
            n=min(fewest),
            interval="in brackets, over seeds",
            control="tokens: " + _list(indices),
            verdict="holds" if all(agree) else "holds with changes" if any(agree) else "does not hold",
            detail=_text_detail(_of(seen, TEXT)),
        )
    ]


def _is_learned(name: str) -> bool:
    return name.startswith(("learned", "our curriculum")) or name.split(" ")[0] in recipes.LEARNED


def _beats(learned: Records, index: Records) -> bool:
    better = _accuracy(learned) - _accuracy(index)
    usage = _usage(learned) / _usage(index)
    return (better > MARGIN and usage <= SAME) or (better >= -MARGIN and usage <= FEWER)


def _text_detail(mine: Summaries) -> str:
    """On text nobody knows who asks: what each index gains over gates thrown at random at its usage."""
    gains = []
    for index in INDICES:
        blind = [name for name in _same(TEXT, index, mine) if name.startswith("random")]
        if index in mine and blind:
            gain, width = mean_interval(_paired(mine[blind[0]], mine[index]))
            gains.append(f"{index} {gain:+.3f} ± {width:.3f}")
    return f"text, nats/byte ahead of random gates at equal usage: {'; '.join(gains)}" if gains else ""


claim(
    Claim(
        id="BL1", source="this library", title="a Bloom filter as query router", arms=_arms, judge=_judge, seeds=3,
    )
)  # fmt: skip
