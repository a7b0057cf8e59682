"""A video of several clips on its way: each is kept as soon as it is finished, so that a run can be stopped and gone on with.

    NAME.mp4.clips/
      run.json                what is being made; only the same run goes on from here
      clip-001.mp4            to look at
      clip-001.safetensors    its frames, exact: the finished video is written from these
      carry.safetensors       what the next clip begins from, and how many clips there are

The folder is removed when the video is written. A clip counts once `carry.safetensors` says so, so that one that was being
written when a run was killed is made again.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.errors import MediaError

if TYPE_CHECKING:
    import torch

    from kinograph.pipeline import Clip
    from kinograph.tasks.inputs import Carry

SUFFIX = ".clips"
RUN, CARRY = "run.json", "carry.safetensors"


@dataclass(frozen=True)
class ClipFolder:
    """The folder of one video in the making."""

    folder: Path

    @classmethod
    def beside(cls, target: str) -> ClipFolder:
        """That of the video `target`, a path as the user wrote it."""
        path = Path(target)
        return cls(path.with_name(path.name + SUFFIX))

    # ------------------------------------------------------------------------------------------------ beginning

    def recorded(self) -> dict[str, Any] | None:
        """What an earlier run left word of; None where there was none."""
        path = self.folder / RUN
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MediaError(f"{path} cannot be read ({error}); remove {self.folder} to start anew") from error

    def begin(self, facts: Mapping[str, Any]) -> None:
        """An empty folder for the run that `facts` describe."""
        self.remove()
        self.folder.mkdir(parents=True)
        (self.folder / RUN).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", errors="backslashreplace")

    def resume(self, facts: Mapping[str, Any]) -> tuple[int, Carry | None]:
        """(finished clips, what the next one begins from) of the run that `facts` describe; MediaError if it is another run."""
        recorded = self.recorded()
        if recorded is None:
            raise MediaError(f"there is nothing to go on with: {self.folder} does not exist; leave --resume out")
        plain = json.loads(json.dumps(facts))
        differing = [key for key in (*plain, *recorded) if plain.get(key) != recorded.get(key)]
        if differing:
            raise MediaError(
                f"the clips in {self.folder} are of another run (its {differing[0]} differs); give the same command again with --resume, "
                "or remove the folder to start anew"
            )
        return self._carry()

    def _carry(self) -> tuple[int, Carry | None]:
        from safetensors import SafetensorError, safe_open

        from kinograph.tasks.inputs import Carry

        path = self.folder / CARRY
        if not path.exists():
            return 0, None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return int(file.metadata()["clips"]), Carry(**tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise MediaError(f"{path} is damaged ({error}); remove {self.folder} to start anew") from error

    # -------------------------------------------------------------------------------------------------- clips

    def add(self, clip: Clip, fps: float) -> None:
        """Keeps a finished clip."""
        from safetensors.torch import save_file

        from kinograph.media import to_uint8, write_video

        frames = to_uint8(clip.frames).contiguous()
        stem = self._stem(clip.index)
        try:
            save_file({"frames": frames}, stem.with_suffix(".safetensors"))
            write_video(stem.with_suffix(".mp4"), frames, fps, overwrite=True)
            tensors = {name: value.contiguous() for name, value in vars(clip.carry).items() if value is not None}
            unfinished = self.folder / f".{CARRY}.partial"
            save_file(tensors, unfinished, metadata={"clips": str(clip.index + 1)})
            unfinished.replace(self.folder / CARRY)
        except OSError as error:
            raise MediaError(
                f"clip {clip.index + 1} could not be kept in {self.folder}: {error}; free some space and go on with --resume"
            ) from error

    def frames(self, num_clips: int) -> Iterator[torch.Tensor]:
        """The frames of each clip, uint8 [T, H, W, 3], in order."""
        from safetensors.torch import load_file

        for index in range(num_clips):
            yield load_file(self._stem(index).with_suffix(".safetensors"))["frames"]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stem(self, index: int) -> Path:
        return self.folder / f"clip-{index + 1:03d}"
