"""What can be wrong with a folder of weights, said before and after `transformers` has read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turnout.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def check_files(folder: Any) -> None:
    """Raise CheckpointError when a local folder names a shard that is not there; anything else is left alone."""
    path = Path(str(folder))
    index = path / INDEX
    if not index.is_file():
        return
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is damaged ({error}); restore it from a copy, or save the model again"
        ) from error
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(shards)} shards ({', '.join(missing[:3])}); copy the whole folder "
            "again, or save the model again"
        )


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
