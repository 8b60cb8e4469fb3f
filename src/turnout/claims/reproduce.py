"""Re-measure claims: every arm and seed in its own process, resumable, results written with their manifest."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from turnout.claims.registry import Claim, Finding, get_claim, load_claims
from turnout.claims.store import results_dir, summaries
from turnout.errors import TurnoutError

Report = Callable[[str], None]


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
        ids: of claims; None = all.
        quick: one seed of each arm.
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
    claims = [get_claim(i) for i in ids] if ids else list(load_claims().values())
    # Claims may share runs: each is done once.
    work = list(dict.fromkeys(j for c in claims for j in _jobs(c, 1 if quick else seeds or c.seeds, device, root)))
    report(f"{len(work)} runs to do for {', '.join(entry.id for entry in claims)} ({jobs} at a time)")
    failures = _run_all(work, jobs, report)
    rows: list[dict[str, Any]] = []
    for entry in claims:
        rows += judge(entry, root, device)
    if failures:
        raise TurnoutError(f"{len(failures)} of {len(work)} runs failed; the first: {failures[0]}")
    return rows


def judge(entry: Claim, root: Path, device: str = "auto") -> list[dict[str, Any]]:
    """Judge a claim from the summaries below `root` and write its rows."""
    from turnout.train.jsonfile import write_json

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
    rows = [
        {"id": entry.id, "source": entry.source, **asdict(finding), "device": ", ".join(devices),
         "commit": ", ".join(commits), "command": command}
        for finding in findings
    ]  # fmt: skip
    path = root / "claims" / f"{entry.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, rows)
    return rows


def _jobs(entry: Claim, seeds: int, device: str, root: Path) -> list[tuple[str, str, int, str, Path]]:
    from turnout.train.loop import pick_device

    jobs = []
    folder = root / "runs" / entry.id
    # One record for each kind of device: a benchmark on a GPU does not stand for one on a CPU.
    path = folder / f"bench-{pick_device(device).type}.json"
    if entry.bench is not None and not path.exists():
        jobs.append((entry.id, "bench", 0, device, path))
    for arm in entry.arms():
        for seed in range(seeds):
            path = root / "runs" / (arm.owner or entry.id) / f"{arm.name}-{seed}.json"
            if not path.exists():
                jobs.append((arm.owner or entry.id, arm.name, seed, device, path))
    return jobs


def _run_all(work: list[tuple[str, str, int, str, Path]], jobs: int, report: Report) -> list[str]:
    failures: list[str] = []
    if not work:
        return failures
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context, max_tasks_per_child=1) as pool:
        pending = {pool.submit(_run_one, job, i): job for i, job in enumerate(work)}
        for done, future in enumerate(as_completed(pending), 1):
            claim_id, arm, seed, _, _ = pending[future]
            try:
                line = future.result()
            except (
                Exception
            ) as error:  # a run may fail in any way; the others go on and the failure is raised at the end
                failures.append(f"{claim_id} {arm} seed {seed}: {error}")
                line = f"failed: {error}"
            report(f"[{done}/{len(work)}, {time.perf_counter() - began:.0f} s] {claim_id} {arm} seed {seed}: {line}")
    return failures


def _run_one(job: tuple[str, str, int, str, Path], index: int) -> str:
    """Worker: train one arm at one seed (or run one benchmark) and write its record."""
    claim_id, arm_name, seed, device, path = job
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        torch.cuda.set_device(index % torch.cuda.device_count())
    from turnout import __version__
    from turnout.config import to_dict
    from turnout.train.jsonfile import write_json
    from turnout.train.manifest import device_name, git_commit

    entry = get_claim(claim_id)
    record: dict[str, Any]
    if arm_name == "bench":
        assert_bench = entry.bench
        record = assert_bench(device) if assert_bench is not None else {}
        line = f"{len(record.get('rows', []))} rows"
    else:
        from turnout.train.loop import Trainer, pick_device

        arm = next(a for a in entry.arms() if a.name == arm_name)
        config = replace(arm.config(seed), device=device, threads=1)
        trainer = Trainer(config)
        record = trainer.train() | {"config": to_dict(config), "device_name": device_name(pick_device(device))}
        line = f"accuracy {record['accuracy']:.4f}, loss {record['loss']:.4f}, gates {record['gates_per_seq']:.2f}"
    record |= {
        "claim": claim_id, "arm_name": arm_name, "seed": seed, "commit": git_commit(),
        "versions": {"turnout": __version__, "torch": str(torch.__version__), "python": sys.version.split()[0]},
        "host_cores": os.cpu_count(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return line
