"""Every re-ranker on one gallery: results, costs, rankings and the table.

Arrays in, plain dicts out; `rerank.run.rerank` provides the model and the data.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gaitjax.engine import log
from gaitjax.rerank import methods
from gaitjax.rerank.cargait import CarGait
from gaitjax.rerank.costs import costs
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
CHOICES = (*methods.RERANKERS, "gcr_views", "cargait", "cascade")


class Method(NamedTuple):
    """A re-ranker in two steps, so that a gallery is prepared once for all its probes.

    prepare(gallery [G S D]) -> prepared, whatever `apply` can reuse.
    apply(distance [Q G], probe [Q S D], gallery, prepared, views) -> distance [Q G].
    views: (of the probes [Q], of the gallery [G]) or None; only "gcr_views" uses them.
    """

    prepare: Callable[[Any], Any]
    apply: Callable[..., np.ndarray]

    def __call__(self, distance, probe, gallery, views=None) -> np.ndarray:
        return self.apply(distance, probe, gallery, self.prepare(gallery), views)


def trained_method(model: CarGait, params, config) -> Method:
    """CarGait under the contract of `methods.rerank`.

    config: `evaluation` of the run: shortlist, chunk. The gallery is prepared once
    (LayerNorm and projections of the first block) if that fits into 2 GiB.
    """
    score_raw, score_prepared, prepare = _functions(model)

    def apply(distance, probe, gallery, prepared, views=None):
        if prepared is None:
            score_fn, candidates = functools.partial(score_raw, params), gallery
        else:
            width = gallery.shape[-1]
            score_fn = functools.partial(score_prepared, params, width)
            probe, candidates = _in_blocks(prepare, params, probe), prepared
        return methods.rerank(
            distance, probe, candidates, score_fn, shortlist=config.shortlist,
            chunk=min(config.chunk, len(probe)),
        )  # fmt: skip

    def prepare_gallery(gallery):
        width = jax.eval_shape(prepare, params, gallery[:1]).shape[-1]
        if 4 * len(gallery) * gallery.shape[1] * width > PREPARED_LIMIT:
            return None
        return _in_blocks(prepare, params, gallery)

    return Method(prepare_gallery, apply)


def cascade_method(model: CarGait, params, config) -> Method:
    """LBR on the first config.wide_shortlist, then CarGait on the first shortlist."""
    narrow = trained_method(model, params, config)

    def apply(distance, probe, gallery, prepared, views=None):
        distance = methods.lbr(
            distance, probe, gallery, shortlist=config.wide_shortlist,
            chunk=min(config.chunk, len(probe)),
        )  # fmt: skip
        return narrow.apply(distance, probe, gallery, prepared)

    return Method(narrow.prepare, apply)


def training_free_method(name: str, metric: str, neighbours: int = 100) -> Method:
    """One of `methods.RERANKERS` with its published parameters.

    LBR reorders the `neighbours` nearest, all others the whole gallery. "gcr_views" is
    GCR with its second graph, between different views (cameras, if the protocol uses
    them); "gcr" and all others see the features alone.
    """
    function = methods.RERANKERS["gcr" if name == "gcr_views" else name]

    def apply(distance, probe, gallery, _, views=None):
        options = {
            "kr": {"metric": metric},  # KR starts from distances
            "lbr": {"chunk": min(64, len(probe)), "shortlist": neighbours},
            "gcr_views": {"views": views},
        }
        return function(distance, probe, gallery, **options.get(name, {}))

    return Method(lambda gallery: None, apply)


def base_method(metric: str) -> Method:
    """The base model itself: computes the distances that the others start from."""

    def apply(distance, probe, gallery, prepared, views=None):
        return pairwise_distance(probe, gallery, metric=metric)

    return Method(lambda gallery: None, apply)


def pair_score(model: CarGait, params):
    """f(probe [B S D], candidates [B K S D]) -> d^r [B K], for `methods.rerank`."""
    return functools.partial(_functions(model)[0], params)


@functools.lru_cache(maxsize=8)
def _functions(model: CarGait):
    """Three jitted functions: score embeddings, score prepared sequences, prepare.

    score_raw(params, probe [B S D], candidates [B K S D]) -> d^r [B K].
    prepare(params, strips [n S D]) -> [n S D+W], strips and projections side by side.
    score_prepared(params, D, probe [B S D+W], candidates [B K S D+W]) -> d^r [B K].
    """

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
    """function(params, rows), block by block, so that one shape is compiled."""
    block = min(block, len(rows))
    out = None
    for start in range(0, len(rows), block):
        some = np.arange(start, start + block).clip(max=len(rows) - 1)
        part = np.asarray(function(params, rows[some]))
        if out is None:
            out = np.empty((len(rows), *part.shape[1:]), part.dtype)
        out[start : start + block] = part[: len(rows) - start]
    return out


def make_rerankers(
    model: CarGait, params, config, metric: str, neighbours: int = 100
) -> dict[str, Method]:
    """{name: Method} of config.rerankers (`evaluation` of the run).

    neighbours: of LBR.
    """
    trained = {"cargait": trained_method, "cascade": cascade_method}
    return {
        name: trained[name](model, params, config)
        if name in trained
        else training_free_method(name, metric, neighbours)
        for name in config.rerankers
    }


# ---------------------------------------------------------------- results and costs


def compare(
    rerankers: Mapping[str, Method], protocol_names, embeddings, index, metric: str
) -> dict[str, Any]:
    """Results and costs of the base model and of every re-ranker.

    embeddings: f32 [n S D], rows as in index. metric: the base model's.

    Returns {"timed_on": the task of the costs, "rerankers": {"base" and each name:
    {"results": {"protocol/task/metric": value}, "costs": of `costs`}}}.
    """
    task = _filled(protocol_names[0], index)[0]
    arrays = task_arrays(task, embeddings, metric)
    views = (task.probe_view, task.gallery_view)
    rows = {}
    everything = {"base": None, **rerankers}.items()
    with tqdm(everything, unit="method", disable=jax.process_index() > 0) as bar:
        for name, method in bar:
            bar.set_description(f"re-rank: {name}")
            timed = base_method(metric) if method is None else method
            rows[name] = {
                "results": results(method, protocol_names, embeddings, index, metric),
                "costs": costs(timed, *arrays, views),
            }
    timed_on = {
        "task": f"{protocol_names[0]}/{task.name}",
        "probes": len(task.probe),
        "gallery": len(task.gallery),
        "device": jax.devices()[0].device_kind,
    }
    return {"timed_on": timed_on, "rerankers": rows}


def results(
    method: Method | None, protocol_names, embeddings, index, metric: str
) -> dict[str, float]:
    """{"protocol/task/metric": value} of the protocols; method None: the base model."""
    flat = {}
    for name in protocol_names:
        flat |= protocols.evaluate(
            name, embeddings, index, metric=metric, rerank=method
        )
    return flat


def task_arrays(task, embeddings, metric: str):
    """(distance [Q G] with +inf where a pair does not count, probe, gallery)."""
    probe, gallery = embeddings[task.probe], embeddings[task.gallery]
    matrix = pairwise_distance(probe, gallery, metric=metric)
    return np.where(task.excluded, np.float32(np.inf), matrix), probe, gallery


def all_rankings(
    rerankers, protocol_names, embeddings, index, metric, score_fn, config
) -> dict[str, dict[str, np.ndarray]]:
    """{"protocol/task": `rankings`} of every task of the protocols."""
    return {
        f"{name}/{task.name}": rankings(
            task, task_arrays(task, embeddings, metric), rerankers, score_fn, config
        )
        for name in protocol_names
        for task in _filled(name, index)
    }


def _filled(protocol: str, index) -> list[protocols.Task]:
    """The protocol's tasks that have probes and a gallery in this data set."""
    tasks = protocols.tasks(protocol, index)
    return [task for task in tasks if len(task.probe) and len(task.gallery)]


def rankings(task, arrays, rerankers, score_fn, config) -> dict[str, np.ndarray]:
    """The first K of each probe as the base model and each re-ranker rank them.

    arrays: of `task_arrays`. score_fn: CarGait's. Returns probe int32 [Q], rows of the
    index; for "base", "cargait" and every other re-ranker NAME int32 [Q K], rows of the
    index (-1: a pair that does not count), and NAME_distance f32 [Q K] (a re-ranker of
    a shortlist reassigns the base's distances); cargait_score f32 [Q K], CarGait's
    distances of the candidates in "base".
    """
    matrix, probe, gallery = arrays
    rows = methods.first(matrix, config.shortlist)
    chunk = min(config.chunk, len(probe))
    scores = methods.score(rows, probe, gallery, score_fn, chunk=chunk)
    found = {"probe": task.probe.astype(np.int32), "cargait_score": scores}
    views = (task.probe_view, task.gallery_view)

    def keep(name, distances):
        rows = methods.first(distances, config.shortlist)
        values = np.take_along_axis(distances, rows, axis=1)
        own = np.where(np.isfinite(values), task.gallery[rows], -1)
        found[name], found[f"{name}_distance"] = own.astype(np.int32), values

    keep("base", matrix)
    keep("cargait", methods.permute(matrix, rows, scores))
    for name, method in rerankers.items():
        if name != "cargait":
            keep(name, method(matrix, probe, gallery, views))
    return found


def table(compared: Mapping[str, Any]) -> str:
    """`compare`'s result as plain text: rows are re-rankers, then a table of costs.

    One table for each protocol's mean over its tasks; if it has none, one per task.
    """
    rows, timed_on = compared["rerankers"], compared["timed_on"]
    blocks = []
    for protocol, tasks in protocols.by_protocol(rows["base"]["results"]).items():
        for task in ["mean"] if "mean" in tasks else tasks:
            lines = {
                name: {
                    column: row["results"].get(f"{protocol}/{task}/{column}")
                    for column in COLUMNS
                }
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
