from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from turnout.errors import CheckpointError
from turnout.train.tensorfile import decode, encode, load_tensors, save_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit (NaNs included)."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.numel() == 0 or torch.equal(*(torch.cat([t.flatten()]).view(torch.uint8) for t in (a, b)))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.sampled_from([0, 1, 2, 5]), max_size=3),
    layout=st.sampled_from(["plain", "transposed", "strided", "expanded"]),
    seed=st.integers(0, 2**20),
)
def test_any_dtype_shape_and_stride_comes_back_bit_for_bit(dtype, shape, layout, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)
    if layout == "transposed":
        tensor = tensor.T if tensor.dim() == 2 else tensor
    elif layout == "strided":
        tensor = tensor[..., ::2] if tensor.dim() else tensor
    elif layout == "expanded":
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    got, _ = decode(encode({"x": tensor}), "memory")
    assert same_bits(got["x"], tensor)


def test_nan_payloads_infinities_and_negative_zero_keep_their_bits() -> None:
    tensor = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 5e-324], dtype=torch.float64)
    got, _ = decode(encode({"x": tensor}), "memory")
    assert same_bits(got["x"], tensor)


def test_tied_tensors_are_stored_once_and_come_back_tied() -> None:
    weight = torch.randn(64, 64)
    data = encode({"embed": weight, "head": weight})
    assert len(data) < 1.5 * weight.nbytes
    got, _ = decode(data, "memory")
    assert got["embed"] is got["head"] and torch.equal(got["head"], weight)


def test_overlapping_views_of_one_storage_are_stored_apart() -> None:
    whole = torch.arange(12.0)
    views = {"whole": whole, "head": whole[:4], "matrix": whole.view(3, 4), "turned": whole.view(3, 4).T}
    got, _ = decode(encode(views), "memory")
    assert all(torch.equal(got[name], view) for name, view in views.items())


def test_parameters_lose_their_graph_but_not_their_values(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    save_tensors(tmp_path / "model.safetensors", dict(layer.named_parameters()), {"step": "7"})
    tensors, metadata = load_tensors(tmp_path / "model.safetensors")
    assert metadata == {"step": "7"} and torch.equal(tensors["weight"], layer.weight)
    assert not tensors["weight"].requires_grad


def test_a_safetensors_file_written_by_others_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    tensors, metadata = load_tensors(tmp_path / "other.safetensors")
    assert torch.equal(tensors["a"], torch.ones(2)) and metadata == {}


@pytest.mark.parametrize("cut", [0, 4, 8, 50, -1])
def test_a_file_cut_short_anywhere_is_a_checkpoint_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode({"a": torch.ones(20)})[:cut])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".CKPT", ".pkl"])
def test_pickles_are_neither_read_nor_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    with pytest.raises(CheckpointError, match=r"pickle.*use safetensors"):
        save_tensors(path, {"a": torch.ones(1)})
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickle.*use safetensors"):
        load_tensors(path)


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tensors(tmp_path / "none.safetensors")


def test_a_tensor_that_safetensors_cannot_hold_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="cannot hold"):
        encode({"sparse": torch.eye(3).to_sparse()})
