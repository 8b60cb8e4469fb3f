"""What can be wrong with a folder of weights, said before and after `transformers` has read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnout.errors import CheckpointError
from turnout.models.weight_files import INDEX, shard_names


def check_files(folder: Any) -> None:
    """Raise CheckpointError when a local folder names a shard that is not there; anything else is left alone."""
    path = Path(str(folder))
    if (path / INDEX).is_file():
        shard_names(path)


def check_loaded(model: Any, info: Any, where: str, *, forgiving: bool) -> None:
    """Raise CheckpointError unless every weight came from the checkpoint and every tensor there was used."""
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    missing = sorted(set(info["missing_keys"]) - tied)
    extra = sorted(set(info["unexpected_keys"]))
    shapes = [str(key[0]) for key in info["mismatched_keys"]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({', '.join(missing[:3])})")
    if extra:
        problems.append(f"{len(extra)} unexpected ({', '.join(extra[:3])})")
    if shapes and not forgiving:
        problems.append(f"{len(shapes)} of another shape ({', '.join(shapes[:3])})")
    if problems:
        raise CheckpointError(
            f"the weights in {where} do not fit its config: {'; '.join(problems)}; they belong to another "
            "model: use the config.json saved with them"
        )
