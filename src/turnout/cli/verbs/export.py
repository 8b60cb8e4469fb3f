"""`turnout export`: a trained run as a folder that Hugging Face's Auto classes read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turnout.cli.find import find_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Write config, weights (safetensors) and tokenizer; `import turnout.models.hf` enters the Auto classes.

    Args:
        run: name or path of a finished run.
        folder: where to write; must not exist or be empty.
        shard_size: largest file of weights, 5GB, 200MB, ...
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("run", "folder")
    run: str
    folder: str
    shard_size: str = "5GB"
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Export and say how to load it."""
    from turnout.models.hf.export import export_model
    from turnout.train.loop import load_model

    options = call.options
    source = trained(find_run(options.run, options.runs))
    model, _, task = load_model(source)
    tokenizer = getattr(task, "tokenizer", None)
    folder = export_model(model, options.folder, length=task.length, tokenizer=tokenizer, shard_size=options.shard_size)
    files = sorted(path.name for path in folder.iterdir())
    data = {"run": source.name, "folder": str(folder), "files": files, "length": task.length, "vocab": model.vocab}
    how = f'import turnout.models.hf; AutoModelForCausalLM.from_pretrained("{folder}")'
    return Result(data, [f"wrote {', '.join(files)} to {folder}", f"load it with: {how}"])
