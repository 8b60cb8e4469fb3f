"""Configuration of a training run; the task, the model, the schedule and the optimiser in one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from turnout.errors import ConfigError, nearest
from turnout.models.config import ModelConfig
from turnout.tasks import (
    MQARConfig,
    RecallConfig,
    RecallHardConfig,
    RetrievalConfig,
    TextConfig,
    TrailingMQARConfig,
)

PENALTIES = ("per_gate", "mean_gate", "mean_hard_gate")
LOG_USAGE = "log_usage"
LOG_USAGE_BY_LAYER = "log_usage_by_layer"
PRECISIONS = ("fp32", "tf32", "bf16", "bf16_stream")
DECAYS = ("constant", "cosine", "wsd")
OPTIMIZERS = ("adamw", "muon")
PARALLEL = ("ddp", "fsdp")


def _require(ok: bool, what: str, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{what}; expected {expected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Explore at no cost until solved, ramp the cost behind a guard, hold it, then grow the length.

    Phases: *explore* (lambda = 0, both tracks), *ramp* (lambda rises to `cost`), *hold* (lambda = `cost`),
    *grow* (one stage for each further entry of `lengths`), *settle* (the last length, at the smallest learning rates).

    The guard looks at every evaluation after explore. At `guard` accuracy or above the weights are kept in memory and
    the ramp moves on. Below it training turns dense (only then does a closed gate get a gradient that can reopen it),
    the ramp moves backwards at half its speed and *hold* does not count. Below `back_off` the gates have collapsed: the
    kept weights return, the ramp falls to half of where it was kept, and goes on at half its speed and seven tenths of
    the learning rate.

    Args:
        penalty: "per_gate" = lambda · E[open gates per sequence], the pressure on each gate independent of T and L;
            "mean_gate" = lambda · mean probability; "mean_hard_gate" = lambda · mean straight-through gate (published).
        cost: lambda at the end of the ramp, >= 0.
        explore_steps: most steps of explore; a run that does not reach `solve_at` by then stops unsolved.
        solve_at: evaluation accuracy that ends explore; None explores for exactly `explore_steps`.
        ramp_steps: steps from lambda = 0 to `cost` while the guard is content.
        stairs: 0 ramps at every step; n > 0 ramps in n equal stairs (published: 20 epochs).
        hold_steps: steps at the full cost.
        guard, back_off: evaluation accuracies, guard >= back_off; guard 0 switches both off.
        stop_below: evaluation accuracy under which the run ends during ramp and hold (published: 0.9); 0 = never.
        guard_loss: for tasks without accuracy: the evaluation loss may exceed explore's by this fraction (`guard`), and
            by four times as much (`back_off`).
        lengths: sequence lengths in order; empty = the task's length only.
        grow_steps: most steps a further length; it ends early at `grow_at` evaluation accuracy. A length that is not
            solved by then is tried once more, from the weights that solved the last one and at a quarter of the
            learning rate.
        grow_at: evaluation accuracy that ends a stage of growth.
        settle_steps: steps at the last length once it is solved, where there are several, at a quarter of lambda; the
            guard is on.
    """

    kind: ClassVar[str] = "curriculum"
    penalty: str = "per_gate"
    cost: float = 0.02
    explore_steps: int = 2500
    solve_at: float | None = 0.99
    ramp_steps: int = 1500
    stairs: int = 0
    hold_steps: int = 500
    guard: float = 0.995
    back_off: float = 0.9
    stop_below: float = 0.0
    guard_loss: float = 0.05
    lengths: tuple[int, ...] = ()
    grow_steps: int = 600
    grow_at: float = 0.999
    settle_steps: int = 0

    def __post_init__(self) -> None:
        _check_penalty(self.penalty, self.cost)
        for name in ("explore_steps", "ramp_steps", "hold_steps", "grow_steps", "settle_steps", "stairs"):
            _require(getattr(self, name) >= 0, f"schedule.{name}={getattr(self, name)}", ">= 0")
        _require(
            0 <= self.back_off <= self.guard <= 1,
            f"schedule.guard={self.guard}, back_off={self.back_off}",
            "0 <= back_off <= guard <= 1",
        )
        _require(list(self.lengths) == sorted(self.lengths), f"schedule.lengths={self.lengths}", "ascending lengths")


@dataclass(frozen=True, kw_only=True, slots=True)
class JointConfig:
    """The cost from the first step (the failing arm of the published study, kept as a control).

    Args:
        penalty, cost: as in the curriculum; cost 0 trains without any pressure.
        steps: how long.
        solve_at: evaluation accuracy that ends training early; None trains for exactly `steps`.
    """

    kind: ClassVar[str] = "joint"
    penalty: str = "per_gate"
    cost: float = 0.0
    steps: int = 2000
    solve_at: float | None = None

    def __post_init__(self) -> None:
        _check_penalty(self.penalty, self.cost)
        _require(self.steps >= 1, f"schedule.steps={self.steps}", ">= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """Steer the usage to a target by the method of multipliers (Hestenes 1969; Powell 1969) on the log of the usage.

    loss = task + l1 · x + l2 · x^2 + l3 · E[p (1 - p)] / E[p]        x = log(E[p] / u*), p = gate probability
    l1 <- l1 + rate · log(u / u*)                                     u = usage without gate noise

    The quadratic term acts at once, on the probabilities of this very step; the multiplier only has to learn what is
    left, which is slow: the price of a gate, and that E[p] is not quite u. The last term, on once the target is there,
    makes gates decide: a class of tokens with p near 1/2 counts half in E[p] and all or nothing in u. The log makes one
    setting serve a budget of 50 % and one of 0.5 %. The target u* falls from 1 to `usage` (geometrically) between
    `warmup` and `warmup + ramp` of the steps.

    Args:
        usage: target fraction of open (token, layer, group) slots, in (0, 1].
        steps: how long.
        warmup, ramp: fractions of `steps`.
        solve_at: evaluation accuracy that ends the warm-up, and so the run, earlier; None waits for `warmup`.
        rate: step size of the multiplier, > 0; per step and unit of log(u / u*), which is taken as at most 1. The
            multiplier follows in about 2 · quadratic / rate steps, which must be longer than the router's own lag.
        quadratic: l2 >= 0; 0 leaves plain dual ascent, which swings.
        undecided: l3 >= 0.
        by_layer: the quadratic term holds every layer at the target by itself (its mean over layers), and not only all
            of them together, which may leave some layers open and close the others.
    """

    kind: ClassVar[str] = "budget"
    usage: float = 0.1
    steps: int = 3000
    warmup: float = 0.1
    ramp: float = 0.5
    solve_at: float | None = None
    rate: float = 0.01
    quadratic: float = 1.0
    undecided: float = 0.3
    by_layer: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.usage <= 1, f"schedule.usage={self.usage}", "0 < usage <= 1")
        _require(self.steps >= 1, f"schedule.steps={self.steps}", ">= 1")
        _require(
            self.warmup >= 0 and self.ramp >= 0 and self.warmup + self.ramp <= 1,
            f"schedule.warmup={self.warmup}, ramp={self.ramp}",
            "fractions with warmup + ramp <= 1",
        )
        _require(
            self.rate > 0 and self.quadratic >= 0 and self.undecided >= 0,
            f"schedule.rate={self.rate}, quadratic={self.quadratic}, undecided={self.undecided}",
            "rate > 0, quadratic >= 0, undecided >= 0",
        )


def _check_penalty(penalty: str, cost: float) -> None:
    if penalty not in PENALTIES:
        raise ConfigError(f"schedule.penalty={penalty!r}{nearest(penalty, PENALTIES)}")
    _require(cost >= 0, f"schedule.cost={cost}", ">= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimiser, the batch, and how a step is computed.

    Args:
        batch: sequences a step at the first length.
        max_tokens: most tokens a micro-batch; longer sequences get fewer of them. 0 = no limit.
        accumulate: micro-batches a step.
        optimizer: "adamw", or "muon" for the matrices inside the blocks with AdamW for the rest; sharded matrices are
            gathered one at a time, because an orthogonal update needs them whole.
        lr, weight_decay: of both. Norms, biases and gains are decayed too, as published.
        beta2: of AdamW; beta1 is 0.9.
        clip: gradient norm limit; 0 = off.
        warmup: steps of linear warm-up.
        decay: "constant", "cosine" to a tenth of lr: over the whole run, in a curriculum over *hold* and *grow*; or
            "wsd": constant for 80 % of the steps, then straight to a tenth of lr.
        directions_lr: factor on the learning rate of direction routers, > 0 (published: 0.5).
        precision: "fp32", "tf32" (fp32 with tensor-core products on a GPU), "bf16" (autocast) or "bf16_stream"
            (autocast, and what passes from block to block is bf16 too; weights stay fp32).
        loss_chunk: tokens whose logits exist at once; 0 = all. Training only.
        compile: compile blocks and loss with torch.compile; training only.
        checkpointing: keep only each block's input for the backward pass, which computes the rest again.
    """

    batch: int = 32
    max_tokens: int = 0
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    beta2: float = 0.999
    clip: float = 1.0
    warmup: int = 0
    decay: str = "constant"
    directions_lr: float = 1.0
    precision: str = "fp32"
    loss_chunk: int = 0
    compile: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        _require(
            self.batch >= 1 and self.accumulate >= 1, f"optim.batch={self.batch}, accumulate={self.accumulate}", ">= 1"
        )
        _require(self.lr > 0, f"optim.lr={self.lr}", "> 0")
        _require(self.directions_lr > 0, f"optim.directions_lr={self.directions_lr}", "> 0")
        _require(0 <= self.beta2 < 1, f"optim.beta2={self.beta2}", "0 <= beta2 < 1")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optim.optimizer={self.optimizer!r}{nearest(self.optimizer, OPTIMIZERS)}")
        for name in ("max_tokens", "weight_decay", "clip", "warmup", "loss_chunk"):
            _require(getattr(self, name) >= 0, f"optim.{name}={getattr(self, name)}", ">= 0")
        if self.decay not in DECAYS:
            raise ConfigError(f"optim.decay={self.decay!r}{nearest(self.decay, DECAYS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"optim.precision={self.precision!r}{nearest(self.precision, PRECISIONS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How often things happen, and how the skipping phase runs.

    Args:
        log_every: steps between metrics lines (and guard decisions).
        eval_every, eval_sequences: steps between evaluations, and how many sequences they hold.
        final_sequences: sequences of the last evaluation, the one that results quote.
        checkpoint_every: steps between checkpoints; 0 = only at the end and on Ctrl-C.
        skip_below: the skipping phase runs while every layer's usage is below this; 0 never skips.
        capacity: rows per sequence in the skipping phase; None = exact on a CPU, and on a GPU the smallest power of two
            at or above twice the largest count seen (static shapes; rows past it are dropped and counted).
        cuda_graph: replay each step as one CUDA graph (GPU only).
        savings: measure milliseconds against dense attention and the static hybrid at the end (one process only).
        parallel: how several processes (torchrun) share the model: "ddp" = a copy each, "fsdp" = a part each.
    """

    log_every: int = 25
    eval_every: int = 50
    eval_sequences: int = 512
    final_sequences: int = 4096
    checkpoint_every: int = 500
    skip_below: float = 0.25
    capacity: int | None = None
    cuda_graph: bool = True
    savings: bool = True
    parallel: str = "ddp"

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise ConfigError(f"loop.parallel={self.parallel!r}{nearest(self.parallel, PARALLEL)}")
        for name in ("log_every", "eval_every", "eval_sequences", "final_sequences"):
            _require(getattr(self, name) >= 1, f"loop.{name}={getattr(self, name)}", ">= 1")
        _require(self.checkpoint_every >= 0, f"loop.checkpoint_every={self.checkpoint_every}", ">= 0")
        _require(0 <= self.skip_below <= 1, f"loop.skip_below={self.skip_below}", "0 <= skip_below <= 1")
        _require(self.capacity is None or self.capacity >= 1, f"loop.capacity={self.capacity}", ">= 1 or none")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that determines a run.

    Args:
        name: of the recipe; run folders start with it.
        seed: all generators (data, init, gates, evaluation) derive from it.
        device: "auto" (a GPU when there is one), "cpu" or "cuda".
        threads: CPU threads; 0 leaves PyTorch's choice.
    """

    name: str = "run"
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    task: RecallConfig | RecallHardConfig | TextConfig | MQARConfig | TrailingMQARConfig | RetrievalConfig = field(
        default_factory=RecallConfig
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: CurriculumConfig | JointConfig | BudgetConfig = field(default_factory=CurriculumConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _require(self.device in ("auto", "cpu", "cuda"), f"device={self.device!r}", "auto, cpu or cuda")
        _require(self.seed >= 0 and self.threads >= 0, f"seed={self.seed}, threads={self.threads}", ">= 0")
        _require(
            not (self.optim.compile and self.model.dropout),
            f"optim.compile with model.dropout={self.model.dropout}",
            "dropout 0, because compiled blocks hold no generator, or compile=false",
        )
