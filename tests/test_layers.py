"""The layering of docs/architecture.md, held by reading the imports; and what importing the package may pull in."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kinograph"
LEVELS = {
    "config": 0,
    "requests": 0,
    "errors": 0,
    "media": 1,
    "recipe": 1,
    "ops": 1,
    "sampling": 1,
    "models": 2,
    "checkpoints": 3,
    "runtime": 3,
    "tasks": 4,
    "preprocess": 4,
    "pipeline": 5,
    "training": 5,
    "cli": 6,
}


def place(module: str) -> str:
    """The first name below the package: the folder or file that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_name(path: Path) -> str:
    return "kinograph." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(path).rstrip(".") for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}  # `from package import module`
            found |= (deeper & MODULES) | ({node.module} if deeper - MODULES else set())
    return {name for name in found if name.split(".")[0] == "kinograph"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return
    for module in imports(path):
        other = place(module)
        if other in (own, ""):  # "" is the package itself: its version and its lazy public names
            continue
        assert other in LEVELS, f"{path.name} imports {module}, which is in no layer"
        higher = LEVELS[other] > LEVELS[own]
        peer_folder = LEVELS[other] == LEVELS[own] and LEVELS[own] in (4, 5) and own != "training"
        assert not higher and not peer_folder, f"{own} (layer {LEVELS[own]}) imports {module} (layer {LEVELS[other]})"


def test_there_is_no_import_cycle() -> None:
    graph = {module_name(path): imports(path) for path in PACKAGE.rglob("*.py")}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        if name in done or name not in graph:
            return
        assert name not in visiting, f"import cycle: {' -> '.join([*visiting, name])}"
        visiting.append(name)
        for other in graph[name]:
            visit(other)
        done.add(visiting.pop())

    for name in graph:
        visit(name)


def test_importing_the_package_is_light() -> None:
    script = "import sys, kinograph, kinograph.cli.main; print([m for m in ('torch', 'triton', 'av', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_pipeline_needs_no_cuda_and_no_extra() -> None:
    script = (
        "import sys, kinograph.pipeline, torch; "
        "assert not torch.cuda.is_initialized(); "
        "print([m for m in ('triton', 'transformers', 'diffusers', 'gguf', 'modelscope') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
