"""Pictures and video in and out."""
from kinograph.media.files import unique_path
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
    probe,
    read_metadata,
    read_video,
    write_video,
)

__all__ = [
    "VideoInfo",
    "VideoWriter",
    "check_writable",
    "cover",
    "default_name",
    "image_to_tensor",
    "probe",
    "read_image",
    "read_metadata",
    "read_video",
    "resize_bicubic",
    "resize_lanczos_crop",
    "safe_stem",
    "to_uint8",
    "unique_path",
    "write_video",
]
