"""Where power iteration starts: a direction for each row of the training data, kept between visits.

A row's top eigenvector hardly changes between two visits of an epoch, so that one step a visit
follows it (as in the power iterations of spectral normalization, Miyato et al., arXiv 1802.05957,
there a direction for each layer, here one for each row).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import BitwrightError


class Directions:
    """Unit vectors by the rows' numbers; `directions[index]` is what a batch starts from.

    >>> kept = Directions(60_000)
    >>> batch = torch.tensor([7, 3])
    >>> kept[batch].draw(torch.zeros(2, 10)).shape
    torch.Size([2, 10])

    Args:
        rows: of the training data.
        seed: of the random vectors that rows start from.

    Memory: a float32 of each number of a direction for each row: of the network's outputs for the
    Gauss-Newton product (2.4 MB for 60,000 rows of 10), of its input for the others (188 MB for
    60,000 of 28 × 28).
    """

    def __init__(self, rows: int, seed: int = 0) -> None:
        self.rows, self._seed = rows, seed
        self.vectors: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Start:
        return Start(self, index)


@dataclass(frozen=True)
class Start:
    """The directions of one batch: `index` [n] says which rows it has."""

    directions: Directions
    index: Tensor

    def draw(self, like: Tensor) -> Tensor:
        """Unit vectors [n, d] of the shape, type and place of `like`.

        Raises:
            BitwrightError: as many indexes as rows are needed; directions of another length.
        """
        kept = self.directions
        if self.index.shape != like.shape[:1]:
            raise BitwrightError(
                f"start has the shape {list(self.index.shape)} for {len(like)} rows; index "
                "Directions with the numbers of the batch's rows"
            )
        if kept.vectors is None:
            generator = torch.Generator().manual_seed(kept._seed)
            kept.vectors = unit(torch.randn(kept.rows, like.shape[1], generator=generator))
        if kept.vectors.shape[1] != like.shape[1]:
            raise BitwrightError(
                f"these Directions hold {kept.vectors.shape[1]} numbers a row and the product "
                f"wants {like.shape[1]}; use Directions of its own for each product and network"
            )
        return kept.vectors[self.index.cpu()].to(like)

    def keep(self, found: Tensor) -> None:
        """Vectors [n, d] of any length for the next visit; rows of zeros stay as they were."""
        kept = self.directions.vectors
        assert kept is not None
        index, found = self.index.cpu(), found.detach().to(kept)
        # curvatures of sure rows are tiny: neither they nor their squares may underflow
        found = found / found.abs().amax(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
        useful = found.isfinite().all(1, keepdim=True) & (found != 0).any(1, keepdim=True)
        kept[index] = torch.where(useful, unit(found), kept[index])


def unit(v: Tensor) -> Tensor:
    """Rows [n, d] at length 1; zeros stay zeros."""
    return v / v.norm(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
