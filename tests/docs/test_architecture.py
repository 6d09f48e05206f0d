"""The rules of docs/architecture.md: imports run one way, without circles, and files and functions stay short."""

import ast
import re

import pytest
from PIL import Image

from conftest import ROOT
from illustration import architecture
from illustration.architecture import imports, module_graph, own_modules, read_rooms

PAGE = architecture.PAGE.read_text(encoding="utf-8")
ROOMS = read_rooms(PAGE)
MEMBERS = {member: room for room in ROOMS for member in room.members}
MODULES = own_modules()
SCRIPTS = {member for room in ROOMS[:2] for member in room.members}
EVERY_FILE = sorted(path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts))


def name_of(path) -> str:
    return str(path.relative_to(ROOT))


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of the first circle that is found; [] where there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for target in sorted(graph.get(name, ())):
                if found := visit(target, [*way, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


# --- rooms and arrows -----------------------------------------------------------------------------------------------


def test_the_rooms_of_the_page_are_those_of_the_tree():
    assert {name.partition(".")[0] for name in MODULES} == MEMBERS.keys()
    named = {name for room in ROOMS for name in room.may_import}
    assert named == MEMBERS.keys() - SCRIPTS and all(room.purpose for room in ROOMS)


def test_rooms_import_what_stands_below_them():
    """What the table allows, which is a row further down: so no two rooms can import each other."""
    row = {member: number for number, room in enumerate(ROOMS) for member in room.members}
    for room in ROOMS:
        assert {name for name in room.may_import if row[name] <= row[room.members[0]]} == set(), room.name


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_those_that_the_page_allows(name):
    own = name.partition(".")[0]
    imported = {target.partition(".")[0] for one in imports(MODULES[name]) if (target := one.target)}
    assert (imported & MEMBERS.keys()) - {own} <= MEMBERS[own].may_import


def test_no_circle_between_modules():
    assert circle(module_graph(MODULES, ("module",))) == []


def test_no_import_within_a_function_hides_a_circle():
    assert circle(module_graph(MODULES, ("module", "function"))) == []


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("path", EVERY_FILE, ids=name_of)
def test_no_script_is_imported(path):
    """Neither the five at the root nor those of data/, which are run, nor what stands beside the rooms."""
    data = {name for name in MODULES if name.startswith("data.") and 'if __name__ == "__main__"' in read(MODULES[name])}
    targets = {one.target for one in imports(path)}
    roots = {target.partition(".")[0] for target in targets}
    aside = {"benchmarks", "tools", "illustration"} - {path.relative_to(ROOT).parts[0]}
    assert not roots & (SCRIPTS | aside)
    assert not {name for name in data for target in targets if target == name or target.startswith(f"{name}.")}


@pytest.mark.parametrize("path", EVERY_FILE, ids=name_of)
def test_only_backbones_know_the_libraries_of_models(path):
    if path.relative_to(ROOT).parts[:2] != ("model", "backbones"):
        assert not {one.target for one in imports(path) if one.target.partition(".")[0] in ("open_clip", "timm")}


# --- files and functions --------------------------------------------------------------------------------------------


def read(path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_files_are_short_and_say_what_they_are_for(name):
    text = read(MODULES[name])
    assert len((ast.get_docstring(ast.parse(text)) or "").strip()) > 10
    assert len(text.splitlines()) <= 350


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_short(name):
    functions = [node for node in ast.walk(ast.parse(read(MODULES[name]))) if isinstance(node, ast.FunctionDef)]
    lines = {one.name: one.end_lineno - one.lineno + 1 for one in functions}
    assert {one: count for one, count in lines.items() if count >= 60} == {}


# --- the page and its picture ---------------------------------------------------------------------------------------


def test_the_picture_shows_the_imports_of_today():
    """Its arrows, which it carries as text, are those of the code; it is drawn anew by its script."""
    drawn = Image.open(architecture.PICTURE)
    assert drawn.text["arrows"] == architecture.as_text(ROOMS), "run python illustration/architecture.py"
    assert architecture.PICTURE.stat().st_size < 200_000


def test_the_rooms_of_the_picture_exist_and_its_arrows_are_allowed():
    assert architecture.PLACES.keys() == {room.name for room in ROOMS}
    links = architecture.arrows(ROOMS)
    assert len(links) > 10
    for source, target in links:
        (room,) = (room for room in ROOMS if room.name == source)
        assert target in room.may_import
        assert architecture.PLACES[source][0] < architecture.PLACES[target][0]  # it leads downwards


def test_arrows_that_follow_from_others_are_left_out():
    links = architecture.arrows(ROOMS)
    assert ("engine", "model") in links and ("model", "data") in links and ("engine", "data") not in links


def test_files_and_names_of_the_page_are_there():
    """`name` in `path/of/file.py` is defined there; every file that is named exists."""
    for name, file in re.findall(r"`(\w+)`(?: of class `\w+`)? in `([\w/]+\.py)`", PAGE):
        assert re.search(rf"^\s*(?:def |class )?{name}\b", read(ROOT / file), re.MULTILINE), f"{name} in {file}"
    files = set(re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE))
    assert len(files) > 25 and [file for file in sorted(files) if not (ROOT / file).is_file()] == []
    folders = set(re.findall(r"`((?:\w+/)+)`", PAGE))
    assert [folder for folder in sorted(folders) if folder != "finished/" and not (ROOT / folder).is_dir()] == []
