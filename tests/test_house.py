"""The house rules: four floors, imports go down and never in a circle, Ray in few rooms, and a command line that starts at once."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
FLOORS = ("czsl", "methods", "cluster", "czsl_cli")  # from the ground up
MODULES = {
    path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for f in FLOORS for path in sorted((ROOT / f).rglob("*.py"))
}
# Where Ray may be imported: how machines are reached, the search, and the one job that Ray Data distributes.
RAY = ("cluster.machines.", "cluster.tuning.", "cluster.predict")
WRITERS = ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write")
ROOMS = ("cluster.work", "cluster.machines", "cluster.tuning")


def imports(path, typing=True):
    """Every module a file imports, at any depth of the code, as dotted names; without ``typing`` not what only annotations need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            only_types |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in only_types and not typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=MODULES.values())
def test_imports_go_down_and_ray_stays_on_its_floor(path):
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in {"tests", "examples"}, name
        if top in FLOORS:
            assert FLOORS.index(top) <= floor, f"{name} lies above"
        assert top != "ray" or MODULES[path].startswith(RAY), name


@pytest.mark.parametrize("path", [p for p, m in MODULES.items() if m.startswith(ROOMS)], ids=str)
def test_rooms_of_the_cluster_do_not_look_up(path):
    """What one worker does knows no machine; machines know no search and no job."""
    room = next(i for i, r in enumerate(ROOMS) if MODULES[path].startswith(r))
    jobs = {m for m in MODULES.values() if m.startswith("cluster.") and not m.startswith(ROOMS)}
    for name in imports(path):
        assert not name.startswith(ROOMS[room + 1 :]), f"{name} lies above"
        assert room == 2 or name not in jobs, f"{name} lies above"  # the search starts trainings, which are jobs


def test_no_module_imports_itself_by_a_detour():
    known = set(MODULES.values())
    arrows = {}
    for path, module in MODULES.items():
        arrows[module] = {name for name in imports(path, typing=False) if name in known and name != module}
    done, way = set(), []

    def visit(module):
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        way.append(module)
        for name in sorted(arrows[module]):
            visit(name)
        way.pop()
        done.add(module)

    for module in sorted(known):
        visit(module)


def method_of(parts):
    """The method a module of `methods/` belongs to; None for what all share."""
    from methods.registry import METHODS

    homes = {target.split(":")[0].split(".")[1] for target in METHODS.values()}
    return parts[1] if parts[0] == "methods" and len(parts) > 1 and parts[1] in homes else None


@pytest.mark.parametrize("path", [p for p, m in MODULES.items() if m.startswith("methods.")], ids=str)
def test_no_method_imports_another_and_shared_parts_import_none(path):
    own = method_of(path.relative_to(ROOT).with_suffix("").parts)
    for name in imports(path):
        assert method_of(name.split(".")) in {None, own}, name


@pytest.mark.parametrize("path", MODULES, ids=MODULES.values())
def test_nothing_is_unpickled_or_evaluated(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {n.split(".")[0] for n in imports(path)} & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in {"eval", "exec", "yaml.load", "os.system"}, called
        assert not called.startswith("pickle."), called
        assert keywords.get("shell") != "True", called
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"
        if called == "np.load":
            assert keywords.get("allow_pickle") == "False"


def loaded(code):
    """Top-level packages in a fresh interpreter after some code."""
    script = f"{code}\nimport sys; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stdout.split())


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom czsl_cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code"
    shown, modules = loaded(code)
    assert "Usage: czsl" in shown
    heavy = {
        "torch",
        "ray",
        "numpy",
        "pandas",
        "pyarrow",
        "PIL",
        "yaml",
        "rich",
        "open_clip",
        "torchvision",
        "scipy",
        "safetensors",
    }
    assert not modules & heavy
    assert {"click", "czsl_cli"} <= modules  # the question was a fair one


def test_no_command_needs_torch_for_its_help():
    from czsl_cli.main import COMMANDS

    code = "\n".join(f"import {module}" for module, _ in COMMANDS.values())
    _, modules = loaded(code)
    assert not modules & {"torch", "ray", "open_clip"}


def test_only_the_four_floors_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    found = find_packages(str(ROOT), include=include)
    assert {name.split(".")[0] for name in found} == set(FLOORS)
    # Every folder that holds a module is a package, so that it is installed.
    assert set(found) == {".".join(p.parent.relative_to(ROOT).parts) for p in MODULES}
    assert project["tool"]["setuptools"]["py-modules"] == ["czsl_start"]  # it looks where the four come from


def test_the_start_needs_the_standard_library_only():
    assert {name.split(".")[0] for name in imports(ROOT / "czsl_start.py")} - {"czsl_cli"} <= sys.stdlib_module_names


def test_every_module_says_what_it_is_for():
    undocumented = [name for path, name in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not undocumented


def test_the_command_line_writes_in_one_place():
    """Names and messages from outside are escaped in `czsl_cli.console`; nothing else writes to a terminal."""
    for path in (ROOT / "czsl_cli").glob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITERS:
                raise AssertionError(f"{path.name}, line {node.lineno}: print with czsl_cli.console")
