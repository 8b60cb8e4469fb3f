"""Rows of a Hugging Face dataset, one after the other; nothing else here downloads anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from turnout.errors import DataError, UnsupportedError


def dataset_rows(name: str, *, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a dataset of the hub, or of a local folder that `datasets` reads.

    Raises:
        UnsupportedError: the package is not installed.
        DataError: no such dataset or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise UnsupportedError(
            f"dataset {name} needs the package datasets, which is not installed; pip install 'turnout[datasets]'"
        ) from error
    # Code that comes with a dataset is not run.
    os.environ.setdefault("HF_DATASETS_TRUST_REMOTE_CODE", "0")
    try:
        yield from datasets.load_dataset(name, subset, split=split, streaming=True)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise DataError(f"dataset {name}, split {split}: {str(error).splitlines()[0][:200]}") from error
