"""Exchange with diffusers, by its own classes: tiny pipelines of theirs run here, and ours run there, with the same results.

The schedules of the two differ, so both sides take the same explicit levels of noise: Euler steps by hand, with the
expert of each step chosen by the boundary that each side has in its own files.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from seeded import load_seeded
from torch import Tensor, nn

from benchmarks.write_random_checkpoint import write_byte_tokenizer, write_random_checkpoint
from kinograph.checkpoints import diffusers_folder
from kinograph.checkpoints.convert import Target, convert_file, convert_folder
from kinograph.checkpoints.layout import check_folder, model_factory, model_names
from kinograph.checkpoints.load import load_model
from kinograph.checkpoints.recognise import DIFFUSERS, TRANSFORMERS
from kinograph.config import I2V_A14B, T2V_A14B, TI2V_5B, ModelSpec, RuntimeOptions, tiny
from kinograph.errors import CheckpointError
from kinograph.models.dit import Inputs
from kinograph.runtime.placement import Components

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SPECS = {spec.task: tiny(spec) for spec in (T2V_A14B, I2V_A14B, TI2V_5B)}
SIGMAS = (1.0, 0.95, 0.92, 0.88, 0.6, 0.3, 0.0)  # 880 is between the boundaries of the two two-expert models
SHAPE = (2, 4, 6)  # latent frames, rows, columns
TOLERANCE = 1e-4  # relative to the largest value, in float32

Velocity = Callable[[int, Tensor, Tensor], Tensor]  # (expert, latents, timesteps [B] or [B, tokens]) -> velocity


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# ------------------------------------------------------------------------------------------------ their side


def their_transformer(spec: ModelSpec, seed: int) -> nn.Module:
    config = {key: value for key, value in diffusers_folder.transformer_config(spec).items() if not key.startswith("_")}
    return load_seeded(diffusers.WanTransformer3DModel(**config), seed)


def their_pipeline(spec: ModelSpec, tokenizer_folder) -> diffusers.DiffusionPipeline:
    """The pipeline class of the task, of the sizes of `spec`, with seeded weights."""
    write_byte_tokenizer(tokenizer_folder)
    text = {key: value for key, value in diffusers_folder.text_config(spec).items() if key not in ("architectures", "model_type")}
    vae = {key: value for key, value in diffusers_folder.vae_config(spec).items() if not key.startswith("_")}
    two = len(spec.experts) > 1
    pipeline = getattr(diffusers, diffusers_folder.PIPELINES[spec.task])
    return pipeline(
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer_folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=load_seeded(transformers.UMT5EncoderModel(transformers.UMT5Config(**text)), 3),
        vae=load_seeded(diffusers.AutoencoderKLWan(**vae), 4),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=their_transformer(spec, 1),
        transformer_2=their_transformer(spec, 2) if two else None,
        boundary_ratio=spec.experts[0].t_min if two else None,
        expand_timesteps=spec.task == "ti2v",
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder saved by diffusers for each task, read only."""
    root = tmp_path_factory.mktemp("diffusers")
    for task, spec in SPECS.items():
        their_pipeline(spec, root / f"tokenizer-{task}").save_pretrained(root / task)
    return root


# ------------------------------------------------------------------------------------------------ both sides


def euler(velocity: Velocity, boundary: float | None, x: Tensor, *, pinned: bool) -> Tensor:
    """The latents after `SIGMAS`. `pinned`: the first latent frame is given and has timestep 0, each token its own."""
    first = x[:, :, :1].clone()
    tokens = x.shape[3] * x.shape[4] // 4
    for sigma, following in pairwise(SIGMAS):
        t = torch.tensor([1000 * sigma])
        if pinned:
            t = torch.cat([torch.zeros(1, tokens), t.expand(1, tokens * (x.shape[2] - 1))], dim=1)
        expert = 0 if boundary is None or 1000 * sigma >= boundary * 1000 else 1
        x = x + (following - sigma) * velocity(expert, x, t)
        if pinned:
            x[:, :, :1] = first
    return x


def noise(spec: ModelSpec) -> Tensor:
    return torch.randn(1, spec.vae.z_dim, *SHAPE, generator=torch.Generator().manual_seed(7))


def given(spec: ModelSpec) -> tuple[Tensor, Tensor | None]:
    """(text embeddings, conditioning channels) that both sides are given."""
    generator = torch.Generator().manual_seed(8)
    extra = spec.dit.in_dim - spec.vae.z_dim
    channels = torch.randn(1, extra, *SHAPE, generator=generator) if extra else None
    return torch.randn(1, spec.text.text_len, spec.text.dim, generator=generator), channels


@torch.no_grad()
def our_latents(parts: Components) -> Tensor:
    text, channels = given(parts.spec)
    boundary = parts.spec.experts[0].t_min if len(parts.spec.experts) > 1 else None

    def velocity(expert: int, x: Tensor, t: Tensor) -> Tensor:
        with parts.place(parts.spec.experts[expert].name) as dit:
            return dit(x, t, **vars(Inputs(text=text, channels=channels)))

    return euler(velocity, boundary, noise(parts.spec), pinned=parts.spec.task == "ti2v")


@torch.no_grad()
def their_latents(pipeline, spec: ModelSpec) -> Tensor:
    text, channels = given(spec)
    experts = (pipeline.transformer, pipeline.transformer_2)

    def velocity(expert: int, x: Tensor, t: Tensor) -> Tensor:
        x = x if channels is None else torch.cat([x, channels], dim=1)
        return experts[expert](hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]

    return euler(velocity, pipeline.config.boundary_ratio, noise(spec), pinned=pipeline.config.expand_timesteps)


@torch.no_grad()
def assert_same(parts: Components, pipeline) -> None:
    """Text encoder, VAE both ways, and latents after all steps agree to TOLERANCE."""
    spec = parts.spec
    assert relative(our_latents(parts), their_latents(pipeline, spec)) < TOLERANCE

    ids, mask = parts.tokenizer(["a red ball"])
    theirs = pipeline.tokenizer("a red ball", add_special_tokens=False)["input_ids"]
    assert ids[0, : len(theirs)].tolist() == theirs
    with parts.place("text_encoder") as encoder:
        ours = encoder(ids, mask)
    theirs = pipeline.text_encoder(ids, mask.long()).last_hidden_state * mask[..., None]
    assert relative(ours, theirs) < TOLERANCE

    _, rows, columns = spec.vae.stride
    video = torch.rand(1, 3, 5, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(9)) * 2 - 1
    mean, std = (torch.tensor(value).view(1, -1, 1, 1, 1) for value in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std))
    with parts.place("vae") as vae:
        latents = vae.encode(video)
        decoded = vae.decode(latents)
    assert relative(latents, (pipeline.vae.encode(video).latent_dist.mode() - mean) / std) < TOLERANCE
    assert relative(decoded, pipeline.vae.decode(latents * std + mean).sample.clamp(-1, 1)) < TOLERANCE


def components(spec: ModelSpec, folder, **kwargs) -> Components:
    return Components(spec, folder, RuntimeOptions(device="cpu"), **kwargs)


# ------------------------------------------------------------------------------------------------------- theirs, here


@pytest.mark.parametrize("task", SPECS)
def test_a_pipeline_saved_by_diffusers_gives_the_same_here(folders, task):
    pipeline = getattr(diffusers, diffusers_folder.PIPELINES[task]).from_pretrained(folders / task)
    parts = components(SPECS[task], folders / task)
    assert {weights.contents.names for weights in parts.weights.values()} == {DIFFUSERS, TRANSFORMERS}
    assert_same(parts, pipeline)


def test_transformer_2_is_the_low_noise_expert(folders):
    weights = check_folder(SPECS["t2v"], folders / "t2v")
    assert weights["high_noise"].files[0].parent.name == "transformer"
    assert weights["low_noise"].files[0].parent.name == "transformer_2"


def test_shards_and_a_stored_second_name_of_the_embedding(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders / "ti2v", tmp_path / "ti2v")
    diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer").save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shutil.rmtree(folder / "transformer")
    shutil.move(tmp_path / "shards", folder / "transformer")
    state = load_file(folder / "text_encoder" / "model.safetensors")
    save_file({**state, "encoder.embed_tokens.weight": state["shared.weight"].clone()}, folder / "text_encoder" / "model.safetensors")
    weights = check_folder(SPECS["ti2v"], folder)
    assert len(weights["all_noise"].files) > 1
    assert torch.equal(our_latents(components(SPECS["ti2v"], folder)), our_latents(components(SPECS["ti2v"], folders / "ti2v")))


# ------------------------------------------------------------------------------------------------------- ours, there


@pytest.mark.parametrize("task", SPECS)
def test_a_folder_written_for_diffusers_gives_the_same_there(tmp_path, task):
    spec = SPECS[task]
    write_random_checkpoint(spec, tmp_path / "ours", dtype=torch.float32)
    convert_folder(spec, tmp_path / "ours", tmp_path / "theirs", Target(layout="diffusers", dtype=torch.float32, shard_bytes=100_000))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(pipeline).__name__ == diffusers_folder.PIPELINES[task]
    assert pipeline.scheduler.config.flow_shift == spec.shift
    assert_same(components(spec, tmp_path / "ours"), pipeline)


def test_there_and_back_every_bit_is_the_same(folders, tmp_path):
    spec = SPECS["i2v"]
    published = convert_folder(spec, folders / "i2v", tmp_path / "published", Target(layout="published"))
    again = convert_folder(spec, published, tmp_path / "again", Target(layout="diffusers"))
    for name in model_names(spec):
        first, last = (load(spec, check_folder(spec, folder)[name], name) for folder in (folders / "i2v", again))
        assert all(torch.equal(first[key], last[key]) for key in first)
    assert json.loads((again / "model_index.json").read_text())["boundary_ratio"] == 0.9


def test_one_model_for_diffusers(folders, tmp_path):
    spec = SPECS["ti2v"]
    published = convert_folder(spec, folders / "ti2v", tmp_path / "published", Target(layout="published"))
    convert_file(published / spec.files.vae, tmp_path / "vae", Target(layout="diffusers"), spec=spec)
    theirs = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "vae").state_dict()
    saved = diffusers.AutoencoderKLWan.from_pretrained(folders / "ti2v" / "vae").state_dict()
    assert theirs.keys() == saved.keys() and all(torch.equal(theirs[name], saved[name]) for name in saved)


def load(spec, weights, name):
    return load_model(model_factory(spec, name), weights.files, device="cpu", steps=weights.steps).state_dict()


# ---------------------------------------------------------------------------------------------------- what goes wrong


def complaint(spec, folder) -> str:
    with pytest.raises(CheckpointError) as raised:
        check_folder(spec, folder)
    return str(raised.value)


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def t2v_folder(folders, tmp_path):
    return shutil.copytree(folders / "t2v", tmp_path / "t2v")


def test_a_missing_expert(t2v_folder):
    shutil.rmtree(t2v_folder / "transformer_2")
    assert "lacks transformer_2, which tiny-t2v-A14B needs" in complaint(SPECS["t2v"], t2v_folder)


def test_another_model(folders):
    assert "has in_channels 16, but tiny-i2v-A14B has in_channels 36" in complaint(SPECS["i2v"], folders / "t2v")
    assert "lacks transformer_2" in complaint(SPECS["t2v"], folders / "ti2v")


def test_the_task_is_named_where_the_sizes_are_in_the_table(t2v_folder):
    edit(t2v_folder / "transformer" / "config.json", **{
        key: value for key, value in diffusers_folder.transformer_config(I2V_A14B).items() if not key.startswith("_")
    })  # fmt: skip
    assert "this looks like i2v-A14B; use --task i2v-A14B" in complaint(SPECS["t2v"], t2v_folder)


def test_expanded_timesteps_and_other_pipelines(t2v_folder):
    edit(t2v_folder / "model_index.json", expand_timesteps=True)
    assert "has expand_timesteps true, which is not a t2v model" in complaint(SPECS["t2v"], t2v_folder)
    edit(t2v_folder / "model_index.json", _class_name="WanVACEPipeline")
    assert "is a WanVACEPipeline; this version reads" in complaint(SPECS["t2v"], t2v_folder)


def test_the_other_vae(t2v_folder, folders):
    shutil.rmtree(t2v_folder / "vae")
    shutil.copytree(folders / "ti2v" / "vae", t2v_folder / "vae")
    assert "vae/config.json has z_dim 48, but the VAE of tiny-t2v-A14B has z_dim 16" in complaint(SPECS["t2v"], t2v_folder)
    (t2v_folder / "vae" / "config.json").unlink()
    assert "this is a 2.2 VAE, and 14B models use Wan2.1_VAE.pth" in complaint(SPECS["t2v"], t2v_folder)


def test_another_boundary_is_a_note(t2v_folder):
    edit(t2v_folder / "model_index.json", boundary_ratio=0.5)
    notes = components(SPECS["t2v"], t2v_folder).notes
    assert any("has boundary_ratio 0.5; the experts change at 0.875" in note for note in notes)
