"""Judges `animate-nano` by the videos that the real command writes, of dances and characters that training never had.

    python benchmarks/dancer_judge.py --count 8 --out runs/dancers
    python benchmarks/dancer_judge.py --count 8 --mode replace --relight --out runs/dancers-lit

For each dancer a folder of driving material is written, as preprocessing leaves it, and `kinograph generate` makes the video;
`kinograph.training.dance_judge`, which is told the reference's colours and nothing of the dance, measures it in the file.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from kinograph.cli.main import main as kinograph
from kinograph.config import MODELS
from kinograph.media import read_video, to_uint8, write_video
from kinograph.training.animate_material import Material, sample_material
from kinograph.training.animate_recipe import AnimateRecipe
from kinograph.training.animate_samples import verdicts
from kinograph.training.dancers import PoseDrawing
from kinograph.training.sheets import contact_sheet

MODEL = "animate-nano"
FACE_SIDE = 512  # pixels; the published size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--mode", choices=("animate", "replace"), default="animate")
    parser.add_argument("--relight", action="store_true")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--material_only", action="store_true", help="write the folders and stop")
    parser.add_argument("--out", type=Path, required=True)
    args, options = parser.parse_known_args()  # what is left goes to `kinograph generate`
    spec = MODELS[MODEL]
    recipe = AnimateRecipe(spec=spec)
    replaces = args.mode == "replace"
    material = sample_material(args.count, args.seed, split="held_out", replace_share=float(replaces))
    times = torch.arange(1 + args.clips * (spec.num_frames - 1))
    folders = [args.out / f"material-{row:02d}" for row in range(args.count)]
    for row, folder in enumerate(folders):
        write_material(material[row : row + 1], folder, times, side=recipe.side, fps=spec.fps)
    if args.material_only:
        return
    flags = ["--replace_flag"] * replaces + ["--use_relighting_lora"] * args.relight
    videos = []
    for row, folder in enumerate(folders):
        file = args.out / f"{row:02d}-{args.mode}{'-lit' * args.relight}.mp4"
        command = ["generate", "--task", MODEL, "--src_root_path", str(folder), "--refert_num", "1", "--save_file", str(file)]
        if status := kinograph([*command, *flags, *options]):
            raise SystemExit(status)
        videos.append(read_video(file)[0].permute(3, 0, 1, 2).float() / 127.5 - 1)
    result = torch.stack(videos)
    lines = verdicts(result, material, recipe, "replacement" if replaces else "animation", times, lit=args.relight)
    print("\n".join(lines))
    (args.out / f"report-{args.mode}{'-lit' * args.relight}.json").write_text(json.dumps(lines, indent=1))
    true = material.clip(times, side=recipe.side, lit=args.relight)
    clips = [clip for pair in zip(true, result) for clip in pair]
    contact_sheet(clips, args.out / f"sheet-{args.mode}{'-lit' * args.relight}.png", ["true", "generated"] * args.count, columns=2)


def write_material(material: Material, folder: Path, times: torch.Tensor, *, side: int, fps: int) -> None:
    """The files that preprocessing leaves, for one dancer."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = material.mask(times, side=side)
    pose = PoseDrawing(side, "cpu")(material.joints(times, side=side))[0].permute(1, 2, 3, 0)
    reference = to_uint8(material.reference(side=side)[0, :, None])[0]
    Image.fromarray(reference.numpy()).save(folder / "src_ref.png")
    videos = {"src_pose": pose, "src_face": to_uint8(material.faces(times, size=FACE_SIDE)[0])}
    if bool(material.replaces):
        videos["src_bg"] = to_uint8(material.holed(mask)[0])
        videos["src_mask"] = (255 * mask[0, :, :, :, None]).to(torch.uint8).expand(-1, -1, -1, 3)
    for name, frames in videos.items():
        write_video(folder / f"{name}.mp4", frames.contiguous(), fps, overwrite=True)
    facts = {"width": side, "height": side, "fps": fps, "frames": len(times), "mode": "replace" if bool(material.replaces) else "animate"}
    (folder / "material.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
