"""What a complete archive has, and how a build differs from it, subject by subject."""

import collections
from collections.abc import Iterable
from typing import NamedTuple


class Expected(NamedTuple):
    """Totals of a complete archive; what is not known is left empty.

    subjects: split -> ids, or their number. sequences: split -> number, from the papers
    or counted by users. recalled: the same where nobody could check the number: it is
    stored and printed, but a difference is no mismatch. total: sequences of all splits.
    by_condition: split -> beginning of conditions' names -> number of sequences. grid:
    the "condition/view"s that every subject has. conditions: names that a subject's
    conditions come from. each: split -> beginning of conditions' names -> number of
    sequences that every subject has, but for the pseudo-subject `apart`.
    """

    subjects: dict[str, frozenset[str] | int]
    sequences: dict[str, int] = {}
    recalled: dict[str, int] = {}
    total: int | None = None
    by_condition: dict[str, dict[str, int]] = {}
    grid: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    each: dict[str, dict[str, int]] = {}
    apart: str = ""


def totals(
    expected: Expected, rows: Iterable[tuple[str, str, str, str]]
) -> dict[str, dict]:
    """split -> what was found, what was expected, and how each subject differs.

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
    }


def _subject_problem(
    expected: Expected, walks: list[tuple[str, str]], each: dict[str, int]
) -> str:
    """One sentence, or "" where the subject is complete as far as is known."""
    if not walks:
        return "no sequence"
    names = {f"{condition}/{view}" for condition, view in walks}
    missing = [name for name in expected.grid if name not in names]
    extra = sorted(names - set(expected.grid)) if expected.grid else []
    if expected.conditions:
        unknown = {condition for condition, _ in walks} - set(expected.conditions)
        extra += [f"{condition}/*" for condition in sorted(unknown)]
    parts = [f"{len(walks)} sequences, expected {len(expected.grid)}"]
    parts = parts if missing or (extra and expected.grid) else []
    parts += [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"unexpected {', '.join(extra)}"] if extra else []
    for name, due in each.items():
        seen = sum(condition.startswith(name) for condition, _ in walks)
        if seen != due:
            parts.append(f"{seen} sequences {name!r}, expected {due}")
    return "; ".join(parts)
