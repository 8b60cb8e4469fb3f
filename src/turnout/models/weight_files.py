"""Which files hold the weights of a model folder in the Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path

from turnout.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def shard_names(folder: Path) -> list[str]:
    """File names of the weights.

    Raises:
        CheckpointError: the index is damaged, or a file that it names is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        names = ["model.safetensors"]
    else:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged ({error}); copy the folder again, or export it again") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} files of weights ({', '.join(missing[:3])}); copy the "
            "whole folder again, or export it again"
        )
    return names
