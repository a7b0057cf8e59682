"""`kinograph preprocess`: a driving video and a picture of a character to the material that the animation model reads."""
from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import Flag, Parser, count, number, one_of, whole_number
from kinograph.errors import RequestError

if TYPE_CHECKING:
    from kinograph.preprocess.animate.material import Material
    from kinograph.preprocess.animate.prepare import PrepareSettings

INPUT, MODE, MASK, OUTPUT = "inputs", "what to prepare", "mask of the replaced person", "output"


def point(text: str) -> tuple[float, float]:
    """(x, y) from `640,360`."""
    try:
        x, y = (number(part) for part in text.split(","))
    except ValueError:
        raise ValueError("must be X,Y in pixels of the video, such as 640,360") from None
    return x, y


FLAGS = (
    Flag(name="video_path", other_names=("video",), group=INPUT, metavar="FILE", help="whose movement is followed, or who is replaced"),
    Flag(name="refer_path", other_names=("image",), group=INPUT, metavar="FILE", help="picture of the character"),
    Flag(name="ckpt_path", group=INPUT, metavar="DIR",
         help="the published process_checkpoint folder (default: none, with models that ship in a package)"),
    Flag(name="models", group=INPUT, read=one_of("mediapipe", "published"), metavar="NAME",
         help="mediapipe, or published: from --ckpt_path (default: published if that is given)"),
    Flag(name="person", group=INPUT, read=whole_number, metavar="N", help="which person of the video, by size (default: 0, the largest)"),
    Flag(name="click", group=INPUT, read=point, metavar="X,Y", help="the person at this point of the first frame that shows anybody"),
    Flag(name="replace_flag", group=MODE, read=None, help="the character takes the person's place in the video"),
    Flag(name="retarget_flag", group=MODE, read=None, help="give the movement the character's proportions"),
    Flag(name="use_flux", group=MODE, read=None, help="measure them in pictures edited by FLUX Kontext, from --ckpt_path"),
    Flag(name="resolution_area", group=MODE, read=count, num_values=2, metavar="PIXELS",
         help="width and height whose product the result's area follows (default: 1280 720)"),
    Flag(name="fps", group=MODE, read=number, metavar="N", help="frames per second (default: 30); -1 takes the video's"),
    Flag(name="smooth", group=MODE, read=whole_number, metavar="N", help="average keypoints over N frames on each side (default: 0)"),
    Flag(name="iterations", group=MASK, read=whole_number, metavar="N", help="how often the mask is grown (default: 3; 0: not at all)"),
    Flag(name="k", group=MASK, read=whole_number, metavar="N", help="by a square of this many pixels (default: 7)"),
    Flag(name="w_len", group=MASK, read=whole_number, metavar="N", help="blocks across that it is filled up in (default: 1)"),
    Flag(name="h_len", group=MASK, read=whole_number, metavar="N", help="blocks down (default: 1, one rectangle)"),
    Flag(name="save_path", group=OUTPUT, metavar="DIR", help="folder to write; earlier material in it is replaced"),
    Flag(name="preview", group=OUTPUT, read=None, help="also write preview.png there: a sheet to look at before generating"),
    Flag(name="json", group=OUTPUT, read=None, help="the result as one JSON object on stdout"),
    Flag(name="quiet", group=OUTPUT, read=None, help="no progress"),
)  # fmt: skip
_AS_THEY_ARE = ("resolution_area", "iterations", "k", "w_len", "h_len", "person", "click", "smooth")


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "preprocess",
        example="kinograph preprocess --video_path dance.mp4 --refer_path character.png --save_path material --preview",
        description="Writes the poses, faces and masks that the animation model reads.",
    )
    parser.add_flags(FLAGS)
    values = parser.read(argv)
    missing = [f"--{name}" for name in ("video_path", "refer_path", "save_path") if name not in values]
    if missing:
        raise RequestError(f"preprocess lacks {' and '.join(missing)}; `kinograph preprocess --help` has an example")
    material = preprocess(values)
    if "json" in values:
        print(json.dumps({"path": str(material.folder), **json.loads(material.to_json())}, ensure_ascii=False))
        return 0
    for note in material.notes:
        print(f"note: {note}", file=sys.stderr)
    frames = "1 frame" if material.num_frames == 1 else f"{material.num_frames} frames"
    print(
        f"written: {material.folder} ({frames} of {material.width}x{material.height} at {material.fps:g} fps, "
        f"{'with' if material.sound else 'without'} sound)"
    )
    return 0


def preprocess(values: Mapping[str, Any]) -> Material:
    """Carries out what the flags say."""
    settings = settings_of(values)
    from kinograph.preprocess.animate.prepare import prepare_material

    say = Lines() if not {"quiet", "json"} & set(values) else None
    return prepare_material(
        values["video_path"], values["refer_path"], values["save_path"], settings=settings, on_progress=say, preview="preview" in values
    )


def settings_of(values: Mapping[str, Any]) -> PrepareSettings:
    from kinograph.preprocess.animate.prepare import PrepareSettings

    fields = {name: values[name] for name in _AS_THEY_ARE if name in values}
    if "resolution_area" in fields:
        fields["resolution_area"] = tuple(fields["resolution_area"])
    if "fps" in values:
        fields["fps"] = None if values["fps"] == -1 else values["fps"]
    folder = Path(values["ckpt_path"]) if "ckpt_path" in values else None
    return PrepareSettings(
        replace="replace_flag" in values,
        retarget="retarget_flag" in values,
        use_flux="use_flux" in values,
        models=values.get("models", "published" if folder else "mediapipe"),
        process_checkpoint=folder,
        **fields,
    )


class Lines:
    """A line for each stage, and for each quarter of it."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done == 0:
            self._told = 0
            print(stage, file=sys.stderr, flush=True)
        elif done * 4 // total > self._told:
            self._told = done * 4 // total
            print(f"  frame {done} of {total}", file=sys.stderr, flush=True)
