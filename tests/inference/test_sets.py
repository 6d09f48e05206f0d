"""Sets of images in the web page: what is refused, scores as those of the published program, the page itself."""

import shutil
import tempfile

import pytest

from config.flags import app_parser, predict_parser
from config.resolve import resolve_app, resolve_predict
from conftest import REFERENCE, load_case
from inference.service import InferenceService
from inference.upload_folder import UploadFolder

CASE = load_case("musc_mvtec")
BRICK = [str(REFERENCE / "data/mini_mvtec" / path) for path in CASE.facts["images"][:16]]
PUBLISHED = dict(zip(BRICK, CASE.arrays["image_scores"].tolist(), strict=False))


@pytest.fixture(scope="module")
def settings(tiny_a):
    flags = ["--method", "musc", *tiny_a.flags, "--image_size", "96", "--max_set", "16"]
    return resolve_app(app_parser().parse_args(flags))[0]


@pytest.fixture(scope="module")
def service(settings):
    return InferenceService(settings)


def test_the_odd_ones_come_first(service):
    ranked = service.rank(BRICK)
    assert [one.path for one in ranked.images] == sorted(BRICK, key=lambda path: -PUBLISHED[path])
    assert [one.score for one in ranked.images] == pytest.approx(
        [PUBLISHED[one.path] for one in ranked.images], abs=1e-5
    )
    assert ranked.notes == [] and ranked.images[0].picture.shape[2] == 3


def test_options_of_the_model_that_ships_go_to_the_method_that_has_them():
    flags = ["--neighbors", "2", "--features_list", "1", "2", "--prompts", "winclip"]
    found = resolve_app(app_parser().parse_args(flags))[0]
    texts = found.without_references
    assert texts is not None
    assert (found.method, found.options["neighbors"], found.options["features_list"]) == ("anomaly_dino", 2, [1, 2])
    assert (texts.method, texts.prompts, texts.options["features_list"]) == ("april_gan", "winclip", None)
    assert found.prompts is None and "neighbors" not in texts.options


@pytest.mark.parametrize("flags", [["--fpr", "0.1"], ["--calibrate", "normal"]])
def test_who_asks_for_a_threshold_wants_no_set(flags):
    with pytest.raises(ValueError, match="--class_name is missing"):
        resolve_predict(predict_parser().parse_args(["photos", *flags]))


def test_copies_are_said(service, tmp_path):
    shutil.copy(BRICK[0], tmp_path / "copy.png")
    assert service.rank([*BRICK[:6], str(tmp_path / "copy.png")]).notes == [
        "1 of the images are copies of others, so that both score too low."
    ]


def test_what_is_refused(service, tmp_path):
    for count in (0, 4, 17):
        with pytest.raises(ValueError, match=f"There are {count} images; 5 to 16 are scored together"):
            service.rank((BRICK + BRICK)[:count])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match="^bad.png is not an image"):
        service.rank([*BRICK[:5], str(bad)])


def test_the_page(service, settings, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="app.py needs Gradio: pip install -r requirements-app.txt")
    import gradio_client

    import app
    from inference.set_page import build_set_page

    with UploadFolder(20 * 10**6, tmp_path) as folder:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder.path))
        blocks = build_set_page(service, settings, folder)
        address = app.launch(blocks, settings, folder)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        session = gradio_client.Client(address, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
        _, pictures, numbers = session.predict([gradio_client.handle_file(path) for path in BRICK], api_name="/rank")
        assert len(pictures) == len(numbers["images"]) == 16
        assert numbers["images"][0]["score"] == pytest.approx(max(PUBLISHED.values()), abs=1e-5)
        blocks.close(verbose=False)
