"""What the animation model is trained on, and how."""
from __future__ import annotations

from dataclasses import dataclass, field

from kinograph.config import AnimateConfig, ModelSpec
from kinograph.training.optim import OptimizerConfig

GUIDANCE = (0, 1, 5)  # frames of the clip before that a clip may be given
FORMS = (0.4, 0.45, 0.15)  # shares of samples with so many


@dataclass(frozen=True, kw_only=True)
class AnimateRecipe:
    """What to train, and on what. `spec.num_frames` and `spec.sizes[0]` give the clips."""

    spec: ModelSpec
    batch: int = 128
    num_clips: int = 8192
    shift: float = 3.0  # of the training levels
    replace_share: float = 0.5
    relight: bool = False  # train the LoRA: replacement alone, the character lit
    rank: int = 8  # with 16 the member would exceed its share of the package
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02))
    num_eval: int = 8  # characters, each in both modes
    eval_seed: int = 7
    seed: int = 3

    @property
    def config(self) -> AnimateConfig:
        assert isinstance(self.spec.dit, AnimateConfig)
        return self.spec.dit

    @property
    def side(self) -> int:
        return self.spec.sizes[0][0]
