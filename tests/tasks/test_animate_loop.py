"""Two stored clips through material, plan, task and the pipeline's own loop, with stand-ins for all models but the transformer."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from animate_folder import write_lossless
from animate_inputs import config, padded, rand, randn, weights
from PIL import Image
from reference import assert_close, case, tensors
from torch import Tensor

from kinograph import pipeline
from kinograph.config import ANIMATE_14B, ModelSpec
from kinograph.models.dit_animate import AnimateDiT
from kinograph.requests import Animate
from kinograph.tasks import animate
from kinograph.tasks.inputs import TextEmbeddings


class StandInVAE:
    """The linear stand-in of the stored runs: means over 8 x 8 pixels and four frames, and matrices between the channels."""

    def __init__(self, seed: int) -> None:
        self.into, self.bias, self.back = randn(seed, 16, 3), 0.1 * randn(seed + 1, 16), 0.06 * randn(seed + 2, 3, 16)
        self.decoded: list[Tensor] = []

    def encode(self, video: Tensor) -> Tensor:
        cells = F.avg_pool3d(video, (1, 8, 8))
        means = torch.cat([cells[:, :, :1], F.avg_pool3d(cells[:, :, 1:], (4, 1, 1)) if video.shape[2] > 1 else cells[:, :, 1:]], dim=2)
        return torch.einsum("zc,bcthw->bzthw", self.into, means) + self.bias.view(-1, 1, 1, 1)

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        self.decoded.append(latents)
        rgb = torch.einsum("cz,bzthw->bcthw", self.back, latents)
        frames = torch.cat([rgb[:, :, :1], rgb[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
        yield frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4).clamp(-1, 1)


class StandIns:
    """What the pipeline uses of `Components`."""

    device, vae_dtype, transforms, report = torch.device("cpu"), torch.float32, (), ()

    def __init__(self, spec: ModelSpec, models: dict[str, Any]) -> None:
        self.spec, self.models = spec, models
        self.placed: list[str] = []

    @contextmanager
    def place(self, name: str) -> Iterator[Any]:
        self.placed.append(name)
        yield self.models[name]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield


class Run:
    """A stored run, repeated."""

    def __init__(self, name: str, folder: Path) -> None:
        self.golden, self.stored = case(name), tensors(name)
        self.settings, self.seed = self.golden["generate"], self.golden["vae_seed"]
        self._write_material(folder)
        self.vae = StandInVAE(self.seed)
        dit = weights(AnimateDiT(config(self.golden["config"])), self.golden["weight_seed"])
        dit.register_forward_pre_hook(self._see, with_kwargs=True)
        spec = replace(ANIMATE_14B, dit=dit.config, text=replace(ANIMATE_14B.text, dim=dit.config.text_dim))
        models = {"vae": self.vae, "image_encoder": self._image_features, "all_noise": dit}
        self.components: Any = StandIns(spec, models)
        self.seen: dict[str, Tensor] = {}
        self.clip = -1
        self.request = Animate(
            material=folder,
            mode="replace" if self.settings["replace_flag"] else "animate",
            overlap=self.settings["refert_num"],
            num_frames=self.settings["clip_len"],
            num_steps=self.settings["sampling_steps"],
            shift=self.settings["shift"],
            solver=self.settings["sample_solver"],
            guidance_scale=self.settings["guide_scale"],
            seed=self.golden["noise_seed"],
            smooth_joins=False,
        )
        with torch.no_grad():
            self.video = self._generate()

    def _write_material(self, folder: Path) -> None:
        frames, height, width = self.settings["real_frames"], self.settings["height"], self.settings["width"]

        def video(seed: int, *size: int) -> Tensor:
            return torch.floor(255.999 * rand(seed, frames, *size)).to(torch.uint8)

        faces = video(self.seed + 12, 8, 8, 3).repeat_interleave(64, dim=1).repeat_interleave(64, dim=2)
        write_lossless(folder / "src_pose.mkv", video(self.seed + 10, height, width, 3), 30)
        write_lossless(folder / "src_face.mkv", faces, 30)
        Image.fromarray(self.stored["reference"].numpy()).save(folder / "src_ref.png")
        if self.settings["replace_flag"]:
            mask = 255 * (video(self.seed + 14, height // 4, width // 4) > 127).to(torch.uint8)
            mask = mask.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
            write_lossless(folder / "src_bg.mkv", video(self.seed + 11, height, width, 3), 30)
            write_lossless(folder / "src_mask.mkv", mask[..., None].repeat(1, 1, 1, 3), 30)

    def _image_features(self, pictures: Tensor) -> Tensor:
        return randn(self.seed + 3, 1, 257, 1280) + pictures.mean()

    def _text(self, offset: int) -> Tensor:
        sizes = self.components.spec.dit
        return padded(randn(self.seed + offset, self.golden["words"], sizes.text_dim), sizes.text_len)

    def _stage(self, name: str) -> None:
        self.clip += name == "condition"

    def _see(self, module: torch.nn.Module, given: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> None:
        """The first call of a clip has its noise."""
        now = {"noise": given[0][0], "y": inputs["channels"][0], "pose_latents": inputs["pose"]}
        for name, tensor in now.items():
            self.seen.setdefault(f"clip{self.clip}_{name}", tensor)

    def _generate(self) -> Tensor:
        plan = animate.plan(self.request, self.components.spec)
        run = pipeline.Run(
            components=self.components,
            request=self.request,
            plan=plan,
            text=TextEmbeddings(positive=self._text(4), negative=self._text(5)),
            prepared=animate.prepare(self.components, self.request, plan),
            notices=(),
            first_report=0,
        )
        clips = list(pipeline.make_clips(run, on_stage=self._stage))
        self.seen |= {f"clip{i}_latent": latents[0] for i, latents in enumerate(self.vae.decoded)}
        assert plan.num_clips == len(clips)
        return torch.cat([clip.frames for clip in clips], dim=1)


@pytest.mark.parametrize("name", ["animate_loop_animation", "animate_loop_replacement"])
def test_two_clips(name: str, tmp_path: Path) -> None:
    run = Run(name, tmp_path)
    assert run.clip + 1 == run.golden["observed"]["clips"]
    for key in run.stored.keys() - {"video", "reference"}:
        assert_close(run.seen[key], run.stored[key], run.golden["tolerance"], f"{name} {key}")
    assert_close(run.video, run.stored["video"], run.golden["tolerance"], name)
    assert run.components.placed.count("all_noise") == 2 * (run.clip + 1)  # for a clip's faces, and, while it is there, for its steps
