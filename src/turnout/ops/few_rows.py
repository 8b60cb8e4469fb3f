"""Products of a decoding step: so few rows that reading the weights is all there is to it.

Axes: B rows, E inputs, N outputs, S parts of the inputs.
"""

# The operator's schema is read from its annotations, which therefore are not postponed.
import torch
from torch import Tensor
from torch.nn.functional import linear

from turnout.ops.attend.triton.support import why_not_here

# Rows of one tile of the matrix unit, and outputs of one.
MOST_ROWS, OUTPUTS = 16, 64


def few_rows(
    x: Tensor, first: Tensor, second: Tensor | None = None, *, taken: Tensor | None = None, scale: Tensor | None = None
) -> list[Tensor]:
    """scale x first^T and x second^T, in one launch; without `first` being read where nobody asks for it.

    cuBLAS reads matrices of 8 to 25 MB at 1.4 to 2 TB/s on an H200, this at 2 to 3: a program reads a piece of some
    rows of the weights, so that all multiprocessors have work, and writes a part of its sums; adding the parts up is
    left to torch, where a compiler joins it to what follows. A row's result does not depend on the other rows.

    Args:
        x: [B, 1, E]; first, second: [N, E].
        taken: bool [B, G]; where no row is taken at all, the first result is zeros and its weights are not read.
        scale: [B], of the rows of the first result.
    Returns:
        [B, 1, N] of each matrix that is given. Elsewhere than in half precision on a GPU, and for more than
        `MOST_ROWS` rows, torch's products, of all rows.
    """
    weights = [first] if second is None else [first, second]
    factor = None if scale is None else scale[:, None, None]
    if not _fits(x, weights):
        wide = [linear(x if factor is None else x * factor.to(x.dtype), first)]
        return wide if second is None else [*wide, linear(x, second)]
    found = list(_few_rows(x[:, 0].contiguous(), first, second, taken).sum(0)[:, None].split([*map(len, weights)], -1))
    if factor is not None:
        found[0] = found[0] * factor
    return [y.to(x.dtype) for y in found]


def _fits(x: Tensor, weights: list[Tensor]) -> bool:
    whole = all(
        w.is_contiguous() and w.dtype == x.dtype and w.device == x.device and w.shape[0] % OUTPUTS == 0 for w in weights
    )
    small = x.ndim == 3 and x.shape[1] == 1 and x.shape[0] <= MOST_ROWS and x.shape[2] % 8 == 0
    half = x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled("cuda")
    wanted = x.is_cuda and not torch.is_grad_enabled()
    return wanted and whole and small and half and not why_not_here("cuda", x.device.index or 0)


@torch.library.custom_op("turnout::few_rows", mutates_args=())
def _few_rows(x: Tensor, first: Tensor, second: Tensor | None, taken: Tensor | None) -> Tensor:
    from turnout.ops.few_rows_kernel import launch

    return launch(x, first, second, taken)


@_few_rows.register_fake
def _like(x: Tensor, first: Tensor, second: Tensor | None, taken: Tensor | None) -> Tensor:
    from turnout.ops.few_rows_kernel import cut

    outputs = len(first) + (0 if second is None else len(second))
    return x.new_empty(cut(x.shape[1], outputs)[1], len(x), outputs, dtype=torch.float32)
