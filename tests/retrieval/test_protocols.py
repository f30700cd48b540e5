"""Protocols against plain loops, and on data sets incomplete in every way."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from configs.common import base
from gaitjax import evaluate as evaluation
from gaitjax.data import source
from gaitjax.models.gei import GEI
from gaitjax.retrieval import grew_submission, metrics, protocols
from gaitjax.retrieval.definitions import PROTOCOLS, is_protocol
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.retrieval.protocols import Index, evaluate, evaluate_tasks

CCPG = {
    "CL": (("U1_D1", "U2_D2", "U3_D3"), ("U0_D0_BG", "U0_D0")),
    "UP": (("U0_D3",), ("U3_D3",)),
    "DN": (("U1_D1",), ("U1_D0",)),
    "BG": (("U0_D0",), ("U0_D0_BG",)),
}
CCPG_CONDITIONS = ("U0_D0", "U0_D0_BG", "U0_D3", "U1_D0", "U1_D1", "U2_D2", "U3_D3")


def make_index(subjects, conditions, views, keep=1.0, seed=0):
    rows = list(itertools.product(subjects, conditions, views))
    rng = np.random.default_rng(seed)
    rows = [row for row in rows if rng.random() < keep]
    rng.shuffle(rows)
    columns = [np.array(column) for column in zip(*rows)]
    return Index(*columns, np.array(["/".join(row) for row in rows]))


def make_embeddings(index, noise=1.2, seed=0):
    """A centre per subject, plus noise: neither perfect nor chance. [n 3 4]"""
    rng = np.random.default_rng(seed)
    names, number = np.unique(index.subject, return_inverse=True)
    centres = rng.normal(size=(len(names), 3, 4))
    x = centres[number] + noise * rng.normal(size=(len(number), 3, 4))
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def ccpg():
    subjects = [f"{100 + i}" for i in range(6)]
    index = make_index(subjects, CCPG_CONDITIONS, ("01_0", "01_1", "02", "03_0"), 0.9)
    return index, make_embeddings(index)


def ranked(distance, gallery, rows):
    return [gallery[i] for i in sorted(range(len(rows)), key=lambda i: distance[i])]


def naive_ccpg_gait(index, x):
    """Rank-1 per camera pair, identical camera excluded, one probe at a time."""
    camera = [view.split("_")[0] for view in index.view]
    distance = pairwise_distance(x, x, metric="euclidean")
    result = {}
    for task, (galleries, probes) in CCPG.items():
        per_probe_camera = []
        for pc in sorted(set(camera)):
            cells = []
            for gc in sorted(set(camera) - {pc}):
                p = [
                    i for i, c in enumerate(index.condition)
                    if c in probes and camera[i] == pc
                ]  # fmt: skip
                g = [
                    i for i, c in enumerate(index.condition)
                    if c in galleries and camera[i] == gc
                ]  # fmt: skip
                best = [min(g, key=lambda j: distance[i, j]) for i in p]
                hits = [index.subject[i] == index.subject[j] for i, j in zip(p, best)]
                cells.append(round(100 * sum(hits) / len(hits), 2))
            per_probe_camera.append(sum(cells) / len(cells))
        result[task] = sum(per_probe_camera) / len(per_probe_camera)
    return result


def naive_ccpg_reid(index, x):
    """(Rank-1, mAP), same subject and same camera removed, one probe at a time."""
    camera = np.array([view.split("_")[0] for view in index.view])
    distance = pairwise_distance(x, x, metric="euclidean")
    result = {}
    for task, (galleries, probes) in CCPG.items():
        hits, precisions = [], []
        for i in np.flatnonzero(np.isin(index.condition, probes)):
            same = (index.subject == index.subject[i]) & (camera == camera[i])
            g = np.flatnonzero(np.isin(index.condition, galleries) & ~same)
            order = g[np.argsort(distance[i, g], kind="stable")]
            match = index.subject[order] == index.subject[i]
            if not match.any():
                continue
            hits.append(match[0])
            ranks = np.flatnonzero(match) + 1
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        result[task] = 100 * np.mean(hits), 100 * np.mean(precisions)
    return result


def test_ccpg_gait_equals_a_plain_loop(ccpg):
    flat, naive = evaluate("ccpg_gait", ccpg[1], ccpg[0]), naive_ccpg_gait(*ccpg)
    for task, expected in naive.items():
        assert flat[f"ccpg_gait/{task}/rank1"] == pytest.approx(expected, abs=1e-9)
    mean = np.mean(list(naive.values()))
    assert flat["ccpg_gait/mean/rank1"] == pytest.approx(mean, abs=1e-9)
    assert len(set(naive.values())) > 1 and 0 < mean < 100


def test_ccpg_reid_equals_a_plain_loop(ccpg):
    flat, naive = evaluate("ccpg_reid", ccpg[1], ccpg[0]), naive_ccpg_reid(*ccpg)
    for task, (rank1, precision) in naive.items():
        assert flat[f"ccpg_reid/{task}/rank1"] == pytest.approx(rank1, abs=1e-9)
        assert flat[f"ccpg_reid/{task}/mAP"] == pytest.approx(precision, abs=1e-9)
    mean = np.mean([precision for _, precision in naive.values()])
    assert flat["ccpg_reid/mean/mAP"] == pytest.approx(mean, abs=1e-9)


def test_the_two_ccpg_numbers_differ_and_never_have_a_bare_name(ccpg):
    flat = evaluate("ccpg_gait", ccpg[1], ccpg[0])
    flat |= evaluate("ccpg_reid", ccpg[1], ccpg[0])
    assert flat["ccpg_gait/CL/rank1"] != flat["ccpg_reid/CL/rank1"]
    assert all(len(key.split("/")) == 3 for key in flat)
    assert all(np.isfinite(value) for value in flat.values())
    # 01_0 and 01_1 are one camera
    table = evaluate_tasks("ccpg_gait", ccpg[1], ccpg[0])[0].table
    assert table.views.tolist() == ["01", "02", "03"]


def test_same_view_pairs_are_named_apart():
    """Every view looks like itself only: perfect within a view, nothing across."""
    index = make_index("ab", ("nm-01", "nm-05"), ("000", "090"))
    x = np.zeros((len(index.key), 1, 4), np.float32)
    x[:, 0, 0] = (index.view == "090") * 100
    # across views the other subject is nearer
    x[:, 0, 1] = np.where((index.subject == "a") == (index.view == "000"), 1, -1)
    flat = evaluate("casia_b", x, index)
    assert flat["casia_b/NM/rank1"] == 0
    assert flat["casia_b/NM/rank1_same_view"] == 100


def test_missing_data_is_reported_and_left_out_of_means(ccpg):
    index, x = ccpg
    camera = np.array([view.split("_")[0] for view in index.view])
    # no UP probe before camera 02, and no BG probe at all
    gone = (index.condition == "U3_D3") & (camera == "02")
    gone |= index.condition == "U0_D0_BG"
    kept = np.flatnonzero(~gone)
    index = Index(*(column[kept] for column in index))
    flat = evaluate("ccpg_gait", x[kept], index)
    assert flat["ccpg_gait/UP/empty_pairs"] == 2
    assert flat["ccpg_gait/DN/empty_pairs"] == 0
    assert flat["ccpg_gait/BG/probes"] == 0
    assert "ccpg_gait/BG/rank1" not in flat
    table = evaluate_tasks("ccpg_gait", x[kept], index)[1].table.rates(1)
    assert table.mask[1].all() and not table.mask[[0, 2]].any()
    other = np.ma.masked_array(table, np.eye(3, dtype=bool))[[0, 2]]
    assert flat["ccpg_gait/UP/rank1"] == pytest.approx(other.mean(axis=1).mean())
    tasks = [flat[f"ccpg_gait/{task}/rank1"] for task in ("CL", "UP", "DN")]
    assert flat["ccpg_gait/mean/rank1"] == pytest.approx(np.mean(tasks))
    reid = evaluate("ccpg_reid", x[kept], index)
    assert reid["ccpg_reid/BG/probes"] == 0 and "ccpg_reid/BG/mAP" not in reid
    assert np.isfinite(list(flat.values()) + list(reid.values())).all()


def test_empty_gallery_is_not_a_score_of_zero():
    index = make_index("ab", ("nm-01", "nm-05"), ("000", "090"))
    no_gallery = np.flatnonzero((index.condition != "nm-01") | (index.view != "090"))
    index = Index(*(column[no_gallery] for column in index))
    x = make_embeddings(index, noise=0)
    flat = evaluate("casia_b", x, index)
    assert flat["casia_b/NM/rank1"] == 100  # 090 -> 000; 000 -> 090 is empty
    assert flat["casia_b/NM/empty_pairs"] == 1


def test_oumvlp_with_and_without_probes_that_have_no_match():
    index = make_index(
        [f"{i:05d}" for i in range(9)], ("00", "01"), ("000", "015", "030"), keep=0.8
    )
    flat = evaluate("oumvlp", make_embeddings(index, noise=0.0), index)
    assert flat["oumvlp/NM/trials_without_match"] > 0
    assert flat["oumvlp/NM/rank1"] < flat["oumvlp/NM/rank1_matched"] == 100
    assert "oumvlp/mean/rank1" not in flat


def test_sustech_conditions_are_substrings():
    kinds = ("00-nm", "01-nm", "01-bg-cr", "02-cl", "02-ub-nt", "03-uf", "04-oc")
    index = make_index("abc", kinds, ("000", "000-far", "090"))
    flat = evaluate("sustech1k", make_embeddings(index), index)
    probes = {
        task: flat[f"sustech1k/{task}/probes"]
        for task in PROTOCOLS["sustech1k"].tasks
    }  # fmt: skip
    expected = dict(NM=9, BG=9, CL=9, CR=9, UB=9, UF=9, OC=9, NT=9, overall=54)
    assert probes == expected
    names = evaluate_tasks("sustech1k", make_embeddings(index), index)[0].table.views
    assert names.tolist() == ["000", "000-far", "090"]  # cross views of each other


def test_round_cells_is_the_only_difference(ccpg):
    index, x = ccpg
    rounded = evaluate("ccpg_gait", x, index)
    exact = evaluate("ccpg_gait", x, index, round_cells=False)
    assert rounded.keys() == exact.keys() and rounded != exact
    for key, value in rounded.items():
        assert value == pytest.approx(exact[key], abs=0.005)


@pytest.mark.parametrize("protocol", ["ccpg_gait", "ccpg_reid", "sustech1k"])
def test_blocks_and_sharing_change_nothing(ccpg, protocol, monkeypatch):
    index, x = ccpg
    if protocol == "sustech1k":
        index = make_index("abcd", ("00-nm", "01-bg-cr", "02-cl"), ("000", "090"))
        x = make_embeddings(index)
    expected = evaluate(protocol, x, index)
    assert evaluate(protocol, x, index, rerank=lambda d, p, g: d) == expected
    monkeypatch.setattr(protocols, "CHUNK", 100)
    assert evaluate(protocol, x, index) == expected


@pytest.mark.parametrize("protocol", ["ccpg_gait", "ccpg_reid", "casia_b_cross_view"])
def test_the_curve_goes_through_the_reported_ranks(ccpg, protocol):
    index, x = ccpg
    if protocol == "casia_b_cross_view":
        index = make_index("abcd", ("nm-01", "nm-02", "bg-01"), ("000", "090"))
        x = make_embeddings(index)
    reported = evaluate(protocol, x, index)
    for result in evaluate_tasks(protocol, x, index):
        task, curve = result.task, protocols.cmc(protocol, result, 5)
        keys = {k: f"{protocol}/{task.name}/rank{k}" for k in range(1, 6)}
        assert bool(len(curve)) == (keys[1] in reported)
        assert np.all(np.diff(curve) >= 0)
        for value, key in zip(curve, keys.values()):
            assert value == reported.get(key, value)
        if protocol == "ccpg_reid":
            ids = task.probe_subject, task.gallery_subject, task.excluded
            ranks = range(1, len(curve) + 1)
            expected = metrics.rank_metrics(
                task.distances(x, "euclidean"), *ids, ranks=ranks
            )
            np.testing.assert_allclose(curve, [expected[f"rank{k}"] for k in ranks])


def test_chance_by_hand():
    index = make_index("ab", ("U0_D0", "U0_D0_BG"), ("01_0", "02_0"))
    gait = {task.name: task for task in protocols.tasks("ccpg_gait", index)}
    reid = {task.name: task for task in protocols.tasks("ccpg_reid", index)}
    assert protocols.chance(gait["BG"]) == 50.0  # the other camera holds a and b
    # without a's own camera: a, b there and b here
    assert protocols.chance(reid["BG"]) == pytest.approx(100 / 3)
    assert protocols.chance(gait["UP"]) == 0.0  # nobody


def test_rerank_sees_each_retrieval_problem(ccpg):
    index, x = ccpg
    seen = []

    def oracle(distance, probe, gallery):
        seen.append((distance.shape, probe.shape[0], gallery.shape[0]))
        return -distance

    evaluate("ccpg_gait", x, index, rerank=oracle)
    assert len(seen) == 4 * 3  # task x gallery camera
    assert all(shape == (q, g) for shape, q, g in seen)
    seen.clear()
    rows = {}

    def worst_first(distance, probe, gallery):
        rows["infinite"] = int(np.isinf(distance).sum())
        return np.where(np.isinf(distance), -1e9, -distance)  # pairs that do not count

    reid = evaluate_tasks("ccpg_reid", x, index, rerank=worst_first)
    assert rows["infinite"] == int(reid[-1].task.excluded.sum()) > 0
    for task, _, outcomes, _ in reid:
        ids = task.probe_subject, task.gallery_subject, task.excluded
        expected = metrics.probe_outcomes(-task.distances(x, "euclidean"), *ids)
        np.testing.assert_array_equal(outcomes, expected)


def test_cross_view_gallery_leaves_out_the_same_walker_in_the_same_view():
    index = make_index("abcde", ("nm-01", "nm-02", "bg-02"), ("000", "090"))
    (task,) = [
        t for t in protocols.tasks("casia_b_cross_view", index) if t.name == "NM"
    ]
    for q, g in zip(*np.nonzero(task.excluded)):
        probe, gallery = task.probe[q], task.gallery[g]
        assert index.subject[probe] == index.subject[gallery]
        assert index.view[probe] == index.view[gallery]
    assert task.excluded.sum() == len(task.probe) * 2  # nm-02 and bg-02
    flat = evaluate("casia_b_cross_view", make_embeddings(index, 0.0), index)
    assert flat["casia_b_cross_view/NM/mAP"] == 100


def test_kinect_gait_gallery_is_the_first_recording():
    index = make_index("abc", ("1", "2", "3", "4", "5"), ("000", "090"))
    flat = evaluate("kinect_gait", make_embeddings(index, 0.0), index)
    assert flat["kinect_gait/NM/probes"] == 3 * 4 * 2
    assert flat["kinect_gait/NM/rank1"] == flat["kinect_gait/NM/rank1_same_view"] == 100


def test_kth_walking_compares_passes_and_names_directions_apart():
    scenes = [f"d{n}-{i:02d}" for n in (1, 3, 4) for i in (1, 2)]
    index = make_index("abc", scenes, ("left", "right"))
    flat = evaluate("kth_walking", make_embeddings(index, 0.0), index)
    assert flat["kth_walking/d3/probes"] == flat["kth_walking/d4/probes"] == 3 * 2 * 2
    assert "kth_walking/d2/rank1" not in flat and "kth_walking/mean/rank1" not in flat
    assert {"rank1", "rank5", "mAP"} <= {key.split("/")[2] for key in flat}
    task = protocols.tasks("kth_walking", index)[1]
    assert {name[:2] for name in index.condition[task.gallery]} == {"d1"}
    assert {name[:2] for name in index.condition[task.probe]} == {"d3"}
    # embeddings of the direction: nobody is told apart in the other one
    facing = (index.view == "right").astype(np.float32)[:, None, None]
    people = make_embeddings(index, 0.0)
    told = people * (1 - facing)
    flat = evaluate("kth_walking_directions", told + 50 * facing, index)
    name = "kth_walking_directions/d3"
    assert flat[f"{name}/rank1"] < 50 < flat[f"{name}/rank1_same_view"]


def test_roles_from_lists_of_keys():
    index = make_index("abcd", ("camid0", "camid1"), ("seq0", "seq1"))
    listed = index.key[::3]
    by_probe = protocols.with_roles(index, probe_keys=listed)
    assert ((by_probe.condition == "probe") == np.isin(index.key, listed)).all()
    by_gallery = protocols.with_roles(index, gallery_keys=listed)
    assert ((by_gallery.condition == "gallery") == np.isin(index.key, listed)).all()
    x = make_embeddings(index)
    flat = evaluate("gait3d", x, by_probe)
    assert flat["gait3d/all/probes"] == len(listed)
    assert flat["gait3d/all/rank5"] <= flat["gait3d/all/rank10"] <= 100
    with pytest.raises(
        ValueError, match="1 of 2 listed keys.*'nobody'.*keys look like"
    ):
        protocols.with_roles(index, probe_keys=[index.key[0], "nobody"])


def test_grew_submission(tmp_path, monkeypatch):
    gallery = make_index([f"{i:05d}" for i in range(15)], ("01", "02"), ("00",))
    rows = {
        "subject": ["probe"] * 3,
        "condition": ["03"] * 3,
        "view": ["vA", "vB", "vC"],
        "key": ["kA", "kB", "kC"],
    }
    index = Index(
        *(np.concatenate([getattr(gallery, k), np.array(v)]) for k, v in rows.items())
    )
    x = make_embeddings(index)
    path = tmp_path / "submission.csv"
    assert grew_submission.write(path, x, index) == 3
    header, *lines = path.read_text().splitlines()
    assert header == "videoId," + ",".join(f"rank{k}" for k in range(1, 21))
    distance = pairwise_distance(x[-3:], x[:-3], metric="euclidean")
    for number, (name, line) in enumerate(zip("ABC", lines)):
        order = np.argsort(distance[number], kind="stable")[:20]
        ids = [str(int(i)) for i in gallery.subject[order]]
        assert line == f"v{name}," + ",".join(ids)
    with pytest.raises(ValueError, match="subject 'probe'"):
        grew_submission.write(path, x[:-3], gallery)

    # a re-ranker's order
    def backwards(distance, probe, gallery, views):
        assert [len(v) for v in views] == [len(probe), len(gallery)] == [3, 30]
        return -distance

    grew_submission.write(tmp_path / "other.csv", x, index, rerank=backwards)
    rows = (tmp_path / "other.csv").read_text().splitlines()[1:]
    last = [row.split(",")[1] for row in rows]
    furthest = gallery.subject[distance.argmax(axis=1)]
    assert last == [str(int(i)) for i in furthest]

    # names are quoted, and none is a formula of a table program
    other = tmp_path / "odd.csv"
    odd = index._replace(view=np.where(index.view == "vA", 'v"A,1', index.view))
    grew_submission.write(other, x, odd)
    assert other.read_text().splitlines()[1].startswith('"v""A,1",')
    before = other.read_bytes()
    odd = index._replace(view=np.where(index.view == "vB", "=1+1", index.view))
    with pytest.raises(ValueError, match="GREW has no such video ids: '=1.1'"):
        grew_submission.write(other, x, odd)
    assert other.read_bytes() == before

    # an evaluation writes it where the data set has such probes
    config = base("gaitbase", "grew")
    config.update(pictures=False, model=dict(name="gaitbase"))
    monkeypatch.setattr(evaluation, "model_variables", lambda state: {})
    for rows, written in ((index, True), (gallery, False)):
        folder = tmp_path / f"run_{written}"
        made = evaluation.Evaluation(
            {}, x, source.Source("grew", [], rows, ""), seconds=0.0
        )
        monkeypatch.setattr(evaluation, "evaluate_state", lambda *_, made=made: made)
        state = SimpleNamespace(step=1, params={})
        setup = SimpleNamespace(model=GEI(0))
        evaluation.finish(config, setup, state, str(folder))
        assert (folder / "grew_submission.csv").exists() == written
    same = tmp_path / "run_True" / "grew_submission.csv"
    assert same.read_text() == path.read_text()


def test_results_by_protocol_have_the_mean_last():
    results = {
        "ccpg_gait/mean/rank1": 45.5,
        "ccpg_gait/CL/rank1": 40.0,
        "ccpg_gait/BG/rank1": 51.0,
        "ccpg_reid/CL/rank1": 60.0,
        "ccpg_reid/CL/mAP": 31.25,
    }
    tables = protocols.by_protocol(results)
    assert list(tables) == ["ccpg_gait", "ccpg_reid"]
    assert list(tables["ccpg_gait"]) == ["CL", "BG", "mean"]
    assert tables["ccpg_reid"] == {"CL": {"rank1": 60.0, "mAP": 31.25}}


def test_mistakes_say_what_and_how(ccpg):
    index, x = ccpg
    with pytest.raises(ValueError, match="'ccpg'; choose from ccpg_gait, ccpg_reid"):
        evaluate("ccpg", x, index)
    with pytest.raises(ValueError, match="'casia_b' finds no task.*'U0_D0'"):
        evaluate("casia_b", x, index)
    with pytest.raises(ValueError, match="with_roles"):
        evaluate("gait3d", x, index)
    with pytest.raises(ValueError, match=r"\[n S D\] with n ="):
        evaluate("ccpg_gait", x[:-1], index)
    broken = x.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate("ccpg_gait", broken, index)


def test_every_protocol_is_consistent():
    for name, protocol in PROTOCOLS.items():
        assert protocol.average in ("gallery", "view_pairs", "probe_views"), name
        assert protocol.excluded in ("none", "view", "subject_and_view"), name
        assert protocol.unmatched in ("miss", "left_out"), name
        assert (protocol.excluded == "view") == (protocol.average == "view_pairs"), name


def test_a_protocol_of_ones_own_is_given_by_its_name():
    conditions = ("nm-01", "nm-02", "bg-01", "cl-01")
    index = make_index(("a", "b", "c"), conditions, ("0", "90"))
    name = "own:nm-01->nm-*, bg-01,cl-*"
    embeddings = make_embeddings(index, 0.1)
    flat = evaluate(name, embeddings, index)
    assert flat[f"{name}/nm-*/probes"] == 6  # nm-01 is gallery, so it is no probe
    assert flat[f"{name}/cl-*/rank1"] == 100 and f"{name}/bg-01/rank5" in flat
    assert protocols.by_protocol(flat)[name].keys() == {"nm-*", "bg-01", "cl-*"}
    task = protocols.tasks(name, index)[0]
    assert set(index.condition[task.gallery]) == {"nm-01"}
    assert not task.excluded.any()  # a video's view has no meaning that we know


@pytest.mark.parametrize(
    "name", ["own:", "own:a", "own:a->", "own:->b", "own:a->b,,c", "own:a/1->b", "a->b"]
)
def test_other_forms_are_refused_with_the_form(name):
    assert not is_protocol(name)
    index = make_index(("a", "b"), ("a", "b"), ("0",))
    with pytest.raises(ValueError, match="own:GALLERY->PROBE"):
        evaluate(name, make_embeddings(index), index)
