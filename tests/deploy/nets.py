"""Tiny networks of every kind that is deployed, and their quantized forms with random widths."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.network import build
from bitwright.quantize import Quantized, calibrate, round_weights, weight_tables


class Fn(nn.Module):
    """Some modules, and a forward given as a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.f = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


IMAGE = (3, 8, 8)
#: of the tables' rows
TOKENS = 11


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch-norm, with statistics and slopes that are not trivial."""
    norm = nn.BatchNorm2d(o)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.3)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.normal_(norm.running_mean, std=0.2)
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), norm)


def head(m: Fn, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))


def plain() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu(m.b(F.relu(m.a(x))))
        return m.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    return Fn(forward, a=conv(3, 6), b=conv(6, 8, stride=2), head=nn.Linear(8, 5))


def residual() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(m.b(F.relu(m.a(x))) + m.short(x))
        return head(m, F.relu(m.c(x) + x))

    return Fn(
        forward,
        stem=conv(3, 4),
        a=conv(4, 8, stride=2),
        b=conv(8, 8),
        short=conv(4, 8, 1, 2),
        c=conv(8, 8),
        head=nn.Linear(8, 5),
    )


def mobile() -> Fn:
    """Depthwise and ReLU6, with slopes that let the clip at 6 work."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu6(m.stem(x))
        y = m.project(F.relu6(m.depth(F.relu6(m.expand(x)))))
        return head(m, F.relu6(m.last(x + y)))

    model = Fn(
        forward,
        stem=conv(3, 4),
        expand=conv(4, 12, 1),
        depth=conv(12, 12, groups=12),
        project=conv(12, 4, 1),
        last=conv(4, 8, 1),
        head=nn.Linear(8, 5),
    )
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 2.0, 6.0)
    return model


def fire() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu(m.squeeze(x))
        x = torch.cat([F.relu(m.left(x)), F.relu(m.right(x))], 1)
        return m.head(x).mean((2, 3))

    return Fn(
        forward, squeeze=conv(3, 4), left=conv(4, 6, 1), right=conv(4, 6), head=nn.Conv2d(12, 5, 1)
    )


def signed_cat() -> Fn:
    """A branch with and one without ReLU: the joined tensor has a grid of its own."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(m.left(x)), m.right(x)], 1)
        return head(m, F.relu(m.last(x)))

    return Fn(forward, left=conv(3, 4), right=conv(3, 4), last=conv(8, 6), head=nn.Linear(6, 5))


def maximum() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.a(x)), 3, 2, 1)
        x = F.max_pool2d(m.b(x), 2)
        return m.head(x.flatten(1))

    return Fn(forward, a=conv(3, 6), b=conv(6, 8), head=nn.Linear(32, 5))


def pools() -> Fn:
    """Average pooling with padding counted and not, of both signs, and maximum pooling."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.a(x)), 3, 1, 1)
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=True)
        x = F.avg_pool2d(F.relu(m.b(x)), 3, 1, 1, count_include_pad=False)
        return m.head(F.avg_pool2d(m.c(x), 2).flatten(1))

    return Fn(
        forward,
        a=conv(3, 6),
        b=conv(6, 8, groups=2),
        c=conv(8, 6),
        head=nn.Linear(24, 5),
    )


def squeeze_excite() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return head(m, F.relu(m.b(x * gate)))

    return Fn(
        forward,
        a=conv(3, 8),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        b=conv(8, 8),
        head=nn.Linear(8, 5),
    )


def signal() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(m.a(x)), 2)
        return m.head(F.relu(m.b(x)).flatten(1))

    return Fn(
        forward,
        a=nn.Conv1d(2, 6, 5, padding=2),
        b=nn.Conv1d(6, 6, 3, stride=2, padding=1),
        head=nn.Linear(24, 5),
    )


def signal_average() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.avg_pool1d(F.relu(m.a(x)), 2)
        return m.head(F.relu(m.b(x)).mean(-1))

    return Fn(
        forward,
        a=nn.Conv1d(2, 6, 5, padding=2),
        b=nn.Conv1d(6, 8, 3, padding=1),
        head=nn.Linear(8, 5),
    )


def dense() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        return m.c(F.relu(m.b(F.relu(m.a(x)))))

    return Fn(forward, a=nn.Linear(12, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 5))


def tokens() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = x + m.b(F.relu(m.a(m.inside(x))))
        return m.head(x.mean(1))

    return Fn(
        forward,
        inside=nn.Linear(6, 8),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 6),
        head=nn.Linear(6, 5),
    )


def gelu_tokens() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = x + m.b(F.gelu(m.a(m.norm(x))))
        return m.head(m.norm2(x).mean(1))

    return Fn(
        forward,
        norm=nn.LayerNorm(6),
        norm2=nn.LayerNorm(6),
        a=nn.Linear(6, 16),
        b=nn.Linear(16, 6),
        head=nn.Linear(6, 5),
    )


def words() -> Fn:
    """A table looked up twice, once straight into integers, and positions that all rows share."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        inner = m.b(F.relu(m.a(m.e(x)))) + m.places(torch.arange(x.shape[1]))
        return m.head((inner + m.e(x[:, :1])).mean(1))

    return Fn(
        forward,
        e=nn.Embedding(TOKENS, 6, padding_idx=0),
        places=nn.Embedding(7, 6),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 6),
        head=nn.Linear(6, 5),
    )


def tied_words() -> Fn:
    """A table that is the head's weight as well."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        return F.linear(m.a(torch.tanh(m.e(x))).mean(1), m.e.weight, m.bias)

    return Fn(
        forward,
        e=nn.Embedding(TOKENS, 6),
        a=nn.Linear(6, 6),
        bias=nn.Parameter(torch.zeros(TOKENS)),
    )


def twice() -> Fn:
    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        return head(m, F.relu(m.b(F.relu(m.b(x)))))

    return Fn(forward, a=conv(3, 6), b=nn.Conv2d(6, 6, 3, padding=1), head=nn.Linear(6, 5))


def padded_shortcut() -> Fn:
    """The shortcut of CIFAR ResNets: every second pixel, and channels of zeros."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return head(m, F.relu(m.b(F.relu(m.a(x))) + short))

    return Fn(forward, stem=conv(3, 4), a=conv(4, 8, stride=2), b=conv(8, 8), head=nn.Linear(8, 5))


def clips() -> Fn:
    """Hardswish, and clips that saturation does not always do: above alone, and on both sides."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        x = F.hardswish(m.a(x))
        x = torch.clamp(m.b(x), max=0.6)
        return head(m, F.relu(m.c(F.hardtanh(m.d(x)))))

    return Fn(forward, a=conv(3, 6), b=conv(6, 6), c=conv(6, 6), d=conv(6, 6), head=nn.Linear(6, 5))


def segments() -> Fn:
    """A class for every pixel."""

    def forward(m: Fn, x: Tensor) -> Tensor:
        return m.b(F.relu(m.a(x)))

    return Fn(forward, a=conv(3, 8), b=nn.Conv2d(8, 4, 1))


#: name -> (model, shape of one row)
ROSTER: dict[str, tuple[Callable[[], Fn], tuple[int, ...]]] = {
    "plain": (plain, IMAGE),
    "residual": (residual, IMAGE),
    "mobile": (mobile, IMAGE),
    "fire": (fire, IMAGE),
    "signed_cat": (signed_cat, IMAGE),
    "maximum": (maximum, IMAGE),
    "pools": (pools, IMAGE),
    "squeeze_excite": (squeeze_excite, IMAGE),
    "signal": (signal, (2, 16)),
    "signal_average": (signal_average, (2, 16)),
    "dense": (dense, (12,)),
    "tokens": (tokens, (7, 6)),
    "gelu_tokens": (gelu_tokens, (7, 6)),
    "words": (words, (7,)),
    "tied_words": (tied_words, (7,)),
    "twice": (twice, IMAGE),
    "clips": (clips, IMAGE),
    "padded_shortcut": (padded_shortcut, IMAGE),
    "segments": (segments, IMAGE),
}


def rows(shape: tuple[int, ...], count: int = 48, seed: int = 5, *, tokens: bool = False) -> Tensor:
    """Noise with a mean of its own for each row; or tokens."""
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        return torch.randint(0, TOKENS, (count, *shape), generator=generator)
    means = torch.randn(count, *[1] * len(shape), generator=generator)
    return torch.randn(count, *shape, generator=generator) + means


@functools.cache
def _fitted(name: str, bits: tuple[int, int], seed: int, narrow: bool) -> tuple[Quantized, Tensor]:
    make, shape = ROSTER[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
    x = rows(shape, tokens="words" in name)
    network = build(model, x)
    rng = np.random.default_rng(seed)
    widths = {la.name: rng.integers(bits[0], bits[1] + 1, la.rows) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    weights = {la.weight: layers[la.name].matrix().reshape(la.shape) for la in network.layers}
    groups = sorted({e.group for e in network.edges})
    edge_bits = {g: int(rng.integers(2, 9)) if narrow else 8 for g in groups}
    return Quantized(network, layers, calibrate(network, x, bits=edge_bits, constants=weights)), x


def quantized(
    name: str,
    *,
    edges: bool = True,
    bits: tuple[int, int] = (1, 8),
    seed: int = 0,
    narrow: bool = False,
) -> tuple[Quantized, Tensor]:
    """A network of the roster with random widths for every channel, and rows it was fitted on.

    `narrow`: edges of 2 to 8 bits, at random.

    The same objects every time: not to be changed.
    """
    found, x = _fitted(name, bits, seed, narrow)
    return (found if edges else replace(found, edges={})), x
