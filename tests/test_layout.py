"""The layout of the repository: imports point one way, no file or function is too long, and the
code that serves all tasks names none."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

from tasks import TASKS

PROGRAM = [
    path
    for folder in (".", "engine", "toy", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
]
ALL = [*PROGRAM, *sorted((ROOT / "tests").glob("*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PROGRAM}


def imports(path: Path, inside_functions: bool = False) -> set[str]:
    """Our own modules that a file imports, at its top level or anywhere."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & MODULES.keys()


def test_imports_form_no_circle():
    finished = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module in finished:
            return
        for other in sorted(imports(MODULES[module], inside_functions=True)):
            is_main_to_tools = other.startswith("tools.") and not module.startswith("tools.")
            if not is_main_to_tools:  # a main() may start a program of tools/
                visit(other, (*path, module))
        finished.add(module)

    for module in MODULES:
        visit(module, ())
    assert finished == set(MODULES)


@pytest.mark.parametrize("path", sorted((ROOT / "engine").glob("*.py")), ids=lambda path: path.name)
def test_the_engine_knows_no_task_and_no_scenario(path):
    assert not imports(path, True) & {"tasks", "scenarios", "train", "evaluate", "graphs"}


def test_only_functions_import_from_tools():
    for module, path in MODULES.items():
        if not module.startswith("tools"):
            assert not any(name.startswith("tools") for name in imports(path)), module


@pytest.mark.parametrize(
    "file",
    "train.py evaluate.py scenarios.py graphs.py model.py batches.py weighting.py".split()
    + [f"engine/{path.name}" for path in sorted((ROOT / "engine").glob("*.py"))],
)
def test_no_task_is_named_in_code_that_serves_all(file):
    code = re.sub(r'""".*?"""', "", (ROOT / file).read_text(), flags=re.S)
    named = [name for name in TASKS if re.search(rf"""(["']){name}\1""", code)]
    assert named == []


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_no_line_is_longer_than_100_characters_and_no_function_than_60_lines(path):
    text = path.read_text()
    wide = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 100]
    assert wide == [], f"{path.name}: lines {wide}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_every_public_function_and_class_has_a_docstring():
    for path in PROGRAM:
        for node in ast.parse(path.read_text()).body:
            members = node.body if isinstance(node, ast.ClassDef) else []
            for part in [node, *members]:
                if isinstance(part, ast.FunctionDef | ast.ClassDef):
                    private = part.name.startswith("_")
                    obvious = part.name in ("main", "forward", "backward", "write")
                    assert private or obvious or ast.get_docstring(part), f"{path}: {part.name}"


def test_every_file_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in PROGRAM:
        folder = path.parent.name if path.parent != ROOT else ""
        listed = re.search(rf"^{folder}/.*?^(?:\S|```)", readme, re.M | re.S) if folder else None
        text = listed[0] if listed else readme
        assert path.name == "__init__.py" or path.name in text, path
