"""Loading: exact, strict, without a second copy, nothing left without memory."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kinograph.checkpoints.layout import model_factory, model_names, weight_files
from kinograph.checkpoints.load import load_model
from kinograph.config import TI2V_5B, tiny
from kinograph.errors import CheckpointError

SPEC = tiny(TI2V_5B)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


class WithBuffer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)
        self.register_buffer("table", torch.zeros(2), persistent=False)


@pytest.fixture
def small_file(tmp_path):
    save_file(small().state_dict(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize("name", model_names(SPEC))
def test_every_model_of_a_published_folder(pristine, name):
    files = weight_files(SPEC, pristine / "ti2v", name)
    model = load_model(model_factory(SPEC, name), files, device="cpu")
    stored = {}
    for file in files:
        stored |= load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(state[key].dtype == stored[key].dtype and torch.equal(state[key], stored[key]) for key in stored)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_shards_are_many(pristine):
    assert len(weight_files(SPEC, pristine / "ti2v", "all_noise")) > 2


def test_dtype_and_exceptions(pristine):
    files = weight_files(SPEC, pristine / "ti2v", "all_noise")
    factory = model_factory(SPEC, "all_noise")
    model = load_model(factory, files, device="cpu", dtype=torch.float16, keep_fp32=lambda name: name.startswith("head."))
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert all(dtype == (torch.float32 if name.startswith("head.") else torch.float16) for name, dtype in dtypes.items())


def test_same_dtype_on_the_cpu_stays_in_the_file(tmp_path):
    """Anonymous memory must not grow by the size of the weights, in either format."""

    def factory() -> nn.Module:
        return nn.Linear(4096, 4096, bias=False)

    weight = {"weight": torch.ones(4096, 4096)}  # 64 MiB
    save_file(weight, tmp_path / "a.safetensors")
    torch.save(weight, tmp_path / "a.pth")
    del weight
    for name in ("a.safetensors", "a.pth"):
        before = _anonymous_bytes()
        model = load_model(factory, [tmp_path / name], device="cpu", dtype=torch.float32)
        assert model.weight.sum() == 4096**2
        assert _anonymous_bytes() - before < 16 * 2**20, name


def _anonymous_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
    except OSError:
        pytest.skip("needs /proc to measure memory")


def test_changing_loaded_weights_does_not_change_the_file(pristine):
    for name in ("all_noise", "vae"):
        files = weight_files(SPEC, pristine / "ti2v", name)
        before = [file.read_bytes() for file in files]
        model = load_model(model_factory(SPEC, name), files, device="cpu")
        for parameter in model.parameters():
            parameter.add_(1)
        assert [file.read_bytes() for file in files] == before


def test_weights_loaded_in_inference_mode_are_ordinary(small_file):
    with torch.inference_mode():
        model = load_model(small, [small_file], device="cpu", dtype=torch.bfloat16)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("0.bias"), "1 missing (0.bias)"),
        (lambda s: s.update(extra=torch.ones(1)), "1 unexpected (extra)"),
        (lambda s: s.update({"0.weight": torch.ones(4, 5)}), "0.weight is [4, 5] instead of [4, 3]"),
    ],
)
def test_strict(tmp_path, change, words):
    state = dict(small().state_dict())
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_model(small, [tmp_path / "x.safetensors"], device="cpu")
    assert words in str(raised.value) and "x.safetensors" in str(raised.value)


def test_the_same_tensor_in_two_files(small_file, tmp_path):
    save_file({"0.bias": torch.ones(4)}, tmp_path / "again.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.bias is in both"):
        load_model(small, [small_file, tmp_path / "again.safetensors"], device="cpu")


def test_a_buffer_outside_the_state_dict_is_refused(tmp_path):
    save_file(WithBuffer().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(AssertionError, match="without memory after loading: table"):
        load_model(WithBuffer, [tmp_path / "x.safetensors"], device="cpu")


def test_steps_rename(small_file):
    def add_prefix(stream):
        return ((f"0.{name}", tensor) for name, tensor in stream)

    model = load_model(lambda: nn.Sequential(small()), [small_file], device="cpu", steps=(add_prefix,))
    assert "0.0.weight" in model.state_dict()


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"weight": torch.ones(1), "code": pytest.raises}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="cannot be read as a plain state dict"):
        load_model(small, [tmp_path / "x.pth"], device="cpu")


def test_a_state_dict_among_a_trainers_counters_is_found(tmp_path):
    model = small()
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "x.pth")
    loaded = load_model(small, [tmp_path / "x.pth"], device="cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_state_dict_nested_otherwise_is_refused(tmp_path):
    torch.save({"model": small().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="something other than a plain state dict"):
        load_model(small, [tmp_path / "x.pth"], device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a CUDA device run ahead in threads")
def test_to_a_gpu(pristine):
    files = weight_files(SPEC, pristine / "ti2v", "all_noise")
    there = load_model(model_factory(SPEC, "all_noise"), files, device="cuda", dtype=torch.float32).state_dict()
    here = load_model(model_factory(SPEC, "all_noise"), files, device="cpu", dtype=torch.float32).state_dict()
    assert all(torch.equal(there[name].cpu(), here[name]) for name in here)
