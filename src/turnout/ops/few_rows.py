"""Products of a decoding step: so few rows that reading the weights is all there is to it.

Axes: B rows, E inputs, N outputs.
"""

# The operator's schema is read from its annotations, which therefore are not postponed.
import torch
from torch import Tensor
from torch.nn.functional import linear

from turnout.ops.attend.triton.support import why_not_here

# Rows of one tile of the matrix unit.
MOST_ROWS = 16
# A program reads this many rows of a weight matrix.
COLUMNS = 64


def few_rows(
    x: Tensor, first: Tensor, second: Tensor | None = None, *, taken: Tensor | None = None, scale: Tensor | None = None
) -> list[Tensor]:
    """scale x first^T and x second^T, in one launch; without `first` being read where nobody asks for it.

    cuBLAS reads matrices of 8 and 16 MB at 1.4 to 2 TB/s on an H200, one launch each; two of them in one launch take
    8.9 us instead of 12.6 (E = 2,048). A row's result does not depend on the other rows.

    Args:
        x: [B, 1, E]; first, second: [N, E].
        taken: bool [B, G]; where no row is taken at all, the first result is zeros and its weights are not read.
        scale: [B], of the rows of the first result.
    Returns:
        [B, 1, N] of each matrix that is given. Elsewhere than in half precision on a GPU, and for more than
        `MOST_ROWS` rows, torch's products, of all rows.
    """
    weights = [first] if second is None else [first, second]
    if not _fits(x, weights):
        wide = [linear(x if scale is None else x * scale[:, None, None].to(x.dtype), first)]
        return wide if second is None else [*wide, linear(x, second)]
    made = _few_rows(x[:, 0].contiguous(), first, second, taken, scale)
    return [y[:, None] for y in made[: len(weights)]]


def _fits(x: Tensor, weights: list[Tensor]) -> bool:
    whole = all(w.is_contiguous() and w.dtype == x.dtype and w.shape[0] % COLUMNS == 0 for w in weights)
    small = x.ndim == 3 and x.shape[1] == 1 and x.shape[0] <= MOST_ROWS and x.shape[2] % 16 == 0
    half = x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled("cuda")
    wanted = x.is_cuda and not torch.is_grad_enabled()
    return wanted and whole and small and half and not why_not_here("cuda", x.device.index or 0)


@torch.library.custom_op("turnout::few_rows", mutates_args=())
def _few_rows(
    x: Tensor, first: Tensor, second: Tensor | None, taken: Tensor | None, scale: Tensor | None
) -> list[Tensor]:
    from turnout.ops.few_rows_kernel import launch

    return launch(x, first, second, taken, scale)


@_few_rows.register_fake
def _like(x: Tensor, first: Tensor, second: Tensor | None, taken: Tensor | None, scale: Tensor | None) -> list[Tensor]:
    return [x.new_empty(len(x), len(w)) for w in (first, second) if w is not None]
