"""`turnout gather`: a dataset of the Hugging Face hub as local text, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result
from turnout.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Write a dataset's documents to a folder that text recipes read: --task.path FOLDER tokenises it once.

    Stopped at any moment it goes on behind the last whole part when called again.

    Args:
        dataset: its name on the hub, or a path that the package datasets reads (extra datasets).
        folder: where to write.
        subset: of the dataset, where it has several.
        split: train, validation, ...
        column: that holds the text.
        max_mb: stop at so many million bytes of text; none = all of it.
    """

    positional: ClassVar[tuple[str, ...]] = ("dataset", "folder")
    dataset: str
    folder: str
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    max_mb: float | None = None


def run(call: Call[Options]) -> Result:
    """Stream, write, and say how to train on it."""
    from turnout.train.gather import gather, stream

    options = call.options
    if options.max_mb is not None and not options.max_mb > 0:
        raise ConfigError(f"--max-mb={options.max_mb}; expected > 0")
    asked = {
        "dataset": options.dataset, "subset": options.subset, "split": options.split, "column": options.column,
        "max_mb": options.max_mb,
    }  # fmt: skip
    documents = stream(options.dataset, subset=options.subset, split=options.split, column=options.column)
    limit = None if options.max_mb is None else round(options.max_mb * 1e6)
    found = gather(Path(options.folder), documents, asked, max_bytes=limit)
    text = f"{found['documents']:,} documents, {found['bytes'] / 1e6:,.1f} MB in {options.folder}"
    return Result(found, [text, f"train on it with: turnout train RECIPE --task.path {options.folder}"])
