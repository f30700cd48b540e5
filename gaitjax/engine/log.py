"""Metrics of a run: metrics.jsonl and TensorBoard events, and tables for people.

One line of metrics.jsonl is one JSON object: {"step": 200, "kind": "train",
"total": 1.25, ...}. A run that was killed and resumed leaves the same rows as an
undisturbed one.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import require_whole

FILE_NAME = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
SIGNIFICANT_DIGITS = 6


class MetricLog:
    """Context manager that appends metric rows to a run's folder, on process 0 only.

    On entry the rows of steps after `resume_step` are dropped: those steps are run
    again. So write a step's rows before its checkpoint.

    Args:
      workdir: the run's folder, local or mounted; made if absent.
      resume_step: the step the restored checkpoint has finished; 0 starts afresh.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0):
        self._folder = Path(workdir)
        self._resume_step = int(resume_step)
        self._file = self._events = None

    def __enter__(self) -> "MetricLog":
        if jax.process_index() != 0:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / FILE_NAME
        _drop_rows_after(path, self._resume_step)
        self._file = path.open("a", encoding="utf-8")
        # events of this step and later, left by the killed run, are hidden
        purge_step = self._resume_step + 1 if self._resume_step else 0
        self._events = _Events(self._folder / EVENTS_FOLDER, purge_step)
        return self

    def __exit__(self, *exception) -> None:
        for sink in (self._file, self._events):
            if sink is not None:
                # `write` has reported a full disk already
                with contextlib.suppress(OSError):
                    sink.close()
        self._file = self._events = None

    def write(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Appends one row; it survives a kill from the moment this returns.

        Args:
          step: the number of finished steps.
          kind: "train", "eval", ...
          metrics: name -> scalar (Python, numpy or jax; shape []). Floats keep six
            significant digits, NaN and infinities become null, integers stay.
        """
        if jax.process_index() != 0:
            return
        values = {name: _scalar(v) for name, v in jax.device_get(metrics).items()}
        row = {"step": int(step), "kind": kind, **values}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            self._events.write(step, {f"{kind}/{k}": v for k, v in values.items()})
        except OSError as error:
            raise ValueError(
                f"Step {step} could not be written to {self._folder / FILE_NAME} "
                f"({error.strerror}). The last checkpoint is kept; free some space, "
                "then run the same command again."
            ) from error


class _Events:
    """A TensorBoard file, written by the calling thread.

    tensorboardX's own writer has a thread, which a full disk ends; it then hangs.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._proto = event_pb2
        self._file = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(event_pb2.Event(step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        event = self._proto.Event(wall_time=time.time(), step=int(step))
        for name, value in values.items():
            if value is not None:
                event.summary.value.add(tag=name, simple_value=float(value))
        self._file.write_event(event)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl (or of the run folder that holds it); null becomes NaN.

    A last line that a kill cut short is left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not a JSON object; names file and line.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"No metrics at {path}. A run writes them there; name its folder, "
            "for example runs/lmgait."
        )
    rows = [row for _, row in _lines(path)]
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def table(
    rows: Mapping[str, Mapping[str, Any]] | Iterable[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    digits: int = 2,
) -> str:
    """A plain-text table: aligned columns, numbers to the right.

    Args:
      rows: dicts column -> value, or {row name: dict}, whose names become the first
        column. A value is a string, a number, a pair (mean, spread) or None ("-").
      columns: which, in which order; all, in order of appearance, if None.
      digits: after the decimal point, for floats.
    """
    if isinstance(rows, Mapping):
        names: list[str] | None = [str(name) for name in rows]
        cells = list(rows.values())
    else:
        names, cells = None, list(rows)
    if columns is None:
        columns = list(dict.fromkeys(column for row in cells for column in row))
    grid = [[_text(row.get(column), digits) for column in columns] for row in cells]
    numeric = [all(_is_numeric(row.get(c)) for row in cells) for c in columns]
    header = list(columns)
    if names is not None:
        header, numeric = ["", *header], [False, *numeric]
        grid = [[name, *line] for name, line in zip(names, grid, strict=True)]
    widths = [max(len(line[i]) for line in [header, *grid]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *grid]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _drop_rows_after(path: Path, step: int) -> None:
    """Rewrites the file, atomically, without rows after `step` (if 0: all rows)."""
    if not path.exists():
        return
    kept = [line for line, row in _lines(path) if step and row["step"] <= step]
    with replacing(path) as file:
        file.writelines(line + "\n" for line in kept)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(text, row) of each complete line."""
    complete = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    pairs = []
    for number, line in enumerate(complete, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        row = row if isinstance(row, dict) else {}
        values = [value for name, value in row.items() if name != "kind"]
        require_whole(
            isinstance(row.get("step"), int)
            and isinstance(row.get("kind"), str)
            and all(
                x is None or isinstance(x, Real) and abs(x) < 1e308 for x in values
            ),
            path,
            f"line {number} is no row of step, kind and numbers: {line[:60]!r}",
            "Remove the line.",
        )
        pairs.append((line, row))
    return pairs


def _scalar(value: Any) -> float | int | None:
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return int(array)
    number = float(array)
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(number) else None


def _is_numeric(value: Any) -> bool:
    return not isinstance(value, str)


def _text(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, (str, int, np.integer)):
        return str(value)
    if isinstance(value, (tuple, list)):
        mean, spread = value
        return f"{mean:.{digits}f} ± {spread:.{digits}f}"
    return f"{float(value):.{digits}f}"
