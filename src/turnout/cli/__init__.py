"""The command line: `turnout VERB ...`. A verb's module in verbs/ is imported when it is called, so help is instant.

It has `Options` (its flags, a dataclass) and `run(call) -> Result`. Errors that a user can cause are one
line on stderr: exit 2 for usage and configuration, 1 for the rest, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from turnout.errors import ConfigError, TurnoutError, nearest

__all__ = ["VERBS", "main"]

VERBS = {
    "demo": "train a small model that learns which tokens need attention, and write its report",
    "train": "train a recipe, or go on with an interrupted run",
    "sweep": "train many seeds or settings of a recipe, and print one table",
    "eval": "score a trained run, also at another length or with a control for a router",
    "gather": "stream a dataset of the Hugging Face hub to local text",
    "generate": "continue text with a trained run or an exported model",
    "export": "write a run as a folder that Hugging Face's Auto classes read",
    "show": "print the resolved config of a recipe, or the result of a run",
    "list": "name the recipes, routers, directions, local tracks, tasks, runs or claims",
    "report": "write one HTML page about one run, or about several compared",
    "gallery": "draw the figures of docs/gallery from the committed results",
    "dashboard": "look at runs in a browser, live while they train",
    "reproduce": "measure published claims again",
    "claims": "print the table of claims and their verdicts",
    "bench": "measure kernels, layers and decoding against dense attention, and print the target table",
    "plan": "predict times of a layer or a model, and say from where on routing pays",
    "probe": "what each layer holds that routing needs, beside an untrained twin",
    "reach": "how far a trained model looks, and what a pattern would not let it see",
    "search": "find how far each head of a trained model needs to read",
    "ablate": "what a trained model loses without its routing, its heads or its layers, beside the controls",
    "certify": "check that no output depends on a later token, bit for bit",
}
_GLOBAL = ("--json", "--debug")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: words after the program's name; None takes `sys.argv`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _one_line_warnings():
            code = _dispatch(words)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        _complain("interrupted", str(stop) or "nothing was lost; a run goes on with turnout train --resume")
        return 130
    except BrokenPipeError:
        # The reader left (`| head`): nobody to tell. Without this Python complains when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        known = isinstance(error, TurnoutError | OSError)
        text = str(error) if known else f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
        _complain("error", text)
        return 2 if isinstance(error, ConfigError) else 1


def _dispatch(words: list[str]) -> int:
    leading = [word for word in words if word in _GLOBAL][: _first_other(words)]
    words = words[len(leading) :] + leading
    verb = words[0] if words and words[0] not in _GLOBAL else None
    if verb is None or verb in ("-h", "--help", "help"):
        from turnout.cli.help import overview

        print(overview(VERBS), file=sys.stdout if verb else sys.stderr)
        return 0 if verb else 2
    if verb in ("--version", "-V"):
        from turnout import __version__

        print(f"turnout {__version__}")
        return 0
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}{nearest(verb, VERBS)}")
    from turnout.cli.flags import parse
    from turnout.cli.result import emit

    module = importlib.import_module(f"turnout.cli.verbs.{verb}")
    if "-h" in words or "--help" in words:
        from turnout.cli.help import verb_help

        print(verb_help(verb, module.Options, [word for word in words[1:] if word not in ("-h", "--help")]))
        return 0
    call = parse(module.Options, verb, words[1:])
    result = module.run(call)
    emit(result, as_json=call.options.json)
    return int(result.code)


def _first_other(words: list[str]) -> int:
    """Index of the first word that is not a global flag."""
    return next((i for i, word in enumerate(words) if word not in _GLOBAL), len(words))


def _complain(kind: str, text: str) -> None:
    print(f"turnout: {kind}: {' '.join(text.split())}", file=sys.stderr)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings look like errors do, without the source line that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _complain("warning", str(message))
        yield
