"""Compares a build with the known contents of the archive, subject by subject."""

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

from tfds_builders.features import EXTRAS, MODALITIES

SHORT = 5  # frames; shorter sequences are kept but listed
SHOWN = 5  # mismatches and problems that are printed; the report has all


class Expected(NamedTuple):
    """Totals of a complete archive; unknown ones are left empty.

    "prefix" below is the beginning of a condition's name.
    subjects: split -> ids, or their number.
    sequences: split -> number, from the paper or counted by users.
    recalled: like `sequences`, for numbers that could not be verified: they are stored
    and printed, but a difference is no mismatch.
    total: sequences of all splits together. more_than: a lower bound of `total`.
    by_condition: split -> prefix -> number of sequences.
    grid: the "condition/view"s that every subject has.
    conditions, views: all names that occur. Another name is a mismatch; an absent one
    is counted, but is no mismatch.
    each: split -> prefix -> number of sequences of every subject except `apart`.
    apart: a subject that stands for unknown people (GREW's "probe").
    distribution: prefix -> number of sequences -> number of subjects with that many.
    """

    subjects: dict[str, frozenset[str] | int]
    sequences: dict[str, int] = {}
    recalled: dict[str, int] = {}
    total: int | None = None
    by_condition: dict[str, dict[str, int]] = {}
    grid: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    each: dict[str, dict[str, int]] = {}
    apart: str = ""
    distribution: dict[str, dict[int, int]] = {}
    more_than: int = 0


def totals(
    expected: Expected, rows: Iterable[tuple[str, str, str, str]]
) -> dict[str, dict]:
    """split -> numbers found and expected, and how each subject differs.

    rows: (split, subject, condition, view) of the sequences written. "mismatches" maps
    a subject's id (or "all") to a sentence; a complete archive has none.
    """
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for split, subject, condition, view in rows:
        of_split = found.setdefault(split, collections.defaultdict(list))
        of_split[subject].append((condition, view))
    return {
        split: _split_totals(expected, split, found.get(split, {}))
        for split in sorted(set(expected.subjects) | set(found))
    }


def overall(
    expected: Expected, rows: list[tuple[str, str, str, str]]
) -> dict[str, str]:
    """{"all": how all splits together differ}, or {} if they do not."""
    differences = []
    if expected.total is not None and len(rows) != expected.total:
        differences.append(f"{len(rows)} sequences in all, expected {expected.total}")
    if expected.more_than and len(rows) <= expected.more_than:
        differences.append(
            f"{len(rows)} sequences in all, expected more than {expected.more_than}"
        )
    for name, due in expected.distribution.items():
        subjects = collections.Counter(
            subject for _, subject, condition, _ in rows if condition.startswith(name)
        )
        seen = collections.Counter(subjects.values())
        if seen != collections.Counter(due):
            found, wanted = (_in_words(counts, name) for counts in (seen, due))
            differences.append(f"{found}, expected {wanted}")
    return {"all": "; ".join(differences)} if differences else {}


def _in_words(subjects: dict[int, int], name: str) -> str:
    """{2: 396}, "gallery" -> "396 subjects with 2 sequences 'gallery'"."""
    kind = f" {name!r}" if name else ""
    return ", ".join(
        f"{n} subjects with {count} sequences{kind}"
        for count, n in sorted(subjects.items())
    )


def _split_totals(expected: Expected, split: str, found: dict) -> dict:
    subjects = expected.subjects.get(split, 0)
    count = subjects if isinstance(subjects, int) else len(subjects)
    number = sum(map(len, found.values()))
    conditions = collections.Counter(c for walks in found.values() for c, _ in walks)
    wanted = expected.sequences.get(split)
    mismatches = {}
    differences = []
    if wanted is not None and number != wanted:
        differences.append(f"{number} sequences, expected {wanted}")
    if len(found) != count:
        differences.append(f"{len(found)} subjects, expected {count}")
    for name, due in expected.by_condition.get(split, {}).items():
        seen = sum(n for c, n in conditions.items() if c.startswith(name))
        if seen != due:
            differences.append(f"{seen} sequences {name!r}, expected {due}")
    if differences:
        mismatches["all"] = "; ".join(differences)
    ids = found if isinstance(subjects, int) else set(subjects) | set(found)
    for subject in sorted(ids):
        each = expected.each.get(split, {}) if subject != expected.apart else {}
        problem = _subject_problem(expected, found.get(subject, []), each)
        if problem:
            mismatches[subject] = problem
    return {
        "subjects": len(found),
        "subjects_expected": count,
        "sequences": number,
        "sequences_expected": wanted,
        "sequences_recalled": expected.recalled.get(split),
        "conditions": dict(sorted(conditions.items())),
        "mismatches": mismatches,
        "absent": _absent(expected, found),
    }


def _absent(expected: Expected, found: dict) -> dict[str, Any]:
    """How many of the possible conditions (and views) the subjects lack.

    {"each": number possible for a subject, "walks": number absent over all subjects,
    "subjects": {number absent: "id id ..."}}. Empty if the possible ones are unknown,
    or if `grid` makes absent ones mismatches. Subjects without any sequence are
    mismatches and are not counted.
    """
    if expected.grid or not expected.conditions:
        return {}
    cells = {(c, v) for c in expected.conditions for v in expected.views or ("",)}
    lacking = collections.defaultdict(list)
    for subject, walks in sorted(found.items()):
        if subject != expected.apart:
            seen = {(c, v if expected.views else "") for c, v in walks}
            lacking[len(cells - seen)].append(subject)
    lacking.pop(0, None)
    return {
        "each": len(cells),
        "walks": sum(number * len(ids) for number, ids in lacking.items()),
        "subjects": {str(n): " ".join(ids) for n, ids in sorted(lacking.items())},
    }


def _subject_problem(
    expected: Expected, walks: list[tuple[str, str]], each: dict[str, int]
) -> str:
    """How a subject differs from what is expected, or "" if it does not."""
    if not walks:
        return "no sequence"
    names = {f"{condition}/{view}" for condition, view in walks}
    missing = [name for name in expected.grid if name not in names]
    extra = sorted(names - set(expected.grid)) if expected.grid else []
    if expected.conditions:
        unknown = {condition for condition, _ in walks} - set(expected.conditions)
        extra += [f"{condition}/*" for condition in sorted(unknown)]
    if expected.views:
        unknown = {view for _, view in walks} - set(expected.views)
        extra += [f"*/{view}" for view in sorted(unknown)]
    parts = [f"{len(walks)} sequences, expected {len(expected.grid)}"]
    parts = parts if missing or (extra and expected.grid) else []
    parts += [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"unexpected {', '.join(extra)}"] if extra else []
    for name, due in each.items():
        seen = sum(condition.startswith(name) for condition, _ in walks)
        if seen != due:
            parts.append(f"{seen} sequences {name!r}, expected {due}")
    for name, known in expected.distribution.items():
        seen = sum(condition.startswith(name) for condition, _ in walks)
        if seen and seen not in known:
            wanted = " or ".join(map(str, sorted(known)))
            kind = f" {name!r}" if name else ""
            parts.append(f"{seen} sequences{kind}, expected {wanted}")
    return "; ".join(parts)


def report_of(expected: Expected, notes: list[dict]) -> dict[str, Any]:
    """The content of build_report.json.

    notes: one dict for each sequence, readable or not, with key, walk (split, subject,
    condition, view), problem, frames, dropped (reason -> frames), lost (modality ->
    reason), note, has (names of modalities), unpaired (what did not fit -> frames).
    """
    written = [note for note in notes if not note["problem"]]
    lost = {
        name: {n["key"]: n["lost"].get(name, "") for n in written}
        for name in sorted({name for n in written for name in n["lost"]})
    }
    counts = {m: sum(m in n["has"] for n in written) for m in (*MODALITIES, *EXTRAS)}
    unpaired = {n["key"]: n["unpaired"] for n in written if n.get("unpaired")}
    return {
        "sequences": len(written),
        "sequences_expected": expected.total,
        "mismatches": overall(expected, [note["walk"] for note in written]),
        "totals": totals(expected, (note["walk"] for note in written)),
        "modalities": {m: n for m, n in counts.items() if n or m in MODALITIES},
        "frames": sum(note["frames"] for note in written),
        "skipped": {n["key"]: n["problem"] for n in notes if n["problem"]},
        "frames_dropped": {n["key"]: n["dropped"] for n in written if n["dropped"]},
        "notes": {n["key"]: text for n in written if (text := _note_of(n))},
        "lost": {name: _counted(texts) for name, texts in lost.items()},
        "doubtful": _counted({n["key"]: n["note"] for n in written}),
        "unpaired": _unpaired(unpaired),
        "short": [note["key"] for note in written if note["frames"] < SHORT],
    }


def _unpaired(found: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Where frames of two modalities did not fit together: sequences, frames, first."""
    frames = collections.Counter()
    for counts in found.values():
        frames.update(counts)
    first = next((f"{key}: {counts}" for key, counts in found.items()), "")
    return {"sequences": len(found), "frames": dict(frames), "first": first}


def _note_of(row: dict) -> str:
    """What a sequence lost, and a doubt about it: "without masks: no such file"."""
    lost = [f"without {name}: {reason}" for name, reason in row["lost"].items()]
    return "; ".join(filter(None, [*lost, row["note"]]))


def summary(name: str, report: dict) -> str:
    """The report in a few lines, for the terminal."""
    lines = []
    for split, found in report["totals"].items():
        wanted = found["sequences_expected"] or found["sequences_recalled"]
        lines.append(
            f"{name} {split}: {found['sequences']} sequences of {found['subjects']} "
            f"subjects (expected {wanted or 'an unknown number'} of "
            f"{found['subjects_expected']}), {len(found['mismatches'])} mismatches"
        )
        lines += _shortened(found["mismatches"])
        if absent := found.get("absent"):
            lines.append(
                f"{name} {split}: {absent['walks']} of {absent['each']} sequences per "
                "subject are absent (no mismatch: a complete archive may lack some)"
            )
    lines += [f"{name}: {text}" for text in report["mismatches"].values()]
    lines.append(
        f"{name}: {len(report['skipped'])} sequences skipped, {_dropped(report)}, "
        f"{len(report['short'])} sequences under {SHORT} frames (build_report.json)"
    )
    lines += _shortened(report["skipped"])
    counted = {f"lost their {what}": found for what, found in report["lost"].items()}
    counted["are doubtful"] = report["doubtful"]
    for what, found in counted.items():
        if found["sequences"]:
            lines.append(f"{name}: {found['sequences']} sequences {what}, the first is")
            lines.append(f"  {found['first']}")
    if report["unpaired"]["sequences"]:
        frames = report["unpaired"]["frames"].items()
        lines.append(
            f"{name}: {report['unpaired']['sequences']} sequences whose modalities do "
            f"not pair: {', '.join(f'{n} frames {what}' for what, n in frames)}"
        )
    lines += [
        f"{name}: {count} of {report['sequences']} sequences have {modality}"
        for modality, count in report["modalities"].items()
        if 0 < count < report["sequences"]
    ]
    return "\n".join(lines)


def _counted(texts: dict[str, str]) -> dict[str, Any]:
    """How many sequences (key -> text) have a text, and the first of them."""
    first = [f"{key}: {text}" for key, text in texts.items() if text]
    return {"sequences": len(first), "first": first[0] if first else ""}


def _dropped(report: dict) -> str:
    """The frames left out of the written sequences, by reason."""
    total = collections.Counter()
    for dropped in report["frames_dropped"].values():
        total.update(dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in total.items())
    return f"{total.total()} frames dropped" + (f" ({reasons})" if reasons else "")


def _shortened(problems: dict[str, str]) -> list[str]:
    """The first few as lines of at most 120 characters."""
    few = list(problems.items())[:SHOWN]
    lines = [f"  {name}: {text}" for name, text in few]
    return [line if len(line) <= 120 else line[:116] + " ..." for line in lines]
