"""Next-token prediction on local text: a file or a folder, as bytes or BPE, with a held-out split of whole documents.

    tokens_t = x_{s+t},   targets_t = x_{s+t+1},   t = 0..T-1      s random in training, a multiple of T in validation

Every position has a target, and no position is "the query": `hint` is all False and `has_oracle` is False, so an oracle
router has nothing to be told here and must refuse.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from turnout.errors import CheckpointError, ConfigError, DataError, nearest
from turnout.tasks.batch import Batch
from turnout.tasks.slices import floor_power_of_two
from turnout.tasks.stream import TrainStream
from turnout.tasks.synthetic import check_count, check_token

if TYPE_CHECKING:
    import numpy as np
    import torch

    from turnout.tasks.shards import Shards
    from turnout.tasks.tokenizer import Tokenizer

_N_BYTES = 256
_MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Text of your own.

    Attributes:
        path: a text file, a folder searched for .txt, .md and .jsonl, or a folder of the token cache, copied from where
            the text was tokenised: then the text itself is not needed.
        length: T >= 1, tokens a window.
        tokenizer: "bytes", or "bpe" trained once on the training documents (needs the extra `data`).
        vocab: number of token ids: 256 for bytes, more for BPE.
        val_frac: share of the text held out, in whole documents where there are several; 0 < val_frac < 1.
        max_mb: use only so many million bytes of text; none = all of it.
        packing: a window holds several documents that do not see each other; false lets later ones read earlier ones.
            The mark behind a document then opens the next one.
    """

    kind: ClassVar[str] = "text"
    path: str
    length: int = 256
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab: int = _N_BYTES
    val_frac: float = 0.1
    max_mb: float | None = None
    packing: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("text path is empty; give a text file or a folder of text files")
        if self.length < 1:
            raise ConfigError(f"text length={self.length}; expected at least 1 token")
        if self.tokenizer not in ("bytes", "bpe"):
            raise ConfigError(
                f"text tokenizer={self.tokenizer!r} is unknown{nearest(self.tokenizer, ('bytes', 'bpe'))}"
            )
        if self.tokenizer == "bytes" and self.vocab != _N_BYTES:
            raise ConfigError(
                f'text vocab={self.vocab} but tokenizer="bytes" has 256 tokens; use vocab=256 or tokenizer="bpe"'
            )
        if self.tokenizer == "bpe" and self.vocab <= _N_BYTES:
            raise ConfigError(
                f'text vocab={self.vocab} but tokenizer="bpe" starts from the 256 bytes; use vocab > 256, such as 4096'
            )
        if not 0 < self.val_frac < 1:
            raise ConfigError(f"text val_frac={self.val_frac}; expected a share between 0 and 1, such as 0.1")
        if self.max_mb is not None and not self.max_mb > 0:
            raise ConfigError(f"text max_mb={self.max_mb}; expected a positive number of megabytes, or none for all")

    def build(self, seed: int) -> TextTask:
        """Read the text (tokenising it on first use) and open its streams.

        Raises:
            DataError: missing, empty, binary or too short text; token cache damaged or not writable.
            UnsupportedError: BPE without the `tokenizers` package.
        """
        return TextTask(self, seed=seed)

    def with_length(self, length: int) -> TextConfig:
        """The same text in windows of another length."""
        return replace(self, length=length)


class TextTask:
    """Windows of memory-mapped tokens (see `Task`): random for training, fixed and disjoint for validation.

    Attributes:
        train_tokens, val_tokens: tokens in each split, document separators included.
        bytes_per_token: of the validation text; loss in nats / (ln 2 · bytes_per_token) = bits per byte.
        slice_names: the domains (first folder below the path, or file) in the order of their numbers in the slice
            `domain`, which is there when the text has several.
    """

    chance: float | None = None
    has_oracle = False

    def __init__(self, config: TextConfig, *, seed: int) -> None:
        self.config = config
        self.vocab = config.vocab
        self.length = config.length
        self._shards = _open_shards(config)
        self._stream = TrainStream(kind=config.kind, seed=seed)
        self.train_tokens = len(self._shards.train)
        self.val_tokens = len(self._shards.val)
        self.bytes_per_token = self._shards.val_index.bytes / self._shards.val_index.tokens
        splits = (self._shards.train_index, self._shards.val_index)
        domains = sorted({name for split in splits for name, _ in split.domains})
        self.slice_names = {"domain": domains} if len(domains) > 1 else {}
        _warn_unless_near(config, self._shards)
        for name, tokens in (("training", self.train_tokens), ("validation", self.val_tokens)):
            if tokens <= self.length:
                raise DataError(
                    f"the {name} split of {config.path} has {tokens} tokens, "
                    f"shorter than a window of length={self.length} and its last target; "
                    f"use length <= {max(tokens - 1, 1)}, another val_frac (now {config.val_frac}) or more text"
                )

    @property
    def tokenizer(self) -> Tokenizer:
        """What made the tokens."""
        return self._shards.tokenizer

    def train_batch(self, n: int) -> Batch:
        """n windows at uniformly random places of the training split; advances the stream by one batch."""
        check_count("n", n)
        import torch

        starts = torch.randint(self.train_tokens - self.length, (n,), generator=self._stream.next())
        return self._windows("train", starts.numpy())

    def eval_batches(self, n_batches: int, n: int, seed_offset: int = 0) -> Iterator[Batch]:
        """Validation windows s = 0, T, 2T, …: never overlapping, the same at every call and for every seed.

        When more windows exist than n_batches·n, evenly spaced ones are taken, moved on by `seed_offset` windows. When
        fewer exist, each is given once: the last batch may be smaller and later ones absent.
        """
        check_count("n_batches", n_batches)
        check_count("n", n)
        import numpy as np

        n_windows = (self.val_tokens - 1) // self.length
        n_taken = min(n_windows, n_batches * n)
        windows = (np.arange(n_taken) * n_windows // n_taken + seed_offset) % n_windows
        return (self._windows("val", windows[i : i + n] * self.length) for i in range(0, n_taken, n))

    def state_dict(self) -> dict[str, Any]:
        """{"kind", "seed", "position", "data"}: data = digest of the tokens."""
        return {**self._stream.state_dict(), "data": self._shards.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the training stream exactly; CheckpointError for another task, seed or text."""
        if state.get("kind") == self.config.kind and state.get("data") != self._shards.digest:
            raise CheckpointError(
                f"the text at {self.config.path} gives other tokens than when this state was saved; "
                "put the original text and settings back, or start a new run"
            )
        self._stream.load_state_dict(state)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [int(token) for token in self._shards.tokenizer.encode(text.encode())]

    def decode_token(self, token: int) -> str:
        """The token's text; control characters and parts of characters escaped, `<doc>` between documents."""
        check_token(token, self.vocab)
        return self._shards.tokenizer.decode_token(int(token))

    def _windows(self, split: Literal["train", "val"], starts: np.ndarray) -> Batch:
        import numpy as np
        import torch

        source: np.ndarray = getattr(self._shards, split)
        places = starts[:, None] + np.arange(self.length + 1)
        ids = torch.from_numpy(source[places].astype(np.int64))
        at = torch.arange(self.length).repeat(len(starts), 1)
        slices = {"position": floor_power_of_two(at + 1)}
        if self.slice_names:
            slices["domain"] = torch.from_numpy(self._domains(split, places[:, 1:]))
        tokens = ids[:, :-1].contiguous()
        return Batch(
            tokens=tokens,
            at=at,
            targets=ids[:, 1:].contiguous(),
            hint=torch.zeros(at.shape, dtype=torch.bool),
            slices=slices,
            starts=document_starts(tokens, self._shards.tokenizer.separator) if self.config.packing else None,
        )

    def _domains(self, split: Literal["train", "val"], places: np.ndarray) -> np.ndarray:
        """Number of the domain that each token belongs to, int64 like `places`."""
        import numpy as np

        index = self._shards.train_index if split == "train" else self._shards.val_index
        numbers = np.array([self.slice_names["domain"].index(name) for name, _ in index.domains], dtype=np.int64)
        return numbers[np.searchsorted([end for _, end in index.domains], places, side="right")]


def document_starts(tokens: torch.Tensor, separator: int) -> torch.Tensor:
    """Position int64 [B, T] of the last separator at or before each token; 0 before the first one."""
    import torch

    at = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(tokens == separator, at, 0).cummax(1).values


def _warn_unless_near(config: TextConfig, shards: Shards) -> None:
    """Say so when whole documents cannot give the share that was asked."""
    held = shards.val_index.bytes / (shards.val_index.bytes + shards.train_index.bytes)
    if not config.val_frac / 2 <= held <= 2 * config.val_frac:
        n_documents = shards.val_index.documents + shards.train_index.documents
        warnings.warn(
            f"{held:.0%} of {config.path} is held out, not val_frac={config.val_frac:.0%}: "
            f"it has {n_documents} documents and a document is never split; join or divide the files to change that",
            stacklevel=4,
        )


def _open_shards(config: TextConfig) -> Shards:
    """The shards of this text and these settings, written on first use."""
    from turnout.tasks.documents import hold_out, limit_size, read_corpus
    from turnout.tasks.shards import is_shard_folder, load_shards, shard_folder, write_shards
    from turnout.tasks.tokenizer import BpeTokenizer, ByteTokenizer

    if is_shard_folder(config.path):
        return _copied_shards(config)
    corpus = read_corpus(config.path)
    max_bytes = None if config.max_mb is None else round(config.max_mb * _MEGABYTE)
    if max_bytes is not None and max_bytes >= corpus.size:
        max_bytes = None
    folder = shard_folder(
        content=corpus.digest,
        tokenizer=config.tokenizer,
        vocab=config.vocab,
        val_frac=config.val_frac,
        max_bytes=max_bytes,
    )
    if not folder.exists():
        documents = corpus.documents if max_bytes is None else limit_size(corpus.documents, max_bytes)
        if not documents:
            raise DataError(
                f"max_mb={config.max_mb} of {config.path} is not even one character; use more, or none for all"
            )
        train, val = hold_out(documents, config.val_frac)
        tokenizer: Tokenizer = ByteTokenizer()
        if config.tokenizer == "bpe":
            tokenizer = BpeTokenizer.train((document.read() for document in train), config.vocab)
        write_shards(folder, kind=config.tokenizer, tokenizer=tokenizer, train=train, val=val)
    return load_shards(folder)


def _copied_shards(config: TextConfig) -> Shards:
    """The shards that `path` itself names; they must be of the tokenizer that the config asks for."""
    from pathlib import Path

    from turnout.tasks.shards import load_shards
    from turnout.tasks.tokenizer import ByteTokenizer

    shards = load_shards(Path(config.path).expanduser())
    if config.max_mb is not None:
        raise ConfigError(f"text max_mb={config.max_mb}, but {config.path} is tokenised already; use none, or the text")
    found = "bytes" if isinstance(shards.tokenizer, ByteTokenizer) else "bpe"
    if (found, shards.tokenizer.vocab) != (config.tokenizer, config.vocab):
        raise ConfigError(
            f'{config.path} holds tokens of tokenizer="{found}", vocab={shards.tokenizer.vocab}; the config asks for '
            f'"{config.tokenizer}", vocab={config.vocab}: change the config, or give the text itself'
        )
    return shards
