"""A driving video and a picture of a character to the folder of material that the animation model reads.

Animation: the character of the picture does what the person in the video does; the material has the picture's size.
Replacement: the character takes the person's place in the video; the material has the video's size, and a mask.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kinograph.errors import RequestError
from kinograph.media.images import ImageSource, read_image
from kinograph.media.letterbox import fit_size
from kinograph.media.sound_track import save_sound_track
from kinograph.media.video import Timeline, read_frames, read_timeline
from kinograph.preprocess.animate import material as files
from kinograph.preprocess.animate.boxes import FACE_SIZE, Person, crop_face, face_box
from kinograph.preprocess.animate.edit_prompts import edit_prompts
from kinograph.preprocess.animate.flux_edit import PictureEditor, load_editor
from kinograph.preprocess.animate.frames import fit_to_area, frames_in_time, output_size
from kinograph.preprocess.animate.keypoints import FACE, Skeleton, skeleton_of
from kinograph.preprocess.animate.masks import widened, without_person
from kinograph.preprocess.animate.material import ControlVideos, Material
from kinograph.preprocess.animate.perception import SETS, PersonFinder, load_finder
from kinograph.preprocess.animate.preview import write_preview
from kinograph.preprocess.animate.retarget import Figure, Retargeting, measure
from kinograph.preprocess.animate.retarget_checks import Believed, believed
from kinograph.preprocess.animate.skeleton import MIN_SCORE, draw_skeleton
from kinograph.preprocess.animate.tracking import boxes_between, filled, followed, nearest_present, smoothed

CACHE_BYTES = 1 << 30  # of decoded frames that are kept, instead of being decoded once more for each pass
LOOKED_AT = 1280 * 720  # pixels, at least, of a reference picture in which the character is looked for
FIND_EVERY = 4  # frames; in between, boxes lie between those found
OnProgress = Callable[[str, int, int], None]  # stage, frames done, frames in all


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What is wanted. The defaults are the published ones."""

    resolution_area: tuple[int, int] = (1280, 720)  # its product counts
    fps: float | None = 30  # None: the source's
    replace: bool = False
    retarget: bool = False
    use_flux: bool = False
    iterations: int = 3  # growths of the mask, by squares of k x k
    k: int = 7
    w_len: int = 1  # blocks that the mask is filled up in
    h_len: int = 1
    person: int = 0  # by size, the largest first
    click: tuple[float, float] | None = None  # x, y in pixels of the source video, on the person
    smooth: int = 0  # frames on each side that keypoints are averaged over
    models: str = "mediapipe"
    process_checkpoint: Path | None = None

    def __post_init__(self) -> None:
        if self.use_flux and not self.retarget:
            raise RequestError("use_flux edits pictures for retargeting and does nothing without it; add --retarget_flag")
        if self.retarget and self.replace:
            raise RequestError("retarget_flag is for animation: a replaced person keeps the source's pose; leave one of the two flags out")
        if self.models not in SETS:
            raise RequestError(f"there are no models called {self.models!r} for preprocessing; choose one of {', '.join(SETS)}")
        if self.fps is not None and not 0 < self.fps <= 240:
            raise RequestError(f"fps must be above 0 and at most 240, or -1 for the source's; got {self.fps:g}")
        for name, least in (("iterations", 0), ("k", 1), ("w_len", 1), ("h_len", 1), ("person", 0), ("smooth", 0)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if min(self.resolution_area) < 1:
            raise RequestError(f"resolution_area must be two sizes in pixels, such as 1280 720; got {self.resolution_area}")

    @property
    def area(self) -> int:
        return self.resolution_area[0] * self.resolution_area[1]


def prepare_material(
    video: str | os.PathLike[str],
    image: ImageSource,
    folder: str | os.PathLike[str],
    *,
    settings: PrepareSettings | None = None,
    on_progress: OnProgress | None = None,
    preview: bool = False,
    finder: PersonFinder | None = None,
    editor: PictureEditor | None = None,
) -> Material:
    """Write the material into `folder` and say what it is. Earlier material there is replaced, when the new is complete.

    `preview` adds a sheet of pictures to look at, `preview.png`.
    `finder` and `editor` stand in for the models that `settings` names.
    Raises a KinographError, before the long part, for files that cannot be read and for what shows no person.
    """
    settings = settings or PrepareSettings()
    folder, say = Path(folder), on_progress or (lambda stage, done, total: None)
    files.check_target(folder)
    picture = np.array(read_image(image))
    source = _Source.open(Path(video), settings)
    reference = _fitted(picture, settings.area)
    size = _size(source, settings, reference)
    finder = finder or load_finder(settings.models, settings.process_checkpoint, masks=settings.replace)
    if settings.use_flux:
        editor = editor or load_editor(settings.process_checkpoint)
    reference_points = None if settings.replace else _character_points(finder, picture, settings.area, image)
    seen = _observe(source, finder, settings, say)
    with files.pending_folder(folder) as partial:
        retargeting = None
        if settings.retarget:
            assert reference_points is not None
            edited = _edited(source, seen, reference, finder, editor, partial) if settings.use_flux and editor else None
            retargeting = _Retargeted.of(source, seen, _figure(reference_points, reference), edited)
        _write_videos(partial, source, seen, settings, size, retargeting, say)
        files.save_picture(partial / files.REFERENCE, picture)
        has_sound = save_sound_track(video, partial / files.SOUND, seconds=len(source) / source.fps)
        result = _describe(folder, source, seen, settings, size, retargeting, files.SOUND if has_sound else None)
        (partial / files.DESCRIPTION).write_text(result.to_json() + "\n", encoding="utf-8")
        if preview:
            write_preview(partial, partial / files.PREVIEW)
    return result


# ---------------------------------------------------------------------------------------------------- the two inputs


class _Source:
    """The chosen frames of the driving video, at its size; iterating decodes them, or takes them from memory if they are few.

    People are looked for in these, however small the result is to be: small people are not found.
    """

    def __init__(self, path: Path, indices: list[int], fps: float) -> None:
        self.path, self.fps, self._indices = path, fps, indices
        first = next(read_frames(path, indices))
        self.height, self.width = first.shape[:2]
        self._keeps = first.nbytes * len(indices) <= CACHE_BYTES
        self._kept: list[np.ndarray] = []

    @classmethod
    def open(cls, path: Path, settings: PrepareSettings) -> _Source:
        timeline: Timeline = read_timeline(path)
        indices, fps = frames_in_time(timeline.times, timeline.end, timeline.fps, settings.fps)
        return cls(path, indices, fps)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        if len(self._kept) == len(self):
            yield from self._kept
            return
        self._kept = []
        for frame in read_frames(self.path, self._indices):
            if self._keeps:
                self._kept.append(frame)
            yield frame

    def figure(self, points: np.ndarray) -> Figure:
        return Figure(skeleton_of(points).scaled(1 / self.width, 1 / self.height), self.width, self.height)


def _fitted(picture: np.ndarray, area: int) -> np.ndarray:
    """uint8 [h, w, C] of about `area` pixels, for [H, W, C]."""
    return fit_to_area(torch.from_numpy(picture), area=area).numpy()


def _character_points(finder: PersonFinder, picture: np.ndarray, area: int, image: ImageSource) -> np.ndarray:
    """[133, 3] of the largest person in the reference picture, in pixels of the picture fitted to `area`.

    Found in a larger picture if that one is small.
    """
    height, width = picture.shape[:2]
    points = _reference_points(finder, _fitted(picture, max(area, LOOKED_AT)), image)
    to, seen = (_fit(width, height, output_size(width, height, area=each)) for each in (area, max(area, LOOKED_AT)))
    points[:, :2] = (points[:, :2] - seen[1:]) * (to[0] / seen[0]) + to[1:]
    return points


def _fit(width: int, height: int, into: tuple[int, int]) -> tuple[float, int, int]:
    """(scale, left, top): where a picture comes to lie that is fitted into another size."""
    inner_width, inner_height = fit_size(width, height, into=into)
    return inner_width / width, (into[0] - inner_width) // 2, (into[1] - inner_height) // 2


def _reference_points(finder: PersonFinder, reference: np.ndarray, image: ImageSource) -> np.ndarray:
    """[133, 3] of the largest person in the reference picture."""
    name = f"the reference picture {image}" if isinstance(image, (str, os.PathLike)) else "the reference picture"
    person = followed([finder.find(reference)], name=name)[0]
    assert person is not None
    finder.restart()
    points = finder.observe(reference, person)
    if not _is_seen(points[None])[0]:
        raise RequestError(f"no person was found in {name}; use one that shows a person, larger or less hidden")
    return points


def _figure(points: np.ndarray, picture: np.ndarray) -> Figure:
    height, width = picture.shape[:2]
    return Figure(skeleton_of(points).scaled(1 / width, 1 / height), width, height)


# -------------------------------------------------------------------------------------------------- what is observed


@dataclass(frozen=True)
class _Seen:
    """Of one person, for every frame; gaps are filled."""

    points: np.ndarray  # [n, 133, 3] in pixels of the source
    masks: list[np.ndarray] | None  # bool [H, W] at the size of the result, packed
    no_person: int
    no_face: int
    has_face: bool
    empty_masks: int | None


def _observe(source: _Source, finder: PersonFinder, settings: PrepareSettings, say: OnProgress) -> _Seen:
    looks = enumerate(_told(source, "looking for people", len(source), say))
    found = [finder.find(frame) for i, frame in looks if i % FIND_EVERY == 0]
    boxes = followed(found, person=settings.person, click=settings.click, name=str(source.path))
    people = boxes_between(boxes, every=FIND_EVERY, total=len(source))
    finder.restart()
    points = np.stack(
        [finder.observe(frame, person) for frame, person in zip(_told(source, "following the person", len(source), say), people)]
    )
    present, with_face = _is_seen(points), _has_face(points)
    if not present.any():
        raise RequestError(f"no person was found in {source.path}; use material that shows one, larger or less hidden")
    points = _without_gaps(points, present, with_face)
    masks, empty = _masks(source, finder, people, points, settings.area, say) if settings.replace else (None, None)
    return _Seen(
        points=smoothed(points, settings.smooth),
        masks=masks,
        no_person=int((~present).sum()),
        no_face=int((~with_face).sum()),
        has_face=bool(with_face.any()),
        empty_masks=empty,
    )


def _is_seen(points: np.ndarray) -> np.ndarray:
    """bool [n]: whether any joint of the body is sure, for points [n, 133, 3]."""
    return np.any(points[:, :17, 2] >= MIN_SCORE, axis=1, keepdims=True)[:, 0]


def _has_face(points: np.ndarray) -> np.ndarray:
    """bool [n]: whether most of the face is sure."""
    return np.median(points[:, FACE, 2], axis=1) >= MIN_SCORE


def _without_gaps(points: np.ndarray, present: np.ndarray, with_face: np.ndarray) -> np.ndarray:
    result = filled(points, present)
    if with_face.any():
        result[:, FACE] = filled(points[:, FACE], with_face)
    return result


def _masks(
    source: _Source, finder: PersonFinder, people: list[Person], points: np.ndarray, area: int, say: OnProgress
) -> tuple[list[np.ndarray], int]:
    """(packed masks of `area`, empty ones having taken their neighbours'; how many were empty)."""
    found = _told(finder.masks(lambda: source, people, points), "cutting out", len(source), say)
    masks = [np.packbits(_fitted(mask[:, :, None] * np.uint8(255), area)[:, :, 0] > 127) for mask in found]
    present = np.array([bool(mask.any()) for mask in masks])
    if not present.any():
        raise RequestError(f"the person in {source.path} could not be cut out in any frame; use material that shows more of the person")
    return [masks[i] for i in nearest_present(present)], int((~present).sum())


# ------------------------------------------------------------------------------------------------------- retargeting


@dataclass(frozen=True)
class _Retargeted:
    """What is believed of the driving movement, and how it becomes the character's."""

    driving: Believed
    rule: Retargeting

    @classmethod
    def of(cls, source: _Source, seen: _Seen, reference: Figure, edited: tuple[Figure, Figure] | None) -> _Retargeted:
        driving = believed([source.figure(points).skeleton for points in seen.points], source.width, source.height, source.fps)
        first = Figure(driving.skeletons[0], source.width, source.height)
        return cls(driving, measure(first, reference, edited=edited, lengths=driving.lengths))

    def pose(self, frame: int) -> Skeleton:
        return self.rule.apply(self.driving.skeletons[frame], self.driving.failed[frame])


def _edited(
    source: _Source, seen: _Seen, reference: np.ndarray, finder: PersonFinder, editor: PictureEditor, folder: Path
) -> tuple[Figure, Figure]:
    """The two people (source, reference) in a common pose, as an image editor shows them."""
    first = next(iter(source))
    driving = [source.figure(points).skeleton for points in seen.points]
    pictures = (first, reference)
    prompts = edit_prompts(driving, *((picture.shape[1], picture.shape[0]) for picture in pictures))
    figures = []
    for picture, prompt, name in zip(pictures, prompts, (files.EDITED_SOURCE, files.EDITED_REFERENCE)):
        edited = editor.edit(picture, prompt)
        files.save_picture(folder / name, edited)
        figures.append(_figure(_reference_points(finder, edited, f"{name} (edited)"), edited))
    return figures[0], figures[1]


def _placed(skeleton: Skeleton, *, scale: float, left: int, top: int) -> Skeleton:
    """A skeleton in pixels, scaled and moved."""

    def moved(rows: np.ndarray) -> np.ndarray:
        return rows * (scale, scale, 1) + (left, top, 0)

    return Skeleton(moved(skeleton.body), moved(skeleton.left_hand), moved(skeleton.right_hand))


def _poses(source: _Source, seen: _Seen, size: tuple[int, int], retargeted: _Retargeted | None) -> Iterator[np.ndarray]:
    """The control pictures, of `size` (width, height). Lines are drawn at that size, never scaled."""
    width, height = size
    scale, left, top = _fit(source.width, source.height, size)
    for i, points in enumerate(seen.points):
        skeleton = _placed(skeleton_of(points), scale=scale, left=left, top=top) if retargeted is None else retargeted.pose(i)
        yield draw_skeleton(skeleton, width=width, height=height)


# ----------------------------------------------------------------------------------------------------------- writing


def _write_videos(
    folder: Path,
    source: _Source,
    seen: _Seen,
    settings: PrepareSettings,
    size: tuple[int, int],
    retargeting: _Retargeted | None,
    say: OnProgress,
) -> None:
    names = (files.POSE, files.FACE, *((files.BACKGROUND, files.MASK) if settings.replace else ()))
    poses = _poses(source, seen, size, retargeting)
    with ControlVideos(folder, source.fps, names) as videos:
        for i, (frame, pose) in enumerate(zip(_told(source, "writing", len(source), say), poses)):
            pictures = {files.POSE: pose, files.FACE: _face(frame, seen.points[i]) if seen.has_face else _no_face()}
            if seen.masks is not None:
                frame = _fitted(frame, settings.area)
                mask = np.unpackbits(seen.masks[i], count=frame.shape[0] * frame.shape[1]).reshape(frame.shape[:2])
                mask = widened(mask, iterations=settings.iterations, k=settings.k, w_len=settings.w_len, h_len=settings.h_len)
                pictures[files.BACKGROUND] = without_person(frame, mask)
                pictures[files.MASK] = np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)
            videos.add(pictures)


def _face(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    return crop_face(frame, face_box(points[FACE], width=frame.shape[1], height=frame.shape[0]))


def _no_face() -> np.ndarray:
    return np.zeros((FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8)


def _size(source: _Source, settings: PrepareSettings, reference: np.ndarray) -> tuple[int, int]:
    """(width, height) of the result."""
    if settings.replace:
        return output_size(source.width, source.height, area=settings.area)
    return reference.shape[1], reference.shape[0]


def _describe(
    folder: Path,
    source: _Source,
    seen: _Seen,
    settings: PrepareSettings,
    size: tuple[int, int],
    retargeting: _Retargeted | None,
    sound: str | None,
) -> Material:
    return Material(
        folder=folder,
        video=str(source.path),
        mode="replace" if settings.replace else "animate",
        fps=source.fps,
        num_frames=len(source),
        width=size[0],
        height=size[1],
        sound=sound,
        models=settings.models,
        frames_without_person=seen.no_person,
        frames_without_face=seen.no_face,
        frames_with_empty_mask=seen.empty_masks,
        kept_limbs=None if retargeting is None else retargeting.rule.rejected,
        failed_limbs=None if retargeting is None else retargeting.driving.limbs,
        hands_left_out=None if retargeting is None else retargeting.driving.hands,
        notes=_notes(seen, len(source), retargeting),
    )


def _notes(seen: _Seen, total: int, retargeting: _Retargeted | None) -> tuple[str, ...]:
    """What the user should know before a long run."""
    notes = []
    if seen.no_person:
        notes.append(f"no person was seen in {seen.no_person} of {total} frames, which took their neighbours' pose")
    if not seen.has_face:
        notes.append("no face was seen in any frame; the character's face will not move")
    elif seen.no_face:
        notes.append(f"no face was seen in {seen.no_face} of {total} frames, which took their neighbours'")
    if seen.empty_masks:
        notes.append(f"the mask was empty in {seen.empty_masks} of {total} frames, which took their neighbours'")
    return (*notes, *(_retargeting_notes(retargeting, total) if retargeting else ()))


def _retargeting_notes(retargeting: _Retargeted, total: int) -> Iterator[str]:
    if rejected := retargeting.rule.rejected:
        yield (
            f"not measured well enough for retargeting, and left in the plain scaled pose or as on the other side: {', '.join(rejected)}"
        )
    for name, count in retargeting.driving.limbs.items():
        yield f"{name} kept the plain scaled pose in {count} of {total} frames"
    for name, count in retargeting.driving.hands.items():
        yield f"{name} was left out in {count} of {total} frames, where it was found too far from its wrist"
    for name, count in retargeting.driving.exchanged.items():
        yield f"left and right {name} were exchanged in {count} of {total} frames, and put back"


def _told(frames: Sequence[np.ndarray] | _Source | Iterator[np.ndarray], stage: str, total: int, say: OnProgress) -> Iterator[np.ndarray]:
    say(stage, 0, total)
    for done, frame in enumerate(frames, 1):
        yield frame
        say(stage, done, total)
