"""Speech to video, clip by clip: the stored results of the published code for sizes, sound, poses, and whole small runs."""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reference import assert_close, case, tensors
from seeded import load_seeded
from torch import Tensor

from kinograph.config import S2V_14B, ModelSpec, S2VConfig, VAEConfig
from kinograph.errors import RequestError
from kinograph.media import Sound
from kinograph.media.fit import fit_frames, fit_picture
from kinograph.models.dit_s2v import S2VDiT
from kinograph.models.vae import VAE
from kinograph.requests import SpeechToVideo
from kinograph.sampling.denoise import Conditioning, ExpertRun, denoise, initial_noise
from kinograph.sampling.solvers import make_solver
from kinograph.tasks import s2v
from kinograph.tasks.geometry import s2v_size
from kinograph.tasks.inputs import Carry, TextEmbeddings
from kinograph.tasks.plan import Plan, make_plan
from kinograph.tasks.s2v_clips import (
    at_30_hz,
    feature_indices,
    first_motion,
    frame_features,
    latents_to_decode,
    needed_num_clips,
    new_frames,
    next_motion,
    num_features_30,
    pose_clip,
    pose_frame_indices,
    published_num_clips,
    published_pose_frame_indices,
)

BUCKETS, PIPELINE, POSES = case("s2v_audio_buckets"), case("s2v_pipeline"), case("s2v_image_pose")

# ----------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("row", case("s2v_size")["rows"], ids=lambda row: f"{row[1]}x{row[0]}@{row[2]}")
def test_size(row):
    image_height, image_width, _, area, height, width = row
    assert s2v_size(image_width, image_height, area) == (width, height)


def test_size_of_a_line():
    with pytest.raises(RequestError, match="too thin"):
        s2v_size(10**6, 1, 720896)


# ----------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("entry", BUCKETS["entries"], ids=lambda entry: str(entry["index"]))
def test_features_of_frames(entry):
    data, index = tensors("s2v_audio_buckets", "data.safetensors"), entry["index"]
    features = at_30_hz(data[f"{index}.z50"])
    assert_close(features, data[f"{index}.feat30"], BUCKETS["tolerance"], "feat30")
    clips = published_num_clips(entry["t30"], entry["infer_frames"], entry["fps"])
    num_frames = clips * entry["infer_frames"]
    assert clips == entry["clips"]
    assert feature_indices(num_frames, entry["fps"]) == entry["sample_indices"]
    heard = frame_features(features, num_frames, fps=entry["fps"], neighbours=entry["m"])
    expected = data[f"{index}.audio_input"]
    assert_close(heard if expected.dim() == 4 else heard[:, 0], expected, BUCKETS["tolerance"], "audio_input")


@pytest.mark.parametrize("row", BUCKETS["plan"], ids=lambda row: f"{row['seconds']}s/{row['infer_frames']}")
def test_published_plan(row):
    length, frames = num_features_30(row["samples_16k"]), row["infer_frames"]
    clips = published_num_clips(length, frames)
    assert (length, clips) == (row["t30"], row["clips"])
    assert sum(index < length for index in feature_indices(clips * frames)) == row["frames_with_audio"]
    assert clips * frames - 3 == row["video_frames_default"]


@pytest.mark.parametrize(
    "seconds, dropped, clips", [(0.01, 3, 1), (4.8125, 3, 1), (4.82, 3, 2), (5, 0, 1), (5.01, 0, 2), (10, 0, 2), (60, 3, 13)]
)
def test_as_many_clips_as_the_sound_needs(seconds, dropped, clips):
    assert needed_num_clips(round(seconds * 16000), 80, dropped=dropped) == clips


def test_a_sound_too_short_to_hear():
    assert num_features_30(0) == num_features_30(399) == num_features_30(719) == 0 < num_features_30(720)


# ---------------------------------------------------------------------------------------------- pictures and poses


@pytest.mark.parametrize("entry", POSES["images"], ids=lambda entry: str(entry["index"]))
def test_picture(entry):
    data, name = tensors("s2v_image_pose", "data.safetensors"), f"image{entry['index']}"
    image = Image.fromarray(data[f"{name}.pixels"].numpy())
    fitted = fit_picture(image, entry["width"], entry["height"], fill=False)
    assert_close(fitted, data[f"{name}.result"], POSES["tolerance"]["per_tensor"]["imageN.result"] | {"rtol": 0}, name)


@pytest.mark.parametrize("entry", POSES["poses"], ids=lambda entry: str(entry["index"]))
def test_pose(entry):
    data, name = tensors("s2v_image_pose", "data.safetensors"), f"pose{entry['index']}"
    source, length = data[f"{name}.video"], entry["infer_frames"]
    indices = published_pose_frame_indices(len(source), entry["fps"], entry["clips"] * length)
    assert indices == entry["frames_read"]
    pose = fit_frames(source[indices], entry["width"], entry["height"], fill=False)[None]
    clips = torch.cat([pose_clip(pose, clip, length) for clip in range(entry["clips"])])
    assert torch.equal(clips[:, :, 0], clips[:, :, 1])
    assert_close(clips[:, :, 1:], data[f"{name}.clips"], POSES["tolerance"], name)


@pytest.mark.parametrize("size", [(704, 960), (960, 704), (704, 704), (64, 1024)])
def test_filling_leaves_no_border(size):
    image = Image.new("RGB", (832, 1104), (255, 255, 255))
    assert fit_picture(image, *size).min() == 1
    assert fit_frames(torch.full((1, 110, 83, 3), 255, dtype=torch.uint8), *size).min() > 0.999


def test_the_published_border():
    """The example of the specification: 704 x 934 in a frame of 704 x 960."""
    rows = fit_picture(Image.new("RGB", (832, 1104), (255, 255, 255)), 704, 960, fill=False)[0, :, 0]
    assert (rows == -1).nonzero().flatten().tolist() == [*range(13), *range(947, 960)]


def test_filling_changes_nothing_where_the_published_rule_fills():
    image = Image.fromarray(torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8).numpy())
    assert torch.equal(fit_picture(image, 48, 32), fit_picture(image, 48, 32, fill=False))


def test_pose_by_time():
    assert pose_frame_indices(9, 50, 4) == [0, 3, 6]
    indices = pose_frame_indices(350, 50, 112)
    assert max(abs(index / 50 - frame / 16) for frame, index in enumerate(indices)) <= 0.5 / 50 + 1e-9


def test_pose_that_ended():
    clip = pose_clip(torch.zeros(1, 3, 6, 2, 2), 2, 4)
    assert clip.shape == (1, 3, 5, 2, 2) and (clip == -1).all()


# ---------------------------------------------------------------------------------------------------- the clip loop


class Golden:
    """The models of a golden run in place of `Components`, and its pose video, scaled as published, in place of a file."""

    device, vae_dtype = torch.device("cpu"), torch.float32

    def __init__(self, spec: ModelSpec, models: dict[str, torch.nn.Module], pose: Tensor | None) -> None:
        self.spec, self._models, self._pose = spec, models, pose

    def place(self, name: str) -> AbstractContextManager[torch.nn.Module]:
        return nullcontext(self._models[name])

    def frames(self, start: int, stop: int) -> Tensor:
        assert self._pose is not None
        return self._pose[:, :, start:stop]


class Run:
    """One golden run: the shipped clip loop, given the published sizes and number of clips."""

    def __init__(self, index: int) -> None:
        self.entry, self.stored = PIPELINE["entries"][index], tensors("s2v_pipeline", f"case{index}.safetensors")
        sizes = self.entry["dit_config"]
        known = {name: sizes[name] for name in vars(S2V_14B.dit) if name in sizes}
        config = S2VConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
        width = self.entry["vae"]["dim"]
        vae_config = VAEConfig(**{**vars(S2V_14B.vae), "base_dim": width, "decoder_dim": width})
        self.dit = load_seeded(S2VDiT(config), self.entry["dit_weight_seed"])
        self.vae = load_seeded(VAE(vae_config), self.entry["vae"]["weight_seed"])
        spec = replace(S2V_14B, vae=vae_config)
        self.components = Golden(spec, {"vae": self.vae, spec.experts[0].name: self.dit}, self._pose())
        self.found: dict[str, Tensor] = {}
        with torch.no_grad():
            self._run()

    def _drawn(self, name: str) -> Tensor:
        given = self.entry["inputs"][name]
        return torch.randn(given["shape"], generator=torch.Generator("cpu").manual_seed(given["seed"]))

    def _text(self, name: str) -> Tensor:
        text = self._drawn(name)
        return F.pad(text, (0, 0, 0, self.dit.config.text_len - len(text)))[None]

    def _pose(self) -> Tensor | None:
        if "pose_video" not in self.stored:
            return None
        height, width = self.entry["height_width"]
        return fit_frames(self.stored["pose_video"], width, height, fill=False)[None]

    def _plan(self, clips: int) -> Plan:
        entry, (height, width) = self.entry, self.entry["height_width"]
        request = SpeechToVideo(
            num_steps=entry["steps"], shift=entry["shift"], guidance_scale=entry["guide_scale"], solver=entry["solver"], seed=entry["seed"]
        )
        length = entry["infer_frames"]
        return make_plan(
            request, replace(S2V_14B, available=True), width=width, height=height, num_clips=clips, num_frames=length,
            latent_frames=length // 4, total_frames=entry["video_frames_total"], carry_frames=73,
        )  # fmt: skip

    def _run(self) -> None:
        entry, length = self.entry, self.entry["infer_frames"]
        features = self._drawn("audio_feat30")
        clips = min(published_num_clips(features.shape[1], length), entry["num_clip"] or 10**9)
        assert clips == entry["clips"]
        plan = self._plan(clips)
        picture = fit_picture(Image.fromarray(self.stored["image"].numpy()), plan.width, plan.height, fill=False)[None, :, None]
        prepared = s2v.Prepared(
            sound=Sound(samples=torch.zeros(1, 1), rate=16000),
            heard=frame_features(features, clips * length),
            picture=picture,
            reference=self.vae.encode(picture),
            start_from_reference=entry["start_from_ref"],
            pose=self.components if "pose_video" in self.stored else None,
        )
        self.found["ref_latents"] = prepared.reference[0]
        text = TextEmbeddings(positive=self._text("context"), negative=self._text("context_null"))
        carry, video = None, []
        for r in range(clips):
            self._note_motion(f"clip{r}", prepared, carry)
            inputs = s2v.condition(self.components, plan, text, prepared, r, carry)
            self._note_pose(r, plan, prepared)
            latents = self._denoise(r, plan, inputs.conditioning(self.dit))
            to_decode = torch.cat([inputs.lead, latents], dim=2)
            self.found[f"clip{r}.first_decoded_latent"] = to_decode[0, :, 0]
            decoded = self.vae.decode(to_decode)
            own = decoded[0, :, inputs.drop_frames :]
            has_motion = inputs.lead.shape[2] > 1
            assert inputs.keep_frames is None and torch.equal(own, new_frames(decoded, length, has_motion=has_motion)[0])
            motion = inputs.lead if has_motion else None
            assert torch.equal(to_decode, latents_to_decode(latents, reference=prepared.reference, motion=motion))
            video.append(own)
            carry = Carry(frames=torch.cat(video, dim=1)[:, -plan.carry_frames :])
        self._note_motion("last", prepared, carry)
        self.video = torch.cat(video, dim=1)

    def _note_motion(self, name: str, prepared: s2v.Prepared, carry: Carry | None) -> None:
        """The published code encodes the motion even where no model sees it, so it is stored for every clip."""
        still = first_motion(prepared.picture, start_from_reference=prepared.start_from_reference)
        latents = self.vae.encode(still if carry is None else next_motion(still, carry.frames[None]))
        if name == "last":
            self.found["motion_latents_after_last_clip_tail"] = latents[0, :, -3:]
            return
        self.found[f"{name}.motion_latents_tail"] = latents[0, :, -3:]
        self.found[f"{name}.motion_latents_mean"] = latents[0].mean(dim=(0, 2, 3))

    def _note_pose(self, r: int, plan: Plan, prepared: s2v.Prepared) -> None:
        length, shape = plan.num_frames, plan.latent_shape
        found = torch.zeros(shape)
        if prepared.pose is not None:
            found = s2v.pose_latents(self.components, prepared.pose, r * length, (r + 1) * length)[0]
        self.found[f"clip{r}.pose_latents"] = found

    def _denoise(self, r: int, plan: Plan, conditioning: Conditioning) -> Tensor:
        noise = initial_noise(plan.latent_shape, plan.clip_seed(r))[None]
        solver = make_solver(plan.solver, plan.num_steps, plan.shift)
        events, velocities = [], []
        hook = self.dit.register_forward_hook(lambda _module, _args, output: velocities.append(output))
        (scale,) = plan.guidance.values()
        expert = ExpertRun(name="all_noise", t_min=0.0, guidance_scale=scale, on_device=lambda: nullcontext(self.dit))
        latents = denoise([expert], solver, noise, conditioning, events.append)
        hook.remove()
        self.found |= {
            f"clip{r}.noise": noise[0],
            f"clip{r}.timesteps": solver.timesteps,
            f"clip{r}.pred_cond_step0": velocities[0][0],
            f"clip{r}.latents_after_step0": events[0].latents[0],
            f"clip{r}.latents": latents[0],
        }
        if scale != 1:
            self.found[f"clip{r}.pred_uncond_step0"] = velocities[1][0]
        return latents


@cache
def run_of(index: int) -> Run:
    return Run(index)


@pytest.mark.parametrize("index", range(len(PIPELINE["entries"])))
def test_whole_run(index):
    run = run_of(index)
    expected = {name: tensor for name, tensor in run.stored.items() if not name.startswith(("image", "pose_video", "video_"))}
    assert run.found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(run.found[name], tensor, PIPELINE["tolerance"], name)
    video, kept = run.video, run.entry["video_frames_kept"]
    assert video.shape[1] == run.entry["video_frames_total"]
    assert_close(video[:, kept].transpose(0, 1), run.stored["video_frames"], PIPELINE["tolerance"], "video_frames")
    assert_close(video.mean(dim=(0, 2, 3)), run.stored["video_frame_mean"], PIPELINE["tolerance"], "mean")
    assert_close(video.std(dim=(0, 2, 3)), run.stored["video_frame_std"], PIPELINE["tolerance"], "std")
