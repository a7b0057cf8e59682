"""Speech to video as a task: how long it becomes, what is refused before any weight, and what each clip is given."""
from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from seeded import load_seeded
from test_audio import tone, write_sound

from kinograph import pipeline
from kinograph.checkpoints.layout import model_factory, model_names
from kinograph.config import S2V_14B, ModelSpec, tiny
from kinograph.errors import KinographError
from kinograph.media import Sound, write_video
from kinograph.requests import SpeechToVideo
from kinograph.tasks import s2v
from kinograph.tasks.inputs import Carry, TextEmbeddings

TINY = replace(tiny(S2V_14B), default_negative_prompt="grey")  # clips of 8 frames


def sound(seconds: float, rate: int = 16000, channels: int = 1) -> Sound:
    return Sound(samples=torch.from_numpy(tone(seconds, rate, channels)).float() / 32768, rate=rate)


def request(**fields) -> SpeechToVideo:
    return SpeechToVideo(**{"image": Image.new("RGB", (96, 64), "red"), "audio": sound(1.0), "seed": 3} | fields)


def pose_video(path: Path, num_frames: int, fps: float = 16) -> Path:
    """Frame k is of the grey level 4k, so that it can be told which was taken."""
    levels = torch.arange(num_frames, dtype=torch.uint8) * 4
    return write_video(path, levels.view(-1, 1, 1, 1).expand(-1, 64, 128, 3), fps)


# ----------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("seconds", "fields", "clips", "frames"),
    [
        (1.0, {}, 3, 16),  # 16 frames and the 3 dropped are 19 of 24
        (1.0, {"start_from_reference": True}, 2, 16),
        (1.01, {"start_from_reference": True}, 3, 17),
        (1.0, {"num_clips": 1}, 1, 5),
        (1.0, {"num_clips": 9}, 3, 16),
        (1.0, {"num_frames": 20}, 1, 16),
        (1.0, {"num_frames": 16}, 2, 16),
        (0.05, {}, 1, 1),
    ],
)
def test_the_video_is_as_long_as_the_sound(seconds, fields, clips, frames):
    plan = pipeline.plan(request(audio=sound(seconds), **fields), TINY)
    assert (plan.num_clips, plan.total_frames) == (clips, frames)
    length = fields.get("num_frames", 8)
    assert plan.num_frames == length and plan.latent_shape == (16, length // 4, plan.height // 8, plan.width // 8)
    assert plan.fps == 16 and plan.carry_frames == 73


@pytest.mark.parametrize("rate, channels", [(8000, 1), (44100, 2), (48000, 6)])
def test_any_rate_and_channels(rate, channels):
    assert pipeline.plan(request(audio=sound(1.0, rate, channels)), TINY).total_frames == 16


def test_the_published_defaults():
    image = Image.new("RGB", (832, 1104))
    plan = s2v.plan(SpeechToVideo(image=image, audio=sound(5.0), width=1024, height=704), S2V_14B)
    assert (plan.width, plan.height) == (704, 960)  # the example of the specification
    assert (plan.num_frames, plan.num_clips, plan.total_frames) == (80, 2, 80)
    assert (plan.num_steps, plan.shift, plan.guidance, plan.solver) == (40, 3.0, {"all_noise": 4.5}, "unipc")
    assert plan.negative_prompt.startswith("画面模糊")
    (warning,) = plan.warnings
    assert warning.startswith("of the last clip's 80 frames only 3 are used, as the sound goes on for 0.19 s; --num_clip 1 leaves")
    assert s2v.plan(SpeechToVideo(image=image, audio=sound(4.8), width=1024, height=704), S2V_14B).warnings == ()


def test_carrying_latents_is_an_option():
    assert pipeline.plan(request(), TINY).carry_latents == 0
    assert pipeline.plan(request(carry="latents"), TINY).carry_latents == 19


def test_weak_guidance_is_none():
    assert pipeline.plan(request(guidance_scale=0.5), TINY).guidance == {"all_noise": 1.0}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image": None}, "give a picture of one with --image FILE"),
        ({"image": "none.png"}, "there is no picture none.png"),
        ({"audio": None}, "give one with --audio FILE, or a text to say with --tts_text"),
        ({"audio": "none.wav"}, "there is no sound none.wav"),
        ({"audio": "empty.wav"}, "empty.wav is empty"),
        ({"audio": "header.wav"}, "header.wav"),
        ({"audio": "text.mp3"}, "cannot read text.mp3 as a sound"),
        ({"audio": "mute.mp4"}, "mute.mp4 has no sound track; name a file with sound in it"),
        ({"audio": 5}, "audio must be a path or a Sound; got int"),
        ({"audio": sound(719 / 16000)}, "the given sound lasts 0.045 s, which is too short to hear anything in"),
        ({"audio": Sound(samples=torch.zeros(1, 0), rate=16000)}, "lasts 0.000 s, which is too short"),
        ({"audio": Sound(samples=torch.full((1, 16000), float("nan")), rate=16000)}, "the given sound holds values that are not numbers"),
        ({"tts_text": "hello"}, "both --audio and --tts_text"),
        ({"enable_tts": True, "audio": None}, "give the text with --tts_text"),
        ({"num_frames": 81}, "num_frames must be a multiple of 4 for a clip of tiny-s2v-14B; got 81 (nearest: 80, 84)"),
        ({"num_frames": 0}, "num_frames must be a whole number at least 4; got 0"),
        ({"num_clips": 0}, "num_clips must be a whole number at least 1; got 0"),
        ({"num_clips": -2}, "num_clips must be a whole number at least 1; got -2"),
        ({"pose_video": "none.mp4"}, "there is no video none.mp4"),
        ({"pose_video": "header.wav"}, "header.wav"),
        ({"carry": "everything"}, "carry must be one of pixels, latents; got 'everything'"),
        ({"fps": 24}, "moves with the sound at 16 frames per second; got fps 24"),
        ({"sound_offset": float("nan")}, "sound_offset must be a finite number"),
        ({"image": Image.new("RGB", (900, 100))}, "aspect ratio of 9.0:1"),
    ],
)
def test_refused_in_one_sentence(fields, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.wav").touch()
    Path("header.wav").write_bytes(write_sound(Path("whole.wav"), tone(0.5, 16000), 16000).read_bytes()[:44])
    Path("text.mp3").write_text("not a sound at all, " * 50)
    write_video("mute.mp4", torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 16)
    with pytest.raises(KinographError, match=re.escape(sentence)) as caught:
        pipeline.plan(request(**fields), TINY)
    assert "\n" not in str(caught.value)


def test_the_shortest_sound():
    assert pipeline.plan(request(audio=sound(720 / 16000)), TINY).total_frames == 1


def test_a_pose_video_that_ends_early_is_only_warned_of(tmp_path):
    enough, short = pose_video(tmp_path / "a.mp4", 20), pose_video(tmp_path / "b.mp4", 10)
    assert not any("pose" in warning for warning in pipeline.plan(request(pose_video=str(enough)), TINY).warnings)
    (warning,) = (text for text in pipeline.plan(request(pose_video=str(short)), TINY).warnings if "pose" in text)
    assert "lasts 0.62 s and the video needs 1.19 s of poses; from there on the pose is black" in warning


# ----------------------------------------------------------------------------------------------------------- clips


class TinyModels:
    """In place of `Components`: the models of a spec with seeded weights, and a note of what was placed."""

    device, vae_dtype = torch.device("cpu"), torch.float32

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.placed = spec, []
        names = [name for name in model_names(spec) if name != "text_encoder"]
        self.models = {name: load_seeded(model_factory(spec, name)(), seed) for seed, name in enumerate(names)}

    def place(self, name: str):
        self.placed.append(name)
        return nullcontext(self.models[name])


@pytest.fixture(scope="module")
def models() -> TinyModels:
    return TinyModels(TINY)


TEXT = TextEmbeddings(positive=torch.ones(1, 32, 48), negative=torch.zeros(1, 32, 48))


def prepared_for(models: TinyModels, asked: SpeechToVideo):
    models.placed.clear()
    plan = pipeline.plan(asked, TINY)
    with torch.no_grad():
        return plan, s2v.prepare(models, asked, plan)


def condition(models, plan, prepared, clip, carry=None):
    """The clip's inputs, with what the transformer makes of them."""
    with torch.no_grad():
        inputs = s2v.condition(models, plan, TEXT, prepared, clip, carry)
        return replace(inputs, conditioning=inputs.conditioning(models.models["all_noise"]))


def test_what_serves_all_clips_is_made_once(models):
    plan, prepared = prepared_for(models, request())
    assert models.placed == ["speech_encoder", "vae"]
    assert prepared.heard.shape == (1, 4, 24, 24) and prepared.heard[..., :16].any() and not prepared.heard[..., 18:].any()
    assert prepared.reference.shape == (1, 16, 1, plan.height // 8, plan.width // 8)
    assert prepared.pose is None


def test_frames_of_each_clip(models):
    plan, prepared = prepared_for(models, request())
    first = condition(models, plan, prepared, 0)
    assert first.lead.shape[2] == 1 and torch.equal(first.lead, prepared.reference)
    assert first.conditioning.positive.motion is None
    assert (first.drop_frames, first.keep_frames) == (4, None)  # the reference's frame and the 3 dropped; 5 are left
    carry = Carry(frames=torch.rand(3, 5, plan.height, plan.width))
    second = condition(models, plan, prepared, 1, carry)
    assert second.lead.shape[2] == 19 and second.conditioning.positive.motion is not None
    assert (second.drop_frames, second.keep_frames) == (73, None)  # 5 + 8
    last = condition(models, plan, prepared, 2, carry)
    assert (last.drop_frames, last.keep_frames) == (73, 3)  # 16 in all


def test_frames_when_the_picture_begins(models):
    plan, prepared = prepared_for(models, request(start_from_reference=True))
    first = condition(models, plan, prepared, 0)
    assert first.lead.shape[2] == 19 and first.conditioning.positive.motion is not None
    assert (first.drop_frames, first.keep_frames) == (73, None)


def test_the_newest_frames_are_the_motion(models):
    """More than 73 are cut; fewer are behind grey."""
    plan, prepared = prepared_for(models, request())
    frames = torch.rand(3, 73, plan.height, plan.width) * 2 - 1
    with torch.no_grad():
        expected = models.models["vae"].encode(frames[None])
    assert torch.equal(s2v.motion_latents(models, plan, prepared, Carry(frames=frames)), expected)
    with torch.no_grad():
        few = models.models["vae"].encode(torch.cat([torch.zeros(1, 3, 68, plan.height, plan.width), frames[None, :, :5]], dim=2))
    assert torch.equal(s2v.motion_latents(models, plan, prepared, Carry(frames=frames[:, :5])), few)


def test_latents_are_carried_as_they_are(models):
    plan, prepared = prepared_for(models, request(carry="latents"))
    latents = torch.randn(16, 2, plan.height // 8, plan.width // 8)
    carry = Carry(frames=torch.zeros(3, 5, plan.height, plan.width), latents=latents)
    models.placed.clear()
    inputs = condition(models, plan, prepared, 1, carry)
    assert torch.equal(inputs.lead[0], latents) and "vae" not in models.placed
    assert inputs.drop_frames == 1 + 4 * (2 - 1)
    plan, prepared = prepared_for(models, request(carry="latents", start_from_reference=True))
    inputs = condition(models, plan, prepared, 1, carry)
    assert inputs.lead.shape[2] == 19 and torch.equal(inputs.lead[0, :, -2:], latents)


def test_the_negative_hears_nothing_and_is_not_made_in_vain(models):
    plan, prepared = prepared_for(models, request())
    pair = condition(models, plan, prepared, 0).conditioning
    assert not torch.equal(pair.positive.audio, pair.negative.audio) and not torch.equal(pair.positive.text, pair.negative.text)
    assert torch.equal(pair.positive.reference, pair.negative.reference)
    plan, prepared = prepared_for(models, request(guidance_scale=1))
    assert condition(models, plan, prepared, 0).conditioning.negative is None


def test_each_clip_hears_its_own_part(models):
    plan, prepared = prepared_for(models, request())
    changed = prepared.heard.clone()
    changed[..., 8:] = 1
    other = replace(prepared, heard=changed)
    assert torch.equal(*(condition(models, plan, each, 0).conditioning.positive.audio for each in (prepared, other)))
    carry = Carry(frames=torch.zeros(3, 5, plan.height, plan.width))
    assert not torch.equal(*(condition(models, plan, each, 1, carry).conditioning.positive.audio for each in (prepared, other)))


def test_poses_are_read_by_time(models, tmp_path):
    """Of 50 a second, every third or fourth, so that none is further off than half a frame of the file."""
    path = pose_video(tmp_path / "pose.mp4", 60, fps=50)
    plan, prepared = prepared_for(models, request(pose_video=str(path)))
    frames = torch.cat([prepared.pose.frames(0, 8), prepared.pose.frames(8, 16), prepared.pose.frames(16, 24)], dim=2)
    found = ((frames.mean(dim=(0, 1, 3, 4)) + 1) * 127.5 / 4).round().tolist()
    assert found == pytest.approx([int(k * 50 / 16 + 0.5) for k in range(20)], abs=0.6)  # 60 frames end with the 20th
    inputs = condition(models, plan, prepared, 0)
    without = condition(models, plan, replace(prepared, pose=None), 0)
    assert inputs.conditioning.positive.pose.shape[1] > without.conditioning.positive.pose.shape[1] == 1


def test_a_pose_that_has_ended_is_black(models, tmp_path):
    path = pose_video(tmp_path / "pose.mp4", 6)
    plan, prepared = prepared_for(models, request(pose_video=str(path)))
    assert prepared.pose.frames(0, 8).shape[2] == 6 and prepared.pose.frames(8, 16).shape[2] == 0
    with torch.no_grad():
        black = models.models["vae"].encode(torch.full((1, 3, 9, plan.height, plan.width), -1.0))[:, :, 1:]
        assert torch.equal(s2v.pose_latents(models, prepared.pose, 8, 16), black)


@pytest.mark.parametrize(("offset", "first"), [(0.0, 0.0), (0.25, 0.25), (-0.25, -0.25)])
def test_the_sound_in_the_file_may_be_shifted(models, offset, first):
    plain = sound(1.0)
    shifted = s2v.shifted(plain, offset)
    assert shifted.seconds == pytest.approx(1 + offset)
    overlap = plain.samples if offset <= 0 else shifted.samples
    same = shifted.samples if offset <= 0 else plain.samples
    assert torch.equal(overlap[:, abs(round(offset * 16000)) :], same)
