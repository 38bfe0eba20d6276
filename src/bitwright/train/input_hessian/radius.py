"""Radius within which a row keeps its class, predicted from its gradient and curvature.

Predictions, not certificates: they see the network at one point, and across its next kink nothing
that was measured there bounds anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: loss at which two classes are as likely as each other and no third one is likely
EVEN = math.log(2)


def quadratic_radius(
    loss: Tensor, gradient: Tensor, curvature: Tensor, threshold: float = EVEN
) -> Tensor:
    """Where `f + g r + ½ λ r²` reaches the threshold: Moosavi-Dezfooli et al. (1811.09716), eq. 4.

        r = 2 c / (g + √(g² + 2 λ c)) ,   c = threshold − f

    A lower bound for a loss that is quadratic in the input; 0 where the loss is above already.

    Args:
        loss, gradient, curvature: [n] f, g = ‖∇f‖ and λ = ‖∇²f‖.
        threshold: of the loss, nats.

    Returns:
        [n], in units of the input; inf where neither gradient nor curvature is above 0.
    """
    room = (threshold - loss).clamp(min=0)
    return 2 * room / (gradient + (gradient.square() + 2 * curvature * room).sqrt())


def logistic_radius(logits: Tensor, y: Tensor, curvature: Tensor) -> Tensor:
    """Margin over slope, the slope from the curvature, as if only two classes mattered.

    Between two classes whose logits differ by m and are linear in the input, m = m₀ − ‖d‖ r, the
    cross-entropy log(1 + e^(−m)) has the curvature `λ = p (1 − p) ‖d‖²`, p the probability of y; so

        r = m₀ √(p (1 − p) / λ)

    exactly, where the quadratic model of :func:`quadratic_radius` is far off: at p near 1.

    Args:
        logits: [n, C], float64 for rows that are very sure.
        y: [n] classes; curvature: [n] λ of the cross-entropy.

    Returns:
        [n], in units of the input; 0 where another class is as likely already.
    """
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -math.inf)
    margin = own[:, 0] - others.amax(1)
    log_odds = own[:, 0] - others.logsumexp(1)  # p (1 − p) without the cancellation of 1 − p
    spread = torch.sigmoid(log_odds) * torch.sigmoid(-log_odds)
    return margin.clamp(min=0) * (spread / curvature).sqrt()
