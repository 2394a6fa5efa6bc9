"""The house: its tree is as the README says, imports point one way, notebooks are source, and nothing names a machine."""

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support.house import HELPERS, PACKAGE, arrows, between_wings, drawing, drawn, imports, tree, wing
from support.tiers import mostly_slow

from helpers import WINGS
from helpers.runner import doctor

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.fullmatch(r"\d\d_[a-z]+", path.stem)]
FOLDERS = ("src/helpers", "notebooks", "profiles", "book")
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|mnt|private|opt)/[\w.-]+")
HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.(?:org|com)|anaconda\.(?:org|com)|golang\.org", re.IGNORECASE
)
LOCKED = (
    *(f"{python}:{machine}-unknown-linux-gnu" for python in ("3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")),
    *("3.12:x86_64-pc-windows-msvc", "3.13:aarch64-apple-darwin"),
)
PINNED = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+")


def tracked() -> list[Path]:
    """The text files that git knows, or would know after `git add`."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        pytest.skip("not a git repository")
    binary = {".png", ".woff", ".woff2", ".parquet", ".ico", ".pdf"}
    return [ROOT / name for name in found.splitlines() if Path(name).suffix not in binary and (ROOT / name).is_file()]


# ---------------------------------------------------------------- the README's tree


def readme_tree() -> list[str]:
    """The paths that the README's tree lists, in order: one line a file, folders end with a slash, two blanks a level."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not written yet, so there is no tree to compare with")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    trees = [block for block in blocks if "helpers/" in block and "notebooks/" in block]
    assert trees, "README.md has no code block that lists src/helpers/ and notebooks/"
    found, folders = [], {}
    for line in trees[0].splitlines():
        plain = re.sub(r"[│├└─]", " ", line)
        if plain.strip():
            depth = len(plain) - len(plain.lstrip())
            folders = {level: name for level, name in folders.items() if level < depth}
            path = "".join(folders.values()) + plain.split()[0]
            found.append(path)
            if path.endswith("/"):
                folders[depth] = plain.split()[0]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tree_in_the_readme_is_the_tree(folder):
    listed = [path.removeprefix(f"{folder}/").rstrip("/") for path in readme_tree() if path.startswith(f"{folder}/")]
    listed = sorted({name.split("/")[0] for name in listed if name})
    entries = [path for path in (ROOT / folder).iterdir() if not path.name.startswith((".", "__pycache__", "__init__"))]
    named = {path.stem: path.name for path in entries}
    assert sorted(named.get(name, name) for name in listed) == sorted(path.name for path in entries)


def test_a_wing_imports_only_wings_before_it():
    order = ["", *WINGS]
    assert [arrow for arrow in arrows() if order.index(wing(arrow[1])) > order.index(wing(arrow[0]))] == []
    assert len(between_wings()) > 20  # the control: arrows are seen at all


def test_the_drawing_of_the_wings_is_made_from_the_imports():
    assert drawn() == drawing(), "the imports have changed: make architecture"
    assert "  monitors --> updates\n" in drawing()


def test_the_gate_could_be_a_package_of_its_own():
    found = {(name, other) for name, path in HELPERS.items() if wing(name) == "revalidation" for other in imports(name)}
    assert {other for _, other in found if wing(other) in {"study", "runner", "figures", "book"}} == set()
    inward = [name for name, path in HELPERS.items() if {wing(other) for other in imports(name)} & {"revalidation"}]
    assert {wing(name) for name in inward} == {"", "revalidation"}
    assert [name for name in inward if not wing(name)] == ["__main__"]


def test_no_science_wing_draws():
    """Methods below, what is shown above: below the figures nothing imports a library that draws."""
    below = WINGS[: WINGS.index("study")]
    drawing = re.compile(r"^\s*(?:import|from) (?:matplotlib|seaborn|great_tables)", re.MULTILINE)
    assert [name for name, path in HELPERS.items() if wing(name) in below and drawing.search(path.read_text("utf-8"))] == []
    assert any(drawing.search(path.read_text("utf-8")) for name, path in HELPERS.items() if wing(name) == "figures")


def test_the_house_can_be_held_in_mind():
    folders = Counter(name.rpartition(".")[0] for name in HELPERS)
    assert set(WINGS) == {name.partition(".")[0] for name in folders} - {""}
    assert len(WINGS) <= 14
    assert folders[""] <= 8
    assert {name: count for name, count in folders.items() if count > 14} == {}
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in HELPERS.items()}
    assert {name: count for name, count in lines.items() if count > 350} == {}


def test_each_wing_says_what_it_is_for_what_it_may_import_and_where_a_member_goes():
    for name in WINGS:
        text = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text("utf-8")))
        assert len(text.splitlines()) >= 4, name
        assert "May import" in text, name
        named = set(re.findall(r"`([a-z_]+)/?`", text))
        files = {path.stem for path in (PACKAGE / name).iterdir() if path.stem not in {"__init__", "__pycache__"}}
        assert files - named == set(), name


def test_tests_mirror_the_wings():
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert folders == {*WINGS, "rules", "acceptance"}
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))  # pytest and the imports between tests go by them


def test_no_two_modules_of_a_wing_share_the_name_of_a_public_function():
    owners: dict[tuple[str, str], list[str]] = {}
    for name in HELPERS:
        for node in tree(name).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                owners.setdefault((wing(name), node.name), []).append(name)
    assert {key: found for key, found in owners.items() if len(found) > 1} == {}


def test_a_class_name_means_one_thing():
    owners: dict[str, list[str]] = {}
    for name in HELPERS:
        for node in tree(name).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(name)
    assert {key: found for key, found in owners.items() if len(found) > 1} == {}


def test_imports_have_no_circle():
    todo = {name: set(imports(name)) for name in HELPERS}
    while todo:
        free = [name for name, others in todo.items() if not others & set(todo)]
        assert free, f"these import one another: {sorted(todo)}"
        for name in free:
            del todo[name]


# ---------------------------------------------------------------- code and notebooks


@pytest.mark.parametrize("module", HELPERS)
def test_public_things_say_what_they_return_and_no_function_is_long(module):
    code = tree(module)
    assert ast.get_docstring(code), f"{module}.py has no docstring"
    functions = [node for node in ast.walk(code) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{node.name}: {node.end_lineno - node.lineno + 1}" for node in functions if node.end_lineno - node.lineno + 1 > 40]
    assert long == []
    public = [node for node in code.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_source_and_argues(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    texts = ["".join(cell["source"]) for cell in cells]
    assert path in CHAPTERS or path.stem == "revalidate"  # the one notebook that is a tool and no chapter
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []
    assert "papermill" not in notebook["metadata"]
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    sizes = [
        len(text.splitlines())
        for cell, text in zip(cells, texts, strict=True)
        if "parameters" not in cell["metadata"].get("tags", [])
    ]
    assert max(sizes) <= 20
    assert statistics.median(sizes) <= 6
    for text in texts:
        assert not re.search(r"^\s*([!]|%pip|%conda)", text, re.MULTILINE), "a notebook installs and calls nothing"
        nodes = ast.walk(ast.parse(re.sub(r"(?m)^%.*$", "", text)))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) for node in nodes), text


def test_every_chapter_is_in_the_book_and_the_book_names_no_other():
    from helpers.book import pages

    assert pages.book_chapters(ROOT) == [path.stem for path in CHAPTERS]


# ---------------------------------------------------------------- nothing names a machine


def test_no_file_names_a_folder_of_some_machine_or_a_registry():
    found = []
    for path in tracked():
        if path == Path(__file__) or "_static/mathjax" in path.as_posix():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for pattern in (MACHINE, HOSTS) for match in pattern.finditer(text)]
    assert found == []


# ---------------------------------------------------------------- pins


def names(path: Path) -> dict[str, str]:
    """The same of a file of pins."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return names_of([line for line in lines if line])


def names_of(lines: list[str]) -> dict[str, str]:
    """Package names, as registries compare them, with what stands behind `==`."""
    parts = [line.partition("==") for line in lines]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in parts}


def test_the_lock_pins_everything_plainly_and_covers_what_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = names_of([*project["dependencies"], *project["optional-dependencies"]["study"]])
    lock = names(ROOT / "requirements.lock")
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not PINNED.fullmatch(line)] == []  # no host, no path, no local build
    assert [name for name, version in asked.items() if name not in lock or (version and lock[name] != version)] == []
    assert "kernels" not in lock  # transformers would load code from a hub with it


def test_the_conda_environment_agrees_with_the_lock_and_ci():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = [item for item in environment["dependencies"] if isinstance(item, dict)]
    assert (plain, pip) == (["python=3.11", "pip"], [{"pip": ["-r requirements.lock", "-e ."]}])
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    for job in (jobs["test"], jobs["light"]):
        steps = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert (steps, job["strategy"]["matrix"]["python"]) == (["${{ matrix.python }}"], ["3.11", "3.13"])
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == [".ci/run"]
    assert jobs["test"]["env"] == {"PYTHON": "python"}
    assert jobs["light"]["strategy"]["matrix"]["system"] == ["windows-latest", "macos-latest"]
    install, check = (step["run"] for step in jobs["light"]["steps"] if "run" in step)
    assert install == "python -m pip install . pytest"  # no extra: whatever else the tests import would fail there
    assert (ROOT / check.split()[-1]).is_file()
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_range_of_pythons_is_one_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert doctor.PYTHONS == ((3, 11), (3, 12), (3, 13))
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text()
    (line,) = (line for line in make("-n", "lock-check").stdout.splitlines() if line.startswith("for target in "))
    assert line.removeprefix("for target in ").removesuffix("; do").split() == list(LOCKED)
    for page in ("README.md", "book/reproduce.md"):
        assert "Python 3.11, 3.12 or 3.13" in (ROOT / page).read_text(encoding="utf-8")


@mostly_slow("asks a registry; make lock-check does the same", "3.11:x86_64-unknown-linux-gnu")
@pytest.mark.network
@pytest.mark.parametrize("target", LOCKED)
def test_the_lock_resolves_on_every_python_and_system(target):
    uv = shutil.which("uv") or pytest.skip("uv is not installed")
    settings = {name: os.environ[name] for name in os.environ if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-C", str(ROOT), "lock-check", f"UV={uv}", f"TARGETS={target}"],
        capture_output=True, text=True, check=False, env=settings, timeout=600,
    )  # fmt: skip
    if re.search("error sending request|dns error|timed out|Connection refused", done.stderr):
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    assert "the lock resolves for Python" in done.stdout


def test_a_pin_that_cannot_be_met_is_named(tmp_path):
    said = "  × No solution found when resolving dependencies"
    (tmp_path / "uv").write_text(f"#!/bin/sh\ncase $* in *3.13*) echo '{said}' >&2; exit 1;; esac\n")
    (tmp_path / "uv").chmod(0o755)
    done = make("lock-check", f"UV={tmp_path}/uv", "TARGETS=3.11:linux 3.13:linux")
    assert done.stdout.splitlines()[0] == "the lock resolves for Python 3.11 on linux"
    assert "error: the lock does not resolve for Python 3.13 on linux:\n" + said in done.stderr
    assert "Error 14" in done.stderr
    assert "uv is needed" in make("lock-check", "UV=no-such-uv").stderr


# ---------------------------------------------------------------- make


def make(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """What make says and returns."""
    settings = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment}
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(folder), *words],
        capture_output=True,
        text=True,
        env=settings,
        check=False,
        timeout=60,
    )


def test_make_narrows_the_study_and_cleans_nothing_that_is_committed():
    said = make("-n", "study", "PROFILE=cpu", "MODEL=tiny", "SEED=3", "FORCE=1").stdout
    assert '.venv/bin/python -m helpers study --profile "cpu" --model "tiny" --seed "3" --force' in said
    assert make("-n", "clean").stdout.strip() == "rm -rf build logs .snakemake results/quick results/smoke"
    shown = {line.split()[1] for line in make("help").stdout.splitlines()}
    tests = {"test", "test-all", "cover", "check", "golden", "coverage", "gate", "power"}
    more = {"architecture", "bench", "clean", "lock", "lock-check", "doctor", "env", "help"}
    assert shown == tests | more | {"study", "book", "pdf", "launch"}


def plain_make(folder: Path, *words: str, **pythons: str) -> subprocess.CompletedProcess:
    """make in a copy of the project, on a path that has no Python and no uv but the given ones, which say their version."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("bash", "sh", "make", "rm", "tail", "grep", "sed", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    for name, version in pythons.items():
        fits = "exit 0" if version.startswith(("3.11", "3.12", "3.13")) else "exit 1"
        (tools / name).write_text(f'#!/bin/sh\ncase "$*" in *--version*) echo Python {version};; *) {fits};; esac\n')
        (tools / name).chmod(0o755)
    return make(*words, folder=folder, PATH=str(tools))


def test_make_takes_a_python_of_the_range_the_oldest_first(tmp_path):
    found = plain_make(tmp_path, "-n", "env", **{"python3": "3.10.1", "python3.13": "3.13.0", "python3.12": "3.12.1"})
    assert f'"{tmp_path}/tools/python3.12" -m venv .venv' in found.stdout


@pytest.mark.parametrize(
    ("words", "pythons", "said"),
    [
        (["env"], {"python3": "3.10.13"}, "3.11, 3.12 or 3.13 is needed and none was found (python3 is Python 3.10.13)"),
        (
            ["env", "PYTHON=python3"],
            {"python3": "3.14.0"},
            "error: python3 is Python 3.14.0; Python 3.11, 3.12 or 3.13 is needed",
        ),
    ],
)
def test_make_without_a_python_that_fits_says_which_it_found_and_what_to_do(tmp_path, words, pythons, said):
    done = plain_make(tmp_path, *words, **pythons)
    assert said in done.stderr
    assert "make env PYTHON=path" in done.stderr
    assert "Error 14" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            ("monitors.fitting", "staleness.drops", "updates.variants", "updates.measurements"),
            ("bitsandbytes", "torch._inductor", "pandera"),
        ),
        (("runner.kernels", "runner.jobs", "console"), ("torch", "pandas", "matplotlib")),
    ],
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(modules, absent):
    wanted = ", ".join(f"helpers.{name}" for name in modules)
    code = f"import sys\nimport {wanted}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
