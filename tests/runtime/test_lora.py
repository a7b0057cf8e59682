"""LoRAs on a transformer: fused = kept apart = the formula, in every format, on every storage, step by step."""
from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from lora_files import FAMILIES, TARGETS, full_differences, low_rank, write
from seeded import load_seeded, seeded_tensor
from torch import nn

from benchmarks.write_random_checkpoint import write_random_checkpoint
from kinograph.checkpoints.fingerprint import fingerprint
from kinograph.checkpoints.lora_formats import HIGH, LOW, model_shapes
from kinograph.config import T2V_A14B, T2V_NANO, TI2V_5B, TI2V_NANO, RuntimeOptions, tiny
from kinograph.errors import CheckpointError, RequestError, RuntimeSetupError
from kinograph.models.dit import DiT
from kinograph.runtime.lora import Lora, LoraFile, Phase, Term, set_strengths, with_preset
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning, ExpertRun, denoise
from kinograph.sampling.presets import PRESETS
from kinograph.sampling.solvers import make_solver

SPEC = tiny(T2V_A14B)
SHAPES = model_shapes(SPEC)
FAMILY = FAMILIES["comfyui"]


def build(dtype: torch.dtype = torch.float32) -> DiT:
    return load_seeded(DiT(SPEC.dit)).eval().requires_grad_(False).to(dtype)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = seeded_tensor("x", (1, SPEC.dit.in_dim, 2, 4, 4))
    return x, torch.tensor([700.0]), seeded_tensor("text", (1, SPEC.dit.text_len, SPEC.dit.text_dim))


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(*inputs())


def by_formula(*changes: tuple[float, dict[str, torch.Tensor]]) -> torch.Tensor:
    """What the model gives with every difference times its strength added by hand."""
    model = build()
    state = model.state_dict()
    for strength, differences in changes:
        for name, difference in differences.items():
            state[name] = state[name] + strength * difference
    model.load_state_dict(state)
    return run(model)


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error <= tolerance, f"relative error {error:.2e}"


def assert_changed(actual: torch.Tensor) -> None:
    assert (actual - run(build())).norm() > 1e-2 * actual.norm()


# ------------------------------------------------------------------------------------- fused = apart = the formula


@pytest.mark.parametrize("mode", ["fused", "apart"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(tmp_path, name, mode):
    tensors, differences = low_rank(SHAPES, FAMILIES[name])
    path = write(tmp_path / "style.safetensors", tensors)
    actual = run(Lora(SPEC, [LoraFile(path, 0.7)], mode=mode)(build(), HIGH))
    assert_same(actual, by_formula((0.7, differences)))
    assert_changed(actual)


@pytest.mark.parametrize("mode", ["fused", "apart"])
def test_full_differences(tmp_path, mode):
    tensors, differences = full_differences(SHAPES)
    path = write(tmp_path / "distilled.safetensors", tensors)
    actual = run(Lora(SPEC, [LoraFile(path, 0.7)], mode=mode)(build(), HIGH))
    assert_same(actual, by_formula((0.7, differences)))
    assert_changed(actual)


@pytest.mark.parametrize("mode", ["fused", "apart"])
def test_a_low_rank_patch_embedding(tmp_path, mode):
    tensors, differences = low_rank(SHAPES, FAMILY, targets=["patch_embedding"])
    path = write(tmp_path / "a.safetensors", tensors)
    assert_same(run(Lora(SPEC, [LoraFile(path)], mode=mode)(build(), HIGH)), by_formula((1.0, differences)))


@pytest.mark.parametrize("mode", ["fused", "apart"])
def test_several_at_once_with_strengths_of_their_own(tmp_path, mode):
    a, from_a = low_rank(SHAPES, FAMILIES["kohya"], rank=4, seed=1)
    b, from_b = low_rank(SHAPES, FAMILIES["diffusers"], rank=8, seed=2, targets=TARGETS[:3])
    c, from_c = full_differences(SHAPES, seed=3)
    paths = [write(tmp_path / f"{name}.safetensors", tensors) for name, tensors in (("a", a), ("b", b), ("c", c))]
    lora = Lora(SPEC, [LoraFile(path, strength) for path, strength in zip(paths, (0.5, -0.3, 1.2))], mode=mode)
    assert_same(run(lora(build(), LOW)), by_formula((0.5, from_a), (-0.3, from_b), (1.2, from_c)))


@pytest.mark.parametrize("mode", ["fused", "apart"])
def test_strength_by_expert(tmp_path, mode):
    tensors, differences = low_rank(SHAPES, FAMILY)
    path = write(tmp_path / "a.safetensors", tensors)
    lora = Lora(SPEC, [LoraFile(path, {HIGH: 0.4, LOW: 0.9})], mode=mode)
    for expert, strength in ((HIGH, 0.4), (LOW, 0.9)):
        assert_same(run(lora(build(), expert)), by_formula((strength, differences)))
    alone = Lora(SPEC, [LoraFile(path, {HIGH: 1.0})], mode=mode)
    assert torch.equal(run(alone(build(), LOW)), run(build()))


@pytest.mark.parametrize("mode", ["fused", "apart"])
def test_one_file_for_both_experts(tmp_path, mode):
    high, from_high = low_rank(SHAPES, FAMILIES["diffusers"], seed=1)
    low, from_low = low_rank(SHAPES, FAMILIES["diffusers"], seed=2)
    low = {name.replace("transformer.", "transformer_2."): tensor for name, tensor in low.items()}
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "both.safetensors", {**high, **low}))], mode=mode)
    assert_same(run(lora(build(), HIGH)), by_formula((1.0, from_high)))
    assert_same(run(lora(build(), LOW)), by_formula((1.0, from_low)))


def test_kept_apart_at_strength_zero_is_the_model_itself(tmp_path):
    paths = [write(tmp_path / "a.safetensors", low_rank(SHAPES, FAMILY)[0]), write(tmp_path / "b.safetensors", full_differences(SHAPES)[0])]
    model = Lora(SPEC, [LoraFile(path) for path in paths], mode="apart")(build(), HIGH)
    set_strengths(model, (0.0, 0.0))
    assert torch.equal(run(model), run(build()))


def test_strengths_change_in_place(tmp_path):
    tensors, differences = low_rank(SHAPES, FAMILY)
    model = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", tensors))], mode="apart")(build(), HIGH)
    for strength in (1.0, 0.25, -1.0):
        set_strengths(model, (strength,))
        assert_same(run(model), by_formula((strength, differences)))


def test_in_bfloat16_within_its_rounding(tmp_path):
    """Both ways may be off from float32 by no more than a few times what bfloat16 costs without any LoRA."""
    tensors, differences = low_rank(SHAPES, FAMILY)
    path = write(tmp_path / "a.safetensors", tensors)
    exact = by_formula((1.0, differences))
    noise = (run(build(torch.bfloat16)) - run(build())).norm() / run(build()).norm()
    for mode in ("fused", "apart"):
        model = Lora(SPEC, [LoraFile(path)], mode=mode)(build(torch.bfloat16), HIGH)
        assert_same(run(model), exact, 3 * noise)
        assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_fusing_does_not_write_to_the_weights_given(tmp_path):
    """They may be backed by the checkpoint file."""
    model = build()
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", low_rank(SHAPES, FAMILY)[0]))], mode="fused")(model, HIGH)
    assert all(torch.equal(parameter, copy) for parameter, copy in before.values())


def test_other_models_are_left_alone(tmp_path):
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", low_rank(SHAPES, FAMILY)[0]))])
    vae = nn.Linear(2, 2)
    assert lora(vae, "vae") is vae


# ---------------------------------------------------------------------------------------------- made by other code


@pytest.mark.parametrize("mode", ["fused", "apart"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_lora_made_by_peft(tmp_path, mode, use_rslora):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q", "k", "v", "o"],
        alpha_pattern={"cross_attn.q": 3},
        use_rslora=use_rslora,
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(build(), config)
    theirs.save_pretrained(tmp_path)
    expected = run(theirs)
    assert_same(run(Lora(SPEC, [LoraFile(tmp_path)], mode=mode)(build(), HIGH)), expected)
    assert_changed(expected)


def test_a_lora_saved_by_diffusers(tmp_path):
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    dit = SPEC.dit
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=dit.num_heads, attention_head_dim=dit.head_dim, in_channels=dit.in_dim, out_channels=dit.out_dim,
        text_dim=dit.text_dim, freq_dim=dit.freq_dim, ffn_dim=dit.ffn_dim, num_layers=dit.num_layers,
    )  # fmt: skip
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    diffusers.WanPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata={"r": 4, "lora_alpha": 6},
    )
    layer = model.blocks[1].attn2.to_q
    with torch.no_grad():
        change = 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    fused = Lora(SPEC, [LoraFile(tmp_path)], mode="fused")(build(), HIGH)
    plain = build()
    torch.testing.assert_close(fused.blocks[1].cross_attn.q.weight, plain.blocks[1].cross_attn.q.weight + change)
    assert torch.equal(fused.blocks[1].cross_attn.k.weight, plain.blocks[1].cross_attn.k.weight)


# ---------------------------------------------------------------------------------------------- quantised weights


class Int8Linear(nn.Module):
    """A linear whose weight is no plain parameter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.register_buffer("weight", torch.empty(linear.weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(linear.out_features, 1))
        self.store(linear.weight)

    def store(self, weight: torch.Tensor) -> None:
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = (weight / self.scale).round().to(torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.float() * self.scale, self.bias)


class RequantisableLinear(Int8Linear):
    def dequantised_weight(self) -> torch.Tensor:
        return self.weight.float() * self.scale

    def requantise_weight(self, weight: torch.Tensor) -> None:
        self.store(weight)


def quantised(kind: type[Int8Linear]) -> tuple[DiT, DiT]:
    """A transformer with quantised blocks, and one with the weights that they stand for."""
    model, same = build(), build()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            replacement = kind(module)
            model.set_submodule(name, replacement)
            same.get_submodule(name).weight.copy_(replacement.weight.float() * replacement.scale)
    return model, same


@pytest.mark.parametrize("mode", ["auto", "apart"])
@pytest.mark.parametrize("make", [low_rank, full_differences])
def test_kept_apart_on_quantised_linears(tmp_path, mode, make):
    tensors, differences = make(SHAPES, FAMILY) if make is low_rank else make(SHAPES)
    model, same = quantised(Int8Linear)
    state = same.state_dict()
    same.load_state_dict({name: tensor + differences.get(name, 0) for name, tensor in state.items()})
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", tensors))], mode=mode)
    assert_same(run(lora(model, HIGH)), run(same))


def test_auto_fuses_what_it_can_and_keeps_apart_the_rest(tmp_path):
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", low_rank(SHAPES, FAMILY)[0]))])
    model, _ = quantised(Int8Linear)
    apart = {name.partition(".terms")[0] for name, module in lora(model, HIGH).named_modules() if isinstance(module, Term)}
    assert apart == {path for path in TARGETS if path.startswith("blocks.")}
    assert not any(isinstance(module, Term) for module in lora(build(), HIGH).modules())


def test_fused_into_quantised_linears_that_can_be_written(tmp_path):
    tensors, differences = low_rank(SHAPES, FAMILY)
    model, same = quantised(RequantisableLinear)
    for name, tensor in same.state_dict().items():
        total = tensor + differences.get(name, 0)
        tensor.copy_(rounded(total) if name in differences and name.startswith("blocks.") else total)
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", tensors))], mode="fused")
    assert_same(run(lora(model, HIGH)), run(same))


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What an `Int8Linear` makes of a weight."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def test_fused_into_other_quantised_linears_is_refused(tmp_path):
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", low_rank(SHAPES, FAMILY)[0]))], mode="fused")
    with pytest.raises(RuntimeSetupError, match=r"fused into a Int8Linear.*use --lora_mode apart"):
        lora(quantised(Int8Linear)[0], HIGH)


# --------------------------------------------------------------------------------------------------------- phases


@dataclass
class Text:
    text: torch.Tensor


class Recorder:
    """Experts that keep a note of each placement and of the strengths at each call."""

    def __init__(self, lora: Lora) -> None:
        self.models = {name: lora(build(), name) for name in (HIGH, LOW)}
        self.placed: list[str] = []
        self.released: list[str] = []
        self.strengths: list[tuple[str, float]] = []

    @contextmanager
    def place(self, name: str):
        self.placed.append(name)
        model = self.models[name]

        def note(module, args):
            self.strengths.append((name, next(term.strength for term in module.modules() if isinstance(term, Term))))

        handle = model.register_forward_pre_hook(note)
        try:
            yield model
        finally:
            handle.remove()
            self.released.append(name)

    def runs(self, guidance: float = 1.0) -> list[ExpertRun]:
        return [
            ExpertRun(name=expert.name, t_min=expert.t_min, guidance_scale=guidance, on_device=lambda name=expert.name: self.place(name))
            for expert in SPEC.experts
        ]


def conditioning() -> Conditioning:
    _, _, text = inputs()
    return Conditioning(positive=Text(text), negative=Text(-text))


def four_steps():
    return make_solver("euler", sigmas=(1.0, 0.75, 0.5, 0.25), shift=5.0)


@pytest.fixture
def style(tmp_path):
    return write(tmp_path / "style_lightning.safetensors", low_rank(SHAPES, FAMILY)[0])


def test_strength_by_phase(style):
    phases = (Phase(end=0.25, strength=0.0), Phase(start=0.25, end=0.75), Phase(start=0.75, strength=0.5))
    lora = Lora(SPEC, [LoraFile(style, {HIGH: 0.8, LOW: 0.6}, phases)])
    assert lora.mode == "apart"
    recorder, solver = Recorder(lora), four_steps()
    runs = lora.schedule(recorder.runs(), solver.timesteps.tolist())
    steps: list[str] = []
    x = denoise(runs, solver, inputs()[0], conditioning(), on_step=lambda event: steps.append(event.expert))
    assert steps == [HIGH, HIGH, LOW, LOW]
    assert recorder.strengths == [(HIGH, 0.0), (HIGH, 0.8), (LOW, 0.6), (LOW, 0.3)]
    assert recorder.placed == recorder.released == [HIGH, LOW]  # loaded once each, although split
    # The same by hand.
    solver, expected = four_steps(), inputs()[0]
    for i, (expert, strength) in enumerate(recorder.strengths):
        model = recorder.models[expert]
        set_strengths(model, (strength,))
        with torch.no_grad():
            velocity = model(expected, torch.tensor([float(solver.timesteps[i])]), inputs()[2])
        expected = solver.step(i, expected, velocity)
    assert torch.equal(x, expected)
    # The runs serve another clip too.
    denoise(runs, four_steps(), inputs()[0], conditioning())
    assert recorder.strengths[4:] == recorder.strengths[:4] and recorder.placed == [HIGH, LOW] * 2


def test_without_phases_the_runs_are_the_same(style):
    runs = [ExpertRun(name=HIGH, t_min=0.0, guidance_scale=1.0, on_device=lambda: None)]
    assert Lora(SPEC, [LoraFile(style)]).schedule(runs, [1000, 500]) == runs


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_an_interrupted_run_releases_the_expert(style, stop_at):
    lora = Lora(SPEC, [LoraFile(style, 1.0, (Phase(end=0.25),))])
    recorder, solver = Recorder(lora), four_steps()

    def stop(event):
        if event.index == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(lora.schedule(recorder.runs(), solver.timesteps.tolist()), solver, inputs()[0], conditioning(), on_step=stop)
    assert recorder.placed == recorder.released


def test_steps_of_one_timestep_stay_together(style):
    """Integer timesteps repeat where steps are many; the phase changes at the next timestep, and every block is left."""
    lora = Lora(SPEC, [LoraFile(style, 1.0, (Phase(end=0.5),))])
    recorder = Recorder(lora)
    runs = lora.schedule(recorder.runs(), [900, 900, 900, 900])
    for expert in runs:
        with expert.on_device() as model:
            model(*inputs())
    assert recorder.strengths == [(HIGH, 1.0)] and recorder.released == [HIGH]


def test_the_motion_preset(style):
    preset = PRESETS["4-step-motion"]
    lora = Lora(SPEC, with_preset([LoraFile(style)], preset, preset.num_steps))
    recorder, solver = Recorder(lora), four_steps()
    timesteps = solver.timesteps.tolist()
    runs = lora.schedule(preset.runs(recorder.runs(guidance=3.5), timesteps), timesteps)
    assert [run.guidance_scale for run in runs] == [3.5, 1.0, 1.0]
    denoise(runs, solver, inputs()[0], conditioning())
    assert recorder.strengths == [(HIGH, 0.0), (HIGH, 0.0), (HIGH, 1.0), (LOW, 1.0), (LOW, 1.0)]  # the first step is guided: two calls
    assert recorder.placed == recorder.released == [HIGH, LOW]


def test_the_motion_preset_leaves_other_loras_in(tmp_path, style):
    preset = PRESETS["4-step-motion"]
    other = LoraFile("character.safetensors")
    given = [LoraFile(style), other, LoraFile("x.safetensors", 1.0, (Phase(end=0.5),))]
    first, second, third = with_preset(given, preset, 8)
    assert first.phases == (Phase(start=1 / 8),) and (second, third) == (other, given[2])
    with pytest.raises(RequestError, match=r"--lora FILE:1@0.25-1"):
        with_preset([other], preset, 4)
    assert with_preset([other], PRESETS["4-step"], 4) == [other]


# ------------------------------------------------------------------------------------------- in use, and refusals


@pytest.mark.parametrize("mode", ["fused", "apart"])
@pytest.mark.parametrize("offload", [False, True])
def test_with_components(tmp_path, mode, offload):
    tensors, _ = low_rank(SHAPES, FAMILY)
    write_random_checkpoint(SPEC, tmp_path / "t2v")
    lora = Lora(SPEC, [LoraFile(write(tmp_path / "a.safetensors", tensors), {LOW: 1.0})], mode=mode)
    options = RuntimeOptions(device="cpu", offload=offload)
    plain = Components(SPEC, tmp_path / "t2v", options)
    parts = Components(SPEC, tmp_path / "t2v", options, transforms=[lora])
    for expert, same in ((HIGH, True), (LOW, False)):
        outputs = []
        for components in (plain, parts, parts):
            with components.place(expert) as model:
                outputs.append(run(model))
        assert torch.equal(outputs[1], outputs[2]) and torch.equal(outputs[0], outputs[1]) is same
    if offload:
        assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))  # adapters lose their memory too


def test_what_is_written_into_the_recipe(style):
    lora = Lora(SPEC, [LoraFile(style, {LOW: 0.5}, (Phase(start=0.25),))])
    (entry,) = lora.describe()
    assert entry == {
        "path": str(style),
        "fingerprint": fingerprint(style),
        "strength": {HIGH: 0.0, LOW: 0.5},
        "phases": [[0.25, 1.0, 1.0]],
        "mode": "apart",
    }
    assert json.loads(json.dumps(entry)) == entry


def test_the_wrong_expert_is_said(tmp_path):
    path = write(tmp_path / "style_high_noise.safetensors", low_rank(SHAPES, FAMILY)[0])
    for strength in (1.0, {LOW: 1.0}):
        (note,) = Lora(SPEC, [LoraFile(path, strength)]).notes
        assert "style_high_noise.safetensors is for high_noise by its file name, but is used for low_noise; --lora_high" in note
    assert Lora(SPEC, [LoraFile(path, {HIGH: 1.0})]).notes == []
    single = tiny(TI2V_5B)
    path = write(tmp_path / "low.safetensors", low_rank(model_shapes(single), FAMILY)[0])
    assert Lora(single, [LoraFile(path)]).notes == []


def test_no_files_is_no_change():
    model = build()
    lora = Lora(SPEC, [])
    assert lora(model, HIGH) is model and lora.describe() == [] and lora.notes == []


def test_keys_left_out_on_request_are_said(tmp_path):
    path = write(tmp_path / "a.safetensors", {**low_rank(SHAPES, FAMILY)[0], "stray.diff": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 keys .* match nothing .*stray.diff"):
        Lora(SPEC, [LoraFile(path)])
    (note,) = Lora(SPEC, [LoraFile(path)], ignore_unmatched=True).notes
    assert note == "1 keys of a.safetensors have no place in this model (stray.diff) and are left out"


def test_a_lora_for_another_model_is_refused_before_any_weight_is_read(tmp_path):
    path = write(tmp_path / "a.safetensors", low_rank(model_shapes(TI2V_NANO), FAMILY, targets=TARGETS[:3])[0])
    with pytest.raises(CheckpointError, match="is a LoRA for ti2v-nano, not for t2v-nano"):
        Lora(T2V_NANO, [LoraFile(path)])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: Lora(SPEC, [LoraFile(path, {"middle": 1.0})]), "no expert 'middle'.* its experts are high_noise, low_noise"),
        (lambda path: Lora(SPEC, [LoraFile(path)], mode="melted"), "choose one of auto, fused, apart"),
        (lambda path: Lora(SPEC, [LoraFile(path, 1.0, (Phase(end=0.5),))], mode="fused"), "cannot change between steps; use"),
        (lambda path: LoraFile(path, float("nan")), "finite number; got nan"),
        (lambda path: Phase(start=0.5, end=0.25), "got 0.5-0.25"),
    ],
)
def test_bad_requests(style, make, words):
    with pytest.raises(RequestError, match=words):
        make(style)
