"""The backend that a step is traced for: that of the run, unless a plan says another.

Convolutions and attention are computed in the way that is fast there. They ask here and
never `jax.default_backend()`, which is "cpu" while a plan compiles for other devices.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import jax


class Backend(NamedTuple):
    """What a step is traced for.

    platform: "cpu", "gpu" or "tpu". flash_attention: whether cuDNN's can be used.
    devices: how many share a batch; only the speed on CPU depends on it.
    """

    platform: str
    flash_attention: bool = False
    devices: int = 1


_told: ContextVar[Backend | None] = ContextVar("backend", default=None)


def current() -> Backend:
    """What `tracing_for` says, or the backend of this process."""
    told = _told.get()
    if told is not None:
        return told
    platform = jax.default_backend()
    flash_attention = platform == "gpu" and compute_capability() >= 8.0
    return Backend(platform, flash_attention, jax.device_count())


@contextlib.contextmanager
def tracing_for(backend: Backend) -> Iterator[None]:
    """Functions traced for the first time inside it are those for `backend`."""
    token = _told.set(backend)
    try:
        yield
    finally:
        _told.reset(token)


def compute_capability() -> float:
    """Of the first CUDA device, for instance 9.0; 0 on other hardware."""
    version = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return float(version) if version.replace(".", "", 1).isdigit() else 0.0
