"""Judges s2v-nano by the videos that the real command writes: does the mouth follow the sound, does the person stay the same?

    python benchmarks/talker_judge.py --sounds held_out.npz --out runs/talkers
    python benchmarks/talker_judge.py --audio talk.wav --videos 4 --pose --out runs/talk

Each video is of a drawn person never trained on, who speaks a sound never trained on; it is made by `kinograph generate`, read
back from the mp4 file and measured by `kinograph.training.talker_judge`. `--sounds` is a file of `speech_sounds.save_waves`.
"""
from __future__ import annotations

import argparse
import json
import wave as wave_file
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from kinograph.cli.main import main as kinograph
from kinograph.config import S2V_NANO
from kinograph.media import read_video, write_video
from kinograph.media.audio import read_audio
from kinograph.media.drift import measure_drift
from kinograph.tasks.s2v_clips import DROPPED_FRAMES
from kinograph.training import talkers
from kinograph.training.sheets import contact_sheet
from kinograph.training.speech_sounds import load_waves, loudness
from kinograph.training.talker_judge import agreement, identity_error, joint_error, mouth_opening

_LEFT, _HEIGHT, _STEP = 8, 90, 6  # of a plot, in pixels; a step is one frame


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sounds", type=Path, help="waves, joined in turn to the length that is asked for")
    parser.add_argument("--audio", type=Path, help="one sound file instead, for all videos")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--pose", action="store_true", help="give a pose video as well")
    parser.add_argument("--palette", choices=tuple(talkers.PALETTES), default="natural")
    parser.add_argument("--out", type=Path, required=True)
    args, options = parser.parse_known_args()  # what is left goes to `kinograph generate`
    args.out.mkdir(parents=True, exist_ok=True)
    side, frames = S2V_NANO.sizes[0][0], args.clips * S2V_NANO.num_frames
    person = talkers.sample_people(args.videos, 777, palette=args.palette).gesturing(float(args.pose))
    times, closed = torch.arange(frames)[None].float(), torch.zeros(args.videos, 1)
    pictures = talkers.draw(person, times[:, :1] - 50, closed, closed + 0.5, side=side)
    rows, clips, curves = [], [], []
    for index in range(args.videos):
        sound, samples = sound_of(args, index, frames)
        picture = args.out / f"person{index}.png"
        Image.fromarray(pixels(pictures[index])[0].numpy()).save(picture)
        made, pose = args.out / f"video{index}.mp4", []
        if args.pose:
            drawn = args.out / f"pose{index}.mp4"
            limbs = talkers.draw_pose(person[index : index + 1], times, side=side)[0]
            write_video(drawn, pixels(limbs), S2V_NANO.fps, overwrite=True)
            pose = ["--pose_video", str(drawn)]
        command = ["--task", S2V_NANO.name, "--image", str(picture), "--audio", str(sound), "--num_clip", str(args.clips)]
        status = kinograph(["generate", *command, *pose, "--save_file", str(made), *options])
        if status:
            raise SystemExit(f"kinograph generate failed with status {status}")
        clip = video_of(made)
        envelope, opening = loudness(samples)[: clip.shape[1]], mouth_opening(clip)
        seen = agreement(opening, envelope)
        row = {**vars(seen), "identity": max(identity_error(clip[:, -S2V_NANO.num_frames :], pictures[index]).values())}
        drift = measure_drift(pixels(clip).split(clip_lengths(clip.shape[1])))
        row |= {"drift": max(each.colour for each in drift), "join": max(each.join or 0.0 for each in drift)}
        if args.pose:
            places = talkers.joints(person[index : index + 1], times)[0]
            count = min(clip.shape[1], len(places) - DROPPED_FRAMES)
            row["joints"] = joint_error(clip[:, :count], pictures[index], places[DROPPED_FRAMES : DROPPED_FRAMES + count])
        words = [f"identity {100 * row['identity']:.1f} %", f"drift {100 * row['drift']:.1f} %", f"join {row['join']:.2f}"]
        words += [f"joints {100 * row['joints']:.1f} %"] if args.pose else []
        print(f"video {index}: {seen}, {', '.join(words)}", flush=True)
        rows.append(row)
        clips.append(clip)
        curves.append((envelope, opening))
    summary = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    worst = {name: float(np.nanmax([row[name] for row in rows])) for name in ("identity", "drift", "join", "joints") if name in rows[0]}
    print("mean: " + ", ".join(f"{name} {value:.3f}" for name, value in summary.items()))
    print("worst: " + ", ".join(f"{name} {value:.3f}" for name, value in worst.items()))
    (args.out / "talkers.json").write_text(json.dumps({"mean": summary, "worst": worst, "videos": rows}, indent=2) + "\n", encoding="utf-8")
    captions = [f"correlation {row['correlation']:.2f}, lag {row['lag']:+.1f} frames" for row in rows[:4]]
    contact_sheet(clips[:4], args.out / "talkers.png", captions, columns=1)
    plot(curves[:4]).save(args.out / "talkers-mouth.png")


def sound_of(args: argparse.Namespace, index: int, frames: int) -> tuple[Path, torch.Tensor]:
    """The file that video `index` speaks, and its samples at 16 kHz."""
    if args.audio is not None:
        return args.audio, read_audio(args.audio)
    waves = load_waves(args.sounds)
    wanted = frames * 1000 - 4000
    joined, number = waves[index % len(waves)], index
    while len(joined) < wanted:
        number += 1
        joined = np.concatenate([joined, waves[number % len(waves)]])
    file = args.out / f"sound{index}.wav"
    with wave_file.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes((joined[:wanted] * 32767).astype(np.int16).tobytes())
    return file, torch.from_numpy(joined[:wanted])


def clip_lengths(total: int) -> list[int]:
    """Frames that each clip gave to a video of `total` frames."""
    lengths = [S2V_NANO.num_frames - DROPPED_FRAMES]
    while sum(lengths) < total:
        lengths.append(min(S2V_NANO.num_frames, total - sum(lengths)))
    return lengths


def pixels(clip: torch.Tensor) -> torch.Tensor:
    """uint8 [T, H, W, 3] for a clip [3, T, H, W] in [-1, 1]."""
    return ((clip.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).byte()


def video_of(file: Path) -> torch.Tensor:
    """[3, T, H, W] in [-1, 1]."""
    return read_video(file)[0].permute(3, 0, 1, 2).float() / 127.5 - 1


def plot(curves: list[tuple[torch.Tensor, torch.Tensor]]) -> Image.Image:
    """Envelopes (grey) and mouths (red) over time, one below the other."""
    width = 2 * _LEFT + _STEP * max(len(opening) for _, opening in curves)
    sheet = Image.new("RGB", (width, (_HEIGHT + 12) * len(curves)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (envelope, opening) in enumerate(curves):
        floor = (index + 1) * (_HEIGHT + 12) - 6
        pen.line([(_LEFT, floor), (width - _LEFT, floor)], fill=(210, 210, 210))
        for series, color in ((envelope, (120, 120, 120)), (opening / opening.max().clamp(min=1e-3), (200, 30, 40))):
            points = [(_LEFT + _STEP * k, floor - _HEIGHT * float(value)) for k, value in enumerate(series)]
            pen.line(points, fill=color, width=2)
    return sheet


if __name__ == "__main__":
    main()
