"""Key points, parsing and point clouds of the benchmarks, in their authors' files."""

import json
from pathlib import Path

import fake_benchmarks as fake
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import gaitgraph2, gaittr, multigaitpp, skeletongait
from gaitjax import evaluate
from gaitjax.data import clips, pipeline, source, transforms
from gaitjax.parts.layers import image_sequence
from gaitjax.pictures.clips import rgb_frames
from tfds_builders import features, poses, prepare
from tfds_builders.damage import Damaged
from tfds_builders.gait3d import gait3d_dataset_builder as gait3d
from tfds_builders.sustech1k import sustech1k_dataset_builder as sustech1k


def body(height: float = 100.0, frame: int = 0) -> np.ndarray:
    """COCO's 17 joints of somebody standing, [17 3]."""
    rows = [5, 4, 4, 5, 5, 20, 20, 35, 35, 50, 50, 50, 50, 72, 72, 95, 95]
    columns = [50, 51, 49, 52, 48, 56, 44, 58, 42, 59, 41, 54, 46, 55, 45, 56, 44]
    points = np.stack([columns, np.array(rows) * height / 100, np.full(17, 0.9)], -1)
    points[15:, 0] += frame
    return points.astype(float)


def numbers(points: np.ndarray, *sizes: int) -> str:
    return ",".join(map(str, [*sizes, *points.ravel().tolist()]))


def built(name: str, root: Path) -> tuple[dict, dict[str, dict]]:
    """(build report, key -> record) of both splits."""
    folder = prepare.prepare(name, root / "data", manual_dir=root / "raw")
    report = json.loads((folder / "build_report.json").read_text())
    records = {}
    for split in ("train", "test"):
        data = source.open_split(str(root / "data"), name, split)
        for row, key in enumerate(data.index.key.tolist()):
            records[key] = data.records[row]
    return report, records


def config_of(make, dataset: str, root: Path, name: str = ""):
    config = make.get_config(dataset)
    config.data.data_dir = str(root / "data")
    if name:
        config.data.train_dataset = config.data.test_dataset = name
    return config


def test_grew(tmp_path):
    raw = tmp_path / "raw"
    fake.grew(raw)
    for image in raw.rglob("*.png"):
        stem = str(image.with_suffix(""))
        number = int(image.stem)
        Path(f"{stem}_2d_pose.txt").write_text(numbers(body(100, number), 300, 90))
        Path(f"{stem}_3d_pose.txt").write_text(numbers(np.zeros((14, 3)), 300, 90))
    (raw / "test/probe/p1/3_2d_pose.txt").unlink()
    (raw / "test/probe/p1/4_2d_pose.txt").write_text("300,90,1,2")
    (raw / "test/probe/p1/99_2d_pose.txt").write_text(numbers(body()))
    for file in (raw / "train/00001/s2").glob("*_2d_pose.txt"):
        file.unlink()
    report, records = built("grew", tmp_path)
    assert report["modalities"]["keypoints"] == 5
    assert report["lost"]["keypoints"] == {
        "sequences": 1, "first": "00001train/00/s2: no such file",
    }  # fmt: skip
    assert report["unpaired"] == {
        "sequences": 1,
        "frames": {
            "without key points": 1, "with damaged key points": 1,
            "of key points without a silhouette": 1,
        },
        "first": report["unpaired"]["first"],
    }  # fmt: skip
    points = records["probe/03/p1"]["keypoints"]
    assert points.shape == (11, 17, 3) and not points[2:4].any()
    np.testing.assert_allclose(points[10], body(100, 11))  # 11 comes after 9
    for make in (gaittr, gaitgraph2, skeletongait):
        data = evaluate.open_test_split(config_of(make, "grew", tmp_path))
        assert data.present["keypoints"].all()
    for message, text in (("shape", "1,2,3"), ("no line of numbers", "height,width")):
        (raw / "x.txt").write_text(text)
        with pytest.raises(Damaged, match=f"corrupt: x.txt: {message}"):
            poses.read_numbers(epath.Path(raw / "x.txt"), poses.COCO_ONLY)


def test_gait3d_with_poses_and_parsing(tmp_path):
    raw = tmp_path / "raw"
    fake.gait3d(raw)
    images = sorted((raw / "2D_Silhouettes").rglob("*.png"))
    for image in images:
        place = image.relative_to(raw / "2D_Silhouettes")
        number = int(image.stem.rpartition("_")[2])
        file = raw / "2D_Poses" / place.with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(numbers(body(438, number), 311, 438))
        labels = (fake.person(60, 120, number) > 0).astype(np.uint8)
        labels[60:] *= 7  # a left leg
        fake.save(raw / "2D_Parsings" / place, labels)
    (raw / "2D_Parsings" / images[0].relative_to(raw / "2D_Silhouettes")).unlink()
    report, records = built("gait3d", tmp_path)
    assert report["skipped"] == {}
    assert report["modalities"] == {
        "frames": 0, "masks": 0, "silhouettes": 4, "keypoints": 4, "parsing": 4,
    }  # fmt: skip
    assert report["unpaired"]["frames"] == {"without parsing": 1}
    record = records["0005/probe/camid0_videoid2_seq0"]
    assert set(np.unique(record["parsing"])) == {0, 1, 7}
    inside = record["silhouettes"] > 127
    assert ((record["parsing"] > 0) == inside).mean() > 0.95  # aligned alike
    np.testing.assert_allclose(record["keypoints"][3], body(438, 3), rtol=1e-6)
    evaluate.open_test_split(config_of(gaittr, "gait3d", tmp_path))
    config = config_of(multigaitpp, "gait3d", tmp_path)
    assert config.data.modalities == ("silhouettes", "parsing")
    data = evaluate.open_test_split(config)
    clip = clips.load_clip(data, 0, np.arange(2), config.data.modalities)
    assert clip["parsing"].shape == clip["silhouettes"].shape == (2, 64, 44)
    one = {name: jnp.asarray(x[None]) for name, x in clip.items()}
    assert float(image_sequence(one, "parsing").max()) == 7.0  # class numbers
    assert rgb_frames(data, 0, "parsing").max() == 7 * 12
    flipped = transforms.flip({name: x.copy() for name, x in clip.items()}, 44)
    np.testing.assert_array_equal(flipped["parsing"], clip["parsing"][:, :, ::-1])


def person_of_18(points: np.ndarray) -> list[float]:
    """OpenPose's 18 joints of COCO's 17, flat."""
    joints = np.zeros((18, 3))
    joints[list(poses.FROM_ALPHAPOSE)] = points
    joints[1] = points[5:7].mean(0)
    return joints.ravel().tolist()


def test_oumvlp_takes_the_person_of_the_silhouette(tmp_path):
    raw = tmp_path / "raw"
    fake.oumvlp(raw)
    walker, stranger, outside = body(), body(), body()
    walker[:, 0] += 70  # the silhouette's middle is column 120
    walker[:, 1] = walker[:, 1] * 1.5 + 5
    stranger[:, 0] += 5
    outside[:, 0] += 400
    for image in sorted(raw.glob("Silhouette_*/*/*.png")):
        view, walk = image.parts[-3].removeprefix("Silhouette_").split("-")
        folder = raw / "alphapose" / image.parts[-2] / f"{view}_{walk}"
        folder.mkdir(parents=True, exist_ok=True)
        people = [{"pose_keypoints_2d": person_of_18(p)}
                  for p in (outside, stranger, walker)]  # fmt: skip
        if image.stem == "0002":
            people = []
        content = json.dumps({"people": people})
        (folder / f"{image.stem}_keypoint.json").write_text(content)
    report, records = built("oumvlp", tmp_path)
    assert report["unpaired"]["frames"] == {"without key points": 9}
    points = records["00002/01/270"]["keypoints"]
    assert points.shape == (6, 17, 3) and not points[1].any()
    np.testing.assert_allclose(points[0], walker, rtol=1e-6)
    evaluate.open_test_split(config_of(gaitgraph2, "oumvlp", tmp_path))
    _, wide = built("oumvlp/joints_18", tmp_path)
    joints = wide["00002/01/270"]["keypoints"]
    assert joints.shape == (6, 18, 3)
    np.testing.assert_array_equal(joints[:, list(poses.FROM_ALPHAPOSE)], points)
    # the loader makes skeleton maps of either, and mirrors either
    data = [source.open_split(str(tmp_path / "data"), name, "test")
            for name in ("oumvlp", "oumvlp/joints_18")]  # fmt: skip
    maps = [clips.load_clip(d, 0, np.arange(1), ("heatmaps",)) for d in data]
    np.testing.assert_array_equal(maps[0]["heatmaps"], maps[1]["heatmaps"])
    once = transforms.flip({"keypoints": joints}, 320)["keypoints"]
    np.testing.assert_allclose(once[:, 2, 0], np.where(joints[:, 5, 2] > 0, 319, 0)
                               - joints[:, 5, 0])  # fmt: skip
    twice = transforms.flip({"keypoints": once}, 320)["keypoints"]
    np.testing.assert_allclose(twice, joints, atol=1e-4)
    config = config_of(gaitgraph2, "oumvlp", tmp_path, "oumvlp/joints_18")
    clip = clips.load_clip(data[1], 0, np.arange(1), ("keypoints",))
    with pytest.raises(ValueError, match="skeletons of 18 joints, .* reads 17"):
        pipeline.check_sizes("oumvlp", clip, config)
    config.model.joint_format = "alphapose"
    pipeline.check_sizes("oumvlp", clip, config)


def test_names_of_pose_files():
    stems = {
        "0021_keypoint.json": "0021", "00001_00-00-0007.json": "0007",
        "people.json": "people", "00012_2d_pose.txt": "00012",
        "human_crop_f9.txt": "human_crop_f9",
    }  # fmt: skip
    assert {name: poses.stem_of(name) for name in stems} == stems


def test_ccpg_reads_17_or_18_joints(tmp_path):
    raw = tmp_path / "raw"
    names = fake.ccpg(raw)
    of_18 = np.array(person_of_18(body())).reshape(18, 3)
    for number, key in enumerate(sum(names.values(), [])):
        length = 5 if number == 5 else 6
        joints = of_18 if number % 2 else body()
        folder = raw / "keypoints" / key
        fake.dump(folder / "pose.pkl", np.stack([joints] * length))
    report, records = built("ccpg", tmp_path)
    assert report["modalities"]["keypoints"] == 5
    assert (
        "ragged: pose.pkl: 5 frames, but the sequence has 6"
        in (report["lost"]["keypoints"]["first"])
    )
    for key, record in records.items():
        if len(record["keypoints"]):
            np.testing.assert_allclose(record["keypoints"][2], body(), err_msg=key)


def test_pickled_poses_of_grew_are_joined_by_the_walk(tmp_path):
    """Another script may have numbered 01 and 02 otherwise."""
    raw = tmp_path / "raw"
    names = fake.grew_pickles(raw)
    for key in sum(names.values(), []):
        subject, condition, walk = key.split("/")
        condition = {"01": "02", "02": "01"}.get(condition, condition)
        points = np.stack([body(100, len(walk))] * 6).reshape(6, 51)
        row = np.concatenate([np.full((6, 2), 64.0), points], axis=1)  # (T, 53)
        fake.dump(raw / "keypoints" / subject / condition / walk / "x.pkl", row)
    report, records = built("grew/opengait", tmp_path)
    assert report["modalities"]["keypoints"] == 6 and report["skipped"] == {}
    np.testing.assert_allclose(records["00001/02/s10"]["keypoints"][0], body(100, 3))


def test_ccgr_poses_have_a_box_in_front_and_parsing_a_step(tmp_path):
    fake.ccgr_mini(tmp_path / "raw")
    report, records = built("ccgr_mini", tmp_path)
    assert report["modalities"] == {
        "frames": 4, "masks": 0, "silhouettes": 4, "keypoints": 4, "parsing": 4,
    }  # fmt: skip
    for record in records.values():
        assert (record["keypoints"] == 0.5).all()
        assert set(np.unique(record["parsing"])) == {0, 2}


def test_sustech1k_keeps_its_point_clouds(tmp_path):
    fake.sustech1k(tmp_path / "raw")
    report, records = built("sustech1k", tmp_path)
    assert report["modalities"]["points"] == 4
    clouds = [features.unpack_points(x) for x in records["0000/00-nm/000"]["points"]]
    assert [cloud.shape for cloud in clouds] == [(9, 3), (7, 3)]


def test_lists_of_the_papers_come_with_the_builders(tmp_path):
    here = epath.Path(tmp_path)
    lists = gait3d._partition(here, here)
    assert [len(x) for x in lists] == [3000, 1000, 1000, 0]
    assert all(name.partition("-")[0] in lists.test for name in lists.probe)
    assert [len(x) for x in sustech1k.PARTITION] == [250, 800, 0, 0]
    assert not lists.train & lists.test
    fake.listed(tmp_path / "Gait3D.json", train=["1"], test=["2"], probe=["2-a-b"])
    assert gait3d._partition(here, here).train == {"1"}  # the user's own
