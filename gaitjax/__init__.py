"""gaitjax: gait recognition in JAX/Flax.

recogniser = gaitjax.load("runs/gaitset")       # gaitjax.use.recogniser.load
gallery = gaitjax.Gallery.open("people", recogniser)  # gaitjax.use.gallery.Gallery
"""

import importlib

__version__ = "0.1.0"
_PUBLIC = {"load": "gaitjax.use.recogniser", "Gallery": "gaitjax.use.gallery"}


def __getattr__(name: str):
    """Names of _PUBLIC, imported when they are used: the version needs no JAX."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gaitjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
