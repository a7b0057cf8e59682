"""The person cut out of every frame by SAM 2, through transformers: prompted with joints on key frames, then tracked.

A chunk of frames is tracked at a time, as published. Joints that are hardly seen do not prompt.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kinograph.errors import CheckpointError, MissingExtraError
from kinograph.preprocess.animate.keypoints import skeleton_of
from kinograph.preprocess.animate.masks import CHUNK, key_frames, prompt_points

MIN_PROMPT_SCORE = 0.3
_PERSON_ID = 1
_MEAN, _DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Sam2Segmenter:
    def __init__(self, folder: Path) -> None:
        try:
            from transformers import Sam2VideoInferenceSession, Sam2VideoModel
        except ImportError as error:
            raise MissingExtraError("cutting people out with SAM 2", "transformers>=4.56", "animate-published") from error
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} has no SAM 2 in the layout of transformers (no config.json; .pt files are not read): "
                f"download facebook/sam2-hiera-large into that folder, or use --models mediapipe"
            )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._session: Any = Sam2VideoInferenceSession
        model: Any = Sam2VideoModel.from_pretrained(str(folder))
        self._model = model.to(self._device).eval()
        self._size: int = model.config.image_size

    def masks(self, frames: Iterable[np.ndarray], points: np.ndarray) -> Iterator[np.ndarray]:
        """bool [H, W] for each frame, for whole-body points [n, 133, 3] of the person."""
        rest, start = iter(frames), 0
        while chunk := [(self._input(frame), frame.shape[:2]) for frame in islice(rest, CHUNK)]:
            yield from self._tracked([picture for picture, _ in chunk], chunk[0][1], points[start : start + len(chunk)])
            start += len(chunk)

    @torch.inference_mode()
    def _tracked(self, pictures: list[Tensor], size: tuple[int, ...], points: np.ndarray) -> Iterator[np.ndarray]:
        """bool [H, W] for each of `pictures`, the inputs, of frames of `size` (height, width)."""
        height, width = size
        prompts = {i: prompt_points(skeleton_of(points[i]).body, min_score=MIN_PROMPT_SCORE) for i in key_frames(len(pictures))}
        prompts = {i: found for i, found in prompts.items() if len(found)}
        if not prompts:
            yield from (np.zeros((height, width), dtype=bool) for _ in pictures)
            return
        session = self._session(
            video=torch.stack(pictures),
            video_height=height,
            video_width=width,
            inference_device=self._device,
            dtype=torch.float32,
        )
        scale = np.array([self._size / width, self._size / height])
        for frame, found in prompts.items():
            coordinates = torch.from_numpy(found * scale).float()[None, None]  # [1, 1, points, 2]
            labels = torch.ones(1, 1, len(found), dtype=torch.int32)
            person = session.obj_id_to_idx(_PERSON_ID)
            session.add_point_inputs(person, frame, {"point_coords": coordinates, "point_labels": labels})
            session.obj_with_new_inputs = [_PERSON_ID]
            self._model(inference_session=session, frame_idx=frame)
        masks = [np.packbits(np.zeros((height, width), dtype=bool))] * len(pictures)  # packed: frames may be large, and many
        for result in self._model.propagate_in_video_iterator(session, start_frame_idx=0):
            logits = F.interpolate(result.pred_masks.float(), (height, width), mode="bilinear", align_corners=False)
            masks[result.frame_idx] = np.packbits((logits[0, 0] > 0).cpu().numpy())
        yield from (np.unpackbits(mask, count=height * width).reshape(height, width).astype(bool) for mask in masks)

    def _input(self, frame: np.ndarray) -> Tensor:
        """float32 [3, size, size], standardised; the frame squeezed to a square."""
        picture = Image.fromarray(frame).resize((self._size, self._size))
        return ((torch.from_numpy(np.array(picture)).float() / 255 - _MEAN) / _DEVIATION).permute(2, 0, 1)
