"""Many runs as one: models of equal shape with different seeds and learning rates are stacked and train together.

The parameters of R runs are one matrix [R, P]; `torch.func.vmap` of `functional_call` maps a forward pass over its
rows, and one AdamW with a learning rate per row steps them all. Runs never mix: gradients, clipping and moments are per
row.

R runs = S seeds × learning rates, B batch, T tokens, Q queries, U units, P parameters.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from turnout.errors import ConfigError
from turnout.models.testbed import TestBed
from turnout.ops.precision import found_at, routing_metrics
from turnout.ops.spectrum import energy_rank, projected
from turnout.routers.content import rows_at
from turnout.routers.content.pairwise import PairwiseSelector
from turnout.tasks.retrieval import RoutedBatch
from turnout.train.stacked_config import BedRunConfig

EVAL_BATCH = 50
CURVE_SEQUENCES = 200


@dataclass(slots=True)
class SeedData:
    """Sequences of all seeds, on the device: tokens [S, n, T]; at, evidence, targets [S, n, Q]."""

    tokens: Tensor
    at: Tensor
    evidence: Tensor
    targets: Tensor

    def batch(self, index: Tensor, copies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows `index` [S, B] of every seed, repeated for each of its `copies` runs: [R, B, ...]."""

        def take(data: Tensor) -> Tensor:
            rows = data.gather(1, index[..., None].expand(-1, -1, data.shape[-1])).long()
            return rows.repeat_interleave(copies, dim=0)

        return take(self.tokens), take(self.at), take(self.evidence), take(self.targets)


class StackedAdamW:
    """AdamW on a matrix [R, P] whose rows are runs, with a peak learning rate and a gradient clip per row.

    One-cycle schedule: cosine from lr/25 to lr over the first 30 % of the steps, then cosine to lr/250,000
    (Smith 2018; torch.optim.lr_scheduler.OneCycleLR's defaults).
    """

    def __init__(
        self, theta: Tensor, lrs: Tensor, steps: int, *, weight_decay: float, clip: float, trainable: Tensor
    ) -> None:
        self.theta, self.clip, self.trainable = theta, clip, trainable
        self.first, self.second = torch.zeros_like(theta), torch.zeros_like(theta)
        count = torch.arange(max(1, steps), device=theta.device, dtype=torch.float32)
        self.rate = lrs[None, :, None] * one_cycle(count, steps)[:, None, None]
        self.shrink = 1 - self.rate * weight_decay
        self.fix = torch.stack((1 - 0.9 ** (count + 1), 1 - 0.999 ** (count + 1)), dim=1)

    @torch.no_grad()
    def step(self, grad: Tensor, now: Tensor) -> None:
        """One step with gradients [R, P]; `now` [1] is its number, a tensor so that a CUDA graph can replay it."""
        grad = grad * self.trainable
        if self.clip:
            norm = grad.square().sum(1, keepdim=True).sqrt()
            grad = grad * (self.clip / norm.clamp(min=self.clip))
        rate, shrink, fix = (table.index_select(0, now)[0] for table in (self.rate, self.shrink, self.fix))
        self.first.mul_(0.9).add_(grad, alpha=0.1)
        self.second.mul_(0.999).addcmul_(grad, grad, value=0.001)
        change = rate * (self.first / fix[0]) / ((self.second / fix[1]).sqrt() + 1e-8)
        # What is frozen must not shrink either.
        self.theta.mul_(torch.where(self.trainable, shrink, 1.0)).sub_(change * self.trainable)


def one_cycle(count: Tensor, steps: int) -> Tensor:
    """Share of the peak learning rate at each step."""
    up = max(1e-9, 0.3 * steps - 1)
    down = max(1e-9, steps - 1 - up)
    rise = _cosine(1 / 25, 1.0, (count / up).clamp(max=1))
    fall = _cosine(1.0, 1 / 250_000, ((count - up) / down).clamp(0, 1))
    return torch.where(count <= up, rise, fall)


def _cosine(start: float, end: float, share: Tensor) -> Tensor:
    return end + (start - end) / 2 * (1 + (math.pi * share).cos())


class StackedTrainer:
    """Train one arm at several seeds and all its learning rates at once.

    Args:
        configs: equal but for their seed.
        device: "cpu" or "cuda".
        graph: replay the step as a CUDA graph (ignored on a CPU, where there is none).
    Raises:
        ConfigError: the configs differ in more than the seed.
    """

    def __init__(
        self, configs: Sequence[BedRunConfig], device: torch.device | str = "cpu", *, graph: bool = True
    ) -> None:
        self.config = config = configs[0]
        if any(_without_seed(other) != _without_seed(config) for other in configs):
            raise ConfigError("stacked runs must be equal but for their seed; train different arms one after the other")
        self.configs, self.device = list(configs), torch.device(device)
        self.graph = graph and self.device.type == "cuda"
        self.copies = len(config.lrs)
        self.models = [self._model(entry.seed) for entry in configs]
        self.base = self.models[0]
        params, buffers = stack_module_state([model for model in self.models for _ in config.lrs])
        self.names, self.shapes = list(params), [value.shape for value in params.values()]
        self.sizes = [value[0].numel() for value in params.values()]
        flat = torch.cat([value.detach().flatten(1) for value in params.values()], dim=1)
        self.theta = flat.to(self.device).requires_grad_()
        self.buffers = {name: value.to(self.device) for name, value in buffers.items()}
        self.data = self._load("train")
        self.held_out = self._load("test")

    def _model(self, seed: int) -> TestBed:
        task = self.config.task
        return TestBed(self.config.model, vocab=task.vocab, length=task.length, seed=seed)

    def _load(self, split: str) -> SeedData:
        config = self.config
        n = config.train_sequences or config.steps * config.batch
        parts = []
        for entry in self.configs:
            task = config.task.build(entry.seed)
            if split == "train":
                drawn = [task.train_batch(min(1000, n - i)) for i in range(0, n if config.steps else 1, 1000)]
            else:
                drawn = list(task.eval_batches(-(-config.test_sequences // EVAL_BATCH), EVAL_BATCH))
            parts.append(drawn)

        def whole(name: str) -> Tensor:
            rows = [torch.cat([getattr(_routed(batch), name) for batch in drawn]) for drawn in parts]
            return torch.stack(rows).to(torch.int32).to(self.device)

        return SeedData(*(whole(name) for name in ("tokens", "at", "evidence", "targets")))

    def _params(self, theta: Tensor) -> dict[str, Tensor]:
        pieces = theta.split(self.sizes, dim=1)
        return {n: piece.view(s) for n, piece, s in zip(self.names, pieces, self.shapes, strict=True)}

    def _forward(
        self, theta: Tensor, tokens: Tensor, at: Tensor, evidence: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores [R, B, Q, U] and logits [R, B, Q, V] of all runs."""

        def one(params: Any, buffers: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(self.base, (params, buffers), inputs)

        inputs = (tokens, at) if evidence is None else (tokens, at, evidence)
        return vmap(one)(self._params(theta), self.buffers, *inputs)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Routing and task cross entropy of each run, [R]."""
        tokens, at, evidence, targets = batch
        score, logits = self._forward(self.theta, tokens, at)
        unit = self.base.selector.unit
        route = -score.log_softmax(-1).gather(-1, (evidence // unit)[..., None])[..., 0].mean((1, 2))
        if not self.config.answer:
            return route, torch.zeros_like(route)
        return route, -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].mean((1, 2))

    def train(self) -> list[dict[str, Any]]:
        """Train, evaluate, and return one record a seed."""
        config, began = self.config, time.perf_counter()
        lrs = torch.tensor(config.lrs, device=self.device).repeat(len(self.configs))
        optim = StackedAdamW(
            self.theta.detach(), lrs, config.steps,
            weight_decay=config.weight_decay, clip=config.clip, trainable=self._trainable(),
        )  # fmt: skip
        order = self._order()
        falling = torch.linspace(1.0, 0.1, max(1, config.steps), device=self.device)
        losses = torch.zeros(max(1, config.steps), len(lrs), device=self.device)

        def step(now: Tensor) -> None:
            batch = self.data.batch(order.index_select(1, now)[:, 0], self.copies)
            route, task = self.losses(batch)
            weight = falling.index_select(0, now) if config.answer else 1.0
            (grad,) = torch.autograd.grad((task + weight * route).sum(), self.theta)
            optim.step(grad, now)
            losses.index_copy_(0, now, route.detach()[None])

        learns = config.steps > 0 and (self.base.selector.learned or config.answer)
        curve = self._run(step, learns)
        train_s = time.perf_counter() - began
        return self._records(curve, losses.cpu(), train_s)

    def _run(self, step: Callable[[Tensor], None], learns: bool) -> list[dict[str, Any]]:
        config = self.config
        points = (
            {round(i * config.steps / config.evaluations) for i in range(1, config.evaluations + 1)}
            if learns
            else set()
        )
        curve: list[dict[str, Any]] = []
        now = torch.zeros(1, dtype=torch.int64, device=self.device)
        advance = Replayed(step, now) if self.graph else step
        for i in range(config.steps if learns else 0):
            now.fill_(i)
            advance(now)
            if i + 1 in points:
                found = self.evaluate(CURVE_SEQUENCES)
                curve.append({"step": i + 1, **{name: value.tolist() for name, value in found.items()}})
        return curve

    def _order(self) -> Tensor:
        """Training sequence of each step and slot, [S, steps, B]; every epoch is a new permutation."""
        config = self.config
        wanted = config.steps * config.batch
        n = config.train_sequences or max(1, wanted)
        rows = []
        for entry in self.configs:
            source = torch.Generator().manual_seed(entry.seed)
            epochs = -(-wanted // n) if config.train_sequences else 1
            orders = [torch.randperm(n, generator=source) for _ in range(epochs)]
            rows.append(torch.cat(orders)[:wanted] if wanted else torch.zeros(0, dtype=torch.int64))
        return torch.stack(rows).view(len(rows), config.steps, config.batch).to(self.device)

    def _trainable(self) -> Tensor:
        """bool [P]: which entries of a row are trained."""
        wanted = dict(self.base.named_parameters())
        early = ("embed", "place", "flow.")
        keep = [
            wanted[name].requires_grad and not (self.config.freeze_flow and name.startswith(early))
            for name in self.names
        ]
        parts = [torch.full((size,), flag) for size, flag in zip(self.sizes, keep, strict=True)]
        return torch.cat(parts).to(self.device)

    @torch.no_grad()
    def evaluate(self, sequences: int, *, oracle: bool = False) -> dict[str, Tensor]:
        """Routing metrics and task accuracy of each run on held-out sequences, [R]."""
        config, unit = self.config, self.base.selector.unit
        sequences = min(sequences, self.held_out.tokens.shape[1])
        sums: dict[str, Tensor] = {}
        starts = range(0, sequences, EVAL_BATCH)
        for start in starts:
            index = torch.arange(start, min(start + EVAL_BATCH, sequences), device=self.device)
            tokens, at, evidence, targets = self.held_out.batch(index.expand(len(self.configs), -1), self.copies)
            score, logits = self._forward(self.theta, tokens, at, evidence if oracle else None)
            found = routing_metrics(score, evidence, k=config.model.k, unit=unit, expand=config.model.expand)
            found["accuracy"] = (logits.argmax(-1) == targets).float().mean((1, 2))
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value * len(index)
        return {name: value / sequences for name, value in sums.items()}

    @torch.no_grad()
    def _further(self, sequences: int) -> dict[str, dict[str, Tensor]]:
        """Final precision at the numbers of picks and in the bands of distance that the config asks for, each [R]."""
        config, unit = self.config, self.base.selector.unit
        parts: dict[int, list[Tensor]] = {k: [] for k in {config.model.k, *config.tops}}
        gaps = []
        for start in range(0, sequences if config.tops or config.band else 0, EVAL_BATCH):
            index = torch.arange(start, min(start + EVAL_BATCH, sequences), device=self.device)
            tokens, at, evidence, _ = self.held_out.batch(index.expand(len(self.configs), -1), self.copies)
            score, _ = self._forward(self.theta, tokens, at)
            for k, found in parts.items():
                found.append(found_at(score, evidence, k=k, unit=unit, expand=config.model.expand))
            gaps.append((evidence - at).abs())
        values: dict[str, dict[str, Tensor]] = {}
        if config.tops:
            values["tops"] = {str(k): torch.cat(parts[k], 1).mean((1, 2)) for k in config.tops}
        if config.band:
            hits, gap = torch.cat(parts[config.model.k], 1), torch.cat(gaps, 1) // config.band
            values["bands"] = {
                str(config.band * int(g)): (hits * (gap == g)).sum((1, 2)) / (gap == g).sum((1, 2)).clamp(min=1)
                for g in gap.unique().tolist()
            }
        return values

    def _records(self, curve: list[dict[str, Any]], losses: Tensor, train_s: float) -> list[dict[str, Any]]:
        config = self.config
        further = self._further(config.test_sequences)
        final = {name: value.cpu() for name, value in self.evaluate(config.test_sequences).items()}
        oracle = self.evaluate(config.test_sequences, oracle=True)["accuracy"].cpu() if config.answer else None
        learned_form = isinstance(self.base.selector, PairwiseSelector) and config.steps > 0
        records = []
        for s, entry in enumerate(self.configs):
            runs = []
            for j, lr in enumerate(config.lrs):
                row = s * self.copies + j
                run: dict[str, Any] = {"lr": lr} | {name: round(float(v[row]), 5) for name, v in final.items()}
                run["train_loss"] = round(float(losses[-max(1, config.steps // 20) :, row].mean()), 5)
                for name, table in further.items():
                    run[name] = {key: round(float(value[row]), 5) for key, value in table.items()}
                if oracle is not None:
                    run["oracle_accuracy"] = round(float(oracle[row]), 5)
                if learned_form:
                    run |= self._form(row, s)
                run["curve"] = [[p["step"], round(p["pk"][row], 4), round(p["p1"][row], 4)] for p in curve]
                runs.append(run)
            records.append({
                "seed": entry.seed, "runs": runs, "units": self.base.selector.units, "unit": self.base.selector.unit,
                "params": sum(self.sizes), "train_s": train_s, "runs_together": len(self.theta),
                "n_eval": config.test_sequences, "device": str(self.device), "cuda_graph": self.graph,
            })  # fmt: skip
        return records

    @torch.no_grad()
    def _form(self, row: int, s: int) -> dict[str, Any]:
        """Mechanics of one pairwise run: spectrum of the form and of the router's input, cosine gap, projections."""
        config = self.config
        weights = {name: value[row] for name, value in self._params(self.theta).items()}
        q, k = weights["selector.q.weight"].cpu(), weights["selector.k.weight"].cpu()
        start = self.models[s].state_dict()
        index = torch.arange(min(CURVE_SEQUENCES, self.held_out.tokens.shape[1]), device=self.device)
        batch = SeedData(*(getattr(self.held_out, n)[s : s + 1] for n in ("tokens", "at", "evidence", "targets")))
        tokens, at, evidence, _ = (part[0] for part in batch.batch(index[None], 1))
        buffers = {name: value[row] for name, value in self.buffers.items()}
        own = {f"bed.{n}": w for n, w in weights.items()} | {f"bed.{n}": b for n, b in buffers.items()}
        x = functional_call(_Represent(self.base), own, (tokens,))
        if not x.isfinite().all():
            # Too high a rate is a result of that rate, and must not end the runs beside it.
            return {"diverged": True}
        # Causality of what was trained: no row of the first half moves when the second half is another sequence's.
        half = tokens.shape[1] // 2
        changed = torch.cat((tokens[:, :half], tokens.roll(1, 0)[:, half:]), dim=1)
        again = functional_call(_Represent(self.base), own, (changed,))
        past_moved = float((again - x)[:, :half].abs().max())
        k90_input = energy_rank(x.flatten(0, 1) - x.mean((0, 1)))
        x, at, evidence = x.cpu(), at.cpu(), evidence.cpu()
        rows, found = rows_at(x, at), rows_at(x, evidence)
        other = rows_at(x, torch.randint(x.shape[1], at.shape, generator=torch.Generator().manual_seed(0)))
        cosine = torch.nn.functional.cosine_similarity
        values: dict[str, Any] = {
            "k90_untrained": energy_rank(start["selector.q.weight"].T @ start["selector.k.weight"]),
            "k90": energy_rank(q.T @ k),
            "k90_input": k90_input,
            "cosine_gap": round(float((cosine(rows, found, dim=-1) - cosine(rows, other, dim=-1)).mean()), 4),
            "past_moved": past_moved,
        }
        source = torch.Generator().manual_seed(row)
        kept = max(1, config.model.width // 4)
        draw = partial(torch.randn, q.shape, generator=source)
        twin = draw()
        asked = {
            "pk_top_quarter": rows @ projected(q, k, kept),
            "pk_random_quarter": rows @ projected(q, k, kept, random=source),
            "pk_random_weights": rows @ draw().T @ draw(),
            "pk_random_twin": rows @ twin.T @ twin,
            # Queries of another sequence: what no key has to do with.
            "pk_shuffled": rows.roll(1, 0) @ q.T @ k,
        }
        itself = torch.arange(x.shape[1]) == at[..., None]
        for name, queries in asked.items():
            score = (queries @ x.transpose(1, 2)).masked_fill(itself, -torch.inf)
            values[name] = round(float(routing_metrics(score, evidence, k=config.model.k)["pk"]), 4)
        return values

    def trained(self, seed: int, lr: float) -> TestBed:
        """A copy of one trained run as an ordinary module."""
        row = [entry.seed for entry in self.configs].index(seed) * self.copies + self.config.lrs.index(lr)
        model = self._model(seed)
        params = {name: value[row].detach().cpu() for name, value in self._params(self.theta).items()}
        model.load_state_dict(params, strict=False)
        return model


class _Represent(torch.nn.Module):
    """`TestBed.represent` as a forward, for `functional_call`."""

    def __init__(self, bed: TestBed) -> None:
        super().__init__()
        self.bed = bed

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bed.represent(tokens)


class Replayed:
    """A step that runs three times on a side stream (which warms allocator and libraries up), then as a CUDA graph."""

    def __init__(self, step: Callable[[Tensor], None], now: Tensor) -> None:
        self.step, self.now, self.calls = step, now, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, now: Tensor) -> None:
        self.calls += 1
        if self.calls <= 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(now)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            # Capturing runs nothing; the replay below is the fourth step.
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step(self.now)
        self.graph.replay()


def train_together(configs: Sequence[BedRunConfig], device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Train configs that differ in their seed alone; one record each.

    A step that cannot be captured as a CUDA graph runs eagerly instead, and the records say why (`graph_error`).
    """
    trainer = StackedTrainer(configs, device)
    try:
        return trainer.train()
    except RuntimeError as error:
        if not trainer.graph or isinstance(error, torch.cuda.OutOfMemoryError) or _broken(trainer.device):
            raise
        warnings.warn(f"no CUDA graph for {configs[0].name}: {error}", stacklevel=2)
        del trainer
        records = StackedTrainer(configs, device, graph=False).train()
        return [record | {"graph_error": str(error)[:300]} for record in records]


def _broken(device: torch.device) -> bool:
    """Whether the process has lost its GPU, as after an illegal access of its own or of a process that shares it."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _without_seed(config: BedRunConfig) -> BedRunConfig:
    from dataclasses import replace

    return replace(config, seed=0)


def _routed(batch: Any) -> RoutedBatch:
    if not isinstance(batch, RoutedBatch):
        raise ConfigError(f"{type(batch).__name__} has no evidence positions; use a task that says where answers are")
    return batch
