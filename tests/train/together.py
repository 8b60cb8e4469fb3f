"""One process of a group, for test_distributed.py: trains each setting given as JSON, one group after another."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from turnout.config import from_dict
from turnout.errors import TurnoutError
from turnout.train.config import RunConfig
from turnout.train.loop import train


class Kill:
    """Kills this process with no warning once it has seen a line of that step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def update(self, record: dict) -> None:
        if self.step is not None and record["kind"] == "train" and record["step"] >= self.step:
            os.kill(os.getpid(), 9)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        config = from_dict(RunConfig, job["config"])
        try:
            train(config, root=job["root"], name=job["name"], resume=job["resume"], view=Kill(job["kill"]))
        except TurnoutError as error:
            print(f"turnout: {error}", file=sys.stderr, flush=True)
            sys.exit(1)


main()
