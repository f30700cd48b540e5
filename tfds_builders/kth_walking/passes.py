"""The videos of KTH walking: which there are, unpacked and cut into walks."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from tfds_builders.archives import files_in, subfolders
from tfds_builders.cut_walks import Listed, cache_folder, cut, walks_of
from tfds_builders.damage import Damaged

NAME = r"person(\d\d)_walking_d(\d)_uncomp"
ZIP = "walking.zip"
CACHE = "kth_walking"


def listed(root: epath.Path, people: range) -> Iterator[Listed]:
    """The walks of these people, cut first if `root` has videos or walking.zip."""
    videos = {file.stem: Path(file) for file in files_in(root, (".avi",))}
    if (root / ZIP).exists():
        videos |= _unpacked(Path(root / ZIP), people)
    videos = {name: file for name, file in videos.items() if _wanted(name, people)}
    if videos:
        root = epath.Path(cache_folder(CACHE) / "walks")
        cut(list(videos.values()), Path(root))
    names = set(videos) or {folder.name for folder in subfolders(root)}
    for name in sorted(name for name in names if _wanted(name, people)):
        yield from walks_of(root / name)


def _wanted(name: str, people: range) -> bool:
    found = re.fullmatch(NAME, name)
    return bool(found) and int(found[1]) in people


def _unpacked(archive: Path, people: range) -> dict[str, Path]:
    """{name: file} of the videos of these people, unpacked into the cache."""
    folder, found = cache_folder(CACHE) / "video", {}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = Path(member.filename).stem
                if not member.filename.endswith(".avi") or not _wanted(name, people):
                    continue
                file = found[name] = folder / f"{name}.avi"
                if not file.is_file() or file.stat().st_size != member.file_size:
                    file.write_bytes(opened.read(member))
    except zipfile.BadZipFile as error:
        raise Damaged(f"{error}; download it again", file=archive.name) from error
    return found
