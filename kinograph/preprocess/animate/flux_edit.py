"""Two people brought into a common pose by an image editor, FLUX.1 Kontext, so that their limbs can be compared."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from kinograph.errors import CheckpointError, MissingExtraError
from kinograph.media.letterbox import letterbox
from kinograph.preprocess.animate.perception import checkpoint_folder

FOLDER = "FLUX.1-Kontext-dev"
NUM_STEPS, GUIDANCE_SCALE, SEED = 28, 2.5, 0


class PictureEditor(Protocol):
    def edit(self, picture: np.ndarray, prompt: str) -> np.ndarray:
        """uint8 [H, W, 3], the picture after the edit, of the same size."""


class FluxEditor:
    """A `PictureEditor`; the same picture and prompt always give the same edit."""

    def __init__(self, folder: Path) -> None:
        try:
            from diffusers import FluxKontextPipeline
        except ImportError as error:
            raise MissingExtraError("editing pictures with FLUX Kontext", "diffusers", "animate-published") from error
        if not (folder / "model_index.json").is_file():
            raise CheckpointError(
                f"{folder} is missing or incomplete; download FLUX.1-Kontext-dev there (it has a licence of its own), "
                "or leave --use_flux out"
            )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._pipeline: Any = FluxKontextPipeline.from_pretrained(str(folder), torch_dtype=torch.bfloat16)
        self._pipeline.to(self._device)

    def edit(self, picture: np.ndarray, prompt: str) -> np.ndarray:
        from PIL import Image

        height, width = picture.shape[:2]
        edited = self._pipeline(
            image=Image.fromarray(picture),
            prompt=prompt,
            height=height,
            width=width,
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=NUM_STEPS,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
        return letterbox(torch.from_numpy(np.array(edited.convert("RGB"))), width, height, average=True).numpy()


def load_editor(process_checkpoint: Path | None) -> PictureEditor:
    return FluxEditor(checkpoint_folder(process_checkpoint, "FLUX Kontext's edits") / FOLDER)
