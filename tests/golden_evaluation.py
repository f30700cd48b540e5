"""Golden files of the evaluators and of k-reciprocal re-ranking.

Everything the reference returned, logged or kept (rank tables, CMC, mAP, mINP, first
distances) is compared, in float32, to 1e-4 percentage points.
"""

import json
import re

import numpy as np
from golden_files import GoldenFile

from gaitjax.rerank.k_reciprocal import k_reciprocal
from gaitjax.rerank.methods import RERANKERS
from gaitjax.retrieval import metrics, protocols
from gaitjax.retrieval.distance import pairwise_distance

POINTS = 1e-4  # percentage points
PROTOCOL = {
    "CASIA-B": "casia_b",
    "CASIA-E": "casia_e",
    "OUMVLP": "oumvlp",
    "SUSTech1K": "sustech1k",
    "CCPG": "ccpg_gait",
    "Gait3D": "gait3d",
    "CCGR-MINI": "ccgr_mini",
    "GREW": "grew",
    "TTG-200": "ttg200",
    "0001-1000": "real_scene_0001_1000",
}
TASK = {
    "Normal": "NM", "Bag": "BG", "Clothing": "CL", "Carrying": "CR",
    "Umberalla": "UB", "Uniform": "UF", "Occlusion": "OC", "Night": "NT",
    "Overall": "overall",
}  # fmt: skip
METRIC = {"euc": "euclidean", "cos": "cosine"}


def check_evaluation(golden: GoldenFile) -> None:
    for name, run in golden.meta["results"].items():
        Run(golden, name, run).check()
    golden.checked |= {"embeddings", "labels", "types", "views"}
    assert not golden.unchecked()


class Run:
    """One call of a reference evaluator and ours on the same embeddings."""

    def __init__(self, golden: GoldenFile, name: str, run: dict):
        self.golden, self.name, self.run = golden, name, run
        (dataset,) = run["args"]
        self.protocol = PROTOCOL[dataset]
        if run["kwargs"].get("cross_view_gallery"):
            self.protocol += "_cross_view"
        self.metric = METRIC[run["kwargs"]["metric"]]
        # stored as [n D S]
        self.embeddings = golden.arrays["embeddings"].swapaxes(1, 2)  # [n S D]
        self.index = index_of(golden)
        self.result = {
            key.removeprefix("scalar/test_accuracy/"): value
            for key, value in run["result"].items()
        }
        # Where the reference's own float32 and float64 disagree (two sequences whose
        # distances are the same float32 number), no float32 evaluator can do better.
        disagreement = golden.meta["tol"][name].get("result_abs_f32_vs_f64", 0.0)
        self.tolerance = POINTS + disagreement
        self.results = self.evaluate_tasks(self.protocol)
        self.flat = self.evaluate(self.protocol)

    def evaluate_tasks(self, protocol):
        return protocols.evaluate_tasks(
            protocol, self.embeddings, self.index, metric=self.metric
        )

    def evaluate(self, protocol):
        return protocols.evaluate(
            protocol, self.embeddings, self.index, metric=self.metric
        )

    def check(self) -> None:
        kind = self.run["function"].removeprefix("evaluate_")
        {
            "indoor_dataset": self.check_views,
            "CCPG": self.check_ccpg,
            "Gait3D": self.check_whole_gallery,
            "CCGR_MINI": self.check_whole_gallery,
            "real_scene": self.check_whole_gallery,
        }[kind]()
        self.check_first_distances()

    def close(self, ours, golden, what, tolerance=None) -> None:
        worst = np.max(np.abs(np.asarray(ours) - np.asarray(golden, np.float64)))
        tolerance = self.tolerance if tolerance is None else tolerance
        assert worst <= tolerance, (
            f"{self.golden.path.name} {self.name} {what}: {ours} not {golden}"
        )

    def check_views(self) -> None:
        """Per view pair ("NM@R1") or a gallery of all views ("NM-Rank@1", "NM-mAP")."""
        for key, golden in self.result.items():
            task, _, metric = re.sub("@R|-Rank@", "-rank", key).partition("-")
            ours = self.flat[f"{self.protocol}/{TASK.get(task, task)}/{metric}"]
            self.close(ours, golden, key)
        tables = self.golden.arrays.get(f"{self.name}/view_matrices")
        if tables is None:
            return
        count = len(self.results)
        assert len(tables) % count == 0
        for number, golden in enumerate(tables):
            rank, result = number // count + 1, self.results[number % count]
            self.close(result.table.rates(rank), golden, f"{result.task.name} R{rank}")
        self.golden.checked.add(f"{self.name}/view_matrices")

    def check_ccpg(self) -> None:
        """(a) re-identification, (b) same cameras included, (c) gait, (d) angles.

        The scalar that the reference hands to its log, (b), is not the published gait
        number (c); `protocols` has no name for (b).
        """
        log = self.run["log"]
        tables = self.golden.arrays[f"{self.name}/view_matrices"]
        reid = self.evaluate("ccpg_reid")
        heads = [line for line in log if line.startswith("===")]
        sections = {head: log[log.index(head) + 1 :] for head in heads}
        for number, result in enumerate(self.results):
            task, cells = result.task.name, result.table.rates(1)
            self.close(cells, self.result[task], task)
            self.close(cells, tables[number], task)
            self.close(cells, tables[number + len(self.results)], task)
            for head, lines in sections.items():
                if "each angle" in head:
                    other = cells[~np.eye(len(cells), dtype=bool)]
                    ours = other.reshape(len(cells), -1).mean(axis=1)
                elif "Include" in head:
                    ours = cells.mean()
                elif "Re-Identification" in head:
                    metric = re.search("mAP|mINP", head)
                    metric = metric.group() if metric else "rank1"
                    ours = reid[f"ccpg_reid/{task}/{metric}"]
                else:
                    ours = self.flat[f"ccpg_gait/{task}/rank1"]
                numbers = printed(lines, task)
                rounding = 0.5 * 10.0 ** -numbers["decimals"]
                self.close(
                    ours, numbers["values"], f"{head} {task}", rounding + self.tolerance
                )
        self.golden.checked.add(f"{self.name}/view_matrices")
        details = self.run["detail"]
        assert len(details) == 4
        for result, detail in zip(self.evaluate_tasks("ccpg_reid"), details):
            self.check_detail(result, detail)

    def check_whole_gallery(self) -> None:
        flat = {key.rpartition("/")[2]: value for key, value in self.flat.items()}
        for key, golden in self.result.items():
            self.close(flat[key.replace("Rank-", "rank")], golden, key)
        log = self.run["log"]
        for head, line in zip(log, log[1:]):
            rank = re.fullmatch(r"==Rank-(\d+)==", head)
            if rank:
                self.close(flat[f"rank{rank[1]}"], float(line), head)
        for result, detail in zip(self.results, self.run["detail"]):
            self.check_detail(result, detail)

    def check_detail(self, result, detail) -> None:
        task = result.task
        ranks = range(1, len(detail["cmc"]) + 1)
        summary = metrics.rank_metrics(
            self.distance(task), task.probe_subject, task.gallery_subject,
            task.excluded, ranks,
        )  # fmt: skip
        curve = [summary[f"rank{k}"] for k in ranks]
        self.close(curve, 100 * np.asarray(detail["cmc"]), f"{task.name} cmc")
        for key in ("mAP", "mINP"):
            self.close(summary[key], 100 * detail[key], f"{task.name} {key}")
            self.close(result.metrics[key], 100 * detail[key], f"{task.name} {key}")

    def distance(self, task):
        return pairwise_distance(
            self.embeddings[task.probe],
            self.embeddings[task.gallery],
            metric=self.metric,
        )

    def check_first_distances(self) -> None:
        """The first matrix the reference makes: first task and, by view, first views.

        CCPG's first is that of re-identification: all cameras.
        """
        key = f"{self.name}/dist0_first3rows"
        task = self.results[0].task
        average = protocols.protocol_of(self.protocol).average
        if average != "gallery" and self.protocol != "ccpg_gait":
            task = task.probes(task.probe_view == min(task.probe_view.tolist()))
            if average == "view_pairs":
                kept = task.gallery_view == min(task.gallery_view.tolist())
                task = task._replace(gallery=task.gallery[kept])
        self.golden.check(key, self.distance(task)[:3], tolerance=1e-6)


def index_of(golden: GoldenFile) -> protocols.Index:
    arrays = golden.arrays
    columns = [arrays[name] for name in ("labels", "types", "views")]
    key = np.array(["-".join(row) for row in zip(*(c.tolist() for c in columns))])
    index = protocols.Index(*columns, key)
    note = golden.meta["note"]
    listed = re.search(r"(probe|gallery) set.*?(\[.*?\])", note)
    if not listed:
        return index
    return protocols.with_roles(
        index, **{f"{listed.group(1)}_keys": json.loads(listed.group(2))}
    )


def printed(lines: list[str], task: str) -> dict:
    """The numbers a log prints behind "TASK:"."""
    found = next(
        re.search(rf"{task}: (\[[^]]*\]|[\d.]+)", line)
        for line in lines
        if f"{task}: " in line
    )
    numbers = re.findall(r"\d+\.\d+", found.group(1))
    decimals = len(numbers[0].partition(".")[2])
    return {"values": [float(x) for x in numbers], "decimals": decimals}


def check_rerank(golden: GoldenFile) -> None:
    """KR on the stored matrix; also from the features, as a user calls it.

    "float64" is the algorithm in full precision; "float16_as_shipped" holds what its
    half-precision arrays make of it, up to 3e-3 away. Distances are not squared there.
    """
    distance, probes = golden.arrays["dist"], golden.meta["cfg"]["num_query"]
    embeddings = golden.arrays["features"].swapaxes(1, 2)  # [n S D]
    base = pairwise_distance(
        embeddings[:probes], embeddings[probes:], metric="euclidean"
    )
    for name in golden.meta["tol"]:
        k1, k2, weight = re.fullmatch(r"k(\d+)_(\d+)_(\d+)", name).groups()
        options = dict(k1=int(k1), k2=int(k2), weight=int(weight) / 10, squared=False)
        ours = k_reciprocal(distance, probes, **options)
        golden.check(f"{name}/float64", ours, tolerance=1e-6)
        golden.check(f"{name}/float16_as_shipped", ours, tolerance=3e-3)
        from_features = RERANKERS["kr"](
            base, embeddings[:probes], embeddings[probes:], **options
        )
        # float32 distances that differ in the last digit may swap two neighbours
        tolerance = 2 * golden.meta["tol"][name]["f32dist_vs_f64dist_abs"]
        golden.check(f"{name}/float64", from_features, tolerance=tolerance)
    golden.checked |= {"features", "ids", "dist"}
    assert not golden.unchecked()


KINDS = {"evaluation": check_evaluation, "rerank": check_rerank}
