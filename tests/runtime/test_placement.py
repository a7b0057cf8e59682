"""Components: what is loaded when, on what, and what is said about it."""
from __future__ import annotations

import logging
import time

import pytest
import torch
from torch import nn

from benchmarks.write_random_checkpoint import write_random_checkpoint
from kinograph.config import T2V_A14B, RuntimeOptions, tiny
from kinograph.errors import CheckpointError, RuntimeSetupError
from kinograph.ops.attention import attention
from kinograph.runtime import placement
from kinograph.runtime.device import resolve_device, resolve_dtype
from kinograph.runtime.kernels import set_attention
from kinograph.runtime.placement import Components, computes_in_fp32

SPEC = tiny(T2V_A14B)
CPU = RuntimeOptions(device="cpu")
EXPERTS = ("high_noise", "low_noise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placement") / "t2v"
    write_random_checkpoint(SPEC, folder)
    return folder


def components(folder, *, transforms=(), **options) -> Components:
    return Components(SPEC, folder, RuntimeOptions(**{"device": "cpu", "offload": False, **options}), transforms=transforms)


# ------------------------------------------------------------------------------------------------------ policies


def test_nothing_is_loaded_until_it_is_placed(folder):
    parts = components(folder)
    assert parts.loaded == ()
    with parts.place("vae"):
        assert parts.loaded == ("vae",)


def test_resident_models_are_loaded_once(folder):
    parts = components(folder)
    with parts.place("high_noise") as first:
        pass
    with parts.place("low_noise"), parts.place("high_noise") as second:
        assert first is second and set(parts.loaded) == set(EXPERTS)
    assert set(parts.loaded) == set(EXPERTS)


def test_released_models_lose_their_memory_and_come_back_equal(folder):
    parts = components(folder, offload=True)
    with parts.place("high_noise") as first:
        before = first.head.head.weight.clone()
    assert parts.loaded == () and all(parameter.is_meta for parameter in first.parameters())
    with parts.place("high_noise") as second:
        assert second is not first and torch.equal(second.head.head.weight, before)


def test_one_expert_at_a_time_when_offloading(folder):
    parts = components(folder, offload=True)
    for name in EXPERTS:
        with parts.place(name):
            assert parts.loaded == (name,)


def test_a_model_placed_twice_is_released_after_the_outer_block(folder):
    parts = components(folder, offload=True)
    with parts.place("vae") as outer:
        with parts.place("vae") as inner:
            assert inner is outer
        assert parts.loaded == ("vae",)
    assert parts.loaded == ()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_release_on_errors(folder, error):
    parts = components(folder, offload=True)
    with pytest.raises(error), parts.place("vae"):
        raise error
    assert parts.loaded == () and parts.report[-1].stage == "vae"


def test_release_by_hand_spares_models_in_use(folder):
    parts = components(folder)
    with parts.place("vae"):
        pass
    with parts.place("text_encoder"):
        parts.release()
        assert parts.loaded == ("text_encoder",)
    parts.release("text_encoder")
    assert parts.loaded == ()


def test_unknown_name(folder):
    with pytest.raises(ValueError, match="it has text_encoder, high_noise, low_noise, vae"), components(folder).place("unet"):
        pass


@pytest.mark.parametrize("free, offload", [(10**12, False), (10**5, True), (None, False)])
def test_automatic_offload_goes_by_free_memory_and_says_so(folder, monkeypatch, caplog, free, offload):
    monkeypatch.setattr(placement, "free_bytes", lambda device: free)
    with caplog.at_level(logging.INFO):
        parts = Components(SPEC, folder, CPU)
    assert parts.offload is offload
    if free is not None:
        assert len(parts.notes) == 1 and ("released" in parts.notes[0]) is offload and parts.notes[0] in caplog.text


def test_out_of_memory_becomes_a_sentence(folder):
    parts = components(folder)
    with pytest.raises(RuntimeSetupError, match=r"ran out of memory with vae .* turn offloading on"), parts.place("vae"):
        raise torch.OutOfMemoryError("tried to allocate")


# --------------------------------------------------------------------------------------------- dtypes and devices


def test_dtypes(folder):
    parts = components(folder, dtype="bfloat16")
    with parts.place("vae") as vae, parts.place("text_encoder") as text, parts.place("low_noise") as dit:
        assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in text.parameters()} == {torch.float32}
        for name, parameter in dit.named_parameters():
            assert parameter.dtype == (torch.float32 if computes_in_fp32(name) else torch.bfloat16), name
        assert dit.blocks[0].norm3.weight.dtype == torch.bfloat16


def test_a_large_text_encoder_stays_as_stored(folder, monkeypatch):
    monkeypatch.setattr(placement, "SMALL_TEXT_ENCODER", 0)
    with components(folder).place("text_encoder") as text:
        assert {parameter.dtype for parameter in text.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"device": "tpu"}, "use auto, cpu, cuda"),
        ({"device": "cuda:99"}, "cuda"),
        ({"text_device": "nowhere"}, "'nowhere' is not known"),
        ({"dtype": "float8"}, "'float8' is not known; use auto, float32"),
        ({"vae_dtype": "int"}, "'int' is not known"),
    ],
)
def test_options_that_cannot_be(folder, options, words):
    with pytest.raises(RuntimeSetupError) as raised:
        components(folder, **options)
    assert words in str(raised.value)


def test_automatic_device_and_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(RuntimeSetupError, match="finds no CUDA GPU"):
        resolve_device("cuda")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16


def test_the_folder_is_checked_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        Components(SPEC, tmp_path / "absent", CPU)
    with pytest.raises(CheckpointError, match="does not ship"):
        Components(SPEC, None, CPU)


# --------------------------------------------------------------------------------------------------- transforms


def test_transforms_run_once_per_load_in_order(folder):
    calls = []

    def wrap(model: nn.Module, name: str) -> nn.Module:
        calls.append(("wrap", name))
        return nn.Sequential(model)

    def see(model: nn.Module, name: str) -> nn.Module:
        calls.append(("see", type(model).__name__))
        return model

    parts = components(folder, transforms=(wrap, see))
    for _ in range(2):
        with parts.place("vae") as model:
            assert isinstance(model, nn.Sequential)
    assert calls == [("wrap", "vae"), ("see", "Sequential")]


def test_attention_is_set_in_every_block(folder):
    parts = components(folder, attention="math")
    with parts.place("low_noise") as dit:
        for block in dit.blocks:
            for part in (block.self_attn, block.cross_attn):
                assert part.attend.func is attention and part.attend.keywords == {"implementation": "math"}
    assert parts.attention == "math (as asked)" and parts.notes == ["attention: math (as asked)"]


def test_attention_does_not_change_the_result(folder):
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 32, 48)
    results = []
    for name in ("auto", "math"):
        with components(folder, attention=name).place("low_noise") as dit:
            results.append(dit(x, t, text))
    torch.testing.assert_close(*results)


def test_attention_that_cannot_run(folder):
    with pytest.raises(RuntimeSetupError, match="needs a CUDA device"), components(folder, attention="flash").place("low_noise"):
        pass


def test_set_attention_says_what_and_why(folder):
    with components(folder).place("low_noise") as dit:
        same, description = set_attention(dit, "auto")
    assert same is dit and description.startswith("sdpa (")


# ------------------------------------------------------------------------------------------------------- records


def test_stages(folder):
    parts = components(folder)
    with parts.stage("text"), parts.place("text_encoder"):
        time.sleep(0.02)
    with parts.place("vae"):
        pass
    with parts.stage("decode"), parts.place("vae"):
        pass
    text, vae, decode = parts.report
    assert [stage.stage for stage in parts.report] == ["text", "vae", "decode"]
    assert text.seconds > text.load_seconds + 0.02 and vae.load_seconds > 0
    assert decode.load_seconds == 0
    assert all(stage.peak_device_bytes == 0 and stage.host_rss_bytes > 0 for stage in parts.report)


def test_peaks_are_booked_to_every_open_stage(folder, monkeypatch):
    peaks = iter([1, 50, 30, 20])  # before the outer stage, until the inner one, in the inner one, after it
    monkeypatch.setattr(placement, "take_peak_bytes", lambda device: next(peaks))
    parts = components(folder)
    with parts.stage("outer"), parts.stage("inner"):
        pass
    assert {stage.stage: stage.peak_device_bytes for stage in parts.report} == {"inner": 30, "outer": 50}


def test_description_and_fingerprints(folder):
    parts = components(folder)
    assert parts.fingerprints().keys() == {"text_encoder", *EXPERTS, "vae"}
    assert len(set(parts.fingerprints().values())) == 4
    assert parts.describe() == {
        "device": "cpu",
        "device_name": "cpu",
        "dtype": "float32",
        "vae_dtype": "float32",
        "text_device": "cpu",
        "text_dtype": "float32",
        "offload": False,
        "attention": None,
    }


def test_tokenizer(folder):
    ids, mask = components(folder).tokenizer(["a red ball"])
    assert ids.shape == (1, SPEC.text.text_len) and mask.sum() == len("a red ball") + 1
    assert ids.max() < SPEC.text.vocab_size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory that a release gives back is counted on a CUDA device")
def test_release_gives_device_memory_back(folder):
    parts = Components(SPEC, folder, RuntimeOptions(device="cuda", offload=True))
    before = torch.cuda.memory_allocated()
    with parts.place("vae") as vae:
        assert torch.cuda.memory_allocated() > before and next(vae.parameters()).is_cuda
    assert torch.cuda.memory_allocated() == before
    assert parts.report[-1].peak_device_bytes > before
