"""One table of all systems: the block of docs/models.md.

    python -m benchmarks.models                 # counts what docs/models.json lacks
    python -m benchmarks.models --again ROW ... # counts these rows again
    python -m benchmarks.models --table         # only the table

A row is a config at its published size. Parameters and operations are read from the
traced network: nothing is trained, computed or compiled. The published numbers are
those that the config's docstring quotes with their protocol; ours are the mean Rank-1
of the embedded size in docs/zoo.json and docs/results.json.
"""

import argparse
import ast
import importlib
import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables

DOCUMENT, STORE = tables.DOCS / "models.md", tables.DOCS / "models.json"
FRAMES = 30  # of the sequence whose operations are counted
OPENGAIT, FASTPOSEGAIT = "OpenGait's", "FastPoseGait's"
CCPG = "ccpg"


class Row(NamedTuple):
    """system, paper, reads, head (strips x width): what the table says of a config.

    variant: whose size is counted. weights: published ones that mode "import" reads.
    measured: (file, row) of the embedded size's results.
    """

    system: str
    paper: str
    reads: str
    head: str
    variant: str
    weights: str = OPENGAIT
    measured: tuple[str, str] | None = None


ROWS = {
    "gei": Row("GEI", "Han & Bhanu, TPAMI 2006", "silhouettes", "1 x 2816", CCPG,
               "nothing to load"),
    "gaitset": Row("GaitSet", "Chao et al., AAAI 2019", "silhouettes", "62 x 256",
                   "casia_b"),
    "gaitpart": Row("GaitPart", "Fan et al., CVPR 2020", "silhouettes, ordered",
                    "16 x 128", "casia_b"),
    "gaitgl": Row("GaitGL", "Lin et al., ICCV 2021", "silhouettes, ordered", "64 x 128",
                  "casia_b"),
    "gaitbase": Row("GaitBase", "Fan et al., CVPR 2023", "silhouettes", "16 x 256",
                    CCPG),
    "deepgaitv2": Row("DeepGaitV2-P3D", "Fan et al., 2023", "silhouettes, ordered",
                      "16 x 256", CCPG),
    "swingait": Row("SwinGait", "Fan et al., 2023", "silhouettes, ordered", "15 x 256",
                    CCPG),
    "skeletongait": Row("SkeletonGait", "Fan et al., AAAI 2024",
                        "skeleton maps, ordered", "16 x 256", CCPG),
    "skeletongaitpp": Row("SkeletonGait++", "Fan et al., AAAI 2024",
                          "silhouettes + skeleton maps, ordered", "16 x 256", CCPG),
    "multigaitpp": Row("MultiGait++", "Jin et al., AAAI 2025",
                       "silhouettes + parsing or skeleton maps, ordered", "16 x 256",
                       "gait3d"),
    "gaitgraph2": Row("GaitGraph2", "Teepe et al., CVPRW 2022", "key points, ordered",
                      "1 x 384, cosine", CCPG),
    "gaittr": Row("GaitTR", "Zhang et al., 2023", "key points, ordered", "1 x 128",
                  CCPG),
    "gpgait": Row("GPGait", "Fu et al., ICCV 2023", "key points",
                  "19 x 256, after the neck", CCPG, FASTPOSEGAIT),
    "gpgaitpp": Row("GPGait++", "TPAMI 2025", "key points, ordered",
                    "19 x 256, after the neck", CCPG, FASTPOSEGAIT),
    "gaitedge": Row("GaitEdge", "Liang et al., ECCV 2022", "RGB + masks, ordered",
                    "64 x 128", "casia_b_star"),
    "biggait": Row("BigGait", "Ye et al., CVPR 2024", "RGB", "16 x 256", CCPG),
    "biggergait": Row("BiggerGait", "Ye et al., NeurIPS 2025", "RGB", "384 x 256",
                      CCPG),
    "lmgait": Row("LMGait", "Wu et al., AAAI 2026", "RGB + masks, ordered", "16 x 256",
                  CCPG, "none published; DINOv2 and CLIP", ("results", "default")),
    "biggerlmgait": Row("BiggerGait + text + MTCM", "our own", "RGB, ordered",
                        "384 x 256", CCPG, "none"),
    "pocket_recogniser": Row("PocketGait", "our own", "silhouettes + key points",
                             "12 x 64, after the neck", "", "shipped"),
}  # fmt: skip
# configs that are no system of their own, and why
OTHERS = {
    "cargait": "a re-ranker over any of these ([re-ranking](reranking.md))",
    "pocket_encoders": "LMGait's encoders ([pocket](pocket.md))",
}
HELPERS = ("common", "prompts", "sharding_rules", "words")
NO_CODE = "no public code, and its paper is not at hand: not built"
UNBUILT = {  # system -> what LMGait's Table 2 quotes
    "GaitGCI": "CASIA-B* NM/BG/CL 98.4/96.6/88.5",
    "VPNet": "CASIA-B* NM/BG/CL 98.3/96.3/90.7",
}
HEAD = ("system", "paper", "config", "reads", "embedding S x D", "parameters",
        "GFLOP a sequence", "published Rank-1", "ours, embedded size",
        "weights that load")  # fmt: skip


def count(name: str) -> dict:
    """What docs/models.json keeps of a row: sizes of its variant, traced."""
    from gaitjax import models, plan

    config = config_of(name)
    size = plan.size_of(config, models.make(config), FRAMES)
    kept = {"trained": size.trained, "frozen": size.frozen, "flops": size.flops}
    return kept | {"variant": ROWS[name].variant, "frames": size.frames}


def config_of(name: str):
    variant = ROWS[name].variant
    make = importlib.import_module(f"configs.{name}").get_config
    return make(variant) if variant else make()


def published(name: str) -> str:
    """The published numbers that the config's docstring quotes, as one line."""
    source = (ROOT / "configs" / f"{name}.py").read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        if found := re.match(
            r"Published Rank-1 \(not measured by us\)[:,]? (.*)", line
        ):
            return found[1].rstrip(".")
    return "none known"


def ours(name: str) -> str:
    """Mean Rank-1 on both embedded data sets, over the seeds."""
    file, row = ROWS[name].measured or ("zoo", name)
    cells = []
    for dataset in tables.DATASETS:
        runs = tables.entries(tables.DOCS / f"{file}.json", row, dataset)
        if runs:
            values = [run["rank1"]["mean"] for run in runs]
            seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
            cells.append(f"{dataset} {statistics.mean(values):.1f}{seeds}")
    return ", ".join(cells) or "not in the table"


def giga(flops: int) -> str:
    value = flops / 1e9
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def table(store: Path = STORE) -> str:
    """Markdown of all rows, those that cannot be built last."""
    found, lines = tables.stored(store), []
    for name, row in ROWS.items():
        size = found[name]
        parameters = f"{size['trained'] / 1e6:.2f} M" if size["trained"] else "0"
        if size["frozen"]:
            parameters += f" + {size['frozen'] / 1e6:.2f} M frozen"
        variant = f":{size['variant']}" if size["variant"] else ""
        lines.append([
            row.system, row.paper, f"`configs/{name}.py{variant}`", row.reads, row.head,
            parameters, giga(size["flops"]), published(name), ours(name),
            row.weights,
        ])  # fmt: skip
    for system, numbers in UNBUILT.items():
        blank = ["", "", "", "", ""]
        lines.append([system, "", *blank, numbers, NO_CODE, "none"])
    return tables.markdown(HEAD, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="count nothing")
    parser.add_argument("--again", nargs="*", default=[], choices=list(ROWS))
    arguments = parser.parse_args()
    for name in ROWS:
        if arguments.table or (name in tables.stored(STORE) and name not in
                               arguments.again):  # fmt: skip
            continue
        tables.add(STORE, name, count(name))
        print(name, tables.stored(STORE)[name], flush=True)
    tables.put(DOCUMENT, "models.py", table())


if __name__ == "__main__":
    main()
