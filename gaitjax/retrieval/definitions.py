"""The benchmarks' protocols as data: who is compared with whom, how it is averaged.

docs/protocols.md describes each in words and names the published numbers that used it.
OpenGait's evaluator is the field's usual one; we differ from it where it errs:

* Its CCPG scalar is the mean of the whole camera table, same cameras included. That is
  neither `ccpg_gait` nor `ccpg_reid`, and no protocol here reports it.
* A condition that was not recorded is NaN or an error there. Here it is left out and
  counted.
* A gallery of fewer than k sequences is an error there. Here Rank-k is then the share
  of probes with any match.
* Ties are broken arbitrarily there. Here the earlier gallery sequence ranks first.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gaitjax.engine.guards import choose


class Protocol(NamedTuple):
    """tasks: name -> (gallery, probe), each a predicate of the condition.

    average: what a task's numbers are means over.
      "gallery": one gallery of all views; mean over the probes that have a match.
      "view_pairs": a gallery per view; Rank-k of each probe view x gallery view, mean
        over the gallery views other than the probe's own, then over probe views.
      "probe_views": one gallery of all views; mean within each probe view, then over
        probe views.
    excluded: the pairs of sequences that do not exist: "none", "view" (equal view) or
      "subject_and_view" (equal subject and equal view). "view_pairs" has "view".
    ranks: the k of Rank-k.
    camera: a view's camera is its name before the first "_", and counts as the view.
    unmatched: how Rank-k counts a probe without a match in the gallery: "miss" or
      "left_out". (mAP and mINP always leave it out.)
    both: also report Rank-k over the probes with a match, as "rankK_matched".
    ignored_views: sequences of these views take no part.
    mean: report the mean over the tasks as task "mean".
    """

    tasks: dict[str, tuple[Callable[[str], bool], Callable[[str], bool]]]
    average: str
    excluded: str
    ranks: tuple[int, ...] = (1, 5)
    camera: bool = False
    unmatched: str = "miss"
    both: bool = False
    ignored_views: tuple[str, ...] = ()
    mean: bool = False


def _exactly(*names: str) -> Callable[[str], bool]:
    return lambda condition: condition in names


def _containing(*parts: str) -> Callable[[str], bool]:
    return lambda condition: any(part in condition for part in parts)


def _starting(*prefixes: str) -> Callable[[str], bool]:
    return lambda condition: condition.startswith(prefixes)


def _casia_e(kind: str) -> Callable[[str], bool]:
    return _exactly(
        *(
            f"{height}-{scene}-{kind}-{number}"
            for height in "HL"
            for scene in ("scene2", "scene3", "scene3_s")
            for number in (1, 2)
        )
    )


def _one_gallery(gallery, probes: dict) -> dict:
    return {name: (gallery, probe) for name, probe in probes.items()}


_CCPG = {
    "CL": (_exactly("U1_D1", "U2_D2", "U3_D3"), _exactly("U0_D0_BG", "U0_D0")),
    "UP": (_exactly("U0_D3"), _exactly("U3_D3")),
    "DN": (_exactly("U1_D1"), _exactly("U1_D0")),
    "BG": (_exactly("U0_D0"), _exactly("U0_D0_BG")),
}
_CASIA_B = Protocol(
    _one_gallery(
        _exactly("nm-01", "nm-02", "nm-03", "nm-04"),
        {
            "NM": _exactly("nm-05", "nm-06"),
            "BG": _exactly("bg-01", "bg-02"),
            "CL": _exactly("cl-01", "cl-02"),
        },
    ),
    average="view_pairs",
    excluded="view",
    mean=True,
)
_CASIA_B_CROSS_VIEW = Protocol(
    _one_gallery(
        _exactly("nm-02", "bg-02", "cl-02"),
        {"NM": _exactly("nm-01"), "BG": _exactly("bg-01"), "CL": _exactly("cl-01")},
    ),
    average="probe_views",
    excluded="subject_and_view",
    mean=True,
)
# real video: other clothes (d3), another place (d4), another direction (d2)
_KTH = _one_gallery(
    _starting("d1-"), {name: _starting(f"{name}-") for name in ("d2", "d3", "d4")}
)
_OUMVLP = {"NM": (_exactly("01"), _exactly("00"))}
_ROLES = {"all": (_starting("gallery"), _starting("probe"))}
_WHOLE: dict[str, Any] = dict(average="gallery", excluded="none")

PROTOCOLS: dict[str, Protocol] = {
    # CCPG (Li et al., CVPR 2023): the gait number and the re-identification number.
    "ccpg_gait": Protocol(
        _CCPG, average="view_pairs", excluded="view", camera=True, mean=True
    ),
    "ccpg_reid": Protocol(
        _CCPG, average="gallery", excluded="subject_and_view", ranks=(1, 5, 10),
        camera=True, unmatched="left_out", mean=True,
    ),
    "casia_b": _CASIA_B,
    "casia_b_star": _CASIA_B,
    "casia_b_cross_view": _CASIA_B_CROSS_VIEW,
    "casia_b_star_cross_view": _CASIA_B_CROSS_VIEW,
    "casia_e": Protocol(
        _one_gallery(
            _exactly(*(f"{h}-scene1-nm-{n}" for h in "HL" for n in (1, 2))),
            {kind.upper(): _casia_e(kind) for kind in ("nm", "bg", "cl")},
        ),
        average="view_pairs", excluded="view", ignored_views=("270",), mean=True,
    ),
    "oumvlp": Protocol(_OUMVLP, average="view_pairs", excluded="view", both=True),
    "oumvlp_cross_view": Protocol(
        _OUMVLP, average="probe_views", excluded="subject_and_view", both=True
    ),
    "sustech1k": Protocol(
        _one_gallery(
            _containing("00-nm"),
            {
                "NM": _containing("01-nm"), "BG": _containing("bg"),
                "CL": _containing("cl"), "CR": _containing("cr"),
                "UB": _containing("ub"), "UF": _containing("uf"),
                "OC": _containing("oc"), "NT": _containing("nt"),
                "overall": _containing("01", "02", "03", "04"),
            },
        ),
        average="view_pairs", excluded="view",
    ),
    "gait3d": Protocol(_ROLES, **_WHOLE, ranks=(1, 5, 10), unmatched="left_out"),
    "ccgr_mini": Protocol(_ROLES, **_WHOLE, ranks=(1, 5, 10), unmatched="left_out"),
    "grew": Protocol(
        {"local": (_exactly("01"), _exactly("02"))}, **_WHOLE, ranks=(1, 5, 10, 20)
    ),
    "ttg200": Protocol(
        {"all": (_exactly("1"), _exactly("2", "3", "4", "5", "6"))},
        **_WHOLE, ranks=(1, 5, 10, 20),
    ),
    "real_scene_0001_1000": Protocol(
        {"all": (_exactly("1", "2"), _exactly("3", "4", "5", "6"))},
        **_WHOLE, ranks=(1, 5, 10, 20),
    ),
    "kinect_gait": Protocol(
        {"NM": (_exactly("1", "01"), lambda condition: condition not in ("1", "01"))},
        average="view_pairs", excluded="view",
    ),
    # rendered: the same day and clothes, another walk; another day in other clothes
    "seen_gait": Protocol(
        _one_gallery(
            _containing("walk0-seen"),
            {
                "same": _containing("walk1-seen"),
                "clothes": _containing("walk2-seen", "walk3-seen"),
                "exact": _containing("walk2-exact", "walk3-exact"),
            },
        ),
        **_WHOLE,
    ),
    "kth_walking": Protocol(_KTH, **_WHOLE, ranks=(1, 5)),
    # the view is the walking direction, so equal directions are "same view"
    "kth_walking_directions": Protocol(_KTH, average="view_pairs", excluded="view"),
}  # fmt: skip

OWN = "own:"  # begins the name of a protocol of one's own, see `protocol_of`
OWN_FORM = f"{OWN}GALLERY->PROBE,PROBE (conditions, '*' stands for anything)"


def protocol_of(name: str) -> Protocol:
    """The protocol of a name: one of PROTOCOLS, or one that the name describes.

    "own:nm-01,nm-02->nm-0*,cl-*": all sequences of conditions nm-01 and nm-02 are the
    gallery; each pattern after the arrow is a task. What the gallery has is no probe.
    Rank-1 and Rank-5 of one gallery, and a sequence is compared with all views, its own
    too. Raises ValueError, with the choices, for other names.
    """
    own = _own(name)
    return own or choose(name, PROTOCOLS | {OWN_FORM: None}, "protocol")


def is_protocol(name: str) -> bool:
    return name in PROTOCOLS or _own(name) is not None


def _own(name: str) -> Protocol | None:
    """The protocol of "own:GALLERY->PROBES"; None if the name has another form."""
    gallery, arrow, probes = name.removeprefix(OWN).partition("->")
    sides = [[part.strip() for part in x.split(",")] for x in (gallery, probes)]
    whole = name.startswith(OWN) and arrow and all(all(side) for side in sides)
    if not whole or "/" in name:  # a task's name becomes part of a metric's
        return None

    def in_gallery(condition: str) -> bool:
        return any(fnmatchcase(condition, pattern) for pattern in sides[0])

    def in_probe(pattern: str) -> Callable[[str], bool]:
        return lambda x: fnmatchcase(x, pattern) and not in_gallery(x)

    tasks = {pattern: (in_gallery, in_probe(pattern)) for pattern in sides[1]}
    return Protocol(tasks, **_WHOLE, ranks=(1, 5))
