"""The processes of one training run: who this one is, and what all of them agree on."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from turnout.errors import ConfigError

TIMEOUT = datetime.timedelta(minutes=10)
# Of what `Stepper.read` gives: added up over processes; the rest is averaged, but for `most_rows` and `steps`.
_SUMS = ("dropped",)


class World:
    """Made once a process, from what `torchrun` puts into the environment.

    Args:
        device: "auto", "cpu" or "cuda", as in the config.
    Attributes:
        rank, size: this process and how many there are; device: the one it computes on.
    """

    def __init__(self, device: str) -> None:
        try:
            self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local = int(os.environ.get("LOCAL_RANK", self.rank))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{error} is not set; start processes with torchrun -m turnout train ...") from error
        on_gpu = device != "cpu" and torch.cuda.is_available()
        if on_gpu and local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this host has no GPU of its own ({torch.cuda.device_count()} found); start fewer "
                "with --nproc-per-node, or use device=cpu"
            )
        self.device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            options: dict[str, Any] = {"device_id": self.device} if on_gpu else {}
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT, **options)

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def gather_read(self, seen: dict[str, Any]) -> dict[str, Any]:
        """What the steps of all processes showed together; the same in each."""
        sums = {name: seen[name] for name in _SUMS}
        means = {k: v for k, v in seen.items() if isinstance(v, float)}
        layers = seen["usage_layers"]
        numbers = torch.tensor(
            [*sums.values(), *means.values(), *layers], dtype=torch.float64, device=self.device
        )  # fmt: skip
        dist.all_reduce(numbers)
        values = numbers.tolist()
        found = dict(zip(sums, map(int, values), strict=False))
        found |= {name: v / self.size for name, v in zip(means, values[len(sums) :], strict=False)}
        usage = [v / self.size for v in values[len(sums) + len(means) :]]
        return {**seen, **found, "usage_layers": usage, "most_rows": int(self.largest(seen["most_rows"]))}

    def largest(self, number: float) -> float:
        """The largest of the processes' numbers."""
        value = torch.tensor(float(number), dtype=torch.float64, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors by their mean over the processes."""
        for tensor in tensors:
            if tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor /= self.size

    def say(self, value: Any) -> Any:
        """What the main process says, in all of them; plain values only."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        dist.barrier()

    def leave(self) -> None:
        """Close the connections."""
        if dist.is_initialized():
            dist.destroy_process_group()
