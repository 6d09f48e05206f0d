"""Folders as users have them: nested, with other names, formats, links and files beside the images. Nothing is left out
in silence."""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import folder, meta, mvtec, script
from dataset_scripts import PROJECT, accepted, refused, run, touch


def put(path, value=9, size=(6, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path, **options)


@pytest.fixture
def parts(tmp_path):
    """A class of its own: two normal images to train, two to test, two defects with masks."""
    root = tmp_path / "parts"
    for name in ("train/good/0", "train/good/1", "test/good/0", "test/good/1", "test/bad/0", "test/bad/1"):
        put(root / f"{name}.png")
    for number in (0, 1):
        put(root / f"ground_truth/bad/{number}.png", 255)
    return root


def brief(samples):
    return {sample.img_path: (sample.mask_path, sample.specie_name, sample.anomaly) for sample in samples}


def lines(root, *flags, name="folder"):
    """What the script prints below its table, without its last line, and the samples that it wrote."""
    result = run(name, root, *flags)
    assert result.returncode == 0 and not result.stderr, result.stderr
    printed = result.stdout.splitlines()
    last = next(index for index, line in enumerate(printed) if line.startswith("all "))
    assert printed[-1] == f"wrote {root / 'meta.json'}"
    return printed[last + 1 : -1], meta.read(root)


def test_nothing_is_said_where_there_is_nothing_to_say(parts):
    assert lines(parts)[0] == []


# --- folders ---


def test_folders_below_a_kind_hold_images_of_it_and_masks_mirror_them(parts):
    for place in ("test/bad/cam1", "test/bad/cam2/late", "test/good/cam1", "train/good/cam1"):
        put(parts / place / "0.png")
    for place, name in (("cam1", "0_mask"), ("cam2/late", "0")):
        put(parts / "ground_truth/bad" / place / f"{name}.png", 255)
    told, samples = lines(parts)
    assert told == []
    assert brief(samples["test"]) == {
        "test/good/0.png": ("", "good", 0),
        "test/good/1.png": ("", "good", 0),
        "test/good/cam1/0.png": ("", "good", 0),
        "test/bad/0.png": ("ground_truth/bad/0.png", "bad", 1),
        "test/bad/1.png": ("ground_truth/bad/1.png", "bad", 1),
        "test/bad/cam1/0.png": ("ground_truth/bad/cam1/0_mask.png", "bad", 1),
        "test/bad/cam2/late/0.png": ("ground_truth/bad/cam2/late/0.png", "bad", 1),
    }
    assert "train/good/cam1/0.png" in brief(samples["train"])


def test_a_nested_image_whose_mask_lies_elsewhere_is_named(parts):
    put(parts / "test/bad/cam1/7.png")
    put(parts / "ground_truth/bad/cam2/7.png", 255)
    message = refused("folder", parts)
    assert "no mask for cam1/7.png" in message and "no image for mask cam2/7.png" in message


@pytest.mark.parametrize("name", ["Good", "ok", "NORMAL"])
def test_other_words_for_good(parts, name):
    shutil.rmtree(parts / "ground_truth")
    for split in meta.SPLITS:
        (parts / split / "good").rename(parts / split / name)
    told, samples = lines(parts)
    assert told == [f"read as normal: {name}"]
    assert [sample.img_path for sample in samples["train"]] == [f"train/{name}/{index}.png" for index in (0, 1)]
    assert [sample.anomaly for sample in samples["test"]] == [0, 0, 1, 1]
    assert {sample.specie_name for sample in samples["test"] if not sample.anomaly} == {"good"}


def test_every_format_that_predict_reads_is_taken(parts):
    """By suffix, in any case, or by the first bytes."""
    suffixes = ("jfif", "gif", "pgm", "ppm", "jp2", "tga", "jpe", "dib", "WEBP", "tiff")
    for suffix in suffixes:
        put(parts / f"test/good/{suffix}_.{suffix}")
    put(parts / "test/good/no_suffix", format="PNG")
    told, samples = lines(parts)
    found = {Path(sample.img_path).name for sample in samples["test"]}
    assert told == [] and {f"{suffix}_.{suffix}" for suffix in suffixes} | {"no_suffix"} <= found


def test_what_is_passed_over_is_counted_and_named_once(parts):
    touch(parts, "license.txt", "test/good/a.heic", "test/good/b.heic", "test/bad/notes.csv", "docs/a/b/readme.md")
    for path in ("train/odd/0.png", "train/odd/1.png", "ground_truth/good/0.png"):
        put(parts / path)
    touch(parts, "test/good/._0.png", "test/good/.DS_Store", "Thumbs.db", "__MACOSX/x.png", ".ipynb_checkpoints/0.png")
    (told,), samples = lines(parts)
    assert told.startswith("passed over 8 files, 3 of them images: train/odd/ (2), test/good/*.heic (2), ")
    places = {"ground_truth/good/0.png", "docs/a/b/readme.md", "license.txt", "test/bad/notes.csv"}
    assert sum(place in told for place in places) == 3 and told.endswith(" and 1 more places")
    assert len(samples["test"]) == 4
    assert lines(parts)[0] == [told]  # its own file is none of them


def test_fifos_sockets_and_links_to_nothing_are_passed_over_by_name(parts):
    os.mkfifo(parts / "test/good/2.png")
    os.mkfifo(parts / "ground_truth/bad/2.png")
    (parts / "test/good/3.png").symlink_to("gone.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(parts / "test/good/4.png"))
    (told,), samples = lines(parts)
    for name in ("test/good/2.png (not a file)", "test/good/3.png (a link to nothing)", "ground_truth/bad/2.png (not"):
        assert name in told
    assert "passed over 4 files:" in told and len(samples["test"]) == 4


@pytest.mark.parametrize("script_name", ["mvtec", "mpdd"])
def test_other_scripts_say_it_too(parts, script_name):
    touch(parts, "test/good/a.heic")
    (told,), _ = lines(parts.parent, name=script_name)
    assert told == "passed over 1 file: parts/test/good/a.heic"


def test_lists_that_a_script_reads_are_not_passed_over(tmp_path):
    touch(tmp_path, *(f"head_ct/head_ct/00{index}.png" for index in (0, 1, 2)), "head_ct/head_ct/0.txt")
    (tmp_path / "labels.csv").write_text("\ufeffid,hemorrhage\n0,1\n1,0\n2,1\n", encoding="utf-8")
    assert lines(tmp_path, name="headct")[0] == ["passed over 1 file: head_ct/head_ct/0.txt"]


# --- the root ---


@pytest.mark.parametrize(
    ("name", "below", "hint"),
    [
        ("mvtec", "set/nut", "set"),
        ("mvtec", "set/nut/test", "set"),
        ("mvtec", "", "set"),
        ("folder", "set/nut/test", "set/nut"),
        ("folder", "set/nut/train/good", "set/nut"),
        ("folder", "", "set"),
        ("visa", "", "other"),
        ("visa", "other/pcb", "other"),
    ],
)
def test_a_root_one_level_off_names_the_folder_that_would_do(tmp_path, name, below, hint):
    for path in ("train/good/0", "test/good/0", "test/bad/0", "ground_truth/bad/0"):
        put(tmp_path / f"set/nut/{path}.png")
    touch(tmp_path, "other/pcb/n1.JPG", "other/split_csv/1cls.csv")
    (tmp_path / "other/split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\npcb,test,normal,pcb/n1.JPG,\n", encoding="utf-8"
    )
    assert refused(name, tmp_path / below).endswith(f"; --root {tmp_path / hint} would do\n")


def test_no_folder_is_named_where_none_would_do(tmp_path):
    touch(tmp_path, "a/b/0.png")
    put(tmp_path / "set/nut/test/good/0.png")
    assert "would do" not in refused("folder", tmp_path / "a/b")  # set/nut and set have nothing to do with it


# --- links ---


@pytest.mark.parametrize("linked", ["nut", "nut/test/good", "nut/test/good/0.png"])
def test_links_out_of_the_root_are_named_and_accepted_with_a_flag(parts, tmp_path, linked):
    root, place = tmp_path / "set", tmp_path / "set" / linked
    place.parent.mkdir(parents=True)
    if linked != "nut":
        put(root / "nut/test/good/0.png")
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    target = parts / Path(linked).relative_to("nut")
    place.symlink_to(target)
    message = refused("mvtec", root)
    assert f"{root / linked} is a link to {target}, outside" in message and "--follow_links" in message
    result = run("mvtec", root, "--follow_links")
    assert result.returncode == 0 and "passed over" not in result.stdout, result.stderr
    assert "nut/test/good/0.png" in brief(meta.read(root, follow_links=True)["test"])
    with pytest.raises(ValueError, match="is a link to .*--follow_links"):
        meta.read(root)


def test_links_that_somebody_else_made_are_refused_even_so(parts, tmp_path):
    if os.geteuid():
        pytest.skip("only root can give a link to another user")
    root = tmp_path / "set"
    root.mkdir()
    (root / "nut").symlink_to(parts)
    os.chown(root / "nut", 4321, 4321, follow_symlinks=False)
    assert "that somebody else than the root's owner made" in refused("mvtec", root, "--follow_links")


# --- where meta.json goes ---


@contextmanager
def as_nobody():
    """Without root's rights, to which nothing is read-only."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_a_read_only_root_names_the_flag_that_writes_elsewhere(parts, tmp_path, fails, capsys):
    for path in (*reversed(parts.parents), parts):
        if path.is_relative_to(tmp_path.parent.parent.parent):
            path.chmod(0o555 if path == parts else 0o755)
    with as_nobody():
        message = fails(lambda argv: script.run(folder.build, None, argv), "--root", parts)
    parts.chmod(0o755)
    assert message.startswith(f"error: {parts / 'meta.json'} is not written (Permission denied)")
    assert "--meta_path FILE" in message
    other = tmp_path / "new" / "parts.json"
    script.run(folder.build, None, ["--root", str(parts), "--meta_path", str(other)])
    assert not (parts / "meta.json").exists() and len(meta.read(parts, other)["test"]) == 4
    assert capsys.readouterr().out.endswith(f"wrote {other}\n")


@pytest.mark.parametrize("name", ["mvtec", "visa", "btad", "mpdd", "dagm", "ksdd2", "mtd", "headct", "isic", "folder"])
def test_every_script_has_the_flags(name):
    text = run(name, None, "--help").stdout
    assert all(flag in text for flag in ("--meta_path FILE", "--bits N", "--follow_links"))
    assert ("--exif" in text.split("options:")[1]) == (name == "folder")


# --- pixels ---


def test_pictures_with_an_orientation_are_counted_and_turned_with_the_flag(parts):
    exif = Image.Exif()
    exif[274] = 6
    for name in ("test/good/2.jpg", "test/bad/2.jpg"):
        put(parts / name, exif=exif)
    put(parts / "ground_truth/bad/2.png", 255)
    (told,), _ = lines(parts)
    assert told.startswith('2 of 8 images have an EXIF orientation, the first is "test/good/2.jpg": ')
    assert told.endswith("read as stored, not turned; --exif turns image and mask, each as its own file says")
    assert meta.read_settings(parts) == meta.PixelSettings()
    (told,), _ = lines(parts, "--exif")
    assert "they are turned" in told and meta.read_settings(parts) == meta.PixelSettings(exif=True)
    (parts / "meta.json").unlink()
    (told,), _ = lines(parts.parent, name="mvtec")
    assert "--exif" not in told


def test_bits_of_a_set_are_named_and_kept_where_they_are_given(parts):
    for number, value in ((2, 4000), (3, 3000)):
        Image.fromarray(np.full((4, 6), value, np.uint16)).save(parts / f"test/good/{number}.png")
    (told,), _ = lines(parts)
    assert "--bits 12" in told and "4000" in told
    assert lines(parts, "--bits", "12")[0] == []
    assert meta.read_settings(parts) == meta.PixelSettings(bits=12)
    assert json.loads((parts / "meta.json").read_text())["settings"] == {"bits": 12}


@pytest.mark.parametrize("bits", ["7", "17", "-12", "twelve", "1e1"])
def test_bits_that_no_file_has_are_refused(parts, bits):
    result = run("folder", parts, f"--bits={bits}")
    assert result.returncode == 2 and f"{bits}: must be a whole number from 8 to 16" in result.stderr
    assert not (parts / "meta.json").exists()


def test_lossy_masks_are_counted(parts):
    put(parts / "test/bad/2.png")
    put(parts / "ground_truth/bad/2.jpg", 255, quality=75)
    (told,), _ = lines(parts)
    assert told.startswith('1 of 3 masks are in a lossy format, the first is "ground_truth/bad/2.jpg": ')


def test_an_image_that_a_list_holds_twice_is_said(tmp_path):
    touch(tmp_path, "pcb/n0.JPG", "pcb/n1.JPG", "split_csv/1cls.csv")
    rows = ["object,split,label,image,mask", *["pcb,test,normal,pcb/n1.JPG,"] * 2, "pcb,train,normal,pcb/n0.JPG,"]
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    result = run("visa", tmp_path)
    (told,) = (line for line in result.stdout.splitlines() if "more than once" in line)
    assert told.startswith('1 image stands more than once in test, the first is "pcb/n1.JPG"')


# --- the screen ---


def test_a_screen_that_cannot_show_a_name_escapes_it(parts):
    gear = parts.rename(parts.with_name("Gehäuse \x1b[31m"))
    command = [sys.executable, PROJECT / "data/folder.py", "--root", gear]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0 and not result.stderr
    assert result.stdout.splitlines()[1].startswith(r"Geh\xe4use \x1b[31m ")
    assert meta.read(gear)["test"][0].cls_name == "Gehäuse \x1b[31m"


def test_a_closed_pipe_ends_the_lines_alone(parts):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, PROJECT / "data/folder.py", "--root", parts]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert result.returncode == 0 and not result.stderr and (parts / "meta.json").exists()


def test_torch_is_not_imported():
    code = "import sys, data.folder, data.mvisa; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_build_tells_a_caller_what_it_read(parts):
    found = mvtec.build(parts.parent)
    assert found.normal == ("good",) and len(found.samples["test"]) == 4
    assert accepted("mvtec", parts.parent) == found.samples
