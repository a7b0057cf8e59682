"""A drawn character takes the place of a dancer, in the light of the scene.

`examples/dance` is material as `kinograph preprocess --replace_flag` makes it of a video and a picture.
"""
from pathlib import Path

import kinograph
from kinograph.runtime.lora import Lora, relighting_lora
from kinograph.runtime.placement import bundled_folder

MATERIAL = Path(__file__).parent / "dance"


def main(output: str | Path = "dance.mp4") -> Path:
    spec = kinograph.MODELS["animate-nano"]
    model = kinograph.load(spec, lora=Lora(spec, [relighting_lora(bundled_folder(spec))]))
    video = kinograph.generate(model, kinograph.Animate(material=MATERIAL, mode="replace", seed=1))
    return kinograph.write_video(output, kinograph.to_uint8(video.frames), video.fps, metadata=video.recipe.to_json())


if __name__ == "__main__":
    print(main())
