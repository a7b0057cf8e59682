"""Pictures, video and sound in and out."""
from kinograph.media.audio import Sound, read_sound
from kinograph.media.files import unique_path
from kinograph.media.frames import FrameReader, count_frames
from kinograph.media.images import (
    cover,
    image_to_tensor,
    read_image,
    resize_bicubic,
    resize_lanczos_crop,
    to_uint8,
)
from kinograph.media.names import default_name, safe_stem
from kinograph.media.video import (
    VideoInfo,
    VideoWriter,
    check_writable,
    holds_sound,
    probe,
    read_metadata,
    read_video,
    write_video,
)

__all__ = [
    "FrameReader",
    "Sound",
    "VideoInfo",
    "VideoWriter",
    "check_writable",
    "count_frames",
    "cover",
    "default_name",
    "holds_sound",
    "image_to_tensor",
    "probe",
    "read_image",
    "read_metadata",
    "read_sound",
    "read_video",
    "resize_bicubic",
    "resize_lanczos_crop",
    "safe_stem",
    "to_uint8",
    "unique_path",
    "write_video",
]
