"""The angles between two subspaces, as an independent judge of directions that were found."""

import torch
from torch import Tensor


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of the principal angles between two column spaces, largest first (Bjorck & Golub 1973), in float64."""
    frames = [torch.linalg.qr(columns.double())[0] for columns in (first, second)]
    return torch.linalg.svdvals(frames[0].T @ frames[1]).clamp_max(1)
