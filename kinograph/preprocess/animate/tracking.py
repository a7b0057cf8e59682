"""One person followed through a video: who it is, and what stands in where a frame shows nothing."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kinograph.errors import RequestError
from kinograph.preprocess.animate.boxes import Person, overlap

SAME_PERSON = 0.3  # intersection over union of boxes in successive frames
MAX_GAP = 30  # frames that a person may be lost for


@dataclass
class Track:
    """The boxes of one person, by frame."""

    boxes: dict[int, Person] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.boxes)

    @property
    def size(self) -> float:
        """The area of the boxes, summed over the frames."""
        return sum((box.x2 - box.x1) * (box.y2 - box.y1) for box in self.boxes.values())


def tracks_of(people: Sequence[Sequence[Person]]) -> list[Track]:
    """The people of a video, the largest first, for those found in each frame."""
    tracks: list[Track] = []
    for frame, found in enumerate(people):
        alive = [track for track in tracks if frame - track.last <= MAX_GAP]
        pairs = sorted(
            ((_overlap(track.boxes[track.last], box), t, b) for t, track in enumerate(alive) for b, box in enumerate(found)), reverse=True
        )
        taken_tracks, taken_boxes = set(), set()
        for shared, t, b in pairs:
            if shared >= SAME_PERSON and t not in taken_tracks and b not in taken_boxes:
                alive[t].boxes[frame] = found[b]
                taken_tracks.add(t)
                taken_boxes.add(b)
        tracks += [Track({frame: box}) for b, box in enumerate(found) if b not in taken_boxes]
    return sorted(tracks, key=lambda track: -track.size)


def followed(
    people: Sequence[Sequence[Person]],
    *,
    person: int = 0,
    click: tuple[float, float] | None = None,
    name: str = "the video",
) -> list[Person | None]:
    """The box of one person in each frame: of the `person`-th largest, from 0, or of the one under `click` (x, y in pixels).

    None where that person was not found. Raises RequestError if there is nobody, or not that many.
    """
    tracks = tracks_of(people)
    if not tracks:
        raise RequestError(f"no person was found in {name}; use material that shows one, larger or less hidden")
    if click is not None:
        chosen = _under(tracks, click, name)
    elif 0 <= person < len(tracks):
        chosen = tracks[person]
    else:
        raise RequestError(f"there is no person {person} in {name}: {len(tracks)} found, counted from 0 by size")
    return [chosen.boxes.get(frame) for frame in range(len(people))]


def _under(tracks: Sequence[Track], click: tuple[float, float], name: str) -> Track:
    x, y = click
    for frame in range(max(track.last for track in tracks) + 1):
        here = [(box, track) for track in tracks if (box := track.boxes.get(frame)) is not None]
        if not here:
            continue
        hit = [(box, track) for box, track in here if box.x1 <= x < box.x2 and box.y1 <= y < box.y2]
        if not hit:
            places = "; ".join(",".join(f"{value:.0f}" for value in box[:4]) for box, _ in here)
            raise RequestError(f"the point {x:.0f},{y:.0f} is on nobody in {name}; people are at {places} (x1,y1,x2,y2)")
        return min(hit, key=lambda pair: (pair[0].x2 - pair[0].x1) * (pair[0].y2 - pair[0].y1))[1]
    raise AssertionError("a track has a box")


def _overlap(a: Person, b: Person) -> float:
    first, second = (np.array([box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1], dtype=np.float64) for box in (a, b))
    return overlap(first, second)


# -------------------------------------------------------------------------------------------------- what stands in


def nearest_present(present: np.ndarray) -> np.ndarray:
    """int [n]: for each frame the nearest one that is `present` [n], itself if it is; of two equally near, the earlier."""
    there = np.flatnonzero(present)
    distance = np.abs(np.arange(len(present))[:, None] - there[None])
    return there[distance.argmin(axis=1)]


def boxes_between(boxes: Sequence[Person | None], *, every: int, total: int) -> list[Person]:
    """A box for each of `total` frames, for those of every `every`-th one: between its neighbours, held at the ends."""
    known = {i * every: box for i, box in enumerate(boxes) if box is not None}
    frames, values = list(known), np.array(list(known.values()), dtype=np.float64)
    between = [np.interp(np.arange(total), frames, column) for column in values.T]
    return [Person(*row) for row in np.stack(between, axis=1).tolist()]


def filled(points: np.ndarray, present: np.ndarray) -> np.ndarray:
    """`points` [n, K, 3] with the frames that are not `present` [n] put between their neighbours; held at the ends."""
    if present.all():
        return points
    there, frames = np.flatnonzero(present), np.arange(len(points))
    right = np.searchsorted(there, frames).clip(max=len(there) - 1)
    left = (np.searchsorted(there, frames, side="right") - 1).clip(min=0)
    a, b = there[left], there[right]
    share = np.where(b > a, (frames - a) / np.maximum(b - a, 1), 0.0)[:, None, None]
    result = points[a] * (1 - share) + points[b] * share
    result[..., 2] = np.minimum(points[a][..., 2], points[b][..., 2])  # a joint seen on one side only is not invented
    result[present] = points[present]
    return result


def smoothed(points: np.ndarray, radius: int) -> np.ndarray:
    """`points` [n, K, 3] averaged over `radius` frames on each side, nearer ones and better scored ones more; scores stay."""
    if radius <= 0:
        return points
    weights = np.zeros(points.shape[:2])
    sums = np.zeros((*points.shape[:2], 2))
    for shift in range(-radius, radius + 1):
        near = 1 - abs(shift) / (radius + 1)
        to = slice(max(-shift, 0), len(points) - max(shift, 0))
        source = slice(max(shift, 0), len(points) - max(-shift, 0))
        weight = near * np.maximum(points[source, :, 2], 0)
        weights[to] += weight
        sums[to] += weight[..., None] * points[source, :, :2]
    result = points.copy()
    result[..., :2] = np.where(weights[..., None] > 0, sums / np.maximum(weights, 1e-9)[..., None], points[..., :2])
    return result
