"""Draws docs/_static/architecture.svg from the imports of the code, and measures the code.

    python docs/architecture.py
    python docs/architecture.py --table [CHECKOUT ...]

The picture has a box for each folder, as many floors high as the longest chain of imports below it.
An arrow says that one imports the other, where that does not follow from other arrows. Imports
inside of functions and for types only count as any other.

The table has a column for each checkout of this repository, else one for this. What a sample calls
is counted in functions of the pipeline, while ``process`` takes one that is not the first.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "_static" / "architecture.svg"
PACKAGES = {"streamflow": "streamflow", "streamflow_connectors": "connectors/streamflow_connectors"}
PIPELINE = "streamflow.pipeline"
LONG = 400
"""A file of more lines is usually two ideas."""

Edges = Mapping[str, set[str]]


@dataclass(frozen=True)
class Import:
    """An import statement, or one name of it.

    Attributes:
        source: The module that imports.
        target: The module that is imported; a name of a module stands for the module.
        line: Where.
        is_late: Whether it is inside of a function, or for types only.
    """

    source: str
    target: str
    line: int
    is_late: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def read_modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the files of both packages by the names of their modules."""
    return {
        ".".join((package, *path.relative_to(root / folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for package, folder in PACKAGES.items()
        for path in sorted((root / folder).rglob("*.py"))
    }


def read_imports(modules: Mapping[str, Path]) -> list[Import]:
    """Return all imports of modules, those of other packages, too."""
    return [
        found
        for name, path in modules.items()
        for found in _imports(name, ast.parse(path.read_text(encoding="utf-8")), modules)
    ]


def _imports(
    source: str, node: ast.AST, modules: Mapping[str, Path], *, is_late: bool = False
) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(source, alias.name, node.lineno, is_late) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield Import(source, whole if whole in modules else node.module, node.lineno, is_late)
    is_late |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    is_late |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        yield from _imports(source, child, modules, is_late=is_late)


def edges_between(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return what each of the names points to among the others."""
    edges: dict[str, set[str]] = {name: set() for name in names}
    for source, target in pairs:
        if source != target and source in edges and target in edges:
            edges[source].add(target)
    return edges


def reached(edges: Edges) -> dict[str, set[str]]:
    """Return what each name leads to over any number of edges."""
    found = {}
    for name in edges:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        found[name] = seen
    return found


def circles(edges: Edges) -> list[list[str]]:
    """Return the groups whose members lead to each other."""
    leads = reached(edges)
    groups = {frozenset(m for m in leads[name] if name in leads[m]) for name in edges}
    return sorted(sorted(group) for group in groups if group)


def floors(edges: Edges) -> dict[str, int]:
    """Return how many edges the longest chain below each name has; a circle counts as one name."""
    leads = reached(edges)

    @cache
    def floor(name: str) -> int:
        below = [other for other in leads[name] if name not in leads[other]]
        return 1 + max(map(floor, below), default=-1)

    return {name: floor(name) for name in edges}


def room(module: str) -> str:
    """Return the folder of a module, or the module where it lies beside the folders."""
    return ".".join(module.split(".")[: 3 if module.startswith(f"{PIPELINE}.") else 2])


# ----------------------------------------------------------------------------------- the picture

BESIDE = f"{PIPELINE}/*.py"
"""A box for the files beside the folders of the pipeline, but for that which uses them all."""

ENTRY = {f"{PIPELINE}.{name}" for name in ("admission", "checks", "saving")}
"""Those of them that know stages, in a box of their own."""

WIDTH, HEIGHT, ASIDE, GAP = 118, 46, 26, 34
STYLE = """\
text{font:600 13px system-ui,sans-serif;fill:#24292f;text-anchor:middle}
.small{font-weight:400;font-size:11px;fill:#57606a}
.wing{fill:#f6f8fa;stroke:#d0d7de}.head{font-size:15px;text-anchor:end;paint-order:stroke;stroke:#f6f8fa;stroke-width:5}
.box{stroke-width:1.5}
.connectors{fill:#dafbe1;stroke:#1a7f37}.dataflow{fill:#ddf4ff;stroke:#0969da}
.pipeline{fill:#fff8c5;stroke:#9a6700}
.line{fill:none;stroke:#57606a;stroke-width:1.3}.tip{fill:#57606a}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.small{fill:#9ea7b3}.wing{fill:#161b22;stroke:#30363d}.head{stroke:#161b22}
.connectors{fill:#0f2d1a;stroke:#3fb950}.dataflow{fill:#0c2d4d;stroke:#58a6ff}
.pipeline{fill:#3a2d0c;stroke:#d29922}
.line{stroke:#9ea7b3}.tip{fill:#9ea7b3}}
"""
WINGS = {
    "streamflow_connectors": "connectors",
    "streamflow": "dataflow",
    PIPELINE: "pipeline",
}
"""The parts of the house from left to right, and the style of their boxes."""


def box(module: str, folders: set[str]) -> str:
    """Return the box that a module is drawn in."""
    if module == PIPELINE:  # it hands on this one
        return f"{PIPELINE}.pipeline"
    place = room(module)
    is_beside = wing(place) == PIPELINE and place not in folders | {f"{PIPELINE}.pipeline"}
    if is_beside:
        return f"{PIPELINE}/entry" if module in ENTRY else BESIDE
    return place.replace("__main__", "cli")


def is_face(path: Path) -> bool:
    """Say whether a package's own file does nothing but hand names on."""
    if path.name != "__init__.py":
        return False
    handing_on = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr | ast.If
    return all(
        isinstance(node, handing_on)
        or (isinstance(node, ast.FunctionDef) and node.name in {"__getattr__", "__dir__"})
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def wing(place: str) -> str:
    """Return the part of the house that a box is in."""
    return PIPELINE if place.startswith(PIPELINE) else place.split(".")[0]


def needed(edges: Edges) -> dict[str, list[str]]:
    """Return the edges that do not follow from others."""
    leads = reached(edges)
    return {
        name: sorted(
            other for other in targets if not any(other in leads[between] for between in targets)
        )
        for name, targets in edges.items()
    }


def columns(arrows: Mapping[str, list[str]], levels: Mapping[str, int]) -> dict[str, int]:
    """Return a column for each box, floor by floor as near as can be to the boxes it points to."""
    found: dict[str, int] = {}
    end = 0
    for part in WINGS:
        names = [name for name in levels if wing(name) == part]
        widest = max(Counter(levels[name] for name in names).values())
        free, end = range(end, end + widest), end + widest
        for level in sorted({levels[name] for name in names}):
            row = sorted(name for name in names if levels[name] == level)
            wanted = [
                statistics.mean([found.get(other, end) for other in arrows[name]] or [free.start])
                for name in row
            ]
            places = min(
                permutations(free, len(row)),
                key=lambda places: sum((a - b) ** 2 for a, b in zip(places, wanted, strict=True)),
            )
            found |= dict(zip(row, places, strict=True))
    return found


def spread(x: float, index: int, count: int) -> float:
    """Return where the arrows of one side of a box end."""
    return x + (index - (count - 1) / 2) * min(14, (WIDTH - 20) / count)


def picture(root: Path = ROOT) -> str:
    """Return the drawing of a checkout.

    Raises:
        ValueError: Folders import each other in a circle.
    """
    modules = {name: path for name, path in read_modules(root).items() if name not in PACKAGES}
    folders = {room(name) for name, path in modules.items() if path.name == "__init__.py"}
    files: dict[str, list[Path]] = {}
    for name, path in modules.items():
        if name != PIPELINE:
            files.setdefault(box(name, folders), []).append(path)
    faces = {name for name, path in modules.items() if is_face(path) and name != PIPELINE}
    pairs = [
        (one.source, one.target)
        for one in read_imports(modules)
        if one.target in modules and one.source not in faces
    ]
    edges = edges_between(files, [(box(a, folders), box(b, folders)) for a, b in pairs])
    if rings := circles(edges):
        message = f"folders: expected no circle of imports, got {rings}; see tests/test_layers.py"
        raise ValueError(message)
    arrows, levels = needed(edges), floors(edges)
    place = columns(arrows, levels)
    top = max(levels.values())
    left = {
        name: 20 + place[name] * (WIDTH + ASIDE) + 24 * list(WINGS).index(wing(name))
        for name in files
    }
    above = {name: 40 + (top - levels[name]) * (HEIGHT + GAP) for name in files}
    lines = [
        *head(left, above),
        *arrow_lines(arrows, levels, left, above),
        *names_of_wings(left, above),
        *boxes(files, left, above),
        "</svg>\n",
    ]
    return "\n".join(lines)


def arrow_lines(
    arrows: Mapping[str, list[str]],
    levels: Mapping[str, int],
    left: Mapping[str, int],
    above: Mapping[str, int],
) -> Iterator[str]:
    """Yield the arrows, those over several floors beside the columns instead of behind boxes."""
    used = Counter[int]()
    lanes: dict[tuple[str, str], int] = {}
    for name, other in sorted((a, b) for a, targets in arrows.items() for b in targets):
        if levels[name] - levels[other] > 1:
            lane = left[other] + 5 + (WIDTH if left[name] >= left[other] else -ASIDE)
            lanes[name, other] = lane + 4 * used[lane] % (ASIDE - 6)
            used[lane] += 1
    for name, targets in arrows.items():
        ordered = sorted(targets, key=lambda other: lanes.get((name, other), left[other] + GAP))
        for index, other in enumerate(ordered):
            ends = sorted((each for each in arrows if other in arrows[each]), key=left.__getitem__)
            x = spread(left[name] + WIDTH / 2, index, len(targets))
            end = spread(left[other] + WIDTH / 2, ends.index(name), len(ends))
            y, stop = above[name] + HEIGHT, above[other] - 2
            path = f"M{x:.0f} {y}"
            if (name, other) in lanes:
                lane = lanes[name, other]
                path += f"C{x:.0f} {y + GAP} {lane} {y} {lane} {y + GAP}V{stop - GAP + 2}"
                x, y = lane, stop - GAP + 2
            path += f"C{x:.0f} {y + GAP / 2:.0f} {end:.0f} {stop - GAP / 2:.0f} {end:.0f} {stop}"
            yield f'<path class="line" marker-end="url(#tip)" d="{path}"/>'


def head(left: Mapping[str, int], above: Mapping[str, int]) -> Iterator[str]:
    """Yield what comes first: a description, styles, and a panel for each wing."""
    width, height = size_of(left, above)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'role="img" aria-labelledby="t d">'
    )
    yield '<title id="t">The folders of streamflow and what they import</title>'
    yield '<desc id="d">An arrow points to what is imported; all arrows point down.</desc>'
    yield f"<style>\n{STYLE}</style>"
    yield (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    for _, x, y, right, bottom in panels(left, above):
        size = f'width="{right - x}" height="{bottom - y}"'
        yield f'<rect class="wing" x="{x}" y="{y}" {size} rx="10"/>'


def panels(
    left: Mapping[str, int], above: Mapping[str, int]
) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield what surrounds the boxes of each wing: left, upper, right and lower end."""
    for part in WINGS:
        names = [name for name in left if wing(name) == part]
        x, y = min(left[name] for name in names), min(above[name] for name in names)
        right, bottom = max(left[name] for name in names), max(above[name] for name in names)
        yield part, x - 12, y - 30, right + WIDTH + 12, bottom + HEIGHT + 12


def names_of_wings(left: Mapping[str, int], above: Mapping[str, int]) -> Iterator[str]:
    """Yield the name of each wing, and what the arrows mean."""
    for part, _, y, right, _ in panels(left, above):
        yield f'<text class="head" x="{right - 10}" y="{y + 20}">{part}</text>'
    width, height = size_of(left, above)
    yield (
        f'<text class="small" x="{width // 2}" y="{height - 8}">An arrow points to what is '
        "imported; one that follows from others is left out.</text>"
    )


def size_of(left: Mapping[str, int], above: Mapping[str, int]) -> tuple[int, int]:
    """Return width and height of the picture."""
    return max(left.values()) + WIDTH + 20, max(above.values()) + HEIGHT + 40


def boxes(
    files: Mapping[str, list[Path]], left: Mapping[str, int], above: Mapping[str, int]
) -> Iterator[str]:
    """Yield the boxes with their names, and how many files and about how many lines they hold."""
    for name, paths in files.items():
        x, y, middle = left[name], above[name], left[name] + WIDTH // 2
        hundreds = round(sum(map(num_lines, paths)) / 100) or 1  # so that few changes redraw it
        lines = f"{hundreds * 100:,} lines"
        size = lines if len(paths) == 1 else f"{len(paths)} files, {lines}"
        told = ", ".join(path.stem for path in paths if path.stem != "__init__")
        label = {BESIDE: "*.py", f"{PIPELINE}/entry": "admission …"}.get(
            name, name.rpartition(".")[2]
        )
        yield (
            f'<g><title>{told}</title><rect class="box {WINGS[wing(name)]}" x="{x}" y="{y}" '
            f'width="{WIDTH}" height="{HEIGHT}" rx="6"/><text x="{middle}" y="{y + 20}">{label}'
            f'</text><text class="small" x="{middle}" y="{y + 36}">{size}</text></g>'
        )


# ------------------------------------------------------------------------------------- the table


def source_files(root: Path) -> list[Path]:
    """Return what is counted as source."""
    return [
        path
        for folder in PACKAGES.values()
        for suffix in ("py", "cpp")
        for path in sorted((root / folder).rglob(f"*.{suffix}"))
    ]


def num_lines(path: Path) -> int:
    """Count all lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def long_files(root: Path = ROOT) -> set[str]:
    """Return the files of more than 400 lines, relative to the root."""
    return {
        path.relative_to(root).as_posix() for path in source_files(root) if num_lines(path) > LONG
    }


def pipeline_floors(modules: Mapping[str, Path], *, by_room: bool) -> int:
    """Count the rooms, or the files, of the longest chain of imports in the pipeline."""
    place = room if by_room else str
    inside = [name for name in modules if name.startswith(f"{PIPELINE}.")]
    pairs = [(place(one.source), place(one.target)) for one in read_imports(modules)]
    return 1 + max(floors(edges_between(map(place, inside), pairs)).values())


def comment_rate(paths: Iterable[Path]) -> float:
    """Return comments per 100 lines."""
    count = lines = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            count += token.type == tokenize.COMMENT
    return 100 * count / lines


def raising(tree: ast.Module | ast.ClassDef) -> Iterator[bool]:
    """Yield for each public function that raises an error of its own whether it says so."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from raising(node)
        elif any(map(_raises, node.body)):
            yield "Raises:" in (ast.get_docstring(node) or "")


def _raises(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise):  # but for what others must fill in
        return node.exc is not None and ast.unparse(node.exc) != "NotImplementedError"
    is_other = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
    return not is_other and any(map(_raises, ast.iter_child_nodes(node)))


def private_names(tree: ast.Module) -> set[str]:
    """Return the names behind ``torch`` of which a part begins with one underscore."""
    names, known = set(), {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("torch."):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            known |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("torch.")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names |= {name} if (name := ast.unparse(node)).split(".")[0] in known else set()
    return {name for name in names if re.fullmatch(r"[\w.]+", name) and re.search(r"\._[^_]", name)}


SAMPLE = """
import json, sys
from pathlib import Path
import torch
from torch.nn import Linear, Sequential, Tanh, functional
from streamflow.pipeline import Pipeline, pipeline as module

FOLDER = str(Path(module.__file__).parent)
cuts = json.loads(sys.argv[1])
options = {"stages": cuts, "executor": "inline"} if cuts else {}
net = Sequential(Linear(8, 8), Tanh(), Linear(8, 1))
pipeline = Pipeline(net, loss=functional.mse_loss, optimizer=torch.optim.SGD, **options)
x, y = torch.zeros(1, 8), torch.zeros(1, 1)
for _ in range(3):
    pipeline.process(x, y)
frames, files, depths = [], [], []

def note(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call":
        frames.append(name.startswith(FOLDER))
        if frames[-1]:
            files.append(name)
            depths.append(sum(frames))
    elif event == "return" and frames:
        frames.pop()

sys.setprofile(note)
pipeline.process(x, y)
sys.setprofile(None)
changes = sum(a != b for a, b in zip(files, files[1:]))
print(len(files), "/", len(set(files)), "/", changes, "/", max(depths))
"""


def sample_calls(root: Path, *cuts: str) -> str:
    """Return calls, files, changes of file and depth of a sample that is learned eagerly."""
    return subprocess.run(
        [sys.executable, "-c", SAMPLE, json.dumps(cuts)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def measured(root: Path) -> dict[str, Any]:
    """Return the figures of a checkout."""
    modules = read_modules(root)
    imports = read_imports(modules)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules.values()]
    rings = circles(edges_between(modules, [(one.source, one.target) for one in imports]))
    largest = max(map(len, rings), default=0)
    says_so = [answer for tree in trees for answer in raising(tree)]
    long = sorted(Path(name).name for name in long_files(root))
    return {
        "circles of imports": f"{len(rings)}, the largest of {largest} files" if rings else 0,
        "floors of the pipeline: rooms": pipeline_floors(modules, by_room=True),
        "floors of the pipeline: files": pipeline_floors(modules, by_room=False),
        "one sample, eager: calls / files / changes of file / depth": sample_calls(root),
        "two stages inline: the same": sample_calls(root, "2"),
        "files with private names of torch": sum(bool(private_names(tree)) for tree in trees),
        f"files over {LONG} lines": f"{len(long)}: {', '.join(long)}",
        "comments per 100 lines": f"{comment_rate(modules.values()):.1f}",
        "public functions that raise and say so": f"{sum(says_so)} of {len(says_so)}",
        "lines of source": sum(map(num_lines, source_files(root))),
    }


def print_table(roots: list[Path]) -> None:
    """Print the figures of checkouts side by side."""
    columns = [measured(root) for root in roots]
    print("| |", " | ".join(root.name for root in roots), "|")
    print("|---" * (len(roots) + 1) + "|")
    for figure in columns[0]:
        print(f"| {figure} |", " | ".join(str(column[figure]) for column in columns), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", nargs="*", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args()
    if arguments.table is None:
        PICTURE.write_text(picture(), encoding="utf-8")
    else:
        print_table([path.resolve() for path in arguments.table] or [ROOT])
