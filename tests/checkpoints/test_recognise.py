"""Single files and trees of them: recognised by content, read, written, refused with the name of what is wrong."""
from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from seeded import seeded_state_dict

from benchmarks.write_random_checkpoint import write_byte_tokenizer
from kinograph.checkpoints import formats
from kinograph.checkpoints.convert import Target, convert_file, convert_folder
from kinograph.checkpoints.layout import (
    Parts,
    check_folder,
    check_model,
    expected_tensors,
    guess_model,
    model_factory,
    model_names,
    open_checkpoint,
)
from kinograph.checkpoints.load import load_model
from kinograph.checkpoints.quantised import FP8, quantise_fp8
from kinograph.checkpoints.recognise import HIGH, LOW, describe, recognise
from kinograph.checkpoints.tokenizer_files import open_tokenizer
from kinograph.config import T2V_A14B, T2V_NANO, TI2V_5B, TI2V_NANO, RuntimeOptions, tiny
from kinograph.errors import CheckpointError
from kinograph.runtime.placement import Components

T2V, TI2V = tiny(T2V_A14B), tiny(TI2V_5B)
SINGLE, PUBLISHED = Target(layout="single"), Target(layout="published")


def seeded(spec, name, seed=0):
    return seeded_state_dict({key: tensor.shape for key, tensor in expected_tensors(model_factory(spec, name)).items()}, seed)


def loaded(spec, name, path):
    """The state dict of the model in a file, through every check."""
    weights = check_model(spec, name, (path,))
    return load_model(model_factory(spec, name), weights.files, device="cpu", steps=weights.steps).state_dict()


def is_linear(name):
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name and "pos_embedding" not in name


def complaint(call, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as raised:
        call(*args, **kwargs)
    return str(raised.value)


@pytest.fixture(scope="module")
def dit():
    return seeded(T2V, HIGH)


# ---------------------------------------------------------------------------------------------------- what a file is


@pytest.mark.parametrize("prefix", ["", *formats.PREFIXES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_single_files_of_a_transformer(tmp_path, dit, prefix, dtype):
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor.to(dtype) for name, tensor in dit.items()}, path)
    contents = recognise([path])
    assert (contents.kind, contents.names, contents.prefix) == ("transformer", "published", prefix)
    assert contents.storage == str(dtype).removeprefix("torch.") and not contents.quantised
    assert all(torch.equal(tensor, dit[name].to(dtype)) for name, tensor in loaded(T2V, HIGH, path).items())


def test_the_suffix_of_a_file_decides_nothing(tmp_path, dit):
    save_file(dit, tmp_path / "a.bin")
    torch.save(dit, tmp_path / "b.ckpt")
    for name in ("a.bin", "b.ckpt"):
        assert all(torch.equal(tensor, dit[key]) for key, tensor in loaded(T2V, HIGH, tmp_path / name).items())


@pytest.mark.parametrize(
    "name, metadata, expert",
    [
        ("wan2.2_t2v_high_noise_14B_fp16", {}, HIGH),
        ("Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ", {}, LOW),
        ("Wan2.2-T2V-A14B-HighNoise-Q8_0", {}, HIGH),
        ("highlight", {}, None),
        ("low_and_high", {}, None),
        ("model", {"modelspec.title": "t2v low_noise"}, LOW),
        ("wan_high", {"modelspec.title": "low"}, HIGH),
    ],
)
def test_the_expert_by_name_and_metadata(tmp_path, dit, name, metadata, expert):
    path = tmp_path / f"{name}.safetensors"
    save_file(dit, path, metadata)
    assert recognise([path]).expert == expert


@pytest.mark.parametrize("spec, version", [(T2V, "2.1"), (TI2V, "2.2")])
def test_vaes(tmp_path, spec, version):
    state = seeded(spec, "vae")
    for path, names in ((tmp_path / "a.safetensors", {}), (tmp_path / "b.safetensors", formats.vae_names(spec.vae))):
        save_file(dict(formats.renamed(names)(state.items())), path)
        contents = recognise([path])
        assert (contents.kind, contents.version) == ("vae", version)
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded(spec, "vae", path).items())


def test_loras_relatives_and_strangers(tmp_path, dit):
    path = tmp_path / "x.safetensors"
    save_file({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 48)}, path)
    assert recognise([path]).kind == "lora"
    assert "give it with --lora" in complaint(check_model, T2V, HIGH, (path,))
    save_file({**dit, "vace_blocks.0.after_proj.weight": torch.zeros(1)}, path)
    assert "this is the transformer of a VACE model" in complaint(check_model, T2V, HIGH, (path,))
    save_file({**dit, "pose_patch_embedding.weight": torch.zeros(1)}, path)
    assert "use --task animate-14B" in complaint(check_model, T2V, HIGH, (path,))
    save_file({"model.layers.0.weight": torch.zeros(1)}, path)
    assert describe(path) == ["x.safetensors: weights of a model that this version does not know"]


def test_the_wrong_file_for_a_part(tmp_path, dit):
    save_file(dit, tmp_path / "dit.safetensors")
    save_file(seeded(TI2V, "vae"), tmp_path / "vae.safetensors")
    assert "this is a transformer; give the right file with --vae" in complaint(check_model, T2V, "vae", (tmp_path / "dit.safetensors",))
    text = complaint(check_model, T2V, "vae", (tmp_path / "vae.safetensors",))
    assert "this is a 2.2 VAE, and 14B models use Wan2.1_VAE.pth; Wan2.2_VAE.pth belongs to ti2v-5B" in text
    assert "patch_embedding.weight is [48, 16, 1, 2, 2] instead of [48, 48, 1, 2, 2]" in complaint(
        check_model, TI2V, "all_noise", (tmp_path / "dit.safetensors",)
    )


def test_descriptions(tmp_path, pristine):
    lines = describe(pristine / "t2v")
    assert lines[0].endswith("a folder in the published layout") and len(lines) == 5
    assert "high_noise_model/diffusion_pytorch_model.safetensors: a transformer of no model in the table" in lines[2] + lines[1]
    assert any("the 2.1 VAE" in line for line in lines) and any("a umT5 text encoder" in line for line in lines)
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    assert "cannot be used" in describe(tmp_path)[1]
    assert "there is no file or folder" in complaint(describe, tmp_path / "nowhere")


def test_bundled_models_are_recognised_by_name(tmp_path):
    path = tmp_path / "nano.safetensors"
    save_file(seeded(TI2V_NANO, "all_noise"), path)
    assert recognise([path]).models == ("ti2v-nano",)
    assert "the transformer of ti2v-nano, in the published names, float32" in describe(path)[0]


# --------------------------------------------------------------------------------------------------------------- fp8


def fp8_error_bound(weight):
    """Half a step of float8_e4m3fn, 1/16 of the value; near zero the step is fixed, 2^-9 of the scale."""
    return weight.abs() / 16 + weight.abs().max() / 448 * 2**-10


def assert_fp8_close(found, expected):
    for name, tensor in expected.items():
        if is_linear(name):
            assert ((found[name] - tensor).abs() <= fp8_error_bound(tensor) * 1.001).all(), name
        else:
            assert torch.equal(found[name], tensor), name


def as_older(dit):
    return dict(quantise_fp8(dit.items(), is_linear)), {}


def as_newer(dit):
    """weight_scale, and the format of each layer in a tensor."""
    state = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in as_older(dit)[0].items() if name != "scaled_fp8"}
    about = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for layer in [name.removesuffix(".weight") for name in dit if is_linear(name)]:
        state |= {f"{layer}.comfy_quant": about, f"{layer}.input_scale": torch.ones(1)}
    return state, {}


def as_newer_with_metadata(dit):
    """weight_scale without axes, and the format of each layer in the header."""
    state = {name: tensor.reshape(()) if name.endswith("weight_scale") else tensor for name, tensor in as_newer(dit)[0].items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("comfy_quant")}
    layers = {name.removesuffix(".weight"): {"format": "float8_e4m3fn"} for name in dit if is_linear(name)}
    return state, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


@pytest.mark.parametrize("make", [as_older, as_newer, as_newer_with_metadata])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_scaled_fp8(tmp_path, dit, make, prefix):
    state, metadata = make(dit)
    path = tmp_path / "x.safetensors"
    save_file({prefix + name: tensor.clone() for name, tensor in state.items()}, path, metadata)
    assert recognise([path]).storage == "float8_e4m3fn with scales"
    assert_fp8_close(loaded(T2V, HIGH, path), dit)


def test_one_scale_for_each_row(tmp_path, dit):
    state, _ = as_older(dit)
    for name in [name for name in state if name.endswith(".scale_weight")]:
        rows = state[name.replace("scale_weight", "weight")].shape[0]
        state[name] = state[name].expand(rows).clone().unsqueeze(1)
    save_file(state, tmp_path / "x.safetensors")
    assert_fp8_close(loaded(T2V, HIGH, tmp_path / "x.safetensors"), dit)


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_without_scales_is_read_as_it_is_and_noted(tmp_path, dit, dtype):
    path = tmp_path / "t2v_high.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in dit.items()}, path)
    assert any("fp8 weights without scales" in note for note in check_model(T2V, HIGH, (path,)).notes)
    assert all(torch.equal(tensor.float(), dit[name].to(dtype).float()) for name, tensor in loaded(T2V, HIGH, path).items())


def test_scales_that_are_announced_and_missing(tmp_path, dit):
    state, _ = as_older(dit)
    path = tmp_path / "x.safetensors"
    for gone in ([name for name in state if name.endswith("scale_weight")], ["blocks.1.ffn.0.scale_weight"]):
        save_file({name: tensor for name, tensor in state.items() if name not in gone}, path)
        text = complaint(recognise, [path])
        assert f"{len(gone)} of them have no scale" in text and "worthless" in text


@pytest.mark.parametrize("named", ["nvfp4", "int8_tensorwise", "mxfp8"])
def test_other_quantisations_are_refused_by_name(tmp_path, dit, named):
    about = torch.tensor(list(json.dumps({"format": named}).encode()), dtype=torch.uint8)
    path = tmp_path / "x.safetensors"
    save_file({**dit, "blocks.0.ffn.0.comfy_quant": about}, path)
    assert f"is quantised as {named}, which this version cannot read" in complaint(recognise, [path])


@pytest.mark.parametrize(
    "name, tensor, words",
    [
        ("blocks.0.ffn.0.weight_scale_2", torch.ones(1), "nvfp4"),
        ("blocks.0.ffn.0.weight.quant_state.bitsandbytes__nf4", torch.ones(1, dtype=torch.uint8), "bitsandbytes"),
        ("blocks.0.ffn.0.qweight", torch.ones(1, dtype=torch.int32), "GPTQ"),
        ("blocks.0.ffn.2.weight", torch.ones(4, 4, dtype=torch.uint8), "packed integers"),
        ("blocks.0.ffn.0.comfy_quant", torch.ones(3, dtype=torch.uint8), "cannot be read"),
    ],
)
def test_foreign_quantisations(tmp_path, dit, name, tensor, words):
    save_file({**dit, name: tensor}, tmp_path / "x.safetensors")
    assert words in complaint(recognise, [tmp_path / "x.safetensors"])


def test_scales_of_blocks(tmp_path, dit):
    state, _ = as_older(dit)
    state["blocks.0.ffn.0.scale_weight"] = torch.ones(8, 4)
    save_file(state, tmp_path / "x.safetensors")
    assert "the shape [8, 4]" in complaint(check_model, T2V, HIGH, (tmp_path / "x.safetensors",))


# ------------------------------------------------------------------------------------------------------------- trees


@pytest.fixture
def tree(pristine, tmp_path):
    return convert_folder(T2V, pristine / "t2v", tmp_path / "tree", SINGLE)


def options():
    return RuntimeOptions(device="cpu")


def states(spec, folder, parts=None):
    weights = check_folder(spec, folder, parts=parts)
    return {
        name: load_model(model_factory(spec, name), weights[name].files, device="cpu", steps=weights[name].steps).state_dict()
        for name in model_names(spec)
    }


def assert_equal(left, right):
    for name, state in left.items():
        assert state.keys() == right[name].keys()
        assert all(torch.equal(tensor, right[name][key]) for key, tensor in state.items()), name


def test_a_tree_written_and_read(tree, pristine):
    files = {str(path.relative_to(tree)) for path in tree.rglob("*.safetensors")}
    assert files == {
        "diffusion_models/tiny-t2v-A14B_high_noise_bf16.safetensors",
        "diffusion_models/tiny-t2v-A14B_low_noise_bf16.safetensors",
        "vae/wan_2.1_vae.safetensors",
        "text_encoders/umt5_bf16.safetensors",
    }
    assert_equal(states(T2V, tree), states(T2V, pristine / "t2v"))
    text = load_file(tree / "text_encoders" / "umt5_bf16.safetensors")
    assert {"shared.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "tokenizer_json"} <= text.keys()
    with safe_open(tree / "diffusion_models" / "tiny-t2v-A14B_low_noise_bf16.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "tiny-t2v-A14B low_noise"


def test_comfyui_itself_and_a_flat_folder(tree, tmp_path, pristine):
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "flat").mkdir()
    shutil.copytree(tree, tmp_path / "ComfyUI" / "models")
    for path in tree.rglob("*.safetensors"):
        shutil.copy(path, tmp_path / "flat")
    for folder in (tmp_path / "ComfyUI", tmp_path / "flat"):
        assert_equal(states(T2V, folder), states(T2V, pristine / "t2v"))


def test_other_files_in_a_tree_do_not_matter(tree, pristine):
    save_file({"x": torch.zeros(1)}, tree / "diffusion_models" / "other.safetensors")
    (tree / "vae" / "broken.safetensors").write_bytes(b"1234")
    save_file(torch.load(pristine / "ti2v" / "Wan2.2_VAE.pth"), tree / "vae" / "wan2.2_vae.safetensors")
    check_folder(T2V, tree)


def test_the_tokenizer_inside_the_text_encoder(tree, pristine):
    parts = Components(T2V, tree, options())
    ids, mask = parts.tokenizer(["a red ball"])
    theirs, _ = Components(T2V, pristine / "t2v", options()).tokenizer(["a red ball"])
    assert torch.equal(ids, theirs) and mask.any()
    assert (parts.tokenizer.folder / "tokenizer.json").exists()  # as long as the tokenizer is


def test_what_a_tree_lacks(tree):
    low = next(tree.glob("diffusion_models/*low*"))
    low.rename(low.with_name("x.safetensors"))
    with_metadata = load_file(low.with_name("x.safetensors"))
    save_file(with_metadata, low.with_name("x.safetensors"))
    text = complaint(check_folder, T2V, tree)
    assert "has no low_noise expert" in text and "neither name nor metadata say which expert" in text and "--low_noise" in text
    check_folder(T2V, tree, parts=Parts(low_noise=low.with_name("x.safetensors")))


def test_several_files_that_fit(tree):
    high = next(tree.glob("diffusion_models/*high*"))
    shutil.copy(high, high.with_name("another_high.safetensors"))
    text = complaint(check_folder, T2V, tree)
    assert "has several files for the high_noise expert" in text and "choose one with --high_noise" in text


def test_the_other_vae_in_a_tree(tree, pristine):
    (tree / "vae" / "wan_2.1_vae.safetensors").unlink()
    save_file(torch.load(pristine / "ti2v" / "Wan2.2_VAE.pth"), tree / "vae" / "wan2.2_vae.safetensors")
    text = complaint(check_folder, T2V, tree)
    assert "has no VAE" in text and "its VAE is the 2.2 one, and 14B models use Wan2.1_VAE.pth" in text


def test_a_tree_without_tokenizer(tree):
    path = next(tree.glob("text_encoders/*"))
    state = load_file(path)
    del state["tokenizer_json"]
    save_file(state, path)
    assert "has no tokenizer; give the folder of one with --tokenizer" in complaint(check_folder, T2V, tree)


def test_trees_are_guessed(tmp_path):
    (tmp_path / "diffusion_models").mkdir()
    save_file(seeded(TI2V_NANO, "all_noise"), tmp_path / "diffusion_models" / "x.safetensors")
    assert guess_model(tmp_path) == "ti2v-nano"


# ------------------------------------------------------------------------------------------------------------- parts


def test_parts_replace_models_of_a_folder(pristine, tree, tmp_path):
    folder = shutil.copytree(pristine / "t2v", tmp_path / "t2v")
    shutil.rmtree(folder / "high_noise_model")
    (folder / "Wan2.1_VAE.pth").unlink()
    parts = Parts(high_noise=next(tree.glob("diffusion_models/*high*")), vae=tree / "vae")
    assert_equal(states(T2V, folder, parts), states(T2V, pristine / "t2v"))


def test_parts_without_a_folder(pristine, tree):
    find = lambda pattern: next(tree.glob(pattern))
    parts = Parts(
        high_noise=find("*/*high*"), low_noise=find("*/*low*"), vae=find("vae/*"), text_encoder=find("text_encoders/*"),
    )  # fmt: skip
    ours = Components(T2V, None, options(), parts=parts)
    assert ours.tokenizer.vocab_size == Components(T2V, pristine / "t2v", options()).tokenizer.vocab_size
    with ours.place("low_noise") as dit:
        assert dit.blocks[0].ffn[0].weight.shape == (64, 48)


def test_parts_that_cannot_be(pristine, tree, dit, tmp_path):
    assert "also needs --text_encoder" in complaint(check_folder, T2V, None, parts=Parts(vae=tree / "vae"))
    assert "no part called high_noise; its transformers are given with --transformer" in complaint(
        check_folder, TI2V, pristine / "ti2v", parts=Parts(high_noise="x")
    )
    assert "there is no file nowhere" in complaint(check_folder, T2V, pristine / "t2v", parts=Parts(vae="nowhere"))
    assert "several models" in complaint(check_folder, T2V, tree, parts=Parts(low_noise=tree / "diffusion_models"))


def test_an_expert_in_the_place_of_the_other_is_noted(pristine, tree):
    checkpoint = open_checkpoint(T2V, pristine / "t2v", parts=Parts(low_noise=next(tree.glob("*/*high*"))))
    assert any("is used as the low_noise expert, although it calls itself high_noise" in note for note in checkpoint.notes)


# -------------------------------------------------------------------------------------------------------- converting


def test_fp8_tree(pristine, tmp_path):
    tree = convert_folder(T2V, pristine / "t2v", tmp_path / "tree", Target(layout="single", quantise="fp8"))
    contents = {name: weights.contents for name, weights in check_folder(T2V, tree).items()}
    assert {name for name, found in contents.items() if found.quantised} == {"high_noise", "low_noise", "text_encoder"}
    assert contents["text_encoder"].names == "transformers" and contents["high_noise"].files[0].stem.endswith("fp8_e4m3fn_scaled")
    originals, found = states(T2V, pristine / "t2v"), states(T2V, tree)
    for name in ("high_noise", "text_encoder"):
        assert_fp8_close(found[name], {key: tensor.float() if is_linear(key) else tensor for key, tensor in originals[name].items()})


def test_fp8_back_to_the_published_layout(pristine, tmp_path):
    tree = convert_folder(T2V, pristine / "t2v", tmp_path / "tree", Target(layout="single", quantise="fp8"))
    back = convert_folder(T2V, tree, tmp_path / "back", PUBLISHED)
    before, after = states(T2V, tree), states(T2V, back)
    for name in ("high_noise", "text_encoder"):
        assert all(torch.equal(after[name][key], tensor.bfloat16()) for key, tensor in before[name].items())


def test_one_file(tmp_path, dit):
    source, target = tmp_path / "high.safetensors", tmp_path / "small_high.safetensors"
    save_file(dit, source)
    convert_file(source, target, Target(layout="single", quantise="fp8", dtype=torch.bfloat16), spec=T2V)
    assert target.stat().st_size < source.stat().st_size / 2
    assert "exists already" in complaint(convert_file, source, target, SINGLE, spec=T2V)
    assert "is of no model in the table" in complaint(convert_file, source, tmp_path / "y.safetensors", SINGLE)
    assert not list(tmp_path.glob(".*"))


def test_conversions_that_cannot_be(pristine, tmp_path, monkeypatch):
    assert "is for single files" in complaint(Target, layout="diffusers", quantise="fp8")
    assert "shares files with models outside its folder" in complaint(convert_folder, T2V_NANO, tmp_path, tmp_path / "out", PUBLISHED)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    assert "make room" in complaint(convert_folder, T2V, pristine / "t2v", tmp_path / "out", SINGLE)


def test_an_interrupted_conversion_leaves_nothing(pristine, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(T2V, pristine / "t2v", tmp_path / "out", SINGLE, report=stop)
    assert not any(tmp_path.iterdir())


def test_the_command(pristine, tmp_path, capsys):
    from kinograph.cli.convert import run
    from kinograph.errors import RequestError

    source, target = tmp_path / "nano.safetensors", tmp_path / "nano-fp8.safetensors"
    save_file(seeded(TI2V_NANO, "all_noise"), source)
    assert run([str(source), str(target), "--to", "single", "--quantise", "fp8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(target)}
    assert recognise([target]).storage == "float8_e4m3fn with scales"
    for argv, words in (
        ([str(source)], "lacks TARGET and --to LAYOUT"),
        ([str(source), "y", "--to", "single", "--quantise", "q3"], "'q3' cannot be written"),
        ([str(source), "y", "--to", "single", "--vae", "z"], "is one model"),
    ):
        with pytest.raises(RequestError, match=words):
            run(argv)
    with pytest.raises(CheckpointError, match="say so with --task"):
        run([str(pristine / "t2v"), "y", "--to", "single"])


# -------------------------------------------------------------------------------------------------------- tokenizers


def test_a_sentencepiece_model_gives_the_same_ids_as_its_own_package(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    words = ["red", "green", "blue", "ball", "square", "rolls", "jumps", "left", "right", "a", "the", "to", "ｆｕｌｌ", "球", "红色"]
    (tmp_path / "corpus.txt").write_text("\n".join(f"{a} {b} {c}" for a in words for b in words for c in words[:5]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=36, pad_id=0, eos_id=1, unk_id=3, bos_id=2,
        pad_piece="<pad>", user_defined_symbols=["<extra>"], minloglevel=2,
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = open_tokenizer(tmp_path, 32)
    for text in ("a red ball rolls to the right", "the 球 jumps", "ｆｕｌｌ square", "unknown Ω here", "<extra> red", ""):
        ids, mask = tokenizer([text])
        assert ids[0, : mask.sum() - 1].tolist() == reference.encode(text)


def test_tokenizers_that_cannot_be_read(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"\x0a\xff\xff")
    assert "cannot be read" in complaint(open_tokenizer, tmp_path, 8)
    (tmp_path / "empty").mkdir()
    assert "has neither tokenizer.json nor spiece.model" in complaint(open_tokenizer, tmp_path / "empty", 8)
    write_byte_tokenizer(tmp_path / "bytes")
    assert open_tokenizer(tmp_path / "bytes" / "tokenizer.json", 8).vocab_size == 259
