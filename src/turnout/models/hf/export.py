"""From a trained run to a folder that `AutoModelForCausalLM` and `AutoTokenizer` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turnout.errors import ConfigError, DataError
from turnout.models.causal_lm import CausalLM
from turnout.models.hf import TurnoutConfig, TurnoutForCausalLM


def export_model(
    model: CausalLM, folder: str | Path, *, length: int, tokenizer: Any = None, shard_size: str = "5GB"
) -> Path:
    """Write config, weights, generation config and tokenizer.

    Args:
        length: the longest sequence that the model was trained on.
        tokenizer: of `turnout.tasks.tokenizer`; None writes none.
        shard_size: largest file of weights, "5GB", "200MB", ...
    Raises:
        ConfigError: the folder exists and is not empty.
        DataError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another one")
    stop = None if tokenizer is None else int(tokenizer.separator)
    config = TurnoutConfig.of(
        model.config, vocab_size=model.vocab, max_position_embeddings=length, eos_token_id=stop, pad_token_id=stop
    )
    wrapped = TurnoutForCausalLM(config)
    wrapped.model.load_state_dict(model.state_dict())
    wrapped = wrapped.to(model.embed.weight.dtype)
    try:
        wrapped.save_pretrained(folder, max_shard_size=shard_size)
        if tokenizer is not None:
            (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
            vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
            symbol = next(name for name, token in vocab.items() if token == tokenizer.separator)
            described = {
                "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": symbol, "pad_token": symbol,
                "padding_side": "left", "model_max_length": length, "clean_up_tokenization_spaces": False,
            }  # fmt: skip
            (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; free some space, or choose another"
        ) from error
    return folder
