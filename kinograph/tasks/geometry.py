"""Output sizes of the tasks that start from a picture, as published."""
from __future__ import annotations

import math

from kinograph.errors import RequestError


def i2v_size(image_width: int, image_height: int, area: int, multiple: tuple[int, int] = (16, 16)) -> tuple[int, int]:
    """(width, height) for image-to-video: the picture's aspect, about `area` pixels, each side rounded down to `multiple`.

    `multiple` is for (height, width), as `ModelSpec.size_multiple`. The picture is resized straight to this size.
    Raises RequestError for a picture so thin that a side would be 0.
    """
    rows, columns = multiple
    # The published order of operations: area * h / w instead gives another size where the square root is a whole multiple.
    aspect = image_height / image_width
    height = int(math.sqrt(area * aspect) // rows) * rows
    width = int(math.sqrt(area / aspect) // columns) * columns
    if not (width and height):
        raise _too_thin(image_width, image_height, area, multiple)
    return width, height


def ti2v_size(image_width: int, image_height: int, area: int, multiple: tuple[int, int] = (32, 32)) -> tuple[int, int]:
    """(width, height) for text-image-to-video: at most `area` pixels, multiples of `multiple` (height, width).

    One side is rounded down first and the other then fills the area; of the two orders the one closer to the picture's
    aspect wins, the second at a tie. The picture covers this size and is cropped.
    Raises RequestError for a picture so thin that a side would be 0.
    """
    rows, columns = multiple
    ratio = image_width / image_height
    ideal_width = (area * ratio) ** 0.5
    ideal_height = area / ideal_width

    candidates = []
    if width := int(ideal_width // columns) * columns:
        candidates.append((width, int(area / width // rows) * rows))
    if height := int(ideal_height // rows) * rows:
        candidates.append((int(area / height // columns) * columns, height))
    candidates = [size for size in candidates if all(size)]
    if not candidates:
        raise _too_thin(image_width, image_height, area, multiple)

    def distortion(size: tuple[int, int]) -> float:
        candidate = size[0] / size[1]
        return max(ratio / candidate, candidate / ratio)

    return min(reversed(candidates), key=distortion)  # `min` keeps the earliest of equals


def s2v_size(image_width: int, image_height: int, area: int, multiple: int = 64) -> tuple[int, int]:
    """(width, height) for speech-to-video: about the picture's aspect, at most `area` pixels, multiples of `multiple`.

    As published: of 100 scales, from the largest down, the first at which both sides, rounded *up*, stay within the area. The
    picture is never enlarged beyond that rounding. Where no scale fits, the sides that fill the area are rounded down, and
    where those exceed the picture, the picture's own.
    Raises RequestError for a picture so thin that a side would be 0.
    """
    pixels = image_height * image_width
    largest = 1.0 if pixels <= area else math.sqrt(area / pixels)
    smallest = 0.1 if pixels <= area else _smallest_scale(image_width, image_height, area, slack=multiple - 1)
    for i in range(100):
        scale = largest - (largest - smallest) * i / 100
        height, width = (-(-int(side * scale) // multiple) * multiple for side in (image_height, image_width))
        if height * width <= area:
            break
    else:
        ratio = image_width / image_height
        width, height = (int(math.sqrt(side) // multiple) * multiple for side in (area * ratio, area / ratio))
        if width >= image_width or height >= image_height:
            width, height = (side // multiple * multiple for side in (image_width, image_height))
    if not (width and height):
        raise _too_thin(image_width, image_height, area, (multiple, multiple))
    return width, height


def _smallest_scale(image_width: int, image_height: int, area: int, *, slack: int) -> float:
    """The published lower end of the search: near the scale at which even sides that are `slack` longer fit the area."""
    a, b, c = image_height * image_width, slack * (image_height + image_width), slack**2 - area
    return (-b + math.sqrt(max(0.0, b**2 - 2 * a * c))) / (2 * a)


def _too_thin(image_width: int, image_height: int, area: int, multiple: tuple[int, int]) -> RequestError:
    limit = area // math.prod(multiple)
    return RequestError(
        f"a picture of {image_width} x {image_height} is too thin: at an area of {area} pixels a side would be less than one cell of "
        f"{multiple[1]} x {multiple[0]}; crop it to an aspect ratio below {limit}:1, or ask for a larger size"
    )
