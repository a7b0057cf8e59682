"""The motion encoder: a picture of a face in, a motion vector out (the motion half of LIA, Wang et al. 2022).

- equalised layers: weights are stored at unit size and multiplied by 1/√(inputs) when they are used
- each level halves the resolution; a [1, 3, 3, 1] blur before every strided convolution keeps it free of aliasing
- the head is five linears with nothing between them, whose outputs are coordinates along orthonormal directions

Everything is float32 whatever the parameters are stored in: it runs once per clip, and the directions are a QR
decomposition. Parameter names are the published ones, and the blur kernels are tensors among them.
"""
from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_LINEARS = 5
SMALLEST_MAP = 4  # rows and columns that the last convolution, which has no padding, takes


class MotionEncoder(nn.Module):
    """Faces [n, 3, size, size] in [-1, 1] to motion vectors [n, dim], float32.

    `size` is a power of two from 8; `dim` is the width of the result and of the widest layers; `num_motions` <= `dim`.
    """

    def __init__(self, size: int, dim: int, num_motions: int) -> None:
        super().__init__()
        self.size = size
        self.enc = Encoder(size, dim, num_motions)
        self.dec = Synthesis(dim, num_motions)

    def forward(self, faces: Tensor) -> Tensor:
        if faces.shape[-2:] != (self.size, self.size):
            raise ValueError(f"faces must be {self.size} x {self.size} pixels; got {faces.shape[-2]} x {faces.shape[-1]}")
        return self.dec(self.enc(faces.float()))


class Encoder(nn.Module):
    """Faces to coordinates [n, num_motions]."""

    def __init__(self, size: int, dim: int, num_motions: int) -> None:
        super().__init__()
        self.net_app = Appearance(size, dim)
        widths = [dim] * NUM_LINEARS + [num_motions]
        self.fc = nn.Sequential(*(EqualLinear(i, o) for i, o in pairwise(widths)))

    def forward(self, faces: Tensor) -> Tensor:
        return self.fc(self.net_app(faces))


class Appearance(nn.Module):
    """Faces to vectors [n, dim]: residual levels down to 4 x 4, then one convolution over what is left."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        sizes = [size >> level for level in range(int(math.log2(size // SMALLEST_MAP)) + 1)]
        widths = [channels(side, dim) for side in sizes]
        self.convs = nn.Sequential(
            nn.Sequential(EqualConv(3, widths[0], 1), ScaledLeakyReLU(widths[0])),
            *(ResidualBlock(i, o) for i, o in pairwise(widths)),
            EqualConv(dim, dim, SMALLEST_MAP),
        )

    def forward(self, faces: Tensor) -> Tensor:
        return self.convs(faces).flatten(1)


class Synthesis(nn.Module):
    """Coordinates [n, num_motions] to vectors [n, dim]."""

    def __init__(self, dim: int, num_motions: int) -> None:
        super().__init__()
        self.direction = Direction(dim, num_motions)

    def forward(self, coordinates: Tensor) -> Tensor:
        return coordinates @ self.direction().T


class Direction(nn.Module):
    """Orthonormal directions [dim, num_motions]."""

    def __init__(self, dim: int, num_motions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, num_motions))

    def forward(self) -> Tensor:
        # The signs of the columns are those of a Householder QR, which LAPACK and its GPU counterparts share. They are part of
        # what was trained: they must not be normalised, nor computed by another method.
        return torch.linalg.qr(self.weight.float() + 1e-8).Q


class ResidualBlock(nn.Module):
    """[n, in, s, s] to [n, out, s/2, s/2]."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(EqualConv(in_dim, in_dim, 3, padding=1), ScaledLeakyReLU(in_dim))
        self.conv2 = nn.Sequential(Blur(padding=2), EqualConv(in_dim, out_dim, 3, stride=2), ScaledLeakyReLU(out_dim))
        # The convolution here has a single tap, so the stride is taken by the blur: a quarter of the work, the same values.
        self.skip = nn.Sequential(Blur(padding=1, stride=2), EqualConv(in_dim, out_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class EqualConv(nn.Module):
    """A convolution without bias; its weight has unit size and is scaled by 1/√(inputs) here."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.scale = 1 / math.sqrt(in_dim * kernel**2)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.float() * self.scale, stride=self.stride, padding=self.padding)


class EqualLinear(nn.Module):
    """A linear; its weight has unit size and is scaled by 1/√(inputs) here."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float() * self.scale, self.bias.float())


class ScaledLeakyReLU(nn.Module):
    """√2 · LeakyReLU(x + bias): the gain keeps the variance."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.float(), 0.2) * math.sqrt(2)


class Blur(nn.Module):
    """A 4 x 4 binomial filter, channel by channel."""

    kernel: Tensor

    def __init__(self, *, padding: int, stride: int = 1) -> None:
        super().__init__()
        self.padding, self.stride = padding, stride
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps) / 64)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.float().expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=x.shape[1])


def channels(side: int, dim: int) -> int:
    """Width of the layers whose maps have `side` rows: halved with each doubling above 32 rows."""
    return min(dim, 32 * dim // side)


@torch.no_grad()
def init_weights(encoder: MotionEncoder, *, generator: torch.Generator | None = None) -> None:
    """Sets the weights for training from scratch: weights normal with deviation 1 (the layers scale them), biases zero."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, generator=generator)
