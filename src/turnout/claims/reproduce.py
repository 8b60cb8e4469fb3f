"""Re-measure claims: every arm and seed in its own process, resumable, results written with their manifest."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from turnout.claims.registry import Claim, Finding, find_claims, get_claim, load_claims
from turnout.claims.store import from_here, results_dir, summaries
from turnout.errors import TurnoutError

Report = Callable[[str], None]
# claim, arm, seeds that are missing, device, folder of the claim's runs
Job = tuple[str, str, tuple[int, ...], str, Path]


def reproduce(
    ids: list[str] | None = None,
    *,
    quick: bool = False,
    device: str = "auto",
    seeds: int | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    report: Report = print,
) -> list[dict[str, Any]]:
    """Run what the claims need and write `runs/<ID>/*.json` and `claims/<ID>.json` below `out`.

    A run whose summary is there already is not repeated, so an interrupted call goes on where it stopped.

    Args:
        ids: of claims or groups of claims; None = all.
        quick: one seed of each arm, and of arms that have a small version that one.
        device: "auto", "cpu" or "cuda".
        seeds: overrides each claim's own number.
        jobs: processes at a time, one CPU thread each; several GPUs are used in turn.
        out: folder of results; None = the checkout's `results/`.
    Returns:
        The rows of the claims table.
    Raises:
        ConfigError: unknown id; TurnoutError: a run failed (the others are finished and kept).
    """
    root = Path(out) if out is not None else results_dir()
    claims = find_claims(ids) if ids else list(load_claims().values())
    work = jobs_of(claims, root, quick=quick, device=device, seeds=seeds)
    failures = run_all(work, jobs, report)
    rows: list[dict[str, Any]] = []
    for entry in claims:
        rows += judge(entry, root, device)
    if failures:
        raise TurnoutError(f"{len(failures)} of {len(work)} runs failed; the first: {failures[0]}")
    return rows


def judge(entry: Claim, root: Path, device: str = "auto") -> list[dict[str, Any]]:
    """Judge a claim from the summaries below `root` and write its rows."""
    from turnout.train.jsonfile import write_json

    rows = judged(entry, root)
    if rows:
        path = root / "claims" / f"{entry.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, rows)
    return rows


def judged(entry: Claim, root: Path) -> list[dict[str, Any]]:
    """The rows that follow from the summaries below `root`; writes nothing."""
    seen = summaries(entry.id, root)
    for arm in entry.arms():
        if arm.owner:
            seen |= {name: records for name, records in summaries(arm.owner, root).items() if name == arm.name}
    if not seen and entry.bench is None:
        return []
    records = [record for arm in seen.values() for record in arm]
    findings: list[Finding] = entry.judge(seen)
    if entry.bench is None:
        findings = [replace(f, verdict="too few seeds") if f.n < entry.least_seeds else f for f in findings]
    command = f"turnout reproduce {entry.id}"
    devices = sorted({r.get("device_name", r.get("device", "")) for r in records})
    commits = sorted({r.get("commit", "unknown") for r in records})
    return [
        {"id": entry.id, "source": entry.source, **asdict(finding), "device": ", ".join(devices),
         "commit": ", ".join(commits), "command": command}
        for finding in findings
    ]  # fmt: skip


def jobs_of(
    claims: list[Claim], root: Path, *, quick: bool = False, device: str = "auto", seeds: int | None = None
) -> list[Job]:
    """The runs that claims still need, the dearest first; those that claims share are there once."""
    from turnout.claims.plan import dearest_first
    from turnout.train.loop import pick_device

    wanted = dict.fromkeys(j for c in claims for j in _jobs(c, seeds or (1 if quick else c.seeds), device, root, quick))
    return dearest_first(list(wanted), pick_device(device).type)


def run_arm(claim_id: str, arm: str, seed: int, *, device: str = "auto", out: str | Path | None = None) -> str:
    """Run one arm of a claim at one seed in this process, unless its record is there; returns a line about it."""
    root = Path(out) if out is not None else results_dir()
    folder = root / "runs" / claim_id
    if (folder / f"{arm}-{seed}.json").exists():
        return "there already"
    return _run_one((claim_id, arm, (seed,), device, folder), 0)


def _jobs(entry: Claim, seeds: int, device: str, root: Path, quick: bool = False) -> list[Job]:
    from turnout.train.loop import pick_device

    jobs: list[Job] = []
    folder = root / "runs" / entry.id
    # One record for each kind of device: a benchmark on a GPU does not stand for one on a CPU.
    if entry.bench is not None and not (folder / f"bench-{pick_device(device).type}.json").exists():
        jobs.append((entry.id, "bench", (0,), device, folder))
    for arm in entry.arms():
        if arm.when not in ("always", "quick" if quick else "full"):
            continue
        home = root / "runs" / (arm.owner or entry.id)
        missing = tuple(seed for seed in range(seeds) if not (home / f"{arm.name}-{seed}.json").exists())
        groups = [missing] if arm.together and missing else [(seed,) for seed in missing]
        jobs += [(arm.owner or entry.id, arm.name, group, device, home) for group in groups]
    return jobs


def run_all(work: list[Job], jobs: int, report: Report) -> list[str]:
    """Run all of `work` in `jobs` processes, each of which goes from job to job; returns what failed, in words.

    A benchmark has the machine to itself. A run may fail in any way, also by being killed: the others go on, and a new
    process takes the place of its own. Ctrl-C stops those in progress.
    """
    failures: list[str] = []
    began, done = time.perf_counter(), 0
    waiting, idle, busy = work[::-1], list[Worker](), dict[Connection, tuple[Job, Worker]]()
    numbers = list(range(jobs))
    try:
        while waiting or busy:
            while waiting and _may_begin(waiting[-1], [job for job, _ in busy.values()], jobs):
                worker, job = idle.pop() if idle else Worker(numbers.pop(0)), waiting.pop()
                busy[worker.pipe] = job, worker
                worker.pipe.send(job)
            for pipe in wait(list(busy)):
                job, worker = busy.pop(cast(Connection, pipe))
                claim_id, arm, seeds, *_ = job
                good, line = worker.answer()
                if good:
                    idle.append(worker)
                else:
                    worker.stop()
                    numbers.append(worker.number)
                name = f"{claim_id} {arm} seed {', '.join(map(str, seeds))}"
                done += 1
                if not good:
                    failures.append(f"{name}: {line}")
                    line = f"failed: {line}"
                report(f"[{done}/{len(work)}, {time.perf_counter() - began:.0f} s] {name}: {line}")
    finally:
        for worker in idle:
            worker.dismiss()
        for _, worker in busy.values():
            worker.stop()
    return failures


def _may_begin(job: Job, beside: list[Job], jobs: int) -> bool:
    """Whether `job` may run beside those; times mean nothing when something else computes."""
    alone = any(arm == "bench" for _, arm, *_ in (job, *beside))
    return len(beside) < (1 if alone else jobs)


class Worker:
    """A process that runs one job after another: importing and a GPU's context cost seconds, once.

    Args:
        number: 0 to jobs - 1; on several GPUs it says which one.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, number))
        self.process.start()
        theirs.close()

    def answer(self) -> tuple[bool, str]:
        """Whether the job went well, and a line about it."""
        try:
            good, line = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            return False, f"its process ended without a word (exit code {code}); it may have run out of memory"
        return bool(good), str(line)

    def dismiss(self) -> None:
        """Let a process without a job end by itself, so that what it uses is given back."""
        self.pipe.send(None)
        self.process.join()
        self.pipe.close()

    def stop(self) -> None:
        """End the process; a job in progress is lost."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(jobs: Connection, number: int) -> None:
    """Run what the parent sends, who alone decides what Ctrl-C means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (job := _next(jobs)) is not None:
        try:
            answer = True, _run_one(job, number)
            _tidy()
        except Exception as error:
            # A GPU's fault outlives its job: after a failure the parent takes a new process.
            answer = False, str(error) or type(error).__name__
        jobs.send(answer)


def _next(jobs: Connection) -> Job | None:
    """The next job; None when there is none, or no parent either."""
    try:
        return cast("Job | None", jobs.recv())
    except EOFError:
        return None


def _tidy() -> None:
    """Give back what a job held and undo what it set, so that the next one finds a fresh process."""
    import torch

    gc.collect()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _run_one(job: Job, number: int) -> str:
    """Train one arm at one seed, or at several together, or run one benchmark; write the records."""
    claim_id, arm_name, seeds, device, folder = job
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    from turnout import __version__
    from turnout.train.jsonfile import write_json
    from turnout.train.loop import pick_device
    from turnout.train.manifest import git_commit

    entry = get_claim(claim_id)
    records, line = _measure(entry, arm_name, seeds, device)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, record in zip(seeds, records, strict=True):
        record |= {
            "claim": claim_id, "arm_name": arm_name, "seed": seed, "commit": git_commit(),
            "versions": {"turnout": __version__, "torch": str(torch.__version__), "python": sys.version.split()[0]},
            "host_cores": os.cpu_count(),
        }  # fmt: skip
        tag = pick_device(device).type if arm_name == "bench" else seed
        write_json(folder / f"{arm_name}-{tag}.json", record)
    return line


def _measure(entry: Claim, arm_name: str, seeds: tuple[int, ...], device: str) -> tuple[list[dict[str, Any]], str]:
    """Records, one a seed, and a line about them."""
    if arm_name == "bench":
        record = entry.bench(device) if entry.bench is not None else {}
        return [record], f"{len(record.get('rows', []))} rows"
    from turnout.config import to_dict
    from turnout.train.loop import Trainer, pick_device
    from turnout.train.manifest import device_name

    arm = next(a for a in entry.arms() if a.name == arm_name)
    configs = [arm.config(seed) for seed in seeds]
    named = {"device_name": device_name(pick_device(device))}
    if arm.together is not None:
        import torch

        torch.set_num_threads(1)
        on_gpu = pick_device(device).type == "cuda"
        if on_gpu:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        records = arm.together(configs, device)
        # Untrained arms count too when a reproduction is planned; the peak says how many processes fit on a GPU.
        shared: dict[str, Any] = {"train_s": time.perf_counter() - began}
        if on_gpu:
            shared["peak_bytes"] = torch.cuda.max_memory_reserved()
        told = [shared | r | {"config": from_here(to_dict(c))} | named for r, c in zip(records, configs, strict=True)]
        return told, f"{len(told)} seed{'' if len(told) == 1 else 's'} in {time.perf_counter() - began:.0f} s"
    config = replace(configs[0], device=device, threads=1)
    trainer = Trainer(config)
    record = trainer.train() | {"config": from_here(to_dict(config))} | named
    if arm.costs:
        from turnout.bench.savings import measure_run

        record["savings"] = measure_run(trainer.model, config, trainer.task, record)
    if arm.after is not None:
        record |= arm.after(trainer)
    line = f"accuracy {record['accuracy']:.4f}, loss {record['loss']:.4f}, gates {record['gates_per_seq']:.2f}"
    return [record], line
