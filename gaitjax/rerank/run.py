"""The modes of a re-ranker's config: "train", and "rerank" on the test split."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gaitjax import run_folder
from gaitjax.engine import cluster
from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import require
from gaitjax.pictures import reranking
from gaitjax.rerank import base_run, compare, lists, methods, train
from gaitjax.retrieval import grew_submission, protocols


def run(config, workdir: str) -> train.Reranker:
    """Mode "train": trains or continues the re-ranker of config.base_run."""
    return _train(config, workdir, base_run.load_base(config))


def _train(config, workdir: str, base: base_run.Base) -> train.Reranker:
    data = base_run.open_base_split(base, "train", config.data.train_dataset)
    table = base_run.stored_embeddings(base, data, workdir)
    run_folder.write_config(config, workdir)  # gaitjax.use reads it
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
    moved = config.get("reranker", "")
    reranker = None if moved else _train(config, workdir, base)
    table = base_run.stored_embeddings(base, data, workdir)
    reranker = reranker or _moved(moved, table)
    neighbours = _neighbours(config, workdir, base)
    cluster.leave_if_asked()
    embeddings, index = np.asarray(table.embeddings), data.index
    rerankers = compare.make_rerankers(
        reranker.model, reranker.params, config.evaluation, table.metric, neighbours
    )
    compared = compare.compare(rerankers, names, embeddings, index, table.metric)
    report = _about(config, workdir, base, reranker, data, table)
    report |= {"lbr_neighbours": neighbours, **compared}
    if jax.process_index() > 0:
        return report
    suffix = "_" + data.name.replace("/", "_") if config.data.test_dataset else ""
    path = Path(workdir) / f"rerank{suffix}.json"
    run_folder.write_json(path, report)
    ranked = compare.all_rankings(
        rerankers, names, embeddings, index, table.metric,
        compare.pair_score(reranker.model, reranker.params), config.evaluation,
    )  # fmt: skip
    flat = {f"{key}/{k}": x for key, item in ranked.items() for k, x in item.items()}
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
    if grew_submission.has_probes(names, index):
        _submit(rerankers, embeddings, index, table.metric, Path(workdir))
    if config.pictures:
        folder = Path(workdir) / f"pictures{suffix}"
        _draw(config, base, reranker, data, embeddings, ranked, folder)
        print(f"pictures: {folder}/")
    return report


def _about(config, workdir: str, base, reranker, data, table) -> dict[str, Any]:
    """What rerank.json says besides the results."""
    embeddings, index = table.embeddings, data.index
    return {
        "config": config.name,
        "base_run": config.base_run,
        "base_config": base.config.name,
        "base_step": int(base.state.step),
        "reranker": config.get("reranker") or str(workdir),  # where it was trained
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
    }


def _moved(folder: str, table: base_run.Table) -> train.Reranker:
    """The re-ranker that was trained in `folder`, for the embeddings of `table`."""
    config = run_folder.read_config(folder)
    require(
        config is not None and config.model.name == "cargait",
        f"config.reranker={folder!r} is no folder of a re-ranker. Name the --workdir "
        "of its training, for instance runs/cargait.",
    )
    return train.load(config, folder, table.embeddings.shape[1:], table.metric)


def _neighbours(config, workdir: str, base: base_run.Base) -> int:
    """LBR's number of neighbours, chosen on held-out identities if it is 0."""
    fixed = config.evaluation.get("lbr_neighbours", methods.NEIGHBOURS[-1])
    if fixed or "lbr" not in config.evaluation.rerankers:
        return fixed or methods.NEIGHBOURS[-1]
    data = base_run.open_base_split(base, "train", config.data.train_dataset)
    table = base_run.stored_embeddings(base, data, workdir)
    rows = lists.held_out_identities(
        table.subject, share=config.validation.share, seed=config.seed
    )
    chosen, found = methods.choose_neighbours(
        np.asarray(table.embeddings[rows]), table.subject[rows], table.view[rows],
        table.metric,
    )  # fmt: skip
    scores = ", ".join(f"{k}: {score:.1f}" for k, score in found.items())
    cluster.say(f"LBR mixes the {chosen} nearest (mAP of held-out people: {scores}).")
    return chosen


def _submit(rerankers, embeddings, index, metric: str, folder: Path) -> None:
    """A file for GREW's server for the base model and each re-ranker."""
    for name, method in {"base": None, **rerankers}.items():
        path = folder / f"grew_submission_{name}.csv"
        grew_submission.write(path, embeddings, index, metric=metric, rerank=method)
    print(
        f"for GREW's server, which alone knows the probes: {folder}/grew_submission_*"
    )


def _draw(config, base, reranker, data, embeddings, ranked, folder: Path) -> None:
    """Ranked lists of the first task before and after, and CarGait's attention."""
    task, ranking = next(iter(ranked.items()))
    name = f"reranked_{task.rpartition('/')[2]}.png"
    modality = base.config.data.modalities[0]
    reranking.ranked_lists(ranking, data, modality, folder / name)
    if config.model.cross_attention:
        reranking.attention(
            reranker.model, reranker.params, embeddings, ranking, data.index.subject,
            folder / "attention.png",
        )  # fmt: skip
