"""Distant evidence retrieval: one query token, one matching (key, value) pair far away, decoys near the query.

    … d w … k_q … d w …                    ≥ min_distance tokens                    … k v …

The published generator is under-specified, so every reading of it is an option here. The two that matter most:
`label` says which position the content router must find, the key token or the value behind it, and `filler` says
whether the key may occur by accident elsewhere.

Axes: n sequences, Q queries of a sequence, F slots far from the queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from turnout.errors import ConfigError
from turnout.tasks.batch import Batch
from turnout.tasks.slices import floor_power_of_two
from turnout.tasks.synthetic import SyntheticTask

if TYPE_CHECKING:
    import torch

_OFFSETS = 18
_DECOYS = {"token": 0, "related": 0, "two_token": 2, "gap": 2, "two_hop": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedBatch(Batch):
    """A batch that also says where the evidence of each query is.

    Attributes:
        evidence: position that a content router must pick, int64 [B, Q].
    """

    evidence: torch.Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> RoutedBatch:
        """The same batch on `device`."""
        plain = Batch.to(self, device, non_blocking=non_blocking)
        return RoutedBatch(
            tokens=plain.tokens,
            at=plain.at,
            targets=plain.targets,
            hint=plain.hint,
            slices=plain.slices,
            evidence=self.evidence.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """One field per ambiguity of the published text (arXiv 2603.20997, section 4).

    Attributes:
        length: T. The zone of the queries, 20..99 at T = 512, scales with it.
        vocab: ids 0..vocab-1; content is 1..vocab-1, id 0 is the query marker.
        label: the evidence is the matching "key" token or the "value" behind it.
        filler: "exclude_key" redraws filler that equals a key; "may_repeat" keeps it (2 more copies at 512).
        distractor_key: distractors have "other" keys, or the "same" key as the query with a wrong value.
        distractors: pairs at even offsets ±2..±18 of a query.
        direction: the evidence is "after" or "before" the query, or "either".
        min_distance, max_distance: of |evidence key - query|; max_distance 0 = no limit.
        query_marker: "none", id 0 "before" the query, or the query is the "last" token.
        queries: with distinct keys and evidence each; more than one needs direction after or before.
        n_values: values are 1..n_values; 0 = all content ids.
        match: the ladder of what a match is: "token"; "two_token" and "gap" (two halves, adjacent or 3..8 apart, decoys
            share one half); "two_hop" (key -> middle here, middle -> value there; several queries too). Beside it
            "related": the evidence key is another id, a fixed function of the query's.
    """

    kind: ClassVar[str] = "retrieval"
    length: int = 512
    vocab: int = 256
    label: Literal["key", "value"] = "key"
    filler: Literal["exclude_key", "may_repeat"] = "exclude_key"
    distractor_key: Literal["other", "same"] = "other"
    distractors: int = 4
    direction: Literal["after", "before", "either"] = "after"
    min_distance: int = 200
    max_distance: int = 0
    query_marker: Literal["none", "before", "last"] = "none"
    queries: int = 1
    n_values: int = 0
    match: Literal["token", "related", "two_token", "gap", "two_hop"] = "token"

    def __post_init__(self) -> None:
        for name, least in (("distractors", 0), ("min_distance", 1), ("max_distance", 0), ("queries", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"retrieval {name}={getattr(self, name)}; expected at least {least}")
        if self.distractors > _OFFSETS:
            raise ConfigError(
                f"retrieval distractors={self.distractors} do not fit at the {_OFFSETS} even offsets ±2..±18 of a "
                f"query; use at most {_OFFSETS}"
            )
        needed = 4 * self.queries + 8
        if self.vocab < needed:
            raise ConfigError(f"retrieval vocab={self.vocab} is too small for {self.queries} pairs; use >= {needed}")
        if not 0 <= self.n_values < self.vocab:
            raise ConfigError(f"retrieval n_values={self.n_values}; expected 0..{self.vocab - 1}")
        if self.n_values and self.match != "token":
            raise ConfigError(f"retrieval match={self.match!r} draws values from all ids; use n_values=0")
        if self.max_distance and self.max_distance < self.min_distance:
            raise ConfigError(f"retrieval max_distance={self.max_distance} < min_distance={self.min_distance}")
        if self.queries > 1 and (self.direction == "either" or self.query_marker == "last" or self.max_distance):
            raise ConfigError("retrieval with several queries needs direction after or before and no max_distance")
        if self.query_marker == "last" and self.direction == "after":
            raise ConfigError("retrieval query_marker='last' has no position after the query; use direction='before'")
        many = self.queries > 1 and self.match != "two_hop"
        if self.match != "token" and (many or self.direction == "either" or self.max_distance):
            raise ConfigError(
                f"retrieval match={self.match!r} needs one query (but two_hop), direction after or before, any distance"
            )
        self._check_room()

    def _check_room(self) -> None:
        first, last = self._zone
        far = self.length - last - self.min_distance
        width = self._slot_width
        needed = width * self.queries * (1 + _DECOYS[self.match]) + 2
        if self.query_marker == "last":
            far, needed = self.length - self.min_distance, 4
        if self.direction == "either":
            far, needed = self.length - self.min_distance, 2
        if far < needed or last - first < 2 * self.queries:
            raise ConfigError(
                f"retrieval length={self.length} cannot hold {self.queries} queries and their evidence at distance "
                f">= {self.min_distance}; use a longer sequence, fewer queries or a smaller min_distance"
            )

    @property
    def _zone(self) -> tuple[int, int]:
        """Query positions first..last; one query: 20..99 of 512, several: twice as wide."""
        scale = self.length / 512
        first = max(12 if self.match == "gap" else 2, round(20 * scale))
        return first, max(first + 2 * self.queries, round(99 * scale))

    @property
    def _slot_width(self) -> int:
        return 12 if self.match == "gap" else 4 if self.match == "two_token" else 2

    @property
    def chance(self) -> float:
        """A guess among the values."""
        return 1 / (self.n_values or self.vocab - 1)

    def build(self, seed: int) -> SyntheticTask:
        """The task whose streams all derive from `seed`."""
        return SyntheticTask(self, seed=seed)

    def with_length(self, length: int) -> RetrievalConfig:
        """The same task at another length; the distance keeps its share of it."""
        return replace(self, length=length, min_distance=max(1, self.min_distance * length // self.length))

    def decode_token(self, token: int) -> str:
        """`?` = query marker, otherwise the id."""
        return "?" if token == 0 else str(token)

    def draw(self, n: int, generator: torch.Generator) -> RoutedBatch:
        """n sequences; slice: distance between query and evidence key, rounded down to a power of two.

        Cost: O(n·(T + vocab·log vocab)); no loop over sequences.
        """
        import torch

        count, decoys = self.queries, self.queries * _DECOYS[self.match]
        ids = 1 + torch.rand(n, self.vocab - 1, generator=generator).argsort(dim=1)
        keys, spare = ids[:, :count], ids[:, count : count + 4 + decoys]
        picks = torch.randint(1, (self.n_values or self.vocab - 1) + 1, (n, count), generator=generator)
        # A value that equals its key would be a second copy of the evidence.
        values = torch.where(picks == keys, picks % (self.n_values or self.vocab - 1) + 1, picks)
        if self.match != "token":
            # Halves and middles have decoys of their own, and the value must not be another one.
            outside = ids[:, count + 4 + decoys :]
            values = outside.gather(1, torch.randint(outside.shape[1], (n, count), generator=generator))
        tokens = torch.randint(1, self.vocab, (n, self.length), generator=generator)
        if self.filler == "exclude_key":
            outside = ids[:, count + 4 + decoys :]
            redrawn = outside.gather(1, torch.randint(outside.shape[1], (n, self.length), generator=generator))
            taken = torch.cat((keys, spare), dim=1) if self.match != "token" else keys
            tokens = torch.where((tokens[:, :, None] == taken[:, None]).any(-1), redrawn, tokens)
        at, far = self._places(n, generator)
        self._write_distractors(tokens, at, keys, ids, generator)
        if self.match in ("token", "related"):
            wanted = keys
            if self.match == "related":
                wanted, tokens, values = self._related(keys, tokens, values, spare)
            tokens.scatter_(1, at, keys)
            tokens.scatter_(1, far, wanted)
            tokens.scatter_(1, far + 1, values)
            key_at = far
        else:
            key_at = self._write_ladder(tokens, at, far, keys, spare, values, generator)
        if self.query_marker != "none":
            before = at - (2 if self.match == "two_token" else 1)
            tokens.scatter_(1, before.clamp(min=0), 0)
        return RoutedBatch(
            tokens=tokens,
            at=at,
            targets=values,
            hint=torch.zeros(n, self.length, dtype=torch.bool).scatter_(1, at, True),
            slices={"distance": floor_power_of_two((key_at - at).abs())},
            evidence=key_at if self.label == "key" else key_at + 1,
        )

    def _places(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Query positions [n, Q], ascending, and far positions [n, Q + decoys] in random order."""
        import torch

        if self.direction == "either" or self.max_distance or self.query_marker == "last":
            return self._places_by_pair(n, generator)
        first, last = self._zone
        wanted, width = self.queries * (1 + _DECOYS[self.match]), self._slot_width
        if wanted == 1:
            at = torch.randint(first, last + 1, (n, 1), generator=generator)
            room = self.length - 1 - self.min_distance - at
            far = at + self.min_distance + (torch.rand(n, 1, generator=generator) * room).long()
        else:
            slots = (last - first) // 2 + 1
            at = first + 2 * torch.rand(n, slots, generator=generator).argsort(1)[:, : self.queries].sort(1).values
            start = last + self.min_distance
            n_slots = (self.length - 2 - start) // width
            far = start + width * torch.rand(n, n_slots, generator=generator).argsort(1)[:, :wanted]
        if self.direction == "before":
            # The same picture mirrored: evidence early, query late; a pair still reads key, value.
            at, far = (self.length - 1 - at).flip(1), self.length - width - far
        return at, far

    def _places_by_pair(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Uniform over all admissible (query, key) pairs of positions."""
        import torch

        at = torch.arange(1, self.length)[:, None]
        far = torch.arange(self.length - 1)[None]
        if self.query_marker == "last":
            at = at[-1:]
        gap = (far - at).abs()
        allowed = (gap >= self.min_distance) & (gap <= (self.max_distance or self.length))
        if self.direction != "either":
            allowed &= (far > at) if self.direction == "after" else (far < at)
        pairs = allowed.nonzero()
        pick = pairs[torch.randint(len(pairs), (n,), generator=generator)]
        return pick[:, :1] + int(at[0, 0]), pick[:, 1:]

    def _write_distractors(
        self, tokens: torch.Tensor, at: torch.Tensor, keys: torch.Tensor, ids: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Pairs around every query; written before queries and evidence, so that they overwrite neither."""
        import torch

        n, count = at.shape
        for _ in range(self.distractors):
            offset = 2 * torch.randint(1, 10, (n, count), generator=generator)
            sign = 2 * torch.randint(0, 2, (n, count), generator=generator) - 1
            place = (at + sign * offset).clamp(0, self.length - 2)
            others = ids[:, self.queries + 4 :]
            drawn = others.gather(1, torch.randint(others.shape[1], (n, 2 * count), generator=generator))
            tokens.scatter_(1, place, keys if self.distractor_key == "same" else drawn[:, :count])
            tokens.scatter_(1, place + 1, drawn[:, count:])

    def _related(
        self, keys: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor, spare: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Evidence keys half the ids away from the queries', and tokens and values that hold no other copy of them."""
        import torch

        ids = self.vocab - 1
        related = (keys - 1 + ids // 2) % ids + 1
        other = torch.where(spare[:, :1] == related, spare[:, 1:2], spare[:, :1])
        if self.filler == "exclude_key":
            tokens = torch.where(tokens == related, other, tokens)
        return related, tokens, torch.where(values == related, other, values)

    def _write_ladder(
        self,
        tokens: torch.Tensor,
        at: torch.Tensor,
        far: torch.Tensor,
        keys: torch.Tensor,
        spare: torch.Tensor,
        values: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The rungs above "token"; returns the position of the (last) key token [n, Q]."""
        import torch

        n, count = at.shape
        second, wrong = spare[:, :count], spare[:, count : count + 1]
        place, decoys = far[:, :count], far[:, count:]
        if self.match == "two_hop":
            tokens.scatter_(1, at, keys)
            tokens.scatter_(1, decoys, keys)
            tokens.scatter_(1, decoys + 1, second)
            tokens.scatter_(1, place, second)
            tokens.scatter_(1, place + 1, values)
            return place

        def gap() -> torch.Tensor:
            low, high = (1, 2) if self.match == "two_token" else (3, 9)
            return torch.randint(low, high, (n, 1), generator=generator)

        # Evidence (k1, k2), decoys (k1, x) and (x, k2): neither half alone identifies the evidence.
        halves = ((place, keys, second), (decoys[:, :1], keys, wrong), (decoys[:, 1:], wrong, second))
        for where, one, two in halves:
            distance = gap()
            tokens.scatter_(1, where, one)
            tokens.scatter_(1, where + distance, two)
            if where is place:
                key_at = where + distance
                tokens.scatter_(1, key_at + 1, values)
        tokens.scatter_(1, (at - gap()).clamp(min=0), keys)
        tokens.scatter_(1, at, second)
        return key_at
