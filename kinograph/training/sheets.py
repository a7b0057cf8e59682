"""Contact sheets: frames of several clips with their captions, in one picture."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from os import PathLike

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP, _LINE, _FONT_SIZE = 8, 18, 14
_PAPER, _INK = (255, 255, 255), (60, 64, 72)


def _picture(frame: Tensor) -> Image.Image:
    pixels = ((frame.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def contact_sheet(
    clips: Tensor | Sequence[Tensor], path: str | PathLike[str], captions: Sequence[str], *, frames: int = 5, columns: int = 1
) -> None:
    """Writes `frames` evenly spaced frames of each clip and its caption below them.

    `clips` are `[3, T, H, W]` in [-1, 1], all of one size; `columns` clips stand side by side. The format follows the
    ending of `path`.
    """
    if not len(clips) or len(clips) != len(captions):
        raise ValueError(f"a contact sheet needs clips and as many captions; got {len(clips)} clips and {len(captions)} captions")
    height, width = clips[0].shape[-2:]
    font = ImageFont.load_default(size=_FONT_SIZE)
    strip = frames * (width + _GAP) - _GAP
    letters = max(int(strip / font.getlength("n")), 1)
    lines = [textwrap.wrap(caption, letters) for caption in captions]
    cell_width = strip + 2 * _GAP
    cell_height = height + 2 * _GAP + _LINE * max(len(wrapped) for wrapped in lines)
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (clip, wrapped) in enumerate(zip(clips, lines)):
        x = _GAP + index % columns * cell_width
        y = _GAP + index // columns * cell_height
        times = torch.linspace(0, clip.shape[1] - 1, frames).round().long().tolist()
        for column, time in enumerate(times):
            sheet.paste(_picture(clip[:, time]), (x + column * (width + _GAP), y))
        for row, line in enumerate(wrapped):
            pen.text((x, y + height + 3 + row * _LINE), line, fill=_INK, font=font)
    sheet.save(path)
