"""Every re-ranker on one gallery: results, costs, rankings and the table.

Arrays in, plain dicts out; `train_reranker.rerank` brings model and data.
"""

import contextlib
import ctypes
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gaitjax.engine import log
from gaitjax.rerank import cargait
from gaitjax.rerank import methods as rerank
from gaitjax.retrieval import protocols
from gaitjax.retrieval.distance import pairwise_distance

PREPARED_LIMIT = 2**31  # bytes of prepared gallery; a larger one is prepared in pieces
COLUMNS = ("rank1", "rank5", "rank10", "mAP", "mINP")
COSTS = {
    "ms/probe alone": "ms_alone",
    "ms/probe batched": "ms_batched",
    "preparation s": "preparation_s",
    "peak MiB": "peak_mib",
}
TIMED_PROBES = 8  # that are re-ranked one at a time
CHOICES = (*rerank.RERANKERS, "gcr_views", "cargait", "cascade")


class Method(NamedTuple):
    """prepare(gallery [G S D]): what is done once per gallery.

    apply(distance [Q G], probe [Q S D], gallery, prepared, views) -> distance [Q G].
    views: (of the probes [Q], of the gallery [G]) or None; "gcr_views" alone looks.
    """

    prepare: Callable[[Any], Any]
    apply: Callable[..., np.ndarray]

    def __call__(self, distance, probe, gallery, views=None) -> np.ndarray:
        return self.apply(distance, probe, gallery, self.prepare(gallery), views)


def trained_method(model: cargait.CarGait, params, config) -> Method:
    """CarGait under the contract of `rerank.rerank`.

    config: `evaluation` of the run: shortlist, chunk. Sequences are prepared (LayerNorm
    and projections of the first block) once, while that fits into 2 GiB.
    """
    score_raw, score_prepared, prepare = _functions(model)

    def apply(distance, probe, gallery, prepared, views=None):
        if prepared is None:
            score_fn, candidates = functools.partial(score_raw, params), gallery
        else:
            width = gallery.shape[-1]
            score_fn = functools.partial(score_prepared, params, width)
            probe, candidates = _in_blocks(prepare, params, probe), prepared
        return rerank.rerank(
            distance, probe, candidates, score_fn, shortlist=config.shortlist,
            chunk=min(config.chunk, len(probe)),
        )  # fmt: skip

    def prepare_gallery(gallery):
        width = jax.eval_shape(prepare, params, gallery[:1]).shape[-1]
        if 4 * len(gallery) * gallery.shape[1] * width > PREPARED_LIMIT:
            return None
        return _in_blocks(prepare, params, gallery)

    return Method(prepare_gallery, apply)


def cascade_method(model: cargait.CarGait, params, config) -> Method:
    """Local blurring of the first config.wide_shortlist, then `trained_method`."""
    narrow = trained_method(model, params, config)

    def apply(distance, probe, gallery, prepared, views=None):
        distance = rerank.lbr(
            distance, probe, gallery, shortlist=config.wide_shortlist,
            chunk=min(config.chunk, len(probe)),
        )  # fmt: skip
        return narrow.apply(distance, probe, gallery, prepared)

    return Method(narrow.prepare, apply)


def training_free_method(name: str, metric: str) -> Method:
    """One of `rerank.RERANKERS` with its published parameters.

    All but LBR (its 100 nearest) give the whole gallery a new order. "gcr_views": GCR
    with its second graph, between different views (cameras, where the protocol says
    so); "gcr" sees the features alone, as all others do.
    """
    function = rerank.find("gcr" if name == "gcr_views" else name)

    def apply(distance, probe, gallery, _, views=None):
        options = {
            "kr": {"metric": metric},  # KR starts from distances
            "lbr": {"chunk": min(64, len(probe))},
            "gcr_views": {"views": views},
        }
        return function(distance, probe, gallery, **options.get(name, {}))

    return Method(lambda gallery: None, apply)


def pair_score(model: cargait.CarGait, params):
    """f(probe [B S D], candidates [B K S D]) -> d^r [B K], for `rerank.rerank`."""
    return functools.partial(_functions(model)[0], params)


@functools.lru_cache(maxsize=8)
def _functions(model: cargait.CarGait):
    """Jitted (params, probe [B S D], candidates [B K S D]) -> [B K], the same for
    packed sequences [.. S D+W] (width D after params), and packing [n S D] itself."""

    @jax.jit
    def score_raw(params, probe, candidates):
        variables = {"params": params}
        return model.apply(variables, probe, candidates, method="distance")

    @functools.partial(jax.jit, static_argnums=1)
    def score_prepared(params, width, probe, candidates):
        parts = [jnp.split(x, [width], axis=-1) for x in (probe, candidates)]
        return model.apply({"params": params}, *parts, method="prepared_distance")

    @jax.jit
    def prepare(params, strips):
        parts = model.apply({"params": params}, strips, method="prepare")
        parts = [part.astype(jnp.float32) for part in parts]
        return jnp.concatenate(parts, axis=-1)  # [n S D+W]

    return score_raw, score_prepared, prepare


def _in_blocks(function, params, rows, block: int = 256) -> np.ndarray:
    """function(params, rows[i : i + block]), concatenated; one shape is compiled."""
    block = min(block, len(rows))
    out = None
    for start in range(0, len(rows), block):
        some = np.arange(start, start + block).clip(max=len(rows) - 1)
        part = np.asarray(function(params, rows[some]))
        if out is None:
            out = np.empty((len(rows), *part.shape[1:]), part.dtype)
        out[start : start + block] = part[: len(rows) - start]
    return out


def methods(model: cargait.CarGait, params, config, metric: str) -> dict[str, Method]:
    """{name: Method} of config.rerankers (`evaluation` of the run)."""
    check_names(config.rerankers)
    trained = {"cargait": trained_method, "cascade": cascade_method}
    return {
        name: trained[name](model, params, config)
        if name in trained
        else training_free_method(name, metric)
        for name in config.rerankers
    }


def check_names(names) -> None:
    """ValueError that lists the choices where a name is unknown."""
    unknown = [name for name in names if name not in CHOICES]
    if unknown:
        raise ValueError(
            f"Unknown config.evaluation.rerankers {', '.join(unknown)}; choose from "
            f"{', '.join(CHOICES)}."
        )


# ---------------------------------------------------------------- results and costs


def compare(
    methods: Mapping[str, Method], names, embeddings, index, metric: str
) -> dict[str, Any]:
    """What every method does to the base model's rankings, and what it costs.

    names: of protocols. embeddings: f32 [n S D], rows as in index.

    Returns {"timed_on": the task of the costs, "rerankers": {"base" and each name:
    {"results": {"protocol/task/metric": value}, "costs": of `costs`}}}.
    """
    task = _filled(names[0], index)[0]
    arrays = task_arrays(task, embeddings, metric)
    views = (task.probe_view, task.gallery_view)
    rows = {}
    everything = {"base": None, **methods}.items()
    with tqdm(everything, unit="method", disable=jax.process_index() > 0) as bar:
        for name, method in bar:
            bar.set_description(f"re-rank: {name}")
            rows[name] = {
                "results": results(method, names, embeddings, index, metric),
                "costs": costs(method, *arrays, views, metric),
            }
    timed_on = {
        "task": f"{names[0]}/{task.name}",
        "probes": len(task.probe),
        "gallery": len(task.gallery),
        "device": jax.devices()[0].device_kind,
    }
    return {"timed_on": timed_on, "rerankers": rows}


def results(
    method: Method | None, names, embeddings, index, metric: str
) -> dict[str, float]:
    """{"protocol/task/metric": value} of the protocols; method None: the base model."""
    flat = {}
    for name in names:
        flat |= protocols.evaluate(
            name, embeddings, index, metric=metric, rerank=method
        )
    return flat


def task_arrays(task, embeddings, metric: str):
    """(distance [Q G] with +inf where a pair does not count, probe, gallery)."""
    probe, gallery = embeddings[task.probe], embeddings[task.gallery]
    matrix = pairwise_distance(probe, gallery, metric=metric)
    return np.where(task.excluded, np.float32(np.inf), matrix), probe, gallery


def costs(method: Method | None, matrix, probe, gallery, views, metric: str) -> dict:
    """Seconds, milliseconds per probe and memory on one task, after a warm-up.

    ms_alone: median over probes that come one at a time, the gallery prepared; what a
    method computes over the whole gallery is then done for every probe.
    ms_batched: all probes at once. preparation_s: once per gallery. For the base model
    (method None) the distances themselves; the others come on top of it.
    peak_mib: highest growth of memory (of the host where it computes, else of the
    accelerator) during the batched call, sampled every 2 ms.
    """
    if method is None:

        def apply(_, some, gallery, __, views):
            return pairwise_distance(some, gallery, metric=metric)

        method = Method(lambda gallery: None, apply)
    method.prepare(gallery)
    began = time.perf_counter()
    prepared = method.prepare(gallery)
    preparation = time.perf_counter() - began

    method.apply(matrix, probe, gallery, prepared, views)
    with _peak_memory() as peak:
        began = time.perf_counter()
        method.apply(matrix, probe, gallery, prepared, views)
        batched = time.perf_counter() - began

    alone = []
    chosen = np.linspace(0, len(probe) - 1, TIMED_PROBES).round().astype(int)
    for row in (chosen[0], *chosen):  # the first compiles
        began = time.perf_counter()
        one = (views[0][[row]], views[1])
        method.apply(matrix[[row]], probe[[row]], gallery, prepared, one)
        alone.append(time.perf_counter() - began)
    return {
        "ms_alone": 1e3 * float(np.median(alone[1:])),
        "ms_batched": 1e3 * batched / len(probe),
        "preparation_s": preparation,
        "peak_mib": peak[0] / 2**20,
    }


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """[bytes]: highest growth of memory while the context was open."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    start, peak, done = _memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], _memory() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak[0] = max(peak[0], _memory() - start)
        done.set()
        thread.join()


def _memory() -> int:
    """Bytes in use on the accelerator, or resident on the host; 0 where unknown."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics is not None:
        return statistics["bytes_in_use"]
    with contextlib.suppress(OSError):
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
    return 0


def all_rankings(methods, names, embeddings, index, metric, score_fn, config):
    """{"protocol/task": `rankings`} of every task of the protocols `names`."""
    return {
        f"{name}/{task.name}": rankings(
            task, task_arrays(task, embeddings, metric), methods, score_fn, config
        )
        for name in names
        for task in _filled(name, index)
    }


def _filled(protocol: str, index) -> list[protocols.Task]:
    """The protocol's tasks that have probes and a gallery in this data set."""
    tasks = protocols.tasks(protocol, index)
    return [task for task in tasks if len(task.probe) and len(task.gallery)]


def rankings(task, arrays, methods, score_fn, config) -> dict[str, np.ndarray]:
    """The first K of each probe as the base model and each method rank them.

    arrays: of `task_arrays`. score_fn: CarGait's. Returns probe [Q], and for "base",
    "cargait" and every method NAME int32 [Q K], rows of the index (-1: a pair that does
    not count), with NAME_distance f32 [Q K] (where a method permutes a shortlist, the
    base's distances dealt out anew); cargait_score f32 [Q K], d^r of "base".
    """
    matrix, probe, gallery = arrays
    rows = rerank.first(matrix, config.shortlist)
    chunk = min(config.chunk, len(probe))
    scores = rerank.score(rows, probe, gallery, score_fn, chunk=chunk)
    found = {"probe": task.probe.astype(np.int32), "cargait_score": scores}
    views = (task.probe_view, task.gallery_view)

    def keep(name, distances):
        rows = rerank.first(distances, config.shortlist)
        values = np.take_along_axis(distances, rows, axis=1)
        own = np.where(np.isfinite(values), task.gallery[rows], -1)
        found[name], found[f"{name}_distance"] = own.astype(np.int32), values

    keep("base", matrix)
    keep("cargait", rerank.permute(matrix, rows, scores))
    for name, method in methods.items():
        if name != "cargait":
            keep(name, method(matrix, probe, gallery, views))
    return found


def table(compared: Mapping[str, Any]) -> str:
    """`compare`'s result as plain text: rows are methods, one table per protocol.

    Of a protocol that has a mean over its tasks, the mean; else one table per task.
    """
    rows, timed_on = compared["rerankers"], compared["timed_on"]
    keys = dict.fromkeys(key.rsplit("/", 1)[0] for key in rows["base"]["results"])
    with_mean = [key.split("/")[0] for key in keys if key.endswith("/mean")]
    blocks = []
    for key in keys:
        protocol, _, task = key.partition("/")
        if protocol in with_mean and task != "mean":
            continue
        lines = {
            name: {column: row["results"].get(f"{key}/{column}") for column in COLUMNS}
            for name, row in rows.items()
        }
        blocks.append(f"{protocol} {task}\n{log.table(lines)}")
    lines = {
        name: {title: row["costs"][field] for title, field in COSTS.items()}
        for name, row in rows.items()
    }
    blocks.append(
        f"costs on {timed_on['task']}, {timed_on['probes']} probes x "
        f"{timed_on['gallery']} gallery, {timed_on['device']}\n{log.table(lines)}"
    )
    return "\n\n".join(blocks)
