"""What README and docs/ say exists: links, files, modules, configs, fields, tables."""

import ast
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest
from test_layering import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text()
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
FOLDERS = "gaitjax|configs|tfds_builders|tests|benchmarks|docs"
each_page = pytest.mark.parametrize("page", PAGES)


def anchors(text: str) -> set[str]:
    """The #names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"(?s)```.*?```", "", text), re.M)
    words = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles)
    return {title.replace(" ", "-") for title in words}


@each_page
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page}: {link}"


@each_page
def test_files_and_folders_exist(page):
    for name in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./]*\w", PAGES[page]):
        if "NAME" in name:  # a placeholder
            continue
        found = (ROOT / name).exists() or (ROOT / f"{name}.py").exists()
        assert found, f"{page}: {name}"


@each_page
def test_modules_and_their_names_exist(page):
    for name in re.findall(r"\b(?:gaitjax|benchmarks)(?:\.\w+)+", PAGES[page]):
        parts, depth = name.split("."), 1
        while depth < len(parts) and (
            ROOT.joinpath(*parts[: depth + 1]).is_dir()
            or ROOT.joinpath(*parts[: depth + 1]).with_suffix(".py").is_file()
        ):
            depth += 1
        path = ROOT.joinpath(*parts[:depth])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for attribute in parts[depth:]:
            known = rf"^(def|class) {attribute}\b|^{attribute}\b"
            assert re.search(known, file.read_text(), re.M), f"{page}: {name}"


def config_of(path: str, variant: str):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return module.get_config(*([variant] if variant else []))


def has_field(config, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(config, "keys") or part not in config:
            return False
        config = config[part]
    return True


@each_page
def test_configs_have_their_variants_and_commands_their_fields(page):
    text = re.sub(r"\\\n\s*", " ", PAGES[page])
    for path, variant in re.findall(r"\b(configs/[a-z_0-9]+\.py):(\w+)", text):
        config_of(path, variant)  # ValueError: no such variant
    for line in text.splitlines():
        used = re.search(r"\b(configs/[a-z_0-9]+\.py)(?::(\w+))?", line)
        for field in re.findall(r"--config\.([a-z_][\w.]*\w)", line) if used else ():
            assert has_field(config_of(*used.groups("")), field), f"{page}: {field}"


@each_page
def test_fields_named_in_the_text_exist(page):
    configs = [config_of(f"configs/{x}.py", "") for x in ("lmgait", "cargait")]
    for field in re.findall(r"`config\.([a-z_][a-z_.]*[a-z_])[`=]", PAGES[page]):
        known = any(has_field(x, field) for x in configs) or field == "json"
        assert known, f"{page}: config.{field}"


def test_run_sh_has_the_commands_of_the_pages():
    script = (ROOT / "run.sh").read_text()
    for page, text in PAGES.items():
        for command in re.findall(r"\./run\.sh ([a-z]+)\b", text):
            case = rf"^  .*\b{command}\b.*\)"
            assert re.search(case, script, re.M), f"{page}: {command}"


def prose_of(source: str) -> str:
    """Comments, docstrings and messages (strings of several words) of a Python file."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [x.string for x in tokens if x.type == tokenize.COMMENT]
    nodes = (x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Constant))
    texts += [x.value for x in nodes if isinstance(x.value, str) and " " in x.value]
    return "\n".join(texts)


def test_nothing_cites_what_is_not_in_the_repository():
    texts = PAGES | {"CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text()}
    for folder in ("gaitjax", "configs", "tfds_builders", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            name = file.relative_to(ROOT).as_posix()
            texts[name] = prose_of(file.read_text())
    for file in (ROOT / "tfds_builders").rglob("README.md"):
        texts[file.relative_to(ROOT).as_posix()] = file.read_text()
    texts["run.sh"] = (ROOT / "run.sh").read_text()
    documents = r"\b(ZOO|METHODS|DATA|OPTIONS|ENVIRONMENT|USERS|DESIGN)\b(?!_)|\bspec/"
    # checksums of files to be downloaded are no commits
    commit = r"(?<!SHA-1 )\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{7,40}\b"
    for name, text in texts.items():
        found = re.search(documents, text) or re.search(commit, text)
        assert not found, f"{name}: {found}"


def test_tables_of_the_readme_are_short():
    for line in PAGES["README.md"].splitlines():
        if line.startswith("|"):
            for cell in line.strip("|").split("|"):
                assert len(cell.split()) <= 20, cell


def test_pictures_are_small_and_used():
    text = "".join(PAGES.values())
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < 200_000, picture.name
        assert f"pictures/{picture.name}" in text, picture.name


def test_the_design_page_has_the_table_of_imports():
    table = "\n".join(
        f"| `{name}` | {', '.join(f'`{x}`' for x in sorted(allowed)) or 'nothing'} |"
        for name, allowed in MAY_IMPORT.items()
    )
    assert table in PAGES["docs/design.md"], f"docs/design.md needs:\n{table}"


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("[a-z]*.py")))
def test_benchmarks_import(file):
    importlib.import_module(f"benchmarks.{file.stem}")


def test_tables_are_those_of_the_stored_measurements():
    from benchmarks import cargait_results, growth, memory, models, results, zoo_results

    tables = {
        "results.py, default": (results.table("default"), "docs/results.md"),
        "results.py, ablations": (results.table("ablations"), "docs/results.md"),
        "zoo_results.py": (zoo_results.table(zoo_results.STORE), "docs/zoo.md"),
        "models.py": (models.table(), "docs/models.md"),
        "cargait_results.py": (
            cargait_results.table(cargait_results.STORE),
            "docs/reranking.md",
        ),
        "memory.py": (memory.table(), "docs/scaling.md"),
        "growth.py": (growth.growth_table(), "docs/scaling.md"),
    }
    for program, (table, page) in tables.items():
        begin = f"<!-- made by benchmarks/{program} -->\n"
        block = PAGES[page].partition(begin)[2].partition("<!-- end -->")[0]
        stale = f"python -m benchmarks.{program.partition('.')[0]} --table"
        assert block.strip() == table.strip(), stale


def test_every_config_is_in_the_table_of_models():
    from benchmarks import models

    files = {file.stem for file in (ROOT / "configs").glob("[a-z]*.py")}
    assert files == {*models.ROWS, *models.OTHERS, *models.HELPERS}
    page = PAGES["docs/models.md"]
    for name, row in models.ROWS.items():
        variant = f":{row.variant}" if row.variant else ""
        assert f"`configs/{name}.py{variant}`" in page
        models.config_of(name)  # ValueError: no such variant
        kept = models.tables.stored(models.STORE)[name]
        assert kept["variant"] == row.variant and kept["frames"] == models.FRAMES
    for system in models.UNBUILT:
        assert f"| {system} |" in page and models.NO_CODE in page
    assert models.published("gei") == "none known"
    assert "CCPG gait protocol" in models.published("gaitbase")
