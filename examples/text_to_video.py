"""A prompt becomes a video with the model in the package."""
from pathlib import Path

import kinograph


def main(output: str | Path = "star.mp4") -> Path:
    model = kinograph.load("ti2v-nano")
    request = kinograph.TextImageToVideo(prompt="a large red star moves slowly to the right on a pale blue background", seed=1)
    video = kinograph.generate(model, request)
    return kinograph.write_video(output, kinograph.to_uint8(video.frames), video.fps, metadata=video.recipe.to_json())


if __name__ == "__main__":
    print(main())
