"""Rules of the code base: the order of imports, the length of files and functions, and that every module imports."""

import ast
import graphlib
import importlib
import pkgutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import jsfree
import ray_jobs
import serve
from jsfree import config
from tests.support import ROOT

SOURCES = [path for package in ("jsfree", "ray_jobs", "serve") for path in sorted((ROOT / package).rglob("*.py"))]
LAYERS = (
    {"errors"},
    {"schemas", "gpus", "schedules", "texts", "uris"},
    {"config"},
    {"run", "miniworld"},
    {"images", "models", "judge"},
    {"decoding", "dpo", "pretraining"},
    {"stages", "sizing"},
    {"evaluation", "exchange"},
    {"checks", "report"},
    {"publishing", "ablation", "monitor"},
)
"""Parts of ``jsfree`` from the ground up: each imports only itself and layers below its own."""
LAYER_OF = {part: height for height, parts in enumerate(LAYERS) for part in parts}
MODES = ("r", "w", "a", "x", "rb", "wb", "ab", "xb")
TABLES = {"jsfree/miniworld/vocabulary.py", "jsfree/config/settings.py"}
MODULES = [
    info.name
    for package in (jsfree, ray_jobs, serve)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not info.name.endswith("__main__")
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1


def text_without_encoding(path: Path) -> Iterator[str]:
    """Calls that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        mode = given.get("mode") or next(
            (a for a in node.args if isinstance(a, ast.Constant) and a.value in MODES), None
        )
        binary = isinstance(mode, ast.Constant) and "b" in mode.value
        opens = isinstance(node.func, ast.Name) and name == "open" and not binary
        reads = name in ("read_text", "write_text") or ("text" in given and name in ("run", "Popen", "check_output"))
        if (opens or reads) and "encoding" not in given:
            yield f"{name_of(path)}:{node.lineno}"


def test_text_files_are_opened_with_an_explicit_encoding():
    paths = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
    assert [found for path in paths for found in text_without_encoding(path)] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith("jsfree/")], ids=name_of)
def test_jsfree_does_not_import_ray(path):
    assert not imports(path) & {"ray", "ray_jobs", "serve"}


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith("jsfree/")], ids=name_of)
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT / "jsfree").parts[0].removesuffix(".py")
    others = {name.split(".")[1] for name in imported_modules(path) if name.startswith("jsfree.")} - {part}
    own = LAYER_OF.get(part, len(LAYERS))  # jsfree/__init__.py has no layer
    assert {other for other in others if LAYER_OF.get(other, -1) >= own} == set()


def test_every_part_of_the_method_has_a_layer():
    parts = {info.name for info in pkgutil.iter_modules(jsfree.__path__)}
    assert parts == LAYER_OF.keys()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(package: str) -> dict[str, set[str]]:
    """The modules of a package and those of its own that each imports, also inside functions.

    Python runs a package's ``__init__`` before each of its modules. One that imports any of them therefore counts as
    importing all, so a module that imports names from the package creates a cycle.
    """
    paths = {module_of(path): path for path in SOURCES}
    own = {name: path for name, path in paths.items() if name == package or name.startswith(f"{package}.")}
    graph: dict[str, set[str]] = {}
    for name, path in own.items():
        named = imported_modules(path)
        graph[name] = {found for full in named if (found := full if full in own else full.rpartition(".")[0]) in own}
        graph[name].discard(name)
        if path.name == "__init__.py" and graph[name]:
            graph[name] = {other for other in own if other.startswith(f"{name}.")}
    return graph


@pytest.mark.parametrize(
    "package", [info.name for info in pkgutil.iter_modules(jsfree.__path__, "jsfree.") if info.ispkg]
)
def test_packages_have_no_circular_imports(package):
    graphlib.TopologicalSorter(import_graph(package)).prepare()


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith("serve/")], ids=name_of)
def test_serve_does_not_import_ray_jobs(path):
    assert "ray_jobs" not in imports(path)


def test_the_http_app_does_not_import_torch_or_transformers():
    """The Serve replica that admits and forwards requests must start fast, without torch."""
    import subprocess
    import sys

    code = "import sys, serve.app; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short_and_have_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "no module docstring"
    assert name_of(path) in TABLES or path.read_text(encoding="utf-8").count("\n") <= 400


def test_functions_are_short():
    lengths = dict(pair for path in SOURCES for pair in functions(path))
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median(lengths.values()) < 15


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    assert config.load(path).run


def test_light_modules_import_no_heavy_library():
    """Configuration and schemas must load fast, on machines that never run a model."""
    import subprocess
    import sys

    code = (
        "import sys, jsfree.config, jsfree.schemas, jsfree.run.run, jsfree.miniworld.world;"
        "import jsfree.exchange, jsfree.stages.pair_selection;"
        "print([name for name in ('torch', 'transformers', 'open_clip', 'deepspeed', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
