"""gaitjax: gait recognition in JAX/Flax."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing gaitjax imports no JAX
    from gaitjax.use.recogniser import Recogniser

__version__ = "0.1.0"


def load(
    run_or_weights: str = "", *, person_model: str = "", detector: str = ""
) -> "Recogniser":
    """`gaitjax.use.recogniser.load`: a trained run, or weights, as a function."""
    from gaitjax.use import recogniser

    return recogniser.load(run_or_weights, person_model=person_model, detector=detector)
