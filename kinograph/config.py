"""What every model is: sizes, files, defaults. Frozen dataclasses and one table, `MODELS`.

Three kinds of setting are never mixed: a *spec* says what the weights are (this file), a *request* says what is
wanted (`requests.py`), and *runtime options* say how to run it (`RuntimeOptions`, at the end of this file).
A published model and a nano model are rows of the same table.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# ---------------------------------------------------------------------------------------------------- components


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a diffusion transformer."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int  # channels of the model's input: latents, and conditioning channels after them
    out_dim: int  # channels of the predicted velocity
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _require(self.dim % self.num_heads == 0, f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        _require(self.head_dim % 2 == 0, f"head_dim must be even for rotary embedding; got {self.head_dim}")
        _require(self.freq_dim % 2 == 0, f"freq_dim must be even; got {self.freq_dim}")
        _require(self.in_dim >= self.out_dim, f"in_dim {self.in_dim} is smaller than out_dim {self.out_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def num_tokens(self, latents: tuple[int, int, int]) -> int:
        """Patches of latents of (frames, rows, columns)."""
        return prod(size // patch for size, patch in zip(latents, self.patch_size))


@dataclass(frozen=True, kw_only=True)
class AnimateConfig(DiTConfig):
    """Sizes of the character animation transformer: pose, image and face inputs join those of the base."""

    pose_dim: int = 16  # channels of the pose latents
    image_dim: int = 1280  # width of the image encoder's tokens
    face_size: int = 512  # side of a face crop in pixels
    motion_dim: int = 512  # width of a motion vector, and of the widest motion encoder layer
    num_motions: int = 20  # directions that a motion vector is a sum of
    face_dim: int = 1024  # width of a face encoder head
    face_heads: int = 4  # face tokens per latent frame; a learned one joins them
    face_every: int = 5  # blocks 0, face_every, 2 face_every, ... are followed by a face block

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.num_layers % self.face_every == 0, f"num_layers {self.num_layers} is not a multiple of face_every {self.face_every}"
        )
        _require(
            self.face_size >= 8 and self.face_size & (self.face_size - 1) == 0,
            f"face_size must be a power of two of at least 8; got {self.face_size}",
        )
        _require(self.num_motions <= self.motion_dim, f"num_motions {self.num_motions} exceeds motion_dim {self.motion_dim}")


@dataclass(frozen=True, kw_only=True)
class S2VConfig(DiTConfig):
    """Sizes of the speech-to-video transformer: sound, a reference, the motion so far and a pose join the base.

    The fields from `audio_dim` to `cond_dim` have the names of the published config.json.
    """

    audio_dim: int = 1024  # width of the speech encoder's features
    num_audio_token: int = 4  # sound tokens per latent frame; a learned one joins them
    audio_inject_layers: tuple[int, ...]  # blocks that sound is injected after
    enable_adain: bool = True  # the norm before an injection is modulated by the sound
    cond_dim: int = 16  # channels of the pose latents
    num_audio_layers: int = 25  # hidden states of the speech encoder, mixed with learned weights

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.dim % 4 == 0, f"dim must be a multiple of 4 for the audio encoder; got {self.dim}")
        layers = self.audio_inject_layers
        _require(
            list(layers) == sorted(set(layers)) and all(0 <= layer < self.num_layers for layer in layers),
            f"audio_inject_layers must rise from 0 to at most num_layers - 1 = {self.num_layers - 1}; got {layers}",
        )


@dataclass(frozen=True, kw_only=True)
class SpeechEncoderConfig:
    """Sizes of a wav2vec2 model of the large, pre-norm kind."""

    dim: int = 1024
    ffn_dim: int = 4096
    num_heads: int = 16
    num_layers: int = 24
    conv_dim: int = 512  # of all seven convolutions, which together make one feature of 320 samples
    conv_pos_groups: int = 16

    def __post_init__(self) -> None:
        _require(self.dim % self.num_heads == 0, f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Sizes of the visual tower of a CLIP model."""

    image_size: int = 224  # side of the input in pixels
    patch_size: int = 14
    dim: int = 1280
    num_heads: int = 16
    num_layers: int = 32
    mlp_ratio: int = 4
    out_dim: int = 1024  # of the projection to the space shared with text, which the published file has and nothing here uses
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _require(self.dim % self.num_heads == 0, f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        _require(
            self.image_size % self.patch_size == 0, f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
        )

    @property
    def num_tokens(self) -> int:
        """Patches and the class token before them."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of a causal video VAE. `version` picks the 2.1 or the 2.2 block structure."""

    version: str  # "2.1" or "2.2"
    base_dim: int  # encoder width
    decoder_dim: int  # decoder width
    z_dim: int
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2  # per encoder level; the decoder has one more
    temporal_down: tuple[bool, ...] = (False, True, True)

    def __post_init__(self) -> None:
        _require(self.version in ("2.1", "2.2"), f"VAE version must be '2.1' or '2.2'; got {self.version!r}")
        _require(
            len(self.latent_mean) == self.z_dim == len(self.latent_std),
            f"z_dim is {self.z_dim} but there are {len(self.latent_mean)} means and {len(self.latent_std)} deviations",
        )

    @property
    def patch_size(self) -> int:
        """Pixels folded into channels on each side before the encoder."""
        return 2 if self.version == "2.2" else 1

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent along (time, height, width)."""
        space = self.patch_size * 2 ** (len(self.dim_mult) - 1)
        return (2 ** sum(self.temporal_down), space, space)

    def latent_size(self, *, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(frames, rows, columns) of the latents of a video: the first frame is alone in its latent."""
        time, rows, columns = self.stride
        return ((num_frames - 1) // time + 1, height // rows, width // columns)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of a umT5 encoder."""

    vocab_size: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    text_len: int = 512

    def __post_init__(self) -> None:
        _require(
            self.dim_attn % self.num_heads == 0,
            f"dim_attn {self.dim_attn} is not a multiple of num_heads {self.num_heads}",
        )


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One diffusion transformer and the noise levels it is responsible for."""

    name: str
    folder: str  # inside the published checkpoint folder; "." is the folder itself
    t_min: float  # responsible for timesteps >= t_min * 1000 that no expert before it takes
    guidance_scale: float


@dataclass(frozen=True, kw_only=True)
class Files:
    """Names inside the published checkpoint folder."""

    vae: str
    text_encoder: str = "models_t5_umt5-xxl-enc-bf16.pth"
    tokenizer: str = "google/umt5-xxl"
    image_encoder: str = ""  # for the models that have one
    speech_encoder: str = ""  # likewise: a folder
    relighting_lora: str = ""  # likewise: a folder as PEFT makes it


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model of the table: what its weights are and the published defaults for sampling."""

    name: str
    task: str  # key of `kinograph.tasks.TASKS`
    model_type: str  # as config.json beside the weights has it
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    experts: tuple[Expert, ...]  # highest noise first
    files: Files
    num_steps: int
    shift: float
    num_frames: int
    fps: int
    sizes: tuple[tuple[int, int], ...]  # (width, height) the model was trained on; the first is the default
    hub: str = ""  # repository of the published weights, on Hugging Face and on ModelScope
    bundled: str = ""  # folder inside the package, for models that ship with it
    available: bool = True  # False: the row is known, the task is not built yet
    solver: str = "unipc"
    default_negative_prompt: str = ""
    default_prompt: str = ""  # for the tasks that need none from the user
    image_encoder: ImageEncoderConfig | None = None
    speech_encoder: SpeechEncoderConfig | None = None

    def __post_init__(self) -> None:
        bounds = [expert.t_min for expert in self.experts]
        _require(bool(bounds) and bounds[-1] == 0.0, f"{self.name}: the last expert must start at t_min 0; got {bounds}")
        _require(bounds == sorted(bounds, reverse=True), f"{self.name}: experts must run from high to low noise; got {bounds}")
        _require(self.dit.text_dim == self.text.dim, f"{self.name}: dit.text_dim {self.dit.text_dim} is not text.dim {self.text.dim}")
        lengths = (self.dit.text_len, self.text.text_len)
        _require(lengths[0] == lengths[1], f"{self.name}: dit.text_len {lengths[0]} is not text.text_len {lengths[1]}")
        if self.speech_encoder is not None and isinstance(self.dit, S2VConfig):
            heard = (self.speech_encoder.dim, self.speech_encoder.num_layers + 1)
            taken = (self.dit.audio_dim, self.dit.num_audio_layers)
            _require(heard == taken, f"{self.name}: the speech encoder gives (width, states) {heard} but the dit takes {taken}")
        _require(self.dit.out_dim == self.vae.z_dim, f"{self.name}: dit.out_dim {self.dit.out_dim} is not vae.z_dim {self.vae.z_dim}")

    @property
    def size_multiple(self) -> tuple[int, int]:
        """Pixels that (height, width) must be multiples of: one token."""
        _, sh, sw = self.vae.stride
        _, ph, pw = self.dit.patch_size
        return (sh * ph, sw * pw)


# --------------------------------------------------------------------------------------- published components

WAN21_VAE = VAEConfig(
    version="2.1",
    base_dim=96,
    decoder_dim=96,
    z_dim=16,
    latent_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latent_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)  # fmt: skip

WAN22_VAE = VAEConfig(
    version="2.2",
    base_dim=160,
    decoder_dim=256,
    z_dim=48,
    latent_mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    latent_std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
)  # fmt: skip

UMT5_XXL = TextConfig()

PUBLISHED_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)

# Speech to video was published with its own; 画面模糊 is in it twice.
S2V_NEGATIVE_PROMPT = (
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

_A14B_DIT = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16)
_A14B_SIZES = ((1280, 720), (720, 1280), (832, 480), (480, 832))


def _two_experts(boundary: float, *, high: float, low: float) -> tuple[Expert, ...]:
    return (
        Expert(name="high_noise", folder="high_noise_model", t_min=boundary, guidance_scale=high),
        Expert(name="low_noise", folder="low_noise_model", t_min=0.0, guidance_scale=low),
    )


def _one_expert(guidance_scale: float) -> tuple[Expert, ...]:
    return (Expert(name="all_noise", folder=".", t_min=0.0, guidance_scale=guidance_scale),)


# ---------------------------------------------------------------------------------------------- published models

T2V_A14B = ModelSpec(
    name="t2v-A14B",
    task="t2v",
    model_type="t2v",
    dit=_A14B_DIT,
    vae=WAN21_VAE,
    text=UMT5_XXL,
    experts=_two_experts(0.875, high=4.0, low=3.0),
    files=Files(vae="Wan2.1_VAE.pth"),
    num_steps=40,
    shift=12.0,
    num_frames=81,
    fps=16,
    sizes=_A14B_SIZES,
    hub="Wan-AI/Wan2.2-T2V-A14B",
    default_negative_prompt=PUBLISHED_NEGATIVE_PROMPT,
)

I2V_A14B = replace(
    T2V_A14B,
    name="i2v-A14B",
    task="i2v",
    model_type="i2v",
    dit=replace(_A14B_DIT, in_dim=36),
    experts=_two_experts(0.900, high=3.5, low=3.5),
    shift=5.0,
    hub="Wan-AI/Wan2.2-I2V-A14B",
)

TI2V_5B = ModelSpec(
    name="ti2v-5B",
    task="ti2v",
    model_type="ti2v",
    dit=DiTConfig(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48),
    vae=WAN22_VAE,
    text=UMT5_XXL,
    experts=_one_expert(5.0),
    files=Files(vae="Wan2.2_VAE.pth"),
    num_steps=50,
    shift=5.0,
    num_frames=121,
    fps=24,
    sizes=((1280, 704), (704, 1280)),
    hub="Wan-AI/Wan2.2-TI2V-5B",
    default_negative_prompt=PUBLISHED_NEGATIVE_PROMPT,
)

S2V_14B = replace(
    T2V_A14B,
    name="s2v-14B",
    task="s2v",
    model_type="s2v",
    dit=S2VConfig(
        dim=5120,
        ffn_dim=13824,
        num_heads=40,
        num_layers=40,
        in_dim=16,
        out_dim=16,
        audio_inject_layers=(0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
    ),
    experts=_one_expert(4.5),
    files=Files(vae="Wan2.1_VAE.pth", speech_encoder="wav2vec2-large-xlsr-53-english"),
    shift=3.0,
    num_frames=80,
    sizes=((1024, 704), (704, 1024), *_A14B_SIZES),
    hub="Wan-AI/Wan2.2-S2V-14B",
    default_negative_prompt=S2V_NEGATIVE_PROMPT,
    speech_encoder=SpeechEncoderConfig(),
)

ANIMATE_14B = replace(
    T2V_A14B,
    name="animate-14B",
    task="animate",
    model_type="animate",
    dit=AnimateConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36, out_dim=16),
    experts=_one_expert(1.0),
    files=Files(
        vae="Wan2.1_VAE.pth",
        image_encoder="models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        relighting_lora="relighting_lora",
    ),
    num_steps=20,
    shift=5.0,
    num_frames=77,
    fps=30,
    sizes=((1280, 720), (720, 1280)),
    hub="Wan-AI/Wan2.2-Animate-14B",
    default_prompt="视频中的人在做动作",
    image_encoder=ImageEncoderConfig(),
)

# --------------------------------------------------------------------------------------------------- nano models
# Trained by this project on drawn clips (docs/nano.md). The latent statistics are folded into the weights of the
# VAE's two 1x1x1 convolutions, so mean 0 and deviation 1 are exact, not placeholders.


def _nano_vae(version: str, *, base_dim: int, decoder_dim: int, z_dim: int) -> VAEConfig:
    return VAEConfig(
        version=version,
        base_dim=base_dim,
        decoder_dim=decoder_dim,
        z_dim=z_dim,
        latent_mean=(0.0,) * z_dim,
        latent_std=(1.0,) * z_dim,
        num_res_blocks=1,
    )


NANO_VAE_22 = _nano_vae("2.2", base_dim=24, decoder_dim=32, z_dim=48)
NANO_VAE_21 = _nano_vae("2.1", base_dim=16, decoder_dim=16, z_dim=16)
NANO_TEXT = TextConfig(
    vocab_size=1024, dim=128, dim_attn=128, dim_ffn=256, num_heads=4, num_layers=2, text_len=64
)

TI2V_NANO = ModelSpec(
    name="ti2v-nano",
    task="ti2v",
    model_type="ti2v",
    dit=DiTConfig(
        dim=384, ffn_dim=1536, num_heads=6, num_layers=7, in_dim=48, out_dim=48, freq_dim=256, text_dim=128, text_len=64
    ),
    vae=NANO_VAE_22,
    text=NANO_TEXT,
    experts=_one_expert(4.0),
    files=Files(vae="Wan2.2_VAE.pth"),
    num_steps=15,
    shift=5.0,
    num_frames=17,
    fps=8,
    sizes=((256, 256),),
    bundled="ti2v-nano",
)

# The two-expert members share one VAE and one text encoder, which lie beside their folders.
T2V_NANO = replace(
    TI2V_NANO,
    name="t2v-nano",
    task="t2v",
    model_type="t2v",
    dit=DiTConfig(dim=256, ffn_dim=1024, num_heads=4, num_layers=7, in_dim=16, out_dim=16, text_dim=128, text_len=64),
    vae=NANO_VAE_21,
    experts=_two_experts(0.875, high=4.0, low=4.0),
    files=Files(
        vae="../nano-shared/Wan2.1_VAE.pth",
        text_encoder="../nano-shared/models_t5_umt5-xxl-enc-bf16.pth",
        tokenizer="../nano-shared/google/umt5-xxl",
    ),
    sizes=((128, 128),),
    bundled="t2v-nano",
)

I2V_NANO = replace(
    T2V_NANO,
    name="i2v-nano",
    task="i2v",
    model_type="i2v",
    dit=replace(T2V_NANO.dit, in_dim=36),
    experts=_two_experts(0.900, high=4.0, low=4.0),
    bundled="i2v-nano",
)

NANO_SPEECH_ENCODER = SpeechEncoderConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, conv_dim=64, conv_pos_groups=4)

S2V_NANO = replace(
    T2V_NANO,
    name="s2v-nano",
    task="s2v",
    model_type="s2v",
    dit=S2VConfig(
        dim=256, ffn_dim=1024, num_heads=4, num_layers=7, in_dim=16, out_dim=16, text_dim=128, text_len=64,
        audio_dim=64, num_audio_layers=3, audio_inject_layers=(0, 2, 4, 6),
    ),
    experts=_one_expert(1.0),  # guided by 3 it took twice the time and listened no better
    files=replace(T2V_NANO.files, vae="Wan2.1_VAE.pth", speech_encoder="speech-encoder"),  # its own VAE: the shared one knows no faces
    num_steps=12,
    num_frames=32,
    fps=16,
    bundled="s2v-nano",
    speech_encoder=NANO_SPEECH_ENCODER,
)

# Drawn dancers, 17 frames a clip (docs/nano.md). The sizes of the face, motion and image encoders fit their coarse faces.
ANIMATE_NANO = replace(
    T2V_NANO,
    name="animate-nano",
    task="animate",
    model_type="animate",
    dit=AnimateConfig(
        dim=256,
        ffn_dim=1024,
        num_heads=4,
        num_layers=8,
        in_dim=36,
        out_dim=16,
        text_dim=128,
        text_len=64,
        image_dim=96,
        face_size=64,
        motion_dim=64,
        num_motions=8,
        face_dim=64,
        face_every=4,
    ),
    experts=_one_expert(1.0),
    files=replace(T2V_NANO.files, image_encoder="models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
    fps=16,
    bundled="animate-nano",
    default_prompt="a dancer moves",
    image_encoder=ImageEncoderConfig(image_size=56, dim=96, num_heads=4, num_layers=3, out_dim=16),
)

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (T2V_A14B, I2V_A14B, TI2V_5B, S2V_14B, ANIMATE_14B, T2V_NANO, I2V_NANO, S2V_NANO, TI2V_NANO, ANIMATE_NANO)
}


def tiny(spec: ModelSpec) -> ModelSpec:
    """`spec` with very small sizes and the real strides, patch sizes and experts, for tests."""
    head_dim, heads, text_dim = 12, 4, 48
    return replace(
        spec,
        name=f"tiny-{spec.name}",
        dit=replace(
            spec.dit,
            dim=heads * head_dim,
            ffn_dim=64,
            num_heads=heads,
            num_layers=2,
            freq_dim=64,
            text_dim=text_dim,
            text_len=32,
            **_tiny_extras(spec.dit),
        ),
        vae=replace(spec.vae, base_dim=8, decoder_dim=8),
        text=TextConfig(
            vocab_size=512, dim=text_dim, dim_attn=text_dim, dim_ffn=64, num_heads=4, num_layers=2, text_len=32
        ),
        sizes=((96, 64), (64, 96)),
        num_frames=8 + spec.num_frames % 4,
        num_steps=4,
        bundled="",
        hub="",
        speech_encoder=spec.speech_encoder and _TINY_SPEECH_ENCODER,
        image_encoder=spec.image_encoder and _TINY_IMAGE_ENCODER,
    )


_TINY_SPEECH_ENCODER = SpeechEncoderConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=3, conv_dim=16, conv_pos_groups=4)
_TINY_IMAGE_ENCODER = ImageEncoderConfig(image_size=28, dim=32, num_heads=4, num_layers=2, out_dim=16)


def _tiny_extras(dit: DiTConfig) -> dict[str, Any]:
    if isinstance(dit, S2VConfig):
        speech = _TINY_SPEECH_ENCODER
        return {"audio_dim": speech.dim, "num_audio_layers": speech.num_layers + 1, "audio_inject_layers": (0, 1)}
    if isinstance(dit, AnimateConfig):
        image_dim = _TINY_IMAGE_ENCODER.dim
        return {"image_dim": image_dim, "face_size": 16, "motion_dim": 32, "num_motions": 4, "face_dim": 16, "face_every": 2}
    return {}


# ------------------------------------------------------------------------------------------------- runtime options


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How to run. Nothing here may change what is generated, up to the rounding that `dtype` implies."""

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"  # of the diffusion transformer: "auto" (bfloat16 on a GPU, float32 on a CPU), "bfloat16", "float16", "float32"
    vae_dtype: str = "float32"
    text_device: str = "auto"  # "cpu" keeps the text encoder off the GPU
    offload: bool | None = None  # release each model after its stage; None: where memory is short of keeping all
    attention: str = "auto"  # a name in `kinograph.ops.attention.IMPLEMENTATIONS`
