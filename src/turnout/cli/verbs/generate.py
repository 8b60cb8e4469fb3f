"""`turnout generate`: continue text with a trained run or an exported model."""

from __future__ import annotations

import codecs
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from turnout.cli.find import find_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result
from turnout.errors import ConfigError, DataError

if TYPE_CHECKING:
    from turnout.models.causal_lm import CausalLM
    from turnout.models.generate import Continuation
    from turnout.tasks.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Continue a prompt from --prompt, from a file, or from standard input; one sequence is shown as it is made.

    Args:
        model: a finished run on text, or a folder that turnout export wrote.
        prompt: the text to continue.
        file: read the prompt from this file.
        lines: every line of the file (or of standard input) is a prompt of its own.
        tokens: how many new ones at most.
        samples: continuations of each prompt.
        temperature: of the draw, > 0.
        top_k: draw from the k most probable tokens; 0 = all.
        top_p: draw from the most probable tokens that together reach this probability.
        greedy: always take the most probable token.
        seed: of the draws.
        whole: go on behind the end of a document.
        beyond: allow more tokens than the model was trained on.
        compiled: compile the steps first; takes seconds, pays for long answers (GPU).
        uncached: run the whole text again for each token; slow, for checking.
        device: auto, cpu or cuda.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)
    model: str
    prompt: str | None = None
    file: str | None = None
    lines: bool = False
    tokens: int = 128
    samples: int = 1
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    greedy: bool = False
    seed: int = 0
    whole: bool = False
    beyond: bool = False
    compiled: bool = False
    uncached: bool = False
    device: str = "auto"
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Generate, print, and say how much of it attended."""
    from turnout.models.generate import Sampling, generate
    from turnout.train.loop import pick_device

    options = call.options
    if options.tokens < 1 or options.samples < 1:
        raise ConfigError(f"--tokens={options.tokens}, --samples={options.samples}; expected >= 1")
    if not options.greedy and not options.temperature > 0:
        raise ConfigError(f"--temperature={options.temperature}; expected > 0, or --greedy")
    texts = _prompts(options)
    model, tokenizer, trained_on = load(options.model, options.runs)
    prompts = [tokenizer.encode(text).tolist() for text in texts for _ in range(options.samples)]
    temperature = 0.0 if options.greedy else options.temperature
    sampling = Sampling(temperature=temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed)
    live = len(prompts) == 1 and not options.json
    show = _Stream(tokenizer, texts[0]) if live else None
    began = time.perf_counter()
    made = generate(
        model.to(pick_device(options.device)), prompts, new_tokens=options.tokens, sampling=sampling,
        stop=None if options.whole else tokenizer.separator, cached=not options.uncached,
        longest=None if options.beyond else trained_on, on_tokens=show,
        compiler="inductor" if options.compiled else None,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if show is not None:
        show.close()
    data = _data(options, texts, made, tokenizer, seconds)
    parts: list[Any] = []
    if not live:
        for item in data["sequences"]:
            parts += [f"--- prompt {item['prompt']}, sample {item['sample']}", item["prompt_text"] + item["text"]]
    parts.append(_closing(data))
    return Result(data, parts)


def load(word: str, runs: str) -> tuple[CausalLM, Tokenizer, int]:
    """Model, tokenizer and trained length of a run or of an exported folder.

    Raises:
        DataError: no such thing, no text model, or a tokenizer that does not belong to the model.
    """
    from turnout.tasks.tokenizer import read_tokenizer
    from turnout.train.pretrained import is_pretrained, load_pretrained

    if is_pretrained(word):
        model, config = load_pretrained(word)
        tokenizer, length = read_tokenizer(Path(word)), int(config.get("max_position_embeddings", 1024))
    else:
        from turnout.train.loop import load_model

        found = trained(find_run(word, runs))
        model, run_config, task = load_model(found)
        own = getattr(task, "tokenizer", None)
        if own is None:
            raise DataError(f"run {found.name} was trained on task {run_config.task.kind!r}, which is not text")
        tokenizer, length = own, task.length
    if tokenizer.vocab != model.vocab:
        raise DataError(
            f"the tokenizer of {word} has {tokenizer.vocab} tokens and the model {model.vocab}; they do not belong "
            "together: put back the tokenizer.json that was exported with the model"
        )
    return model, tokenizer, length


def _prompts(options: Options) -> list[bytes]:
    if options.prompt is not None and options.file is not None:
        raise ConfigError("--prompt and --file are both given; keep one")
    if options.prompt is not None:
        text = options.prompt.encode()
    elif options.file is not None:
        try:
            text = Path(options.file).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the prompt {options.file}: {error.strerror}") from error
    else:
        text = sys.stdin.buffer.read()
    prompts = [line for line in text.splitlines() if line] if options.lines else [text]
    if not prompts or not all(prompts):
        raise ConfigError("the prompt is empty; give text with --prompt, --file or on standard input")
    return prompts


class _Stream:
    """Writes tokens as they come, the prompt before the first; a character appears once all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer, prompt: bytes) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.prompt = prompt.decode("utf-8", "replace")

    def __call__(self, rows: list[int], tokens: list[int]) -> None:
        kept = [token for token in tokens if token != self.tokenizer.separator]
        self._write(self.decoder.decode(self.tokenizer.decode(kept)))

    def close(self) -> None:
        self._write(self.decoder.decode(b"", final=True) + "\n")

    def _write(self, text: str) -> None:
        # What refuses the prompt has had its say by now.
        text, self.prompt = self.prompt + text, ""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()


def _data(
    options: Options, texts: list[bytes], made: list[Continuation], tokenizer: Tokenizer, seconds: float
) -> dict[str, Any]:
    sequences: list[dict[str, Any]] = []
    for i, item in enumerate(made):
        text = texts[i // options.samples].decode("utf-8", "replace")
        kept = [token for token in item.tokens if token != tokenizer.separator]
        sequences.append(
            {"prompt": i // options.samples, "sample": i % options.samples, "prompt_text": text,
             "text": tokenizer.decode(kept).decode("utf-8", "replace"), "tokens": item.tokens,
             "usage": item.taken.float().mean().item() if item.taken.numel() else None}
        )  # fmt: skip
    count = sum(len(item.tokens) for item in made)
    used = [item["usage"] for item in sequences if item["usage"] is not None]
    return {
        "model": options.model, "sequences": sequences, "new_tokens": count, "seconds": seconds,
        "tokens_per_s": count / seconds, "usage": sum(used) / len(used) if used else None,
    }  # fmt: skip


def _closing(data: dict[str, Any]) -> str:
    usage = "" if data["usage"] is None else f"; {100 * data['usage']:.1f} % of (token, layer) slots attended"
    return f"{data['new_tokens']} tokens in {data['seconds']:.2f} s, {data['tokens_per_s']:.0f} a second{usage}"
