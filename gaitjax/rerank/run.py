"""The modes of a re-ranker's config: "train", and "rerank" on the test split."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gaitjax.engine import cluster
from gaitjax.engine.atomic import replacing
from gaitjax.pictures import reranking
from gaitjax.rerank import base_run, compare, train
from gaitjax.retrieval import protocols
from gaitjax.run_folder import write_config, write_json


def run(config, workdir: str) -> train.Reranker:
    """Mode "train": trains or continues the re-ranker of config.base_run."""
    return _train(config, workdir, base_run.load_base(config))


def _train(config, workdir: str, base: base_run.Base) -> train.Reranker:
    data = base_run.open_base_split(base, "train", config.data.train_dataset)
    table = base_run.stored_embeddings(base, data, workdir)
    write_config(config, workdir)  # by which the re-ranker is used (gaitjax.use)
    return train.fit(config, workdir, table)


def rerank(config, workdir: str) -> dict[str, Any]:
    """Mode "rerank": finishes the training, then compares all re-rankers.

    Writes WORKDIR/rerank.json, rankings.npz and pictures/ (with the data set's name
    if config.data.test_dataset names one), prints the table, returns rerank.json.
    """
    base = base_run.load_base(config)
    # before the training, so that mistakes show early
    data = base_run.open_base_split(base, "test", config.data.test_dataset)
    names = config.evaluation.protocols or base.config.evaluation.protocols
    for name in names:
        protocols.tasks(name, data.index)
    reranker = _train(config, workdir, base)
    table = base_run.stored_embeddings(base, data, workdir)
    cluster.leave_if_asked()
    embeddings, index = np.asarray(table.embeddings), data.index
    rerankers = compare.make_rerankers(
        reranker.model, reranker.params, config.evaluation, table.metric
    )
    compared = compare.compare(rerankers, names, embeddings, index, table.metric)
    report = {
        "config": config.name,
        "base_run": config.base_run,
        "base_config": base.config.name,
        "base_step": int(base.state.step),
        "step": reranker.step,  # of the lowest validation ranking loss
        "validation_ranking_loss": reranker.loss,
        "parameters": sum(x.size for x in jax.tree.leaves(reranker.params)),
        "shortlist": config.evaluation.shortlist,
        "dataset": data.name,
        "split": base.config.data.test_split,
        "identities": len(np.unique(index.subject)),
        "sequences": len(index.key),
        "embedding": list(embeddings.shape[1:]),
        "metric": table.metric,
        **compared,
    }
    if jax.process_index() > 0:
        return report
    suffix = "_" + data.name.replace("/", "_") if config.data.test_dataset else ""
    path = Path(workdir) / f"rerank{suffix}.json"
    write_json(path, report)
    lists = compare.all_rankings(
        rerankers, names, embeddings, index, table.metric,
        compare.pair_score(reranker.model, reranker.params), config.evaluation,
    )  # fmt: skip
    flat = {f"{key}/{k}": x for key, item in lists.items() for k, x in item.items()}
    with replacing(Path(workdir) / f"rankings{suffix}.npz", "wb") as file:
        np.savez(file, **flat)
    print(
        f"\n{base.config.name} re-ranked on {data.name}/{report['split']}: "
        f"{report['sequences']:,} sequences of {report['identities']} identities never "
        f"seen in training. CarGait: K={report['shortlist']}, parameters of step "
        f"{reranker.step:,} of {config.train.steps:,}.\n"
    )
    print(compare.table(compared))
    print(f"results: {path}")
    if config.pictures:
        folder = Path(workdir) / f"pictures{suffix}"
        _draw(config, base, reranker, data, embeddings, lists, folder)
        print(f"pictures: {folder}/")
    return report


def _draw(config, base, reranker, data, embeddings, lists, folder: Path) -> None:
    """Ranked lists of the first task before and after, and CarGait's attention."""
    task, ranking = next(iter(lists.items()))
    name = f"reranked_{task.rpartition('/')[2]}.png"
    modality = base.config.data.modalities[0]
    reranking.ranked_lists(ranking, data, modality, folder / name)
    if config.model.cross_attention:
        reranking.attention(
            reranker.model, reranker.params, embeddings, ranking, data.index.subject,
            folder / "attention.png",
        )  # fmt: skip
