"""Draw the rooms of docs/architecture.md and who imports whom, from the imports of the code.

    python illustration/architecture.py     # -> illustration/architecture.png

The rooms, their purposes and what they may import stand in the table of the page. tests/docs/test_architecture.py
compares both with the code. The picture carries the arrows as text, so that the test sees when it is no longer true.
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
PICTURE = ROOT / "illustration/architecture.png"
ASIDE = ("benchmarks", "tools", "illustration", "tests", ".venv")  # no rooms: they use the rooms

Graph = dict[str, set[str]]  # name -> the names that it imports


class Room(NamedTuple):
    """A row of the page's table. members: top-level files (without suffix) or folders, which import one another's name
    never; name: all of them."""

    name: str
    members: tuple[str, ...]
    purpose: str
    may_import: frozenset[str]


class Import(NamedTuple):
    """One imported module or name. kind: "module", "function" (inside one), or "types" (below TYPE_CHECKING)."""

    target: str
    kind: str


# --- the table of the page ---


def read_rooms(page: str) -> list[Room]:
    """The rooms of the page's table, from top to bottom."""
    rooms = []
    table = page.split("| room |")[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        members, purpose, below = (cell.strip() for cell in line.strip("|").split("|"))
        names = tuple(name.removesuffix(".py") for name in re.findall(r"`([\w.]+)`", members))
        rooms.append(Room(", ".join(names), names, purpose, frozenset(re.findall(r"`(\w+)`", below))))
    return rooms


# --- the imports of the code ---


def own_modules() -> dict[str, Path]:
    """Dotted name -> file, of every room; a package goes by its own name."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).with_suffix("")
        if place.parts[0] not in ASIDE:
            parts = place.parts[:-1] if place.name == "__init__" else place.parts
            modules[".".join(parts)] = path
    return modules


def imports(path: Path) -> Iterator[Import]:
    """All that a file imports: `from a import b` gives a.b, whether b is a module or a name in a."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), "module")


def _imports(node: ast.AST, kind: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, kind) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(f"{child.module}.{alias.name}", kind) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, kind if kind == "types" else "function")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, "types")
        else:
            yield from _imports(child, kind)


def module_graph(modules: Mapping[str, Path], kinds: tuple[str, ...] = ("module", "function")) -> Graph:
    """Who imports whom among own modules. `from package import module` is an import of the module alone."""
    graph: Graph = {}
    for name, path in modules.items():
        targets = (one.target for one in imports(path) if one.kind in kinds)
        found = {target if target in modules else target.rpartition(".")[0] for target in targets}
        graph[name] = {target for target in found if target in modules and target != name}
    return graph


def arrows(rooms: list[Room]) -> list[tuple[str, str]]:
    """(importing room, imported room), without those that follow from others."""
    room_of = {member: room.name for room in rooms for member in room.members}
    graph: Graph = {room.name: set() for room in rooms}
    for source, targets in module_graph(own_modules()).items():
        room = room_of[source.partition(".")[0]]
        graph[room] |= {room_of[target.partition(".")[0]] for target in targets} - {room}
    below = {name: _reachable(graph, name) for name in graph}
    return [
        (source, target)
        for source in graph
        for target in graph
        if target in graph[source] and not any(target in below[other] for other in graph[source] - {target})
    ]


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def as_text(rooms: list[Room]) -> str:
    """The picture in words: a line for each arrow."""
    return "\n".join(f"{source} -> {target}" for source, target in arrows(rooms))


# --- the picture ---

# Row and column of each room, 0 at the top left; an arrow leads to a lower row.
PLACES = {
    "train, test, reproduce": (0, 0), "predict, export, app": (0, 2),
    "inference": (1, 2),
    "report": (2, 0), "engine": (2, 1), "config": (2, 2),
    "metrics": (3, 0), "dataset": (3, 1), "model": (3, 2),
    "data": (4, 1), "prompt_ensemble": (4, 2),
    "utils": (5, 1),
}  # fmt: skip
_SCALE = 2  # drawn larger and reduced, for smooth lines
_BOX, _GUTTER, _GAP, _MARGIN = (300, 84), 56, 72, 28  # pixels: a room, between columns, between rows, around all
_INK, _SOFT, _PAPER = "#1f2933", "#52606d", "#ffffff"
_FILLS = ("#e8eef7", "#e6f4ea", "#fdf3e0", "#f5e9f5", "#e5f3f6", "#f1f1ee")  # of the rows
_LINES = {
    "inference": "#2f6db3", "report": "#a8437a", "engine": "#2f8a57", "config": "#c07a00", "metrics": "#a8437a",
    "dataset": "#2f8a57", "model": "#2f6db3", "data": "#c07a00", "prompt_ensemble": "#2f8a57", "utils": "#52606d",
}  # fmt: skip

Point = tuple[float, float]


def draw(rooms: list[Room]) -> Image.Image:
    """The rooms in rows, and one coloured line for each room from all that import it."""
    rows, columns = (1 + max(place[axis] for place in PLACES.values()) for axis in (0, 1))
    width = 2 * _MARGIN + columns * _BOX[0] + (columns - 1) * _GUTTER
    height = 2 * _MARGIN + rows * _BOX[1] + (rows - 1) * _GAP
    picture = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
    canvas = ImageDraw.Draw(picture)
    links = arrows(rooms)
    for target in dict.fromkeys(target for _, target in links):
        for source in (source for source, other in links if other == target):
            _line(canvas, _path(source, target, links), _LINES[target])
        _head(canvas, _entry(target), _LINES[target])
    for room in rooms:
        _box(canvas, room)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _corner(name: str) -> Point:
    row, column = PLACES[name]
    return _MARGIN + column * (_BOX[0] + _GUTTER), _MARGIN + row * (_BOX[1] + _GAP)


def _entry(name: str) -> Point:
    """Where arrows end: the middle of the upper edge."""
    left, top = _corner(name)
    return left + _BOX[0] / 2, top


def _exit(source: str, target: str, links: list[tuple[str, str]]) -> Point:
    """Where an arrow begins: a place of its own on the lower edge, in the order of the targets' columns."""
    targets = sorted((other for name, other in links if name == source), key=lambda other: PLACES[other][::-1])
    left, top = _corner(source)
    return left + _BOX[0] * (targets.index(target) + 1) / (len(targets) + 1), top + _BOX[1]


def _path(source: str, target: str, links: list[tuple[str, str]]) -> list[Point]:
    """Corners of an arrow: down, along the target's own height in the gap above it, down. Around a room in between."""
    (x, y), (end, bottom) = _exit(source, target, links), _entry(target)
    level = _level(target, links)
    between = [
        name for name, (row, _) in PLACES.items()
        if PLACES[source][0] < row < PLACES[target][0] and _corner(name)[0] <= x <= _corner(name)[0] + _BOX[0]
    ]  # fmt: skip
    if not between:
        return [(x, y), (x, level), (end, level), (end, bottom)]
    gutter = _corner(between[0])[0] + (_BOX[0] + _GUTTER / 2 if end > x else -_GUTTER / 2)
    turn = y + _GAP / 6
    return [(x, y), (x, turn), (gutter, turn), (gutter, level), (end, level), (end, bottom)]


def _level(target: str, links: list[tuple[str, str]]) -> float:
    """Height at which the arrows to a room run: in the gap above it, each room of a row at another one. Those to the
    middle run highest, so that no arrow begins on the way that another one ends."""
    row = PLACES[target][0]
    shared = [name for name, place in PLACES.items() if place[0] == row and any(name == other for _, other in links)]
    shared.sort(key=lambda name: -abs(PLACES[name][1] - 1))
    return _corner(target)[1] - _GAP * (0.2 + 0.6 * (shared.index(target) + 1) / (len(shared) + 1))


def _line(canvas: ImageDraw.ImageDraw, points: list[Point], colour: str) -> None:
    canvas.line([(x * _SCALE, y * _SCALE) for x, y in points], fill=colour, width=3 * _SCALE, joint="curve")


def _head(canvas: ImageDraw.ImageDraw, tip: Point, colour: str) -> None:
    (x, y), half, length = tip, 7, 12
    corners = [(x, y), (x - half, y - length), (x + half, y - length)]
    canvas.polygon([(a * _SCALE, b * _SCALE) for a, b in corners], fill=colour)


def _box(canvas: ImageDraw.ImageDraw, room: Room) -> None:
    left, top = _corner(room.name)
    edges = [edge * _SCALE for edge in (left, top, left + _BOX[0], top + _BOX[1])]
    canvas.rounded_rectangle(edges, 10 * _SCALE, _FILLS[PLACES[room.name][0]], _SOFT, _SCALE)
    middle, lines = left + _BOX[0] / 2, textwrap.wrap(room.purpose, 40)
    first = top + _BOX[1] / 2 - 9.5 * len(lines)
    _text(canvas, (middle, first), room.name, 18, _INK)
    for number, line in enumerate(lines):
        _text(canvas, (middle, first + 25 + 19 * number), line, 14, _SOFT)


def _text(canvas: ImageDraw.ImageDraw, middle: Point, text: str, size: int, colour: str) -> None:
    font = ImageFont.load_default(size * _SCALE)
    canvas.text((middle[0] * _SCALE, middle[1] * _SCALE), text, colour, font, anchor="mm")


def main() -> None:
    rooms = read_rooms(PAGE.read_text(encoding="utf-8"))
    info = PngInfo()
    info.add_text("arrows", as_text(rooms))
    draw(rooms).save(PICTURE, optimize=True, pnginfo=info)


if __name__ == "__main__":
    main()
