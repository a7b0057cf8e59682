"""The last frame of one video becomes the first of the next."""
from pathlib import Path

import kinograph


def main(output: str | Path = "there_and_back.mp4") -> Path:
    model = kinograph.load("ti2v-nano")
    there = kinograph.generate(model, kinograph.TextImageToVideo(prompt="a blue circle moves to the right on a white background", seed=1))
    back = kinograph.generate(
        model,
        kinograph.TextImageToVideo(prompt="a blue circle moves to the left on a white background", seed=2, image=there.frames[:, -1]),
    )
    chunks = [kinograph.to_uint8(there.frames), kinograph.to_uint8(back.frames[:, 1:])]
    return kinograph.write_video(output, chunks, there.fps)


if __name__ == "__main__":
    print(main())
