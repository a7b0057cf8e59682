"""The speech-to-video transformer: stored results of the published model, its parameter names, and what it promises."""
from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from reference import assert_close, case, manifest, tensors
from seeded import load_seeded, seeded_state_dict
from torch import Tensor

from kinograph.config import S2V_14B, S2VConfig, tiny
from kinograph.models import dit
from kinograph.models.audio_encoder import CausalAudioEncoder
from kinograph.models.dit_s2v import Clip, FramePacker, S2VDiT, init_weights, motion_rope, sequence_rope
from kinograph.sampling.guidance import batched, in_turn

ROPE_TOLERANCE = {"atol": 1e-7, "rtol": 0.0}  # the stored factors are float64, ours complex64
DIT = case("s2v_dit")


def seeded_input(description: dict) -> Tensor:
    x = torch.randn(description["shape"], generator=torch.Generator("cpu").manual_seed(description["seed"]))
    assert x.flatten()[:3].tolist() == pytest.approx(description["first"])
    return x


def config_of(description: dict) -> S2VConfig:
    """The config of a golden case, which gives the published config.json and more."""
    known = {field.name for field in fields(S2VConfig)}
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in description.items() if key in known}
    return S2VConfig(**sizes)


def padded(text: Tensor, text_len: int) -> Tensor:
    return F.pad(text, (0, 0, 0, text_len - len(text)))[None]


def clip_of(entry: dict, config: S2VConfig) -> Clip:
    inputs = {name: seeded_input(description) for name, description in entry["inputs"].items()}
    return Clip(
        text=padded(inputs["context"], config.text_len),
        audio=inputs["audio"],
        reference=inputs["ref"][None],
        motion=None if entry["drop_motion_frames"] else inputs["motion"][None],
        pose=inputs["pose"][None],
    )


def small(seed: int = 0) -> tuple[S2VDiT, Tensor, Tensor, Clip]:
    """A tiny seeded model, noise and timestep of one sample, and a clip of 2 latent frames with motion and pose."""
    config = tiny(S2V_14B).dit
    assert isinstance(config, S2VConfig)
    model = load_seeded(S2VDiT(config), seed)
    draw = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(1, 16, 2, 8, 8, generator=draw)
    clip = Clip(
        text=torch.randn(1, config.text_len, config.text_dim, generator=draw),
        audio=torch.randn(1, config.num_audio_layers, config.audio_dim, 8, generator=draw),
        reference=torch.randn(1, 16, 1, 8, 8, generator=draw),
        motion=torch.randn(1, 16, 19, 8, 8, generator=draw),
        pose=torch.randn(1, 16, 2, 8, 8, generator=draw),
    )
    return model, x, torch.tensor([700.0]), clip


# ------------------------------------------------------------------------------------------------ published results


@pytest.mark.parametrize("entry", DIT["entries"], ids=lambda entry: f"case{entry['index']}")
@torch.no_grad()
def test_golden(entry):
    config = config_of(entry["config"])
    model = load_seeded(S2VDiT(config), entry["weight_seed"]).eval()
    expected = tensors("s2v_dit", f"case{entry['index']}.safetensors")
    clip, x = clip_of(entry, config), seeded_input(entry["inputs"]["x"])[None]

    def check(actual: Tensor, name: str, tolerance: dict = DIT["tolerance"]) -> None:
        assert_close(actual, expected[name], tolerance, name)

    entered, left = [], []
    model.blocks[0].register_forward_pre_hook(lambda _module, args: entered.append(args))
    model.blocks[0].register_forward_hook(lambda _module, _args, output: left.append(output))
    inputs = model.embed(clip)
    check(inputs.audio[0], "audio_tokens")
    if inputs.audio_global is not None:
        check(inputs.audio_global[0, :, None], "audio_global")
    velocity = model(x, torch.tensor([entry["timestep"]]), **vars(inputs))

    tokens, rows, _, rope = entered[0]
    num_noisy = entry["modulation_split"]
    check(tokens[0], "tokens_in")
    check(torch.view_as_real(rope), "rope", ROPE_TOLERANCE)
    check(rows[0, 0], "modulation_noisy")
    check(rows[0, -1], "modulation_clean")
    assert tokens.shape[1] == entry["total_tokens"]
    check(left[0][0], "block0_out")
    check(model.inject(0, left[0], num_noisy, inputs.audio, inputs.audio_global)[0], "block0_out_audio")
    check(velocity[0], "output")


@pytest.mark.parametrize("entry", case("s2v_framepack")["entries"], ids=lambda entry: str(entry["index"]))
@torch.no_grad()
def test_framepack_golden(entry):
    """The published variants that leave out new frames are zeroed latents, or tokens cut away."""
    tolerance, expected = case("s2v_framepack")["tolerance"], tensors("s2v_framepack", "data.safetensors")
    config = replace(config_of(DIT["entries"][0]["config"]), dim=entry["dim"], num_heads=entry["heads"])
    packer = FramePacker(config)
    drawn = seeded_state_dict({f"frame_packer.{name}": tensor.shape for name, tensor in packer.state_dict().items()}, entry["weight_seed"])
    packer.load_state_dict({name.removeprefix("frame_packer."): tensor for name, tensor in drawn.items()})
    motion = seeded_input(entry["inputs"]["motion_latents"])[None]
    size = (entry["latent_height"] // 2, entry["latent_width"] // 2)
    left_out = {2: 0, 1: 1, 0: 3}[entry["add_last_motion"]]
    padded_mode = entry["drop_mode"] == "padd"
    if padded_mode and left_out:
        motion[:, :, -left_out:] = 0
    cut = 0 if padded_mode else {0: 0, 1: size[0] * size[1], 3: size[0] * size[1] + (size[0] // 2) * (size[1] // 2)}[left_out]
    tokens, rope = packer(motion)[:, cut:], motion_rope(size, config.head_dim)[cut:]
    assert_close(tokens, expected[f"{entry['index']}.tokens"], tolerance, "tokens")
    assert_close(torch.view_as_real(rope), expected[f"{entry['index']}.rope"], ROPE_TOLERANCE, "rope")


@pytest.mark.parametrize("entry", case("s2v_causal_audio_encoder")["entries"], ids=lambda entry: str(entry["index"]))
@torch.no_grad()
def test_audio_encoder_golden(entry):
    tolerance = case("s2v_causal_audio_encoder")["tolerance"]
    expected = tensors("s2v_causal_audio_encoder", "data.safetensors")
    config = replace(
        config_of(DIT["entries"][0]["config"]),
        dim=entry["dim"],
        audio_dim=entry["audio_dim"],
        num_audio_token=entry["num_audio_token"],
        enable_adain=entry["need_global"],
    )
    encoder = CausalAudioEncoder(config)
    assert {f"casual_audio_encoder.{name}": list(tensor.shape) for name, tensor in encoder.state_dict().items()} == entry["shapes"]
    drawn = seeded_state_dict(entry["shapes"], entry["weight_seed"])
    encoder.load_state_dict({name.removeprefix("casual_audio_encoder."): tensor for name, tensor in drawn.items()})
    features = seeded_input(entry["inputs"]["audio_input"])
    tokens, vectors = encoder(features)
    assert_close(encoder.mix(features), expected[f"{entry['index']}.mixed"], tolerance, "mixed")
    assert_close(tokens, expected[f"{entry['index']}.tokens"], tolerance, "tokens")
    if entry["need_global"]:
        assert vectors is not None
        assert_close(vectors[:, :, None], expected[f"{entry['index']}.global"], tolerance, "global")


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        model = S2VDiT(S2V_14B.dit)
    expected = manifest("s2v-14B-dit")
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == expected
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 16_295_755_609


# ------------------------------------------------------------------------------------------------------ promises


@torch.no_grad()
def test_one_frame_before_the_clip_is_as_good_as_73():
    model, _, _, clip = small()
    encoder = model.casual_audio_encoder
    prefix = clip.audio[..., :1].expand(-1, -1, -1, 73)
    tokens, vectors = encoder(torch.cat([prefix, clip.audio], dim=-1))
    once, once_vectors = encoder.for_clip(clip.audio)
    torch.testing.assert_close(once, tokens[:, 19:], atol=1e-6, rtol=0)
    torch.testing.assert_close(once_vectors, vectors[:, 19:], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_latent_frame_hears_no_later_sound():
    model, _, _, clip = small()
    encoder = model.casual_audio_encoder
    later = clip.audio.clone()
    later[..., 4:] += 1.0
    before, after = encoder.for_clip(clip.audio)[0], encoder.for_clip(later)[0]
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])


@torch.no_grad()
def test_a_missing_pose_is_a_pose_of_zeros():
    model, x, t, clip = small()
    zeros = model(x, t, **vars(model.embed(replace(clip, pose=torch.zeros_like(clip.pose)))))
    torch.testing.assert_close(model(x, t, **vars(model.embed(replace(clip, pose=None)))), zeros)


@torch.no_grad()
def test_samples_of_a_batch_are_independent():
    model, x, t, clip = small()
    _, other_x, _, other = small(seed=1)
    joined = Clip(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(clip).items()})
    both = model(torch.cat([x, other_x]), t.expand(2), **vars(model.embed(joined)))
    torch.testing.assert_close(both[:1], model(x, t, **vars(model.embed(clip))), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1:], model(other_x, t, **vars(model.embed(other))), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_both_passes_of_guidance_as_one_batch():
    model, x, t, clip = small()
    positive, negative = model.embed_pair(clip, torch.zeros_like(clip.text))
    assert positive.motion is negative.motion and positive.pose is negative.pose  # held once
    silent = model.embed(replace(clip, text=torch.zeros_like(clip.text), audio=torch.zeros_like(clip.audio)))
    torch.testing.assert_close(negative.audio, silent.audio)
    for one, other in zip(in_turn(model, x, t, positive, negative), batched(model, x, t, positive, negative)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_timestep_per_latent_frame():
    model, x, t, clip = small()
    inputs = vars(model.embed(clip))
    torch.testing.assert_close(model(x, t.expand(1, 2), **inputs), model(x, t, **inputs), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(x, torch.tensor([[700.0, 0.0]]), **inputs), model(x, t, **inputs))


@torch.no_grad()
def test_a_share_of_the_tokens_at_a_time():
    """The seam sees the sequence cut and joined around every injection, and changes nothing."""

    lengths = []

    class Recorded(dit.WholeSequence):
        def gather(self, x, num_tokens):
            lengths.append(x.shape[1])
            return super().gather(x, num_tokens)

    model, x, t, clip = small()
    inputs = vars(model.embed(clip))
    expected = model(x, t, **inputs)
    model.tokens = Recorded()
    assert torch.equal(model(x, t, **inputs), expected)
    assert lengths == [2 * 16 + 16 + 16 + 4 + 4] * (len(model.config.audio_inject_layers) + 1)


@torch.no_grad()
def test_half_precision_keeps_the_residual_stream():
    model, x, t, clip = small()
    expected = model(x, t, **vars(model.embed(clip)))
    half = model.bfloat16()
    inputs = half.embed(clip)
    assert inputs.audio.dtype is inputs.reference.dtype is torch.float32 and inputs.text.dtype is torch.bfloat16
    velocity = half(x, t, **vars(inputs))
    assert velocity.dtype is torch.float32
    assert (velocity - expected).norm() < 0.03 * expected.norm()


def test_every_weight_learns():
    model, x, t, clip = small()
    model(x, t, **vars(model.embed(clip))).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_fresh_weights_leave_the_base_as_it_is():
    model, x, t, clip = small()
    init_weights(model, generator=torch.Generator("cpu").manual_seed(0))
    base = load_seeded(dit.DiT(model.config))
    model.load_state_dict(base.state_dict(), strict=False)  # as a training that starts from another model does
    other = replace(clip, audio=clip.audio + 1, pose=None)
    assert torch.equal(model(x, t, **vars(model.embed(clip))), model(x, t, **vars(model.embed(other))))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"audio": (Ellipsis, slice(0, 6))}, "multiple of 4"),
        ({"pose": (slice(None), slice(None), slice(0, 1))}, "pose has 1 latent frames"),
        ({"motion": (Ellipsis, slice(0, 4))}, "reference's size"),
    ],
)
def test_parts_that_do_not_fit(change, message):
    model, _, _, clip = small()
    name, index = next(iter(change.items()))
    with pytest.raises(ValueError, match=message):
        model.embed(replace(clip, **{name: getattr(clip, name)[index]}))


def test_sound_of_another_length():
    model, x, t, clip = small()
    inputs = model.embed(replace(clip, audio=clip.audio[..., :4], pose=None))
    with pytest.raises(ValueError, match="sound is for 1 latent frames, but x has 2"):
        model(x, t, **vars(inputs))


def test_rope_is_made_where_it_is_needed():
    with torch.device("meta"):
        assert sequence_rope((20, 44, 32), 128, has_motion=True, device="meta").shape == (20 * 1408 + 1408 * 2 + 352 * 2, 64)
