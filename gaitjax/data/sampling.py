"""Which sequences and which frames make a batch: pure numpy functions of (seed, step).

A resumed run therefore reads what an uninterrupted one would have read.
"""

import numpy as np

from gaitjax.engine.guards import require


def identity_batch(
    subject: np.ndarray, *, ids_per_batch: int, seqs_per_id: int, seed: int, step: int
) -> np.ndarray:
    """Rows of a P x K batch, grouped by identity: int [ids_per_batch * seqs_per_id].

    P identities without replacement; of each, K sequences without replacement if it
    has K, else with replacement (as OpenGait's TripletSampler). Batches are not
    shuffled, because no loss depends on the order.

    subject: [n] identity of each row, any comparable dtype. Raises ValueError if
    the split has fewer than P identities.
    """
    identities, member = np.unique(subject, return_inverse=True)
    require(
        len(identities) >= ids_per_batch,
        f"A batch of {ids_per_batch} identities was asked for, the split has "
        f"{len(identities)}. Lower config.data.ids_per_batch.",
    )
    rng = np.random.default_rng([seed, step])
    rows = []
    for identity in rng.choice(len(identities), ids_per_batch, replace=False):
        own = np.flatnonzero(member == identity)
        rows.append(rng.choice(own, seqs_per_id, replace=len(own) < seqs_per_id))
    return np.concatenate(rows)


def clip_indices(
    num_frames: int,
    length: int,
    *,
    ordered: bool,
    skip: int = 0,
    rng: np.random.Generator,
) -> np.ndarray:
    """Frame numbers of one training clip: int [length], in [0, num_frames).

    ordered, skip=0: a random window of consecutive frames, as frame differences need.
    ordered, skip>0: a random window of length+skip, `skip` of them dropped at random.
    unordered: `length` frames without replacement (with, if there are fewer).
    A sequence shorter than the window is tiled, so order wraps around.
    """
    if not ordered:
        return rng.choice(num_frames, length, replace=num_frames < length)
    window = length + skip
    starts = num_frames if num_frames < window else num_frames - window + 1
    start = rng.integers(0, starts)
    positions = (start + np.arange(window)) % num_frames
    keep = np.sort(rng.choice(window, length, replace=False)) if skip else slice(None)
    return positions[keep]


def length_bucket(
    num_frames: np.ndarray, *, multiple: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """(frames used, padded lengths) of whole sequences at evaluation: int [n] each.

    Of each sequence at most `limit` frames are used (0: all); lengths are padded up to
    a `multiple`, so that few shapes are compiled.
    """
    used = np.minimum(num_frames, limit) if limit else np.asarray(num_frames)
    return used, -(-used // multiple) * multiple
