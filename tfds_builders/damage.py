"""The one error of all readers of raw files, and how they open a file."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

MAX_TEXT = (
    32 << 20
)  # bytes of a text file; the longest of CMU and KinectGait have 20 MB


class Damaged(ValueError):
    """A file that cannot be used: `kind: file: what is wrong, and where`.

    kind: "corrupt"; "ragged", if its parts do not fit together; "refused", if it asks
    to run code; "short"; "empty".
    """

    def __init__(self, what: str, kind: str = "corrupt", file: str = ""):
        super().__init__(what, kind, file)
        self.what, self.kind, self.file = what, kind, file

    def __str__(self) -> str:
        what = self.what if len(self.what) <= 300 else self.what[:296] + " ..."
        return ": ".join(filter(None, (self.kind, self.file, what)))


@contextlib.contextmanager
def naming(file: epath.Path) -> Iterator[None]:
    """Errors of the file system become Damaged errors; all name `file`."""
    try:
        yield
    except Damaged as error:
        raise Damaged(error.what, error.kind, file.name) from error
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise Damaged(what, file=file.name) from error


def read_file(file: epath.Path, limit: int) -> bytes:
    """The bytes of `file`; raises Damaged if there are more than `limit`."""
    if os.path.exists(file) and not os.path.isfile(file):  # a pipe would block
        raise Damaged("not a plain file")
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        if size > limit:
            raise Damaged(f"{size:,} bytes; at most {limit:,} are read")
        opened.seek(0)
        return opened.read()


def read_text(file: epath.Path) -> str:
    """The text of `file`; bytes that are not UTF-8 are replaced."""
    return read_file(file, MAX_TEXT).decode("utf-8", errors="replace")
