"""The transformer of the animation model and its encoders: stored results, parameter names, and what their parts promise."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from animate_inputs import config, randn, sample, weights
from reference import assert_close, case, manifest, tensors
from seeded import load_seeded

from kinograph.config import ANIMATE_14B, AnimateConfig, ImageEncoderConfig, tiny
from kinograph.models.dit_animate import AnimateDiT, Inputs, init_weights
from kinograph.models.face_encoder import FaceBlock, FaceEncoder, with_reference_frame
from kinograph.models.image_encoder import ImageEncoder, normalised
from kinograph.models.motion_encoder import MotionEncoder


def small(frames: int = 2) -> tuple[AnimateDiT, torch.Tensor, Inputs]:
    """A tiny seeded model and two samples: a reference and `frames` latent frames of 2 x 3 tokens."""
    torch.manual_seed(0)
    model = weights(AnimateDiT(tiny(ANIMATE_14B).dit), 0)
    sizes = model.config
    with torch.no_grad():
        inputs = Inputs(
            text=torch.randn(2, sizes.text_len, sizes.text_dim),
            channels=torch.randn(2, 20, frames + 1, 4, 6),
            pose=torch.randn(2, 16, frames, 4, 6),
            image=model.image_tokens(torch.randn(2, 5, sizes.image_dim)),
            face=model.face_tokens(model.motion(torch.rand(2, 3, 4 * frames - 3, sizes.face_size, sizes.face_size) * 2 - 1)),
        )
    return model, torch.randn(2, 16, frames + 1, 4, 6), inputs


# ------------------------------------------------------------------------------------------------ published results


def test_parameter_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        dit, image_encoder = AnimateDiT(ANIMATE_14B.dit), ImageEncoder(ANIMATE_14B.image_encoder)
    assert {name: tuple(tensor.shape) for name, tensor in dit.state_dict().items()} == manifest("animate-14B-dit")
    visual = {name: shape for name, shape in manifest("clip-vit-h-xlm-roberta").items() if name.startswith("visual.")}
    assert {name: tuple(tensor.shape) for name, tensor in image_encoder.state_dict().items()} == visual


@pytest.mark.parametrize("name", ["animate_motion_encoder", "animate_motion_encoder_small"])
@torch.no_grad()
def test_golden_motion_encoder(name):
    description, data = case(name), tensors(name)
    sizes, tolerance = description["config"], description["tolerance"]
    model = weights(MotionEncoder(sizes["size"], sizes["style_dim"], sizes["motion_dim"]), description["weight_seed"], "motion_encoder.")
    face = F.interpolate(data["face_small"], size=(sizes["size"],) * 2, mode="bilinear")
    first = model.enc.net_app.convs[:2](face)[:, ::8, ::16, ::16]
    appearance = model.enc.net_app(face)
    assert_close(first, data["after_first_res_block_sample"], tolerance, "first block")
    assert_close(appearance, data["appearance"], tolerance, "appearance")
    assert_close(model.enc.fc(appearance), data["motion_coefficients"], tolerance, "coefficients")
    assert_close(model.dec.direction(), data["q"], tolerance, "directions")
    assert_close(model(face), data["motion"], tolerance, "motion")


@torch.no_grad()
def test_golden_face_encoder():
    description, data = case("animate_face_encoder"), tensors("animate_face_encoder")
    sizes, seed = description["config"], description["weight_seed"]
    dim = sizes["hidden_dim"]
    encoder = weights(FaceEncoder(sizes["in_dim"], dim, head_dim=1024, num_heads=sizes["encoder_heads"]), seed, "face_encoder.")
    block = weights(FaceBlock(dim, sizes["heads_num"]), seed, "face_adapter.fuser_blocks.0.")
    face = encoder(randn(112, 1, sizes["frames"], sizes["in_dim"]))
    assert_close(face, data["face_features"], description["tolerance"], "face tokens")
    x = randn(113, *data["block_output"].shape)
    out = block(x, block.keys_values(with_reference_frame(face)))
    assert_close(out, data["block_output"], description["tolerance"], "face block")


@torch.no_grad()
def test_golden_image_encoder():
    description, data = case("animate_clip_visual"), tensors("animate_clip_visual")
    sizes = description["config"]
    config = ImageEncoderConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        dim=sizes["vision_dim"],
        num_heads=sizes["vision_heads"],
        num_layers=sizes["vision_layers"],
        mlp_ratio=sizes["vision_mlp_ratio"],
        out_dim=sizes["embed_dim"],
        eps=sizes["norm_eps"],
    )
    model = load_seeded(ImageEncoder(config), description["weight_seed"])
    image = data["image"][None]
    assert_close(normalised(image, config.image_size), data["network_input"], description["tolerance"], "network input")
    assert_close(model(image), data["output"], description["tolerance"], "tokens")


@torch.no_grad()
def test_golden_dit():
    description, data = case("animate_dit"), tensors("animate_dit")
    model = weights(AnimateDiT(config(description["config"])), description["weight_seed"])
    x, t, inputs = sample(model, description["sizes"], description["weight_seed"])
    seen = {}
    model.blocks[0].register_forward_hook(lambda _, args, out: seen.update(tokens_in=args[0], after_block_0=out))
    for i, block in enumerate(model.face_adapter.fuser_blocks):
        block.register_forward_hook(lambda _, args, out, i=i: seen.update({f"face_out_{i}": out}))
    seen["output"] = model(x, t, **vars(inputs))[0]
    seen["image_tokens_sample"], seen["face_features"] = inputs.image[:, ::16], inputs.face
    for key, expected in data.items():
        assert_close(seen[key], expected, description["tolerance"], key)


# --------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix():
    model, x, inputs = small()
    t = torch.tensor([900.0, 30.0])
    alone = [model(x[i : i + 1], t[i : i + 1], **{name: value[i : i + 1] for name, value in vars(inputs).items()}) for i in range(2)]
    torch.testing.assert_close(model(x, t, **vars(inputs)), torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_faces_of_a_batch_and_of_a_clip_do_not_mix():
    model, _, _ = small()
    clip = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    tokens = model.face_tokens(model.motion(clip))
    assert tokens.shape == (2, 4, 5, model.config.dim)
    assert not tokens[:, 0].any()
    alone = torch.cat([model.face_tokens(model.motion(part)) for part in clip.split(1)])
    torch.testing.assert_close(tokens, alone, rtol=1e-4, atol=1e-5)
    later = clip.clone()
    later[:, :, 5:] = 0
    torch.testing.assert_close(model.face_tokens(model.motion(later))[:, :3], tokens[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.no_motion(9), model.motion(torch.full((1, 3, 9, 16, 16), -1.0)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16_weights_change_little():
    model, x, inputs = small()
    expected = model(x, torch.tensor([999.0, 3.0]), **vars(inputs))
    model.bfloat16()
    assert model.motion_encoder(torch.zeros(1, 3, 16, 16)).dtype is torch.float32
    actual = model(x, torch.tensor([999.0, 3.0]), **vars(inputs))
    assert actual.dtype is torch.float32
    assert (actual - expected).norm() / expected.norm() < 0.03


def test_every_parameter_gets_a_gradient():
    model, x, inputs = small()
    image, crops = torch.randn(2, 5, model.config.image_dim), torch.rand(2, 3, 5, 16, 16)
    inputs = replace(inputs, image=model.image_tokens(image), face=model.face_tokens(model.motion(crops)))
    model(x, torch.tensor([500.0, 20.0]), **vars(inputs)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_one_graph_for_the_compiler():
    """No break, so nothing in forward waits for a value."""
    model, x, inputs = small()
    t = torch.tensor([900.0, 20.0])
    expected = model(x, t, **vars(inputs))
    torch.compiler.reset()
    actual = torch.compile(model, backend="eager", fullgraph=True)(x, t, **vars(inputs))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class PaddedSequence:
    """All tokens on one rank, padded as a sequence-parallel object pads them."""

    padding = 2

    def shard(self, x, num_tokens):
        if x.shape[1] == 1:
            return x
        x = x.repeat_interleave(num_tokens // x.shape[1], dim=1)
        return torch.cat([x, x.new_zeros(x.shape[0], self.padding, *x.shape[2:])], dim=1)

    def gather(self, x, num_tokens):
        return x[:, :num_tokens]


@torch.no_grad()
def test_padding_of_the_sequence_changes_nothing():
    model, x, inputs = small()
    t = torch.tensor([900.0, 20.0])
    expected = model(x, t, **vars(inputs))
    model.tokens = PaddedSequence()
    torch.testing.assert_close(model(x, t, **vars(inputs)), expected, rtol=1e-5, atol=1e-5)


def test_wrong_inputs_are_named():
    model, x, inputs = small()
    with pytest.raises(ValueError, match="latents have 3 frames, so the pose must have 2; got 3"):
        model(x, torch.zeros(2), **vars(replace(inputs, pose=torch.zeros(2, 16, 3, 4, 6))))
    with pytest.raises(ValueError, match="faces must be 16 x 16 pixels; got 8 x 16"):
        model.motion_encoder(torch.zeros(1, 3, 8, 16))
    with pytest.raises(ValueError, match="num_layers 6 is not a multiple of face_every 5"):
        AnimateConfig(dim=8, ffn_dim=8, num_heads=2, num_layers=6, in_dim=36, out_dim=16)


@torch.no_grad()
def test_an_untrained_model_predicts_zero_and_is_not_moved_by_the_face():
    model, x, inputs = small()
    init_weights(model, generator=torch.Generator().manual_seed(3))
    assert not model(x, torch.zeros(2), **vars(inputs)).any()
    face_block = model.face_adapter.fuser_blocks[0]
    assert not face_block(torch.randn(2, 18, model.config.dim), face_block.keys_values(inputs.face)).any()
