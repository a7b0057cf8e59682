"""The causal video VAE of Wan2.1 and of Wan2.2, from one config.

- 4n + 1 frames <-> n + 1 latent frames: the first latent frame stands for one frame, every other one for four.
- Causal in time: no frame depends on a later one, so a clip can pass in chunks, and a picture is a clip of one frame.
  A chunk that opens the clip treats the clip's first frame apart, as the published chunk-by-chunk model does; the whole
  clip as one chunk therefore equals the clip in chunks of any size.
- What differs in 2.2: 2x2 pixels fold into channels first, levels have shortcuts without parameters around them, and
  the up-convolution keeps the number of channels (in 2.1 it halves them).
- Parameters have the published names. The `ModuleDict` keys are positions in the published `nn.Sequential`s, and 2.1
  has its levels flattened into one list.
- Weight dtype is compute dtype; the statistics of the norms, and latents and videos at the border, are float32.

Every layer but the attention of the middle (which is per frame) is local in space, so a spatial tiling of the decoder
belongs around `VAE.decode_chunks` and needs nothing in here.

Shapes: video `[B, 3, T, H, W]`, latents `[B, z, T', h, w]`; inside, `[B, C, T, H, W]` at every level's own resolution.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.config import VAEConfig
from kinograph.ops.causal_conv3d import CausalConv3d, StreamCache, stream

# A chunk holds about as many pixels as one latent frame of a 1280x720 clip has (at least one latent frame).
PIXELS_PER_CHUNK = 4 * 1280 * 720

# ------------------------------------------------------------------------------------------------ layers


class ChannelNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma, where |x| is the length over the channels of one position."""

    def __init__(self, channels: int, *, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)  # no float32 copy of x
        scale = math.sqrt(x.shape[1]) / length.clamp_min(1e-12)
        return (x * scale.to(x.dtype)).mul_(self.gamma)


def _conv(channels: int, out_channels: int) -> CausalConv3d:
    return CausalConv3d(channels, out_channels, (3, 3, 3))


def _normed_conv(norm: Any, conv: Any, x: Tensor, cache: StreamCache) -> Tensor:
    """conv(SiLU(norm(x))), with one copy of the activation alive at a time. (A `ModuleDict` does not tell its members' types.)"""
    return conv(conv.with_history(F.silu(norm(x), inplace=True), cache))


def _run(layers: Iterable[nn.Module], x: Tensor, cache: StreamCache) -> Tensor:
    for layer in layers:
        x = layer(x, cache)
    return x


class ResidualBlock(nn.Module):
    """Two normed convolutions around which the input, projected if the channels change, is added."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(channels),
                "2": _conv(channels, out_channels),
                "3": ChannelNorm(out_channels),
                "6": _conv(out_channels, out_channels),
            }
        )
        self.shortcut = CausalConv3d(channels, out_channels, (1, 1, 1)) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        h = _normed_conv(self.residual["0"], self.residual["2"], x, cache)
        h = _normed_conv(self.residual["3"], self.residual["6"], h, cache)
        return h.add_(self.shortcut(x))


class FrameAttention(nn.Module):
    """Self-attention with one head over the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, spatial_dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        batch, _, _, height, _ = x.shape
        frames = x.transpose(1, 2).flatten(0, 1)  # [B*T, C, H, W]
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)  # [B*T, H*W, 3C]
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        out = self.proj(out.transpose(1, 2).unflatten(2, (height, -1)))
        return x + out.unflatten(0, (batch, -1)).transpose(1, 2)


def _frame_conv(conv: Any, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """The 2D convolution of every frame, without moving the time axis (which would copy `x`)."""
    return F.conv3d(x, conv.weight.unsqueeze(2), conv.bias, stride=(1, stride, stride), padding=(0, padding, padding))


class Downsample(nn.Module):
    """Half the height and width and, with `temporal`, half the frame rate; the clip's first frame stays one frame."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        x = _frame_conv(self.resample["1"], F.pad(x, (0, 1, 0, 1)), stride=2)
        return x if self.time_conv is None else self._halve_time(self.time_conv, x, cache)

    def _halve_time(self, time_conv: nn.Conv3d, x: Tensor, cache: StreamCache) -> Tensor:
        """Each new frame is made of two frames and the one before them. The first frame of the clip passes as it is."""
        before = cache.take(self)
        cache.put(self, x, 1)
        if before is not None:
            return time_conv(torch.cat([before, x], dim=2))
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Twice the height and width and, with `temporal`, twice the frame rate; the clip's first frame stays one frame."""

    def __init__(self, channels: int, out_channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, out_channels, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        if self.time_conv is not None:
            x = _double_time(self.time_conv, x, cache)
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest-exact")
        return _frame_conv(self.resample["1"], x, padding=1)


def _double_time(time_conv: CausalConv3d, x: Tensor, cache: StreamCache) -> Tensor:
    """The first frame of the clip passes as it is, and is not part of the history of the frames after it."""
    if not cache.first:
        return _two_frames_each(time_conv, x, cache)
    if x.shape[2] == 1:
        return x
    return torch.cat([x[:, :, :1], _two_frames_each(time_conv, x[:, :, 1:], cache)], dim=2)


def _two_frames_each(time_conv: CausalConv3d, x: Tensor, cache: StreamCache) -> Tensor:
    even, odd = time_conv(time_conv.with_history(x, cache)).chunk(2, dim=1)
    return torch.stack([even, odd], dim=3).flatten(2, 3)


# ------------------------------------------------------------------------------- the levels of 2.2 and their shortcuts
#
# Both shortcuts treat a cell of (time, height, width) positions as extra channels, the original channel slowest. Going
# down, consecutive ones are averaged until the level's output width is left; going up, channels are repeated until
# there is one for every position of the cell. As all sizes are powers of two, each axis of the cell is either told
# apart by channels or not, and the leading ones are: so a mean over some axes, or a broadcast, is all it takes.


def _told_apart(channels_per_cell: int, cell: Sequence[int]) -> list[int]:
    """How many positions of each axis of `cell` have channels of their own: all, or one for the axis as a whole."""
    axes = []
    for size in cell:
        axes.append(min(size, channels_per_cell))
        channels_per_cell //= axes[-1]
    return axes


def _down_shortcut(x: Tensor, out_channels: int, cell: tuple[int, int, int]) -> Tensor:
    """`[B, C, T, H, W]` -> `[B, out_channels, T/ft, H/fh, W/fw]` for a cell (ft, fh, fw)."""
    ft, fh, fw = cell
    if x.shape[2] % ft:  # the clip's first frame: what comes before it counts as zero
        x = F.pad(x, (0, 0, 0, 0, 1, 0))
    cells = x.unflatten(4, (-1, fw)).unflatten(3, (-1, fh)).unflatten(2, (-1, ft))  # [B, C, T, ft, H, fh, W, fw]
    kept = _told_apart(out_channels // x.shape[1], cell)
    averaged = [axis for axis, size in zip((3, 5, 7), kept) if size == 1]
    cells = cells.mean(dim=averaged, keepdim=True)
    return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _add_up_shortcut(out: Tensor, x: Tensor, cell: tuple[int, int, int]) -> None:
    """Add `x` `[B, C, T, H, W]`, repeated over cells (ft, fh, fw), to `out` `[B, C', T*ft, H*fh, W*fw]` in place."""
    ft, fh, fw = cell
    cells = out.unflatten(4, (-1, fw)).unflatten(3, (-1, fh)).unflatten(2, (-1, ft))  # [B, C', T, ft, H, fh, W, fw]
    apart = _told_apart(x.shape[1] // out.shape[1], cell)
    cells.add_(x.unflatten(1, (-1, *apart)).permute(0, 1, 5, 2, 6, 3, 7, 4))


def _add_clip_shortcut(out: Tensor, x: Tensor, cell: tuple[int, int, int], *, first: bool) -> None:
    """`_add_up_shortcut`, but the clip's first frame became one frame, not ft: it takes the last of its repetitions."""
    ft, fh, fw = cell
    if first and ft > 1:
        _add_up_shortcut(out[:, :, :1], x[:, :, :1], (1, fh, fw))
        out, x = out[:, :, 1:], x[:, :, 1:]
    if x.shape[2]:
        _add_up_shortcut(out, x, cell)


class DownLevel(nn.Module):
    """A level of the 2.2 encoder: its layers, and the shortcut around them."""

    def __init__(self, layers: Sequence[nn.Module], *, out_channels: int, cell: tuple[int, int, int]) -> None:
        super().__init__()
        self.downsamples = nn.ModuleList(layers)
        self.out_channels = out_channels
        self.cell = cell

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        return _run(self.downsamples, x, cache).add_(_down_shortcut(x, self.out_channels, self.cell))


class UpLevel(nn.Module):
    """A level of the 2.2 decoder: its layers, and the shortcut around them where the level upsamples (`cell`)."""

    def __init__(self, layers: Sequence[nn.Module], *, cell: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.upsamples = nn.ModuleList(layers)
        self.cell = cell

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        out = _run(self.upsamples, x, cache)
        if self.cell is not None:
            _add_clip_shortcut(out, x, self.cell, first=cache.first)
        return out


# ------------------------------------------------------------------------------------------------ encoder and decoder


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels)])


def _head(channels: int, out_channels: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": ChannelNorm(channels), "2": _conv(channels, out_channels)})


def _residual_blocks(channels: int, out_channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels if i == 0 else out_channels, out_channels) for i in range(count)]


class Encoder(nn.Module):
    """Patchified video `[B, 3*p*p, T, H/p, W/p]` -> moments `[B, 2z, T', h, w]`, before the last 1x1x1 convolution.

    On a picture followed by constant frames (image-to-video) the levels at the full frame rate, which cost the most,
    repeat themselves as soon as the picture is out of their sight: 18 frames for the published sizes. The deeper levels
    see the whole of an 81-frame clip, so the latents do not repeat.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        temporal = (*config.temporal_down, None)  # None: the last level keeps its size
        self.conv1 = _conv(3 * config.patch_size**2, widths[0])
        self.downsamples = nn.ModuleList(
            chain.from_iterable(self._level(config, *pair, halve) for pair, halve in zip(pairwise(widths), temporal))
        )
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.z_dim)

    @staticmethod
    def _level(config: VAEConfig, channels: int, out_channels: int, temporal: bool | None) -> list[nn.Module]:
        layers = _residual_blocks(channels, out_channels, config.num_res_blocks)
        if temporal is not None:
            layers.append(Downsample(out_channels, temporal=temporal))
        if config.version == "2.1":
            return layers
        cell = (1, 1, 1) if temporal is None else (1 + temporal, 2, 2)
        return [DownLevel(layers, out_channels=out_channels, cell=cell)]

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        x = self.conv1(self.conv1.with_history(x, cache))
        x = _run(chain(self.downsamples, self.middle), x, cache)
        return _normed_conv(self.head["0"], self.head["2"], x, cache)


class Decoder(nn.Module):
    """Latents `[B, z, T', h, w]` after the first 1x1x1 convolution -> patchified video `[B, 3*p*p, T, H/p, W/p]`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.decoder_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        temporal = (*reversed(config.temporal_down), None)  # None: the last level keeps its size
        halves_channels = config.version == "2.1"
        self.conv1 = _conv(config.z_dim, widths[0])
        self.middle = _middle(widths[0])
        self.upsamples = nn.ModuleList()
        channels = widths[0]
        for width, double in zip(widths[1:], temporal):
            up_width = width // 2 if halves_channels else width
            self.upsamples.extend(self._level(config, channels, width, up_width, double))
            channels = up_width
        self.head = _head(widths[-1], 3 * config.patch_size**2)

    @staticmethod
    def _level(config: VAEConfig, channels: int, width: int, up_width: int, temporal: bool | None) -> list[nn.Module]:
        layers = _residual_blocks(channels, width, config.num_res_blocks + 1)
        if temporal is not None:
            layers.append(Upsample(width, up_width, temporal=temporal))
        if config.version == "2.1":
            return layers
        return [UpLevel(layers, cell=None if temporal is None else (1 + temporal, 2, 2))]

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        x = self.conv1(self.conv1.with_history(x, cache))
        x = _run(chain(self.middle, self.upsamples), x, cache)
        return _normed_conv(self.head["0"], self.head["2"], x, cache)


# ------------------------------------------------------------------------------------------------ the model


class VAE(nn.Module):
    """Video in [-1, 1] to latents of about unit variance, and back.

    `chunk_frames` is always counted in *latent* frames (the first stands for one frame of the video, any other for
    four). It trades memory for speed and changes results by rounding only; None picks it by the size of the picture.
    `whole=True` is one pass over the clip, for training. All of it is differentiable.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    # -- encode

    def encode(self, video: Tensor, *, chunk_frames: int | None = None, whole: bool = False) -> Tensor:
        """`[B, 3, T, H, W]` -> normalised mean of the posterior, `[B, z, T', h, w]` float32. The input is not clamped.

        Raises ValueError unless T is 4n + 1 and H and W are multiples of the stride.
        """
        chunks = self.encode_chunks(video, chunk_frames=chunk_frames, whole=whole)
        return _join(chunks, frames=self.latent_frames(video.shape[2]))

    def encode_chunks(self, video: Tensor, *, chunk_frames: int | None = None, whole: bool = False) -> Iterator[Tensor]:
        """`encode`, chunk by chunk: yields latents `[B, z, t, h, w]` in order of time."""
        self._check_video(video)
        latent_sizes = self._chunk_sizes(self.latent_frames(video.shape[2]), video.shape[3:], chunk_frames, whole)
        sizes = [self.video_frames(latent_sizes[0]), *(n * self.config.stride[0] for n in latent_sizes[1:])]
        return (self.normalize(self._moments(chunk, cache)[0]) for chunk, cache in stream(video, sizes))

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, `[B, z, T', h, w]` float32 each, in one pass, **not** normalised.

        For training: `normalize(mean + noise * (0.5 * log_variance).exp())` is what `decode` takes.
        """
        self._check_video(video)
        return self._moments(video, StreamCache())

    def _moments(self, video: Tensor, cache: StreamCache) -> tuple[Tensor, Tensor]:
        x = _patchify(video.to(self.conv1.weight.dtype), self.config.patch_size)
        mean, log_variance = self.conv1(self.encoder(x, cache)).float().chunk(2, dim=1)
        return mean, log_variance

    # -- decode

    def decode(self, latents: Tensor, *, chunk_frames: int | None = None, whole: bool = False, clamp: bool = True) -> Tensor:
        """Normalised latents `[B, z, T', h, w]` -> video `[B, 3, T, H, W]` float32, in [-1, 1] if `clamp`."""
        chunks = self.decode_chunks(latents, chunk_frames=chunk_frames, whole=whole, clamp=clamp)
        return _join(chunks, frames=self.video_frames(latents.shape[2]))

    def decode_chunks(
        self, latents: Tensor, *, chunk_frames: int | None = None, whole: bool = False, clamp: bool = True
    ) -> Iterator[Tensor]:
        """`decode`, chunk by chunk: yields video `[B, 3, t, H, W]` in order of time, to write, show or stop."""
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim or not latents.numel():
            raise ValueError(f"latents must be [B, {self.config.z_dim}, T, H, W], none of them 0; got {list(latents.shape)}")
        _, sh, sw = self.config.stride
        size = (latents.shape[3] * sh, latents.shape[4] * sw)
        sizes = self._chunk_sizes(latents.shape[2], size, chunk_frames, whole)
        return (self._video(chunk, cache, clamp=clamp) for chunk, cache in stream(latents, sizes))

    def _video(self, latents: Tensor, cache: StreamCache, *, clamp: bool) -> Tensor:
        x = self.conv2(self.denormalize(latents).to(self.conv2.weight.dtype))
        video = _unpatchify(self.decoder(x, cache), self.config.patch_size).float()
        return video.clamp_(-1, 1) if clamp else video

    # -- sizes and statistics

    def latent_frames(self, video_frames: int) -> int:
        """Latent frames of a clip."""
        return 1 + (video_frames - 1) // self.config.stride[0]

    def video_frames(self, latent_frames: int) -> int:
        """Frames of the clip that so many latent frames decode to."""
        return 1 + (latent_frames - 1) * self.config.stride[0]

    def normalize(self, latents: Tensor) -> Tensor:
        """The encoder's own latents -> what the diffusion model works on."""
        return (latents.float() - _channels(self.config.latent_mean, latents)) / _channels(self.config.latent_std, latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents.float() * _channels(self.config.latent_std, latents) + _channels(self.config.latent_mean, latents)

    def _check_video(self, video: Tensor) -> None:
        st, sh, sw = self.config.stride
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be [B, 3, T, H, W]; got {list(video.shape)}")
        frames, height, width = video.shape[2:]
        if frames < 1 or (frames - 1) % st:
            nearest = self.video_frames(self.latent_frames(max(frames, 1)))
            raise ValueError(f"the number of frames must be {st}n+1; got {frames} (nearest below: {nearest})")
        if height < 1 or width < 1 or height % sh or width % sw:
            raise ValueError(f"width and height must be multiples of {sw} and {sh}; got {width}x{height}")

    @staticmethod
    def _chunk_sizes(latent_frames: int, size: Sequence[int], chunk_frames: int | None, whole: bool) -> list[int]:
        """Latent frames of each chunk of a clip with pictures of `size` (height, width) pixels."""
        if whole and chunk_frames is not None:
            raise ValueError(f"whole=True leaves no choice of chunk_frames; got {chunk_frames}")
        if chunk_frames is None:
            chunk_frames = latent_frames if whole else max(1, PIXELS_PER_CHUNK // (4 * math.prod(size)))
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1; got {chunk_frames}")
        return [min(chunk_frames, latent_frames - start) for start in range(0, latent_frames, chunk_frames)]


def _patchify(video: Tensor, p: int) -> Tensor:
    """Fold p x p pixels into channels: `[B, C, T, H, W]` -> `[B, C*p*p, T, H/p, W/p]`, the vertical offset fastest."""
    if p == 1:
        return video
    return video.unflatten(4, (-1, p)).unflatten(3, (-1, p)).permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unpatchify(x: Tensor, p: int) -> Tensor:
    """The inverse of `_patchify`."""
    if p == 1:
        return x
    return x.unflatten(1, (-1, p, p)).permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    """`values` as a float32 `[C, 1, 1, 1]` on the device of `like`.

    Filled on the device value by value: a copy from the host would wait for it, and could not be captured in a graph.
    Not a buffer: one outside the state dict is lost when the model is built on the meta device.
    """
    return torch.stack([like.new_full((), value, dtype=torch.float32) for value in values]).view(-1, 1, 1, 1)


def _join(chunks: Iterator[Tensor], *, frames: int) -> Tensor:
    """The chunks in one tensor of `frames` frames, each copied once."""
    first = next(chunks)
    if first.shape[2] == frames:
        return first
    out = first.new_empty(*first.shape[:2], frames, *first.shape[3:])
    start = 0
    for chunk in chain([first], chunks):
        out[:, :, start : start + chunk.shape[2]] = chunk
        start += chunk.shape[2]
    return out


# ------------------------------------------------------------------------------------------------ training from scratch


@torch.no_grad()
def init_weights(vae: VAE, *, generator: torch.Generator | None = None) -> None:
    """Fill `vae` in place for training from scratch.

    | convolutions | normal, variance 2 / fan-in (the SiLU before them) or 1 / fan-in (resamplers, shortcuts, 1x1x1) |
    | last of a residual block, attention's projection | zero: every block starts as its shortcut |
    | `time_conv` down | the mean of the two new frames |
    | `time_conv` up | each frame twice |
    | biases | zero |
    | gammas | one |
    """
    for name, module in vae.named_modules():
        if isinstance(module, ChannelNorm):
            module.gamma.fill_(1.0)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            if module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.Conv3d) and name.endswith("time_conv"):
                _init_time_conv(module)
            elif name.endswith((".residual.6", ".proj")):
                module.weight.zero_()
            else:
                gain = 2.0 if name.endswith((".residual.2", ".head.2")) else 1.0
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, math.sqrt(gain / fan_in), generator=generator)


def _init_time_conv(conv: nn.Conv3d) -> None:
    """Down (stride 2): average the two newest frames. Up (two output frames per frame): pass the newest one to both."""
    taps = slice(-conv.stride[0], None)
    identity = torch.eye(conv.in_channels, dtype=conv.weight.dtype, device=conv.weight.device)
    copies = conv.out_channels // conv.in_channels
    conv.weight.zero_()
    conv.weight[:, :, taps] = identity.repeat(copies, 1)[:, :, None, None, None] / conv.stride[0]
