"""A shortlist from Milvus against exact search, on galleries of synthetic embeddings.

    python -m benchmarks.gallery_index --rows=100000 --engine=exact
    python -m benchmarks.gallery_index --rows=100000 --engine=milvus   (needs pymilvus)

People and their walks are Gaussian, with the share of the variance that lies between
people and the decay of the principal components as --like, a `gaitjax gallery export`,
has them (41 walks of ten people in KTH's d1, embedded by GEI, have 0.06 and 1.5; the
default is a model that tells people apart). Of each probe the true nearest walk is
known from exact distances. Prints one line of JSON: seconds to fill, ms for a probe (by
the clock, and of the processor, which other programs disturb less; milvus-lite is in
this process), peak memory, and in how many shortlists the true nearest is among the
first 10 after their exact distances are computed.

Rows are made block by block from the seed, so that neither engine is given an array.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gaitjax.use.index import open_index

WALKS = 4  # of a person
BLOCK = 5_000  # rows
SHORTLISTS = (10, 50, 200)
DECAY, BETWEEN = 1.0, 0.8  # eigenvalue k is k^-DECAY; share of the variance


class People:
    """Synthetic walks: rows `start` to `stop` of an endless gallery."""

    def __init__(self, shape, decay: float, between: float):
        self.shape, size = shape, int(np.prod(shape))
        rng = np.random.default_rng(1)
        spread = np.arange(1, size + 1, dtype=np.float32) ** (-decay / 2)
        self.spread = spread * np.float32(np.sqrt(size / (spread**2).sum()))
        self.order = rng.permutation(size)  # components lie in all strips
        self.signs = rng.choice(np.float32([-1, 1]), size)
        self.between, self.within = np.sqrt([between, 1 - between], dtype=np.float32)

    def _mixed(self, values: np.ndarray) -> np.ndarray:
        """Principal components -> embeddings: a fixed rotation (a fast Fourier one)."""
        values = (values * self.spread)[:, self.order] * self.signs
        turned = np.fft.rfft(values, axis=1, norm="ortho")
        real = np.concatenate([turned.real, turned.imag[:, 1:-1]], 1)
        real[:, 1 : values.shape[1] // 2] *= np.sqrt(2)
        real[:, values.shape[1] // 2 + 1 :] *= np.sqrt(2)
        return real.astype(np.float32).reshape(-1, *self.shape)

    def block(self, number: int) -> np.ndarray:
        """float32 [BLOCK S D]."""
        rng = np.random.default_rng([2, number])
        size = int(np.prod(self.shape))
        who = rng.standard_normal((BLOCK // WALKS, size), np.float32)
        walks = rng.standard_normal((BLOCK, size), np.float32)
        return self._mixed(
            self.between * np.repeat(who, WALKS, 0) + self.within * walks
        )

    def probes(self, count: int, rows: int) -> np.ndarray:
        """float32 [count S D]: other walks of people in the first `rows`."""
        rng = np.random.default_rng(3)
        size = int(np.prod(self.shape))
        chosen, found = rng.choice(rows // WALKS, count, replace=False), []
        for person in chosen:
            block, place = divmod(int(person), BLOCK // WALKS)
            who = np.random.default_rng([2, block])
            who = who.standard_normal((BLOCK // WALKS, size), np.float32)[place]
            found.append(
                self.between * who + self.within * rng.standard_normal(size, np.float32)
            )
        return self._mixed(np.stack(found))


def distances(probes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over strips of the L2 distances, float32 [Q n]."""
    total = 0.0
    for strip in range(probes.shape[1]):
        p, g = probes[:, strip], rows[:, strip]
        squares = (p**2).sum(1)[:, None] + (g**2).sum(1) - 2 * p @ g.T
        total = total + np.sqrt(np.maximum(squares, 0))
    return total / probes.shape[1]


def nearest(people: People, probes: np.ndarray, rows: int) -> np.ndarray:
    """The nearest row of each probe, block by block."""
    best = np.full(len(probes), np.inf, np.float32)
    place = np.zeros(len(probes), int)
    for number in range(rows // BLOCK):
        found = distances(probes, people.block(number))
        first = found.argmin(1)
        value = found[np.arange(len(probes)), first]
        better = value < best
        best[better], place[better] = value[better], first[better] + number * BLOCK
    return place


def statistics(file: str) -> tuple[float, float]:
    """(decay, share between people) of an exported gallery."""
    from safetensors.numpy import load_file

    embeddings = load_file(file)["embeddings"].astype(np.float64)
    lines = Path(file).with_suffix(".jsonl").read_text().splitlines()
    names = np.array([json.loads(line)["name"] for line in lines])
    flat = embeddings.reshape(len(embeddings), -1)
    flat = flat - flat.mean(0)
    _, own = np.unique(names, return_inverse=True)
    means = np.stack([flat[own == k].mean(0) for k in range(own.max() + 1)])
    inside = flat - means[own]
    within = (inside**2).sum() / max(len(flat) - len(means), 1)
    between = max((flat**2).sum() / len(flat) - within, 0.0)
    values = np.linalg.svd(flat, compute_uv=False) ** 2
    values = values[: max(3, len(values) // 2)]
    decay = -np.polyfit(np.log(np.arange(1, len(values) + 1)), np.log(values), 1)[0]
    return float(decay), float(between / (between + within))


def stopwatch():
    """() -> (seconds by the clock, seconds of the processor) since this call."""
    clock, cpu = time.perf_counter(), time.process_time()
    return lambda: (time.perf_counter() - clock, time.process_time() - cpu)


def say(what: str, seconds) -> None:
    clock, cpu = seconds
    print(f"{what} after {clock:.0f} s, {cpu:.0f} of the CPU", file=sys.stderr)


def exact(people: People, probes, rows: int, given) -> dict:
    """The library's tiled search, the gallery in memory."""
    from gaitjax.retrieval import distance

    passed = stopwatch()
    gallery = np.concatenate([people.block(i) for i in range(rows // BLOCK)])
    report = {"fill_s": passed()[0]}
    distance.nearest(probes[:1], gallery, k=10, metric="euclidean")  # compiles
    passed = stopwatch()
    _, found = distance.nearest(probes, gallery, k=10, metric="euclidean")
    clock, cpu = (1000 * x / len(probes) for x in passed())
    return report | {
        "ms_a_probe": clock, "cpu_ms_a_probe": cpu, "found": found.tolist(),
    }  # fmt: skip


def milvus(people: People, probes, rows: int, given) -> dict:
    """A shortlist from milvus-lite in a new file, then exact distances."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        file = Path(folder) / "walks.db"
        index = open_index(f"milvus:{file}", "0" * 16, people.shape, "euclidean")
        passed = stopwatch()
        for number in range(rows // BLOCK):
            block = people.block(number)
            index.insert([f"{number * BLOCK + i:x}" for i in range(BLOCK)], block)
        say(f"{rows} rows are stored", passed())
        index.client.flush(index.name)
        index.client.release_collection(index.name)
        index.client.load_collection(index.name)  # builds the approximate index
        index.search(probes[:1], 10)
        filled = passed()
        say("they are indexed", filled)
        size = sum(x.stat().st_size for x in Path(folder).rglob("*") if x.is_file())
        lists = {}
        for k in SHORTLISTS:
            passed = stopwatch()
            found = [index.search(probe[None], k)[0] for probe in probes]
            lists[k] = found, passed()
            say(f"shortlists of {k} are found", passed())
    wanted = {int(x, 16) for found, _ in lists.values() for ids in found for x in ids}
    kept = {}
    for number in sorted({place // BLOCK for place in wanted}):
        block = people.block(number)
        for place in [x for x in wanted if x // BLOCK == number]:
            kept[place] = block[place % BLOCK].copy()
    report = {"fill_s": filled[0], "fill_cpu_s": filled[1], "disk_mb": size / 1e6}
    truth = nearest(people, probes, rows)
    for k, (found, (clock, cpu)) in lists.items():
        hits = []
        for probe, ids, true in zip(probes, found, truth):
            places = [int(x, 16) for x in ids]
            between = distances(probe[None], np.stack([kept[x] for x in places]))[0]
            first = np.array(places)[np.argsort(between)[:10]]
            hits.append(true in first)
        report[f"recall_at_10_of_{k}"] = float(np.mean(hits))
        report[f"ms_a_probe_of_{k}"] = 1000 * clock / len(probes)
        report[f"cpu_ms_a_probe_of_{k}"] = 1000 * cpu / len(probes)
    return report


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--engine", choices=("exact", "milvus"), default="exact")
    parser.add_argument("--strips", type=int, default=16)
    parser.add_argument("--width", type=int, default=64, help="numbers of a strip")
    parser.add_argument("--like", default="", metavar="FILE.safetensors")
    parser.add_argument("--folder", default=None, help="of the temporary files")
    given = parser.parse_args(arguments)
    decay, between = statistics(given.like) if given.like else (DECAY, BETWEEN)
    people = People((given.strips, given.width), decay, between)
    probes = people.probes(given.probes, given.rows)
    engine = {"exact": exact, "milvus": milvus}[given.engine]
    report = {
        "engine": given.engine, "rows": given.rows, "decay": round(decay, 2),
        "between": round(between, 2), "shape": [given.strips, given.width],
    }  # fmt: skip
    report |= engine(people, probes, given.rows, given)
    if "found" in report:
        truth = nearest(people, probes, given.rows)
        found = np.array(report.pop("found"))
        report["recall_at_10"] = float((found == truth[:, None]).any(1).mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    report["peak_mb"] = round(peak)
    print(
        json.dumps(
            {k: round(v, 2) if isinstance(v, float) else v for k, v in report.items()}
        )
    )


if __name__ == "__main__":
    main()
