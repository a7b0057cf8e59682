"""What the speech-to-video model is trained on, and how."""
from __future__ import annotations

from dataclasses import dataclass, field

from kinograph.config import S2V_NANO, ModelSpec, S2VConfig
from kinograph.tasks.s2v_clips import DROPPED_FRAMES
from kinograph.training.optim import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class S2VRecipe:
    """What to train, and on what."""

    spec: ModelSpec = S2V_NANO
    palette: str = "natural"
    motion_batch: int = 96
    first_batch: int = 32  # samples of a step that start a video
    num_clips: int = 8192
    first_share: float = 0.25  # of the pool
    pool_seconds: float = 90.0  # building the pool stops then, with fewer clips
    shift: float = 4.0  # of the training levels
    pose_share: float = 0.35
    sound_dropout: float = 0.1
    text_dropout: float = 0.3
    motion_noise: float = 0.25  # greatest deviation of what is added to the motion's latents, as these come from clips made before
    tint: float = 0.4  # how much of such noise is the same all over a clip: a colour that is off
    remade_share: float = 0.6  # of motion that was decoded and encoded once more, as it is at inference
    reference_noise: float = 0.05
    # Frames that the mouth is behind the sound features: as many as the first clip drops, so that video and sound that start
    # together are in sync.
    sound_delay: int = DROPPED_FRAMES
    babble_seconds: float = 200.0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02))
    num_eval: int = 8
    eval_clips: int = 4
    seed: int = 4

    @property
    def config(self) -> S2VConfig:
        assert isinstance(self.spec.dit, S2VConfig), f"{self.spec.name} does not speak"
        return self.spec.dit

    @property
    def frames(self) -> int:
        return self.spec.num_frames

    @property
    def side(self) -> int:
        return self.spec.sizes[0][0]
