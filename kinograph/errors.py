"""Everything Kinograph raises on purpose.

    KinographError               base of all; the message is one sentence for the user
    ├── RequestError             what was asked for cannot be done (sizes, frames, prompt, unknown names)
    ├── MediaError               a picture, sound or video that cannot be read or written
    ├── CheckpointError          weights that are missing, damaged, or of another model
    ├── MissingExtraError        an optional package is not installed; the message has the install command
    └── RuntimeSetupError        this machine cannot run it as asked (device, dtype, backend, memory)
    Cancelled                    the caller asked to stop (not an error; derives from BaseException's KeyboardInterrupt)

The command line prints the message of a `KinographError` alone and exits with status 2.
A message says what was wrong, the value, and what would work.
"""
from __future__ import annotations


class KinographError(Exception):
    """Base of every error that is meant for the user; `str(error)` is one sentence."""


class RequestError(KinographError):
    """The request cannot be carried out as written."""


class MediaError(KinographError):
    """A picture, sound or video cannot be read or written."""


class CheckpointError(KinographError):
    """A checkpoint is missing, damaged or belongs to another model."""


class MissingExtraError(KinographError):
    """An optional package is absent."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package {package}; install it with: pip install 'kinograph[{extra}]'")


class RuntimeSetupError(KinographError):
    """The machine, or the runtime options, cannot run what was asked."""


class Cancelled(KeyboardInterrupt):
    """Raised inside a run to stop it cleanly; Ctrl-C raises its parent class."""
