"""The evaluator against a plain NumPy loop over probes, in the same process.

    python -m benchmarks.evaluate           # 6,000 x 6,000 and 5,000 x 20,000
    python -m benchmarks.evaluate --quick   # 1,000 x 6,000

The full sizes need about 3 GiB (the loop's temporary arrays) and some minutes.

16 strips x 256, Euclidean, Rank-k, mAP and mINP. "ours" is `protocols.evaluate` of all
probes. Two loops run over a sample of the probes, and their time is scaled up (each
probe costs the same): "loop" subtracts, squares and sums as the definition says;
"matrix loop" multiplies one probe with the gallery by BLAS. All run in turns and may
use every core; times are medians.

The last line is one JSON object: speedup_vs_loop (smallest of the sizes), max_abs_diff
(largest, of distances), metrics_max_diff (of Rank-1, mAP and mINP over those probes, in
percentage points: two distances that differ in the last digit may swap places),
peak_mib (of the process after ours and before the loops, with imports and embeddings),
q_g_s_mib (what a probes x gallery x strips array would take at the larger size), and
`sizes` with the parts.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

from gaitjax.retrieval import distance, metrics, protocols

STRIPS, SIZE, PER_ID = 16, 256, 4
SIZES, QUICK_SIZES = ((6_000, 6_000), (5_000, 20_000)), ((1_000, 6_000),)


def make_data(probes: int, gallery: int):
    """(embeddings [n S D], index): identities with PER_ID gallery sequences each."""
    rng = np.random.default_rng(0)
    identities = gallery // PER_ID
    number = np.concatenate(
        [np.arange(probes) % identities, np.arange(gallery) % identities]
    )
    centres = rng.standard_normal((identities, STRIPS, SIZE), np.float32)
    x = rng.standard_normal((len(number), STRIPS, SIZE), np.float32)
    x *= 4
    x += centres[number]
    subject = np.char.mod("%06d", number)
    condition = np.array(["probe"] * probes + ["gallery"] * gallery)
    index = protocols.Index(subject, condition, subject, subject)
    return x, index


def plain(probe, gallery):
    """The definition: [G S D] differences of one probe."""
    return np.sqrt(((gallery - probe) ** 2).sum(-1)).mean(-1)


def by_products(gallery):
    """One probe as a product with the gallery; norms of the gallery once."""
    strips = np.ascontiguousarray(gallery.swapaxes(0, 1))  # [S G D]
    norms = (strips**2).sum(-1)  # [S G]

    def distances(probe, _):
        product = np.matmul(strips, probe[:, :, None])[:, :, 0]  # [S G]
        squared = norms + (probe**2).sum(-1)[:, None] - 2 * product
        return np.sqrt(np.maximum(squared, 0)).mean(0)

    return distances


def loop(probes, probe_ids, gallery, gallery_ids, distances):
    """Rank-1, AP and INP of one probe after the other, and all distances."""
    rows, outcomes = [], []
    for probe, identity in zip(probes, probe_ids):
        row = distances(probe, gallery)
        ranks = np.flatnonzero(gallery_ids[np.argsort(row, kind="stable")] == identity)
        ranks = ranks + 1
        precision = np.arange(1, len(ranks) + 1) / ranks
        outcomes.append((ranks[0], precision.mean(), len(ranks) / ranks[-1]))
        rows.append(row)
    return np.stack(rows), np.array(outcomes)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_once(probes: int, gallery: int) -> dict:
    """Ours alone: its results, and the process's peak memory so far."""
    x, index = make_data(probes, gallery)
    protocols.evaluate("gait3d", x[-2100:], _roles(index, -2100))  # compile
    started = time.perf_counter()
    flat = protocols.evaluate("gait3d", x, index)
    return {
        "first_seconds": round(time.perf_counter() - started, 2),
        "rank1": round(flat["gait3d/all/rank1"], 2),
        "mAP": round(flat["gait3d/all/mAP"], 2),
        "peak_mib": round(peak_mib()),
        "embeddings_mib": round(x.nbytes / 2**20),
        "q_g_s_mib": round(probes * gallery * STRIPS * 4 / 2**20),
    }


def compare(probes: int, gallery: int, loop_probes: int, repeats: int) -> dict:
    """Ours and the loops in turns."""
    x, index = make_data(probes, gallery)
    some = np.linspace(0, probes - 1, loop_probes).round().astype(int)
    target, ids = x[probes:], index.subject[probes:]
    loops = {"loop": plain, "matrix_loop": by_products(target)}
    times = {"ours": [], "loop": [], "matrix_loop": []}
    found = {}
    for _ in range(repeats):
        started = time.perf_counter()
        protocols.evaluate("gait3d", x, index)
        times["ours"].append(time.perf_counter() - started)
        for name, distances in loops.items():
            started = time.perf_counter()
            found[name] = loop(x[some], index.subject[some], target, ids, distances)
            times[name].append((time.perf_counter() - started) * probes / len(some))
    seconds = {name: statistics.median(values) for name, values in times.items()}

    rows, expected = found["loop"]
    ours = distance.pairwise_distance(x[some], target, metric="euclidean")
    outcomes = np.stack(metrics.probe_outcomes(ours, index.subject[some], ids), 1)
    return {
        "probes": probes,
        "gallery": gallery,
        "seconds": round(seconds["ours"], 2),
        "loop_seconds": round(seconds["loop"], 1),
        "matrix_loop_seconds": round(seconds["matrix_loop"], 1),
        "loop_probes_timed": len(some),
        "speedup_vs_loop": round(seconds["loop"] / seconds["ours"], 1),
        "speedup_vs_matrix_loop": round(seconds["matrix_loop"] / seconds["ours"], 1),
        "max_abs_diff": float(np.abs(ours - rows).max()),
        "metrics_max_diff": float(np.abs(points(outcomes) - points(expected)).max()),
    }


def points(outcomes):
    """Rank-1, mAP, mINP in percent of [probes 3]: rank of the first match, AP, INP."""
    columns = outcomes[:, 0] == 1, outcomes[:, 1], outcomes[:, 2]
    return 100 * np.array([column.mean() for column in columns])


def _roles(index, start: int):
    """The last rows of the index, half of them probes; compiles every shape."""
    part = [column[start:].copy() for column in index]
    part[1][: len(part[1]) // 2] = "probe"
    return protocols.Index(*part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    loop_probes, repeats = (8, 3) if arguments.quick else (40, 3)
    alone = [run_once(q, g) for q, g in sizes]  # all before the first loop
    results = [
        compare(q, g, loop_probes, repeats) | own for (q, g), own in zip(sizes, alone)
    ]
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    print(f"evaluation, {STRIPS} x {SIZE}, float32, on {device}")
    for name in results[0]:
        print(f"  {name:24}", *(f"{result[name]!s:>14}" for result in results))
    summary = {
        "speedup_vs_loop": min(result["speedup_vs_loop"] for result in results),
        "max_abs_diff": max(result["max_abs_diff"] for result in results),
        "metrics_max_diff": max(result["metrics_max_diff"] for result in results),
        "peak_mib": max(result["peak_mib"] for result in results),
        "q_g_s_mib": max(result["q_g_s_mib"] for result in results),
        "device": device,
        "sizes": results,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
