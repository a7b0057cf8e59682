"""Plain English captions of Toybox scenes: a small grammar with the ways people put such things.

A caption may leave attributes out, but what it leaves out is usually the ordinary value (medium size, ordinary speed).
With `complete=True` it names colour, shape, motion and background, which is what a test prompt needs.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

from kinograph.training.toybox import CAMERA_MOTIONS, Description, Scene, describe, sample_scenes

SHAPE_NOUNS = {
    "circle": ("circle", "ball", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "ring", "hoop", "donut"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("",), "large": ("large", "big")}
BACKGROUND_WORDS = {
    "white": ("white",),
    "gray": ("gray", "grey"),
    "pale blue": ("pale blue", "light blue"),
    "pale green": ("pale green", "light green"),
    "pale yellow": ("pale yellow", "light yellow"),
    "pale pink": ("pale pink", "light pink"),
}
SPEED_WORDS = {"slowly": ("slowly",), "": ("",), "quickly": ("quickly", "fast")}

# Verbs as (finite form, participle).
_MOVE_VERBS = (
    ("moves", "moving"), ("moves", "moving"), ("slides", "sliding"), ("glides", "gliding"), ("drifts", "drifting"),
    ("travels", "traveling"), ("floats", "floating"), ("goes", "going"), ("flies", "flying"),
)  # fmt: skip
_ROLL = (("rolls", "rolling"), ("rolls", "rolling"))
_DIRECTIONS = {
    "left": ("to the left", "left", "from right to left", "toward the left", "leftward"),
    "right": ("to the right", "right", "from left to right", "toward the right", "rightward"),
    "up": ("up", "upward", "upwards", "from bottom to top", "to the top"),
    "down": ("down", "downward", "downwards", "from top to bottom", "to the bottom"),
    "up left": ("up and to the left", "diagonally up and left", "up and left", "toward the upper left"),
    "up right": ("up and to the right", "diagonally up and right", "up and right", "toward the upper right"),
    "down left": ("down and to the left", "diagonally down and left", "down and left", "toward the lower left"),
    "down right": ("down and to the right", "diagonally down and right", "down and right", "toward the lower right"),
}
# Whole phrases, used beside the verbs and directions above, or instead of them.
_PHRASES = {
    "up": (("rises", "rising"), ("rises up", "rising up")),
    "down": (("falls", "falling"), ("falls down", "falling down"), ("sinks", "sinking")),
    "bounce": (
        ("bounces", "bouncing"), ("bounces up and down", "bouncing up and down"), ("hops up and down", "hopping up and down"),
        ("jumps up and down", "jumping up and down"), ("keeps bouncing", "that keeps bouncing"),
    ),
    "spin": (
        ("spins", "spinning"), ("spins around", "spinning around"), ("rotates", "rotating"), ("turns around", "turning around"),
        ("spins in place", "spinning in place"), ("rotates clockwise", "rotating clockwise"),
    ),
    "grow": (
        ("grows", "growing"), ("gets bigger", "getting bigger"), ("grows larger", "growing larger"), ("expands", "expanding"),
        ("becomes bigger", "becoming bigger"),
    ),
    "shrink": (
        ("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("grows smaller", "growing smaller"),
        ("becomes smaller", "becoming smaller"),
    ),
    "still": (
        ("stays still", "staying still"), ("stands still", "standing still"), ("does not move", "not moving"),
        ("rests in the middle", "resting in the middle"), ("is still", "that is still"), ("stays in place", "staying in place"),
    ),
}  # fmt: skip
_CAMERA = {
    "pan left": ("the camera pans left", "the camera pans to the left", "the camera moves left"),
    "pan right": ("the camera pans right", "the camera pans to the right", "the camera moves right"),
    "zoom in": ("the camera zooms in", "the camera slowly zooms in", "the camera moves closer"),
    "zoom out": ("the camera zooms out", "the camera slowly zooms out", "the camera moves away"),
}
_PATTERNS = {
    "stripes": ("{a} striped {ground}", "{a} {ground} with stripes"),
    "dots": ("{a} dotted {ground}", "{a} {ground} with dots", "{a} {ground} with polka dots"),
    "hills": ("{a} {ground} with hills", "{a} {ground} with rolling hills"),
}
_ON = ("on", "on", "against", "over", "in front of")
_VIDEO = ("a video of", "video of", "a clip of", "an animation of")


@dataclass(frozen=True)
class _Parts:
    """Pieces of one caption; those left out are empty."""

    subject: str  # "large red ball", without article
    finite: str  # "moves slowly to the right"
    participle: str  # "moving slowly to the right"
    camera: str  # "the camera pans left"
    background: str  # "a pale blue background"
    second: str  # "a small blue square in the upper left corner"


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _subject(scene: Description, rng: random.Random, *, complete: bool) -> str:
    size = rng.choice(SIZE_WORDS[scene.size]) if rng.random() < 0.8 else ""
    color = scene.color if complete or rng.random() < 0.97 else ""
    noun = rng.choice(SHAPE_NOUNS[scene.shape]) if complete or rng.random() < 0.97 else "shape"
    return _join(size, color, noun)


def _action(scene: Description, rng: random.Random, *, complete: bool) -> tuple[str, str]:
    """The motion as (finite, participle), both empty where it is left out."""
    if scene.motion in CAMERA_MOTIONS:
        keep_still = rng.random() < 0.5
        return rng.choice(_PHRASES["still"]) if keep_still else ("", "")
    if not complete and rng.random() < 0.03:
        return "", ""
    speed = rng.choice(SPEED_WORDS[scene.speed]) if rng.random() < 0.85 else ""
    phrases = _PHRASES.get(scene.motion, ())
    if phrases and (scene.motion not in _DIRECTIONS or rng.random() < 0.3):
        finite, participle = rng.choice(phrases)
        if speed == "fast" or rng.random() < 0.5:
            return _join(finite, speed), _join(participle, speed)
        return _join(speed, finite), _join(speed, participle)
    rolling = _ROLL if scene.shape in ("circle", "ring") and scene.motion in ("left", "right") else ()
    finite, participle = rng.choice(_MOVE_VERBS + rolling)
    direction = rng.choice(_DIRECTIONS[scene.motion])
    place = rng.randrange(1, 3) if speed == "fast" else rng.randrange(3)

    def with_speed(verb: str) -> str:
        words = [verb, direction]
        words.insert(place, speed)
        return _join(*words)

    return with_speed(finite), with_speed(participle)


def _background(scene: Description, rng: random.Random, *, complete: bool) -> str:
    if not complete and rng.random() < 0.05:
        return ""
    ground = f"{rng.choice(BACKGROUND_WORDS[scene.background])} {rng.choice(('background', 'background', 'background', 'backdrop'))}"
    if scene.pattern == "plain":
        plain = rng.random() < 0.08
        return _article(f"plain {ground}" if plain else ground)
    return rng.choice(_PATTERNS[scene.pattern]).format(a="a", ground=ground)


def _second(scene: Description, rng: random.Random) -> str:
    if scene.second is None:
        return ""
    color, shape, corner = scene.second
    side = rng.choice((f"in the {corner} corner", f"in the {corner} corner", f"in the {corner}"))
    return f"a small {color} {shape} {side}"


def _sentence(parts: _Parts, rng: random.Random) -> str:
    """A caption in sentences."""
    subject = _article(parts.subject)
    where = f"{rng.choice(_ON)} {parts.background}" if parts.background else ""
    layout = rng.random()
    if layout < 0.40 and parts.finite:
        text = _join(subject, parts.finite, where)
    elif layout < 0.55 and parts.finite and where:
        text = f"{where}, {subject} {parts.finite}"
    elif layout < 0.65 and parts.background:
        return _two_sentences(parts, subject)
    elif layout < 0.82:
        text = _join(rng.choice(_VIDEO), subject, parts.participle, where)
    else:
        text = _join(rng.choice(("there is", "")), subject, parts.participle, where)
    if parts.camera:
        text += rng.choice((f" while {parts.camera}", f" as {parts.camera}", f", {parts.camera}", f". {parts.camera}"))
    if parts.second:
        text += rng.choice((f", with {parts.second}", f" with {parts.second}", f". there is {parts.second}"))
    return text


def _two_sentences(parts: _Parts, subject: str) -> str:
    """The background, the camera and the second object in sentences of their own."""
    ground = parts.background.split(" ", 1)[1].replace(" background", "").replace(" backdrop", "")
    sentences = [_join(subject, parts.finite) if parts.finite else f"there is {subject}", f"the background is {ground}"]
    sentences += [parts.camera, f"there is {parts.second}" if parts.second else ""]
    return ". ".join(sentence for sentence in sentences if sentence)


def _fragment(parts: _Parts, rng: random.Random) -> str:
    """What people type in a hurry: no articles, commas between the pieces."""
    article = rng.random() < 0.3
    subject = _article(parts.subject) if article else parts.subject
    second = parts.second if article else parts.second.removeprefix("a ")
    background = parts.background.split(" ", 1)[-1]
    pieces = [_join(subject, parts.participle), background, parts.camera, second]
    return ", ".join(piece for piece in pieces if piece)


def _finish(text: str, rng: random.Random) -> str:
    """Capitals and a full stop, or neither."""
    if rng.random() < 0.35:
        return text
    sentences = [sentence[0].upper() + sentence[1:] for sentence in text.split(". ")]
    return ". ".join(sentences) + ("." if rng.random() < 0.85 else "")


def caption(scene: Scene, index: int, rng: random.Random, *, complete: bool = False) -> str:
    """One caption of row `index` of `scene`, which must be on the CPU; the same for the same state of `rng`."""
    return caption_of(describe(scene, index), rng, complete=complete)


def caption_of(scene: Description, rng: random.Random, *, complete: bool = False) -> str:
    """One caption of a described scene."""
    return _worded(_parts_of(scene, rng, complete=complete), rng)


def labelled_caption(scene: Description, rng: random.Random, *, complete: bool = False) -> tuple[str, frozenset[str]]:
    """A caption and what can be known from it: fields of `Description`.

    What is usual (medium size, ordinary speed, no second object) is known from silence; anything else must be said.
    """
    parts = _parts_of(scene, rng, complete=complete)
    subject, action = parts.subject.split(), parts.finite.split()
    known = {
        "color": scene.color in subject,
        "shape": subject[-1] in SHAPE_NOUNS[scene.shape],
        "motion": bool(parts.camera or (action and scene.motion not in CAMERA_MOTIONS)),
        "size": scene.size == "medium" or any(word in subject for word in SIZE_WORDS[scene.size]),
        "speed": scene.speed == "" or any(word in action for word in SPEED_WORDS[scene.speed]),
        "background": bool(parts.background),
        "pattern": bool(parts.background),
        "second": scene.second is None or bool(parts.second),
    }
    return _worded(parts, rng), frozenset(name for name, is_known in known.items() if is_known)


def _parts_of(scene: Description, rng: random.Random, *, complete: bool) -> _Parts:
    finite, participle = _action(scene, rng, complete=complete)
    return _Parts(
        subject=_subject(scene, rng, complete=complete),
        finite=finite,
        participle=participle,
        camera=rng.choice(_CAMERA[scene.motion]) if scene.motion in CAMERA_MOTIONS else "",
        background=_background(scene, rng, complete=complete),
        second=_second(scene, rng) if complete or rng.random() < 0.95 else "",
    )


def _worded(parts: _Parts, rng: random.Random) -> str:
    if rng.random() < 0.25:
        text = _fragment(parts, rng)
        return text if rng.random() < 0.7 else text[0].upper() + text[1:]
    return _finish(_sentence(parts, rng), rng)


def captions(scene: Scene, seed: int, *, complete: bool = False) -> list[str]:
    """One caption for each row of `scene`, the same for the same seed."""
    scene, rng = scene.to("cpu"), random.Random(seed)
    return [caption(scene, index, rng, complete=complete) for index in range(len(scene))]


def held_out_prompts(n: int, seed: int, *, second_rate: float = 0.0, camera_rate: float = 0.0) -> tuple[Scene, list[str]]:
    """`n` scenes with combinations that training never has, and a complete prompt for each."""
    scene = sample_scenes(n, seed, split="held_out", second_rate=second_rate, camera_rate=camera_rate)
    return scene, captions(scene, seed, complete=True)
