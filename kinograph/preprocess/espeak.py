"""A program of its own: `python espeak.py LIBRARY DATA LANGUAGE WORDS_PER_MINUTE OUT.wav` says what is on its standard input.

The library of espeak-ng keeps state from one text to the next; in a new process the same text gives the same speech.
Standard library only. The interface is that of speak_lib.h.
"""
from __future__ import annotations

import ctypes
import sys
import wave
from typing import Any

RETRIEVAL = UTF8 = RATE = 1  # AUDIO_OUTPUT_RETRIEVAL, espeakCHARS_UTF8, espeakRATE


def say(library: str, data: str, language: str, words_per_minute: int, text: bytes) -> tuple[bytes, int]:
    """16-bit samples of one channel, and how many of them are a second."""
    espeak = ctypes.CDLL(library)
    rate = espeak.espeak_Initialize(RETRIEVAL, 0, data.encode(), 0)
    if rate <= 0:
        sys.exit(f"the library {library} does not start")
    parts: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples: Any, count: int, events: int) -> int:
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    espeak.espeak_SetSynthCallback(keep)
    if espeak.espeak_SetVoiceByName(language.encode()):
        sys.exit(f"there is no voice for the language {language!r}")
    espeak.espeak_SetParameter(RATE, words_per_minute, 0)
    espeak.espeak_Synth(text + b"\0", ctypes.c_size_t(len(text) + 1), 0, 0, 0, UTF8, None, None)
    espeak.espeak_Synchronize()
    return b"".join(parts), rate


def main(library: str, data: str, language: str, words_per_minute: str, out: str) -> None:
    samples, rate = say(library, data, language, int(words_per_minute), sys.stdin.buffer.read())
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)


if __name__ == "__main__":
    main(*sys.argv[1:])
