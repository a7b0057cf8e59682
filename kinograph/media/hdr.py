"""High dynamic range pictures brought to what a standard screen shows: phones film in HLG, studios in PQ."""
from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageFilter

PQ, HLG = 16, 18  # transfer characteristics in ITU-T H.273
WHITE_NITS = 203.0  # of diffuse white in both (ITU-R BT.2408)
_HLG_PEAK_NITS = 1000.0
_HLG_GAMMA = 1.2
_KNEE = 0.75  # of white: brighter light is compressed
_GRID = 33
# BT.2020 primaries to BT.709's, for linear light.
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
_LUMA = np.array([0.2627, 0.678, 0.0593])


def to_standard_range(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """uint8 [H, W, 3] in BT.709, for RGB pixels with BT.2020 primaries and a `transfer` of PQ or HLG; others come back as they are."""
    if transfer not in (PQ, HLG):
        return pixels
    return np.array(Image.fromarray(pixels).filter(_table(transfer)))


@functools.cache
def _table(transfer: int) -> ImageFilter.Color3DLUT:
    levels = np.linspace(0, 1, _GRID)
    blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")  # red changes fastest
    signal = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    return ImageFilter.Color3DLUT(_GRID, standard_signal(signal, transfer).ravel().tolist())


def standard_signal(signal: np.ndarray, transfer: int) -> np.ndarray:
    """[n, 3] in 0..1, gamma-coded BT.709, for coded BT.2020 values [n, 3] in 0..1."""
    light = _pq_nits(signal) if transfer == PQ else _hlg_nits(signal)
    light = light / WHITE_NITS
    brightness = np.maximum(light @ _LUMA, 1e-9)[:, None]
    light = light * (_compressed(brightness) / brightness)  # by brightness, so that hues stay
    return np.clip(light @ _TO_BT709.T, 0, 1) ** (1 / 2.2)


def _compressed(brightness: np.ndarray) -> np.ndarray:
    """Light up to the knee as it is; above, ever more slowly towards 1."""
    room = 1 - _KNEE
    over = np.maximum(brightness - _KNEE, 0)
    return np.where(brightness > _KNEE, _KNEE + room * over / (over + room), brightness)


def _pq_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_nits(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, on a screen of 1000 nits."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * math.log(4 * a)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    brightness = np.maximum(scene @ _LUMA, 1e-9)[:, None]
    return _HLG_PEAK_NITS * brightness ** (_HLG_GAMMA - 1) * scene
