"""The rules of the house that ruff and pyright cannot hold.

A rule is given the root of a repository and returns one sentence for each place that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

Rule = Callable[[Path], list[str]]

PACKAGE = "amortized"
MAX_FILE = 400
MAX_FUNCTION = 50
MAX_PARAMETERS = 6

# A module may import from lower layers and from its own folder. `plots` knows numpy and matplotlib
# only; the package's own `__init__` and `__main__` are on top and imported by nobody.
LAYERS = [
    {"errors", "plots"},
    {"estimators", "objectives"},
    {"programs", "sites"},
    {"surrogate", "breakdown"},
    {"description", "estimate"},
    {"samples_as_data"},
    {"loss"},
    {"checks"},
    {"compare"},
    {"fit"},
    {"compare/training", "compare/selection"},
    {"cli"},
    {"__init__", "__main__"},
]
PLOTS_MAY_IMPORT = {"__future__", "collections", "math", "typing", "matplotlib", "numpy", PACKAGE}

# Modules whose test is not at the mirrored path, each with the reason.
NO_MIRROR = {
    "__init__.py": "re-exports only",
    "__main__.py": "one call, run by tests/test_cli.py",
}

# Folders of the machine that somebody worked on, at the start of a path.
FOLDERS = ("work", "tmp", "root", "home", "opt", "farm")
MACHINE_PATH = re.compile(rf"(?<![\w.])/({'|'.join(FOLDERS)})/(?!\{{)")
NOT_OURS = re.compile(
    r"\.git|\.venv.*|\.\w+_cache|\.hypothesis|__pycache__|_build|build|dist|runs|.*\.egg-info"
)


def sources(root: Path) -> dict[Path, str]:
    """Every Python file of the package with its text, paths relative to the root."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {f.relative_to(root): f.read_text(encoding="utf-8") for f in files}


def trees(root: Path) -> dict[Path, ast.Module]:
    """Every Python file of the package, parsed."""
    return {path: ast.parse(text) for path, text in sources(root).items()}


def room(path: Path) -> str:
    """The folder or top-level file of the package that a module lives in: 'fit', 'loss'.

    A folder inside of a folder is a room of its own where it has a layer of its own.
    """
    inner = "/".join(path.parts[1:3])
    return inner if any(inner in names for names in LAYERS) else path.parts[1].removesuffix(".py")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that are imported, `from a import b` as 'a.b', with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = "." * node.level + (node.module or "")
            yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)


def lazy_imports(tree: ast.Module) -> set[int]:
    """Lines of the imports that stand inside a function."""
    return {
        node.lineno
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def module_file(root: Path, dotted: str) -> Path | None:
    """The file of the package that an imported name comes from; None for other packages."""
    parts = dotted.split(".")
    if parts[0] != PACKAGE:
        return None
    while parts:
        base = Path(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if (root / path).is_file():
                return path
        parts.pop()
    return None


def edges(root: Path) -> Iterator[tuple[Path, Path, int, bool]]:
    """Who imports whom inside the package: (importer, imported, line, inside a function)."""
    for path, tree in trees(root).items():
        lazy = lazy_imports(tree)
        for dotted, line in imports_of(tree):
            target = module_file(root, dotted)
            if target is not None and target != path:
                yield path, target, line, line in lazy


def layers(root: Path) -> list[str]:
    """Imports go down: errors <- estimators, objectives <- programs <- ... <- cli."""
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    complaints = [f"{p}: {room(p)!r} has no layer" for p in sources(root) if room(p) not in height]
    if complaints:
        return complaints
    for path, target, line, lazy in edges(root):
        above, below = room(path), room(target)
        if above != below and height[below] >= height[above]:
            complaints.append(f"{path}:{line}: {above} may not import {below}")
        if below == "plots" and not lazy:
            complaints.append(f"{path}:{line}: plots is imported at module level (it is slow)")
    return complaints


def absolute_imports(root: Path) -> list[str]:
    """No relative imports: the other rules read absolute names."""
    return [
        f"{path}:{line}: relative import {dotted}"
        for path, tree in trees(root).items()
        for dotted, line in imports_of(tree)
        if dotted.startswith(".")
    ]


def plots_are_plain(root: Path) -> list[str]:
    """`plots.py` knows arrays and axes, nothing of the package but its errors."""
    complaints = []
    for path, tree in trees(root).items():
        if room(path) == "plots":
            for dotted, line in imports_of(tree):
                ours = dotted.startswith(f"{PACKAGE}.") and not dotted.startswith(
                    f"{PACKAGE}.errors"
                )
                if ours or dotted.split(".")[0] not in PLOTS_MAY_IMPORT:
                    complaints.append(f"{path}:{line}: plots imports {dotted}")
    return complaints


def no_cycles(root: Path) -> list[str]:
    """No file imports itself through others, counting imports at module level."""
    graph: dict[Path, set[Path]] = {}
    for path, target, _, lazy in edges(root):
        if not lazy:
            graph.setdefault(path, set()).add(target)

    def reaches(start: Path) -> bool:
        seen: set[Path] = set()
        todo = list(graph.get(start, ()))
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo.extend(graph.get(here, ()))
        return start in seen

    return [f"{path}: is part of an import cycle" for path in graph if reaches(path)]


def poutine_in_programs(root: Path) -> list[str]:
    """Only programs/ touches Pyro's handlers."""
    complaints = []
    for path, tree in trees(root).items():
        if room(path) == "programs":
            continue
        lines = {line for dotted, line in imports_of(tree) if "poutine" in dotted.split(".")}
        lines |= {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == "poutine"
        }
        complaints += [f"{path}:{line}: pyro.poutine outside programs/" for line in sorted(lines)]
    return complaints


def names_kept_apart(root: Path) -> list[str]:
    """No objective is named in estimators/, no estimator in objectives/ (docstrings may)."""
    complaints = []
    for folder, other in (("estimators", "objectives"), ("objectives", "estimators")):
        theirs = {
            node.name
            for path, tree in trees(root).items()
            if room(path) == other
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        for path, tree in trees(root).items():
            if room(path) == folder:
                for name, line in identifiers(tree):
                    if name in theirs:
                        complaints.append(f"{path}:{line}: names {name} of {other}/")
    return complaints


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that code (not text) mentions, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.lineno) for alias in node.names)


def small_files(root: Path) -> list[str]:
    """At most 400 lines a file."""
    return [
        f"{path}: {text.count(chr(10))} lines (at most {MAX_FILE})"
        for path, text in sources(root).items()
        if text.count("\n") > MAX_FILE
    ]


def small_functions(root: Path) -> list[str]:
    """At most 50 lines a function, its docstring not counted."""
    complaints = []
    for path, tree in trees(root).items():
        for node in functions(tree):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            size = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if size > MAX_FUNCTION:
                complaints.append(f"{path}:{node.lineno}: {node.name} has {size} lines")
    return complaints


def few_parameters(root: Path) -> list[str]:
    """At most 6 parameters that may be given by position, self and cls not counted."""
    complaints = []
    for path, tree in trees(root).items():
        for node in functions(tree):
            names = [a.arg for a in node.args.posonlyargs + node.args.args]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MAX_PARAMETERS:
                complaints.append(f"{path}:{node.lineno}: {node.name} has {count} parameters")
    return complaints


def no_asserts(root: Path) -> list[str]:
    """Errors are typed and have a sentence; an assert vanishes under -O."""
    return [
        f"{path}:{node.lineno}: assert"
        for path, tree in trees(root).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]


def no_hasattr(root: Path) -> list[str]:
    """No dispatch on what an object happens to have."""
    return [
        f"{path}:{node.lineno}: hasattr"
        for path, tree in trees(root).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "hasattr"
    ]


def lazy_imports_explained(root: Path) -> list[str]:
    """An import inside a function has a comment beside or above it that says why."""
    complaints = []
    for path, text in sources(root).items():
        lines = text.splitlines()
        for number in sorted(lazy_imports(ast.parse(text))):
            if "#" not in lines[number - 1] and not lines[number - 2].lstrip().startswith("#"):
                complaints.append(f"{path}:{number}: import inside a function without a reason")
    return complaints


MUTABLE = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
MUTABLE_CALLS = {"dict", "list", "set", "defaultdict", "OrderedDict", "deque", "Counter"}


def no_mutable_globals(root: Path) -> list[str]:
    """Module-level containers are constants (UPPER_CASE or Final), and nothing says `global`."""
    complaints = []
    for path, tree in trees(root).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                complaints.append(f"{path}:{node.lineno}: global {', '.join(node.names)}")
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                final = isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation)
                for name in (t.id for t in targets if isinstance(t, ast.Name)):
                    if not (final or name.strip("_").isupper() or name == "__all__"):
                        complaints.append(f"{path}:{node.lineno}: mutable global {name}")
    return complaints


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in MUTABLE_CALLS
    return isinstance(value, MUTABLE)


def importing_changes_nothing(root: Path) -> list[str]:
    """No call for its effect at module level, except on an object that the module made."""
    complaints = []
    for path, tree in trees(root).items():
        if path.name == "__main__.py":
            continue
        made = {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        for node in tree.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                owner = next(n.id for n in ast.walk(node.value.func) if isinstance(n, ast.Name))
                if owner not in made:
                    complaints.append(f"{path}:{node.lineno}: call at import: {ast.unparse(node)}")
    return complaints


def abstract_or_final(root: Path) -> list[str]:
    """A class is abstract (never made) or final (never subclassed); errors may have children."""
    classes = {
        node.name: (path, node)
        for path, tree in trees(root).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    complaints = []
    for path, node in classes.values():
        for base in (ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases):
            if base in classes and room(path) != "errors" and not _is_abstract(classes[base][1]):
                complaints.append(
                    f"{path}:{node.lineno}: {node.name} extends {base}, a final class"
                )
    return complaints


def _is_abstract(node: ast.ClassDef) -> bool:
    return any(
        name in {"ABC", "ABCMeta", "Protocol", "abstractmethod"} for name, _ in identifiers(node)
    )


def no_machine_paths(root: Path) -> list[str]:
    """Nothing in the repository speaks of the machine that it was written on."""
    complaints = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if not path.is_file() or any(NOT_OURS.fullmatch(part) for part in relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                complaints.append(f"{relative}:{number}: {line.strip()[:80]}")
    return complaints


def tests_mirror(root: Path) -> list[str]:
    """amortized/x/y.py is tested by tests/x/test_y.py."""
    complaints = []
    for path in sources(root):
        if path.name in NO_MIRROR or str(path.relative_to(PACKAGE)) in NO_MIRROR:
            continue
        test = Path("tests", *path.parts[1:-1], f"test_{path.name}")
        if not (root / test).is_file():
            complaints.append(f"{path}: no {test}")
    return complaints


RULES: list[Rule] = [
    layers,
    absolute_imports,
    plots_are_plain,
    no_cycles,
    poutine_in_programs,
    names_kept_apart,
    small_files,
    small_functions,
    few_parameters,
    no_asserts,
    no_hasattr,
    lazy_imports_explained,
    no_mutable_globals,
    importing_changes_nothing,
    abstract_or_final,
    no_machine_paths,
    tests_mirror,
]
