"""A drawn person says a sentence, in a small voice that needs no download (extra `speech`)."""
from pathlib import Path

import kinograph

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "talker.png"


def main(output: str | Path = "hello.mp4") -> Path:
    model = kinograph.load("s2v-nano")
    video = kinograph.generate(model, kinograph.SpeechToVideo(image=PICTURE, tts_text="Hello there, and welcome.", seed=1))
    return kinograph.write_video(output, kinograph.to_uint8(video.frames), video.fps, sound=video.sound, metadata=video.recipe.to_json())


if __name__ == "__main__":
    print(main())
