"""Judges a nano model by the videos that the real command writes: does each show what its prompt asked for?

    python benchmarks/nano_judge.py ti2v-nano --prompts 96 --seeds 3 --out runs/judge
    python benchmarks/nano_judge.py ti2v-nano --prompts 48 --image --out runs/judge-image
    python benchmarks/nano_judge.py i2v-nano --prompts 48 --last_image --out runs/judge-both-ends
    python benchmarks/nano_judge.py t2v-nano --prompts 48 --seeds 1 --swap_experts --out runs/judge-swapped

The prompts name combinations of colour, shape, motion and background that training never has. With `--image` each video
starts from a drawn first frame of such a scene, with `--last_image` it has to end with the drawn last frame as well; the
given frames are compared with those of the video. `--swap_experts` gives the high-noise transformer to the low noise and
the other way round: how much worse the videos become says what the division is worth. The clips are made by
`kinograph generate --prompts`, read back from the mp4 files and measured by `kinograph.training.judge`, which is told
nothing of the request.
"""
from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from kinograph.checkpoints.layout import DIT_FILE
from kinograph.cli.main import main as kinograph
from kinograph.config import MODELS, ModelSpec
from kinograph.media import read_video, to_uint8
from kinograph.runtime.placement import bundled_folder
from kinograph.training.captions import held_out_prompts
from kinograph.training.judge import Verdict, accuracy_of, judge, psnr
from kinograph.training.sheets import contact_sheet
from kinograph.training.toybox import Scene, describe, draw


@dataclass(frozen=True)
class Judged:
    """One video and what was seen in it."""

    row: int
    prompt: str
    clip: torch.Tensor  # uint8 [3, T, H, W]
    verdict: Verdict
    given_db: tuple[float, ...] = ()  # PSNR of the given frames: first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=[name for name, spec in MODELS.items() if spec.bundled])
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image", action="store_true", help="start each video from a drawn first frame")
    parser.add_argument("--last_image", action="store_true", help="and make each end with the drawn last frame")
    parser.add_argument("--swap_experts", action="store_true", help="use each expert for the noise of the other")
    parser.add_argument("--ckpt_dir", help="weights to judge; default: those in the package")
    parser.add_argument("--scene_seed", type=int, default=2026)
    parser.add_argument("--out", type=Path, required=True)
    args, options = parser.parse_known_args()  # what is left goes to `kinograph generate`
    spec = MODELS[args.model]
    scenes, prompts = held_out_prompts(args.prompts, args.scene_seed)
    given = (0, -1) if args.last_image else (0,) if args.image else ()
    folder = ["--ckpt_dir", args.ckpt_dir] if args.ckpt_dir else []
    swapped = swapped_experts(spec, Path(args.ckpt_dir or bundled_folder(spec))) if args.swap_experts else []
    generate(spec, scenes, prompts, seeds=range(args.seeds), out=args.out, given=given, options=[*folder, *swapped, *options])
    results = [measured(args.out / "videos", row, prompts[row], scenes, spec, given=given) for row in range(len(prompts))]
    report([result for row in results for result in row], scenes, args.out)


def swapped_experts(spec: ModelSpec, folder: Path) -> list[str]:
    """Options that give each of two experts the weights of the other."""
    if len(spec.experts) != 2:
        raise SystemExit(f"{spec.name} has one transformer for all levels: there is nothing to swap")
    files = [str(folder / expert.folder / DIT_FILE) for expert in spec.experts]
    return [word for expert, file in zip(spec.experts, reversed(files)) for word in (f"--{expert.name}", file)]


def generate(
    spec: ModelSpec, scenes: Scene, prompts: Sequence[str], *, seeds: range, out: Path, given: Sequence[int], options: Sequence[str]
) -> None:
    """One video per prompt and seed in `out/videos`, by the command that users have; goes on where it was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": prompt} for prompt in prompts]
    for row in range(len(rows)):
        for name, frame in zip(("image", "last_image"), given):
            picture = out / f"{name}-{row:03d}.png"
            Image.fromarray(given_frame(scenes, row, spec, frame).permute(1, 2, 0).numpy()).save(picture)
            rows[row][name] = str(picture.resolve())
    file = out / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seed_list = ",".join(map(str, seeds))
    status = kinograph(
        ["generate", "--task", spec.name, "--prompts", str(file), "--seeds", seed_list, "--output_dir", str(out / "videos"), *options]
    )
    if status:
        raise SystemExit(status)


def drawn(scenes: Scene, row: int, spec: ModelSpec) -> torch.Tensor:
    """The true clip of a scene, [3, T, H, W] in [-1, 1]."""
    width, height = spec.sizes[0]
    return draw(scenes[row : row + 1], height=height, width=width, frames=spec.num_frames)[0]


def given_frame(scenes: Scene, row: int, spec: ModelSpec, frame: int) -> torch.Tensor:
    """One frame of the true clip as a picture, uint8 [3, H, W]."""
    return to_uint8(drawn(scenes, row, spec)[:, frame, None])[0].permute(2, 0, 1)


def measured(folder: Path, row: int, prompt: str, scenes: Scene, spec: ModelSpec, *, given: Sequence[int]) -> list[Judged]:
    """The videos of one prompt, one per seed. File names begin with the number of the row, from 1."""
    results = []
    for path in sorted(folder.glob(f"{row + 1:03d}_*.mp4")):
        clip = read_video(path)[0].permute(3, 0, 1, 2)
        pairs = [(clip[:, frame], given_frame(scenes, row, spec, frame)) for frame in given]
        quality = tuple(float(psnr(*(picture[None].float() / 127.5 - 1 for picture in pair))) for pair in pairs)
        results.append(Judged(row, prompt, clip, judge(clip), quality))
    return results


def report(results: Sequence[Judged], scenes: Scene, out: Path) -> None:
    """Prints the share of each attribute that is right and what was wrong; writes report.json and contact sheets."""
    agreements = [result.verdict.agrees(scenes, result.row) for result in results]
    accuracy = accuracy_of(agreements)
    print(f"{len(results)} videos: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items()))
    given = list(zip(*(result.given_db for result in results)))
    for name, values in zip(("first", "last"), given):
        print(f"{name} frame: mean {sum(values) / len(values):.1f} dB, worst {min(values):.1f} dB")
    wrong = Counter()
    for result in results:
        asked = describe(scenes, result.row)
        for name in ("color", "shape", "motion", "background"):
            seen = getattr(result.verdict, name)
            if seen != getattr(asked, name):
                wrong[f"{name}: {getattr(asked, name)} -> {seen}"] += 1
    for what, count in wrong.most_common():
        print(f"  {count:3d}  {what}")
    shown = results[:: max(1, len(results) // 24)][:24]
    contact_sheet([result.clip.float() / 127.5 - 1 for result in shown], out / "sheet.png", [result.prompt for result in shown], columns=2)
    facts = {"videos": len(results), "accuracy": accuracy, "wrong": wrong, "given_frames_db": given}
    (out / "report.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
