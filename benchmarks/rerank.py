"""Milliseconds per probe of every re-ranker, at Gait3D's size.

    python -m benchmarks.rerank           # 1,000 probes, 6,369 in all, 16 x 256
    python -m benchmarks.rerank --quick   # 200 probes, 1,274 in all

CarGait re-orders the first 10 of each probe, with untrained weights, which cost the
same; its projections of the gallery are computed once beforehand and timed separately
(prepare_s). LBR re-orders the first 100; KR, GCR, GNN and QE score the whole gallery.
All are given the base model's distances. KR and a literal NumPy implementation of it
(sample by sample, sets as index arrays, inverted index, float32) start from the same
all-against-all matrix; `kr_call` also computes the distances among probes and among
gallery sequences.

All methods run in turns after a first call that compiles; times are medians.
The last line is one JSON object: cargait_ms_per_probe (batched), cargait_batch1_ms,
kr_ms_per_probe, kr_total_s, kr_call_ms_per_probe, kr_numpy_ms_per_probe,
kr_speedup_vs_numpy, kr_max_abs_diff, lbr_ms_per_probe, gcr_ms_per_probe,
gnn_ms_per_probe, qe_ms_per_probe, base_ms_per_probe, prepare_s, peak_mib.
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
import jax.numpy as jnp
import numpy as np

from configs import cargait as cargait_config
from gaitjax.rerank import cargait
from gaitjax.rerank import compare as compare_rerankers
from gaitjax.rerank.k_reciprocal import k_reciprocal
from gaitjax.rerank.methods import RERANKERS
from gaitjax.retrieval.distance import pairwise_distance

STRIPS, SIZE = 16, 256


def make_data(probes: int, total: int):
    """(probe [Q S D], gallery [G S D]): clustered as identities with ~6 walks each."""
    rng = np.random.default_rng(0)
    number = rng.integers(0, total // 6, total)
    centres = rng.standard_normal((total // 6, STRIPS, SIZE), np.float32)
    x = 1.5 * rng.standard_normal((total, STRIPS, SIZE), np.float32)
    x += centres[number]
    return x[:probes], x[probes:]


def literal_k_reciprocal(distance, num_probes, k1=20, k2=6, weight=0.3):
    """KR as its paper describes it, sample by sample: float32 [Q G]."""
    n = len(distance)
    scaled = distance**2
    scaled = (scaled / scaled.max(axis=0)).T
    order = np.argsort(scaled, axis=1)
    encoding = np.zeros((n, n), np.float32)
    half = round(k1 / 2)

    def reciprocal(i, k):
        forward = order[i, : k + 1]
        return forward[(order[forward, : k + 1] == i).any(axis=1)]

    for i in range(n):
        mine = reciprocal(i, k1)
        expanded = mine
        for j in mine:
            theirs = reciprocal(j, half)
            if len(np.intersect1d(theirs, mine)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        expanded = np.unique(expanded)
        values = np.exp(-scaled[i, expanded])
        encoding[i, expanded] = values / values.sum()
    if k2 > 1:
        encoding = np.stack([encoding[order[i, :k2]].mean(axis=0) for i in range(n)])
    holders = [np.flatnonzero(encoding[:, k]) for k in range(n)]
    out = np.empty((num_probes, n), np.float32)
    for q in range(num_probes):
        shared = np.zeros(n, np.float32)
        for k in np.flatnonzero(encoding[q]):
            rows = holders[k]
            shared[rows] += np.minimum(encoding[q, k], encoding[rows, k])
        out[q] = 1 - shared / (2 - shared)
    out = (1 - weight) * out + weight * scaled[:num_probes]
    return out[:, num_probes:]


def make_cargait():
    """CarGait with the paper's sizes and random weights."""
    config = cargait_config.get_config("gait3d")
    config.evaluation.shortlist = 10
    config.evaluation.chunk = 64
    fields = {name: value for name, value in config.model.items() if name != "name"}
    model = cargait.CarGait(1, **fields)
    strips = jnp.zeros((1, STRIPS, SIZE))
    params = model.init(
        jax.random.key(0), strips, strips[:, None], train=False,
        method="pairs_and_logits",
    )["params"]  # fmt: skip
    return compare_rerankers.trained_method(model, params, config.evaluation)


def measure(probes: int, total: int, turns: int, batch1: int) -> dict:
    probe, gallery = make_data(probes, total)
    base = pairwise_distance(probe, gallery, metric="euclidean")
    x = np.concatenate([probe, gallery])
    everything = pairwise_distance(x, x, metric="euclidean")
    np.fill_diagonal(everything, 0)
    method = make_cargait()
    prepared = method.prepare(gallery)
    chosen = np.linspace(0, probes - 1, batch1).round().astype(int)

    def one_by_one():
        for q in chosen:
            method.apply(base[q : q + 1], probe[q : q + 1], gallery, prepared)

    calls = {
        "base": lambda: pairwise_distance(probe, gallery, metric="euclidean"),
        "prepare": lambda: method.prepare(gallery),
        "cargait": lambda: method.apply(base, probe, gallery, prepared),
        "cargait_batch1": one_by_one,
        "kr": lambda: k_reciprocal(everything, probes),
        "lbr": lambda: RERANKERS["lbr"](base, probe, gallery),
        "gcr": lambda: RERANKERS["gcr"](base, probe, gallery),
        "gnn": lambda: RERANKERS["gnn"](base, probe, gallery),
        "qe": lambda: RERANKERS["qe"](base, probe, gallery),
        "kr_call": lambda: RERANKERS["kr"](base, probe, gallery),
    }
    results = {name: call() for name, call in calls.items()}  # compiles
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    device_memory = jax.devices()[0].memory_stats() or {}
    calls["kr_numpy"] = lambda: literal_k_reciprocal(everything, probes)
    times = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            started = time.perf_counter()
            results[name] = call()
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ms = {name: 1e3 * value / probes for name, value in seconds.items()}
    report = {
        "cargait_ms_per_probe": round(ms["cargait"], 4),
        "cargait_batch1_ms": round(1e3 * seconds["cargait_batch1"] / batch1, 3),
        "kr_ms_per_probe": round(ms["kr"], 4),
        "kr_total_s": round(seconds["kr"], 3),
        "kr_call_ms_per_probe": round(ms["kr_call"], 4),
        "kr_numpy_ms_per_probe": round(ms["kr_numpy"], 3),
        "kr_speedup_vs_numpy": round(seconds["kr_numpy"] / seconds["kr"], 1),
        "kr_max_abs_diff": float(np.abs(results["kr"] - results["kr_numpy"]).max()),
    }
    for name in ("lbr", "gcr", "gnn", "qe", "base"):
        report[f"{name}_ms_per_probe"] = round(ms[name], 4)
    report["prepare_s"] = round(seconds["prepare"], 3)
    report["peak_mib"] = round(peak)
    in_use = device_memory.get("peak_bytes_in_use")
    report["device_peak_mib"] = round(in_use / 2**20) if in_use else None
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute")
    arguments = parser.parse_args()
    probes, total, turns = (200, 1274, 2) if arguments.quick else (1000, 6369, 3)
    report = measure(probes, total, turns, batch1=20)
    report |= {"probes": probes, "sequences": total, "turns": turns}
    report["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    print(f"re-ranking, {probes:,} probes of {total:,}, on {report['device']}")
    for name, value in report.items():
        print(f"  {name:24} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
