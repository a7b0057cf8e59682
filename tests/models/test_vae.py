"""Both VAEs against the published results, and the promises of the streaming: any chunks, any number of clips at once."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import assert_close, case, manifest, tensors
from seeded import load_seeded, seeded_state_dict

from kinograph.config import WAN21_VAE, WAN22_VAE, VAEConfig
from kinograph.models.vae import VAE, init_weights

PUBLISHED = {"2.1": WAN21_VAE, "2.2": WAN22_VAE}
SMALL = {version: replace(config, base_dim=8, decoder_dim=8, num_res_blocks=1) for version, config in PUBLISHED.items()}

versions = pytest.mark.parametrize("version", ["2.1", "2.2"])


def _small(version: str) -> VAE:
    return load_seeded(VAE(SMALL[version])).requires_grad_(False)


def _clip(frames: int = 9, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _latents(vae: VAE, frames: int = 3, *, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, vae.config.z_dim, frames, 4, 2, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ published results


def _golden_config(description: dict) -> VAEConfig:
    published, sizes = PUBLISHED[description["version"]], description["config"]
    full_width = sizes["dim"] == published.base_dim
    decoder_dim = sizes.get("dec_dim", published.decoder_dim if full_width else sizes["dim"])
    return replace(published, base_dim=sizes["dim"], decoder_dim=decoder_dim, num_res_blocks=sizes["num_res_blocks"])


@pytest.mark.parametrize("name", ["vae2_1_small", "vae2_2_small", "vae2_1_full", "vae2_2_full"])
def test_golden(name: str) -> None:
    description, stored = case(name), tensors(name)
    with torch.device("meta"):
        vae = VAE(_golden_config(description))
    weights = seeded_state_dict({k: v.shape for k, v in vae.state_dict().items()}, description["weights"]["seed"])
    vae.load_state_dict(weights, assign=True)  # as a checkpoint is loaded: nothing may depend on having been on the CPU
    with torch.inference_mode():
        latents = vae.encode(stored["in.video"][None], chunk_frames=1)
        video = vae.decode(stored["in.latent"][None], whole=True, clamp=False)
    assert_close(latents[0], stored["out.latent"], description["tolerance"], "latents")
    assert_close(vae.denormalize(latents)[0], stored["out.latent.raw"], description["tolerance"], "latents before normalisation")
    assert_close(video[0], stored["out.video.raw"], description["tolerance"], "video")


@versions
def test_names_and_shapes_are_the_published_ones(version: str) -> None:
    with torch.device("meta"):
        vae = VAE(PUBLISHED[version])
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == manifest(f"vae{version.replace('.', '_')}")
    assert not list(vae.buffers())  # one that is not in the state dict would stay on the meta device


# ------------------------------------------------------------------------------------------------ streaming


@versions
@pytest.mark.parametrize("chunk_frames", [1, 2, 3, None])
@torch.inference_mode()
def test_any_chunks_equal_one_pass(version: str, chunk_frames: int | None) -> None:
    vae, clip = _small(version), _clip(17, batch=2)
    latents = vae.encode(clip, whole=True)
    assert latents.shape == (2, vae.config.z_dim, 5, 32 // vae.config.stride[1], 48 // vae.config.stride[2])
    torch.testing.assert_close(vae.encode(clip, chunk_frames=chunk_frames), latents, atol=1e-5, rtol=1e-4)
    video = vae.decode(latents, whole=True, clamp=False)
    assert video.shape == clip.shape
    torch.testing.assert_close(vae.decode(latents, chunk_frames=chunk_frames, clamp=False), video, atol=1e-5, rtol=1e-4)


@versions
@torch.inference_mode()
def test_chunks_come_in_order_and_make_up_the_clip(version: str) -> None:
    vae = _small(version)
    latents = torch.cat(list(vae.encode_chunks(_clip(17), chunk_frames=2)), dim=2)
    chunks = list(vae.decode_chunks(latents, chunk_frames=2))
    assert [chunk.shape[2] for chunk in chunks] == [5, 8, 4]
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latents, chunk_frames=2))


@versions
@torch.inference_mode()
def test_interleaved_clips_do_not_meet(version: str) -> None:
    vae = _small(version)
    clips = [_latents(vae, seed=1), _latents(vae, seed=2)]
    streams = [vae.decode_chunks(clip, chunk_frames=1) for clip in clips]
    rounds = list(zip(*streams))
    for clip, chunks in zip(clips, zip(*rounds)):
        assert torch.equal(torch.cat(chunks, dim=2), vae.decode(clip, chunk_frames=1))


@versions
@torch.inference_mode()
def test_a_picture_is_the_first_frame_of_a_clip(version: str) -> None:
    vae, clip = _small(version), _clip()
    first = vae.encode(clip, whole=True)[:, :, :1]
    torch.testing.assert_close(vae.encode(clip[:, :, :1]), first, atol=1e-5, rtol=1e-4)
    assert vae.decode(first).shape[2] == 1


@versions
@torch.inference_mode()
def test_no_frame_depends_on_a_later_one(version: str) -> None:
    vae, clip = _small(version), _clip()
    changed = clip.clone()
    changed[:, :, 5:] = 0.5
    torch.testing.assert_close(vae.encode(changed)[:, :, :2], vae.encode(clip)[:, :, :2], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ borders


@versions
@torch.inference_mode()
def test_decode_clamps_and_encode_does_not(version: str) -> None:
    vae = _small(version)
    latents = 3 * _latents(vae)
    raw = vae.decode(latents, clamp=False)
    assert raw.abs().max() > 1
    assert torch.equal(vae.decode(latents), raw.clamp(-1, 1))
    assert not torch.equal(vae.encode(3 * _clip()), vae.encode((3 * _clip()).clamp(-1, 1)))


@versions
@torch.inference_mode()
def test_normalize_is_the_published_affine_map(version: str) -> None:
    vae = _small(version)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latent_mean, vae.config.latent_std))
    raw = _latents(vae)
    torch.testing.assert_close(vae.normalize(raw), (raw - mean) / std)
    torch.testing.assert_close(vae.denormalize(vae.normalize(raw)), raw)
    moments = vae.encode_moments(_clip())
    torch.testing.assert_close(vae.encode(_clip(), whole=True), (moments[0] - mean) / std)
    assert moments[1].shape == moments[0].shape


@versions
@torch.inference_mode()
def test_bfloat16_weights_take_and_give_float32(version: str) -> None:
    vae, clip = _small(version), _clip()
    expected, video = vae.encode(clip), vae.decode(_latents(vae), clamp=False)
    latents = _latents(vae)
    vae.to(torch.bfloat16)
    for actual, exact in ((vae.encode(clip), expected), (vae.decode(latents, clamp=False), video)):
        assert actual.dtype == torch.float32
        assert (actual - exact).norm() / exact.norm() < 0.05


@versions
def test_what_the_model_cannot_take(version: str) -> None:
    vae = _small(version)
    with pytest.raises(ValueError, match=r"4n\+1; got 8 \(nearest below: 5\)"):
        vae.encode(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match="got 30x32"):
        vae.encode_chunks(torch.zeros(1, 3, 5, 32, 30))
    with pytest.raises(ValueError, match="video must be"):
        vae.encode(torch.zeros(3, 5, 32, 32))
    with pytest.raises(ValueError, match="latents must be"):
        vae.decode_chunks(torch.zeros(1, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="chunk_frames must be at least 1; got 0"):
        vae.decode(_latents(vae), chunk_frames=0)
    with pytest.raises(ValueError, match="no choice of chunk_frames; got 2"):
        vae.decode(_latents(vae), chunk_frames=2, whole=True)


# ------------------------------------------------------------------------------------------------ training


@versions
def test_one_pass_and_chunks_have_the_same_gradients(version: str) -> None:
    vae = load_seeded(VAE(SMALL[version]))
    gradients = []
    for options in ({"whole": True}, {"chunk_frames": 1}):
        vae.zero_grad()
        latents = vae.encode(_clip(), **options)
        vae.decode(latents, clamp=False, **options).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in vae.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@versions
def test_new_weights_have_a_sane_scale_and_learn(version: str) -> None:
    vae = VAE(SMALL[version])
    init_weights(vae, generator=torch.Generator().manual_seed(0))
    clip = _clip(5)
    mean, log_variance = vae.encode_moments(clip)
    video = vae.decode(vae.normalize(mean), whole=True, clamp=False)
    assert 0.1 < mean.std() < 3 and 0.1 < video.std() < 3
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        mean, log_variance = vae.encode_moments(clip)
        loss = (vae.decode(vae.normalize(mean), whole=True, clamp=False) - clip).square().mean() + 1e-6 * log_variance.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


@versions
@torch.inference_mode()
def test_new_temporal_layers_repeat_and_average(version: str) -> None:
    vae = VAE(SMALL[version])
    init_weights(vae)
    down = next(m for n, m in vae.encoder.named_modules() if n.endswith("time_conv"))
    up = next(m for n, m in vae.decoder.named_modules() if n.endswith("time_conv"))
    x = torch.randn(1, down.in_channels, 3, 2, 2)
    torch.testing.assert_close(down(x), x[:, :, 1:].mean(dim=2, keepdim=True))
    x = torch.randn(1, up.in_channels, 3, 2, 2)
    torch.testing.assert_close(up(x), x[:, :, 2:].repeat(1, 2, 1, 1, 1))


@versions
@torch.inference_mode()
def test_compiles_without_graph_breaks(version: str) -> None:
    vae = _small(version)
    decode = torch.compile(lambda latents: vae.decode(latents, whole=True), backend="eager", fullgraph=True)
    latents = _latents(vae)
    torch.testing.assert_close(decode(latents), vae.decode(latents, whole=True))
