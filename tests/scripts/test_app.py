"""The web page: limits, users that do not mix, the scores of predict.py, and a real browser.

What needs Gradio, Playwright or Chromium is skipped by name where it is missing: `pip install -r requirements-app.txt
playwright`, and Debian's package chromium.
"""

import contextlib
import csv
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict as predict_script
from config import embedded
from config.flags import app_parser
from config.resolve import resolve_app
from conftest import REFERENCE, ROOT
from inference.calibration import Calibration
from inference.service import _KEPT, InferenceService
from inference.upload_folder import UploadFolder

BRICK = REFERENCE / "data/mini_mvtec/brick"
HOLE = str(BRICK / "test/hole/000.png")
NORMAL = [str(path) for path in sorted((BRICK / "train/good").glob("*.png"))]
OTHERS = [str(path) for path in sorted((REFERENCE / "data/mini_mvtec").glob("*/train/good/*.png"))]


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="app.py needs Gradio: pip install -r requirements-app.txt")
    import app

    return app


@pytest.fixture(scope="module")
def page(app):
    from inference import page

    return page


@pytest.fixture
def uploads(tmp_path):
    with UploadFolder(10**8, tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def settings(tiny_a):
    flags = ["--method", "winclip", *tiny_a.flags, "--image_size", "96", "--max_megabytes", "1",
             "--max_pixels", "250000", "--max_references", "4"]  # fmt: skip
    return resolve_app(app_parser().parse_args(flags))[0]


@pytest.fixture(scope="module")
def service(settings):
    return InferenceService(settings)


def predicted(tiny_a, tmp_path, *flags: str) -> dict[str, str]:
    """The row of predict.py for the same image."""
    argv = [HOLE, "--class_name", "brick", "--method", "winclip", *tiny_a.flags, "--image_size", 96, "--num_workers", 0,
            "--save_path", tmp_path / "out", *flags]  # fmt: skip
    assert predict_script.main([str(word) for word in argv]) == 0
    with (tmp_path / "out/scores.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


# --- flags ----------------------------------------------------------------------------------------------------------


def resolve(*flags: str):
    return resolve_app(app_parser().parse_args(list(flags)))


def test_without_flags_the_model_that_ships(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path / "clip.safetensors")
    (tmp_path / "clip.safetensors").write_bytes(b"")
    settings, _ = resolve()
    assert (settings.method, settings.model, settings.host) == ("anomaly_dino", "quickstart-clip", "127.0.0.1")
    assert settings.pretrained == str(tmp_path / "clip.safetensors") and settings.image_size is None
    assert settings.checkpoint_path is None
    alone = settings.without_references
    assert (alone.method, alone.checkpoint_path) == ("april_gan", str(embedded.ADAPTERS))
    settings, sources = resolve("--method", "april_gan", "--checkpoint_path", "a.pth")
    assert (settings.model, settings.pretrained, sources["method"]) == ("ViT-L-14-336", "openai", "flag")
    assert settings.without_references is None
    (tmp_path / "clip.safetensors").unlink()
    assert resolve()[0].pretrained == "openai"


def test_without_gradio_one_line_says_what_to_install():
    code = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_path('app.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the web page needs Gradio: pip install -r requirements-app.txt\n"


# --- what the page asks for -----------------------------------------------------------------------------------------


def test_zero_shot_scores_as_predict(service, tiny_a, tmp_path):
    answer, row = service.inspect("brick", HOLE), predicted(tiny_a, tmp_path)
    assert answer.result.score == pytest.approx(float(row["score"]), abs=1e-5)
    assert answer.calibration is None and "verdict" not in answer.result.values and "verdict" not in row


def test_few_shot_scores_and_judges_as_predict(page, service, tiny_a, tmp_path):
    folder = tmp_path / "normal"
    folder.mkdir()
    for path in NORMAL[:4]:
        shutil.copy(path, folder)
    answer, row = service.inspect(" brick ", HOLE, NORMAL[:4]), predicted(tiny_a, tmp_path, "--references", folder)
    assert answer.result.score == pytest.approx(float(row["score"]), abs=1e-5)
    assert answer.result.values["verdict"] == row["verdict"]
    known = Calibration.load(tmp_path / "out/calibration.json")
    assert answer.calibration.threshold == pytest.approx(known.threshold, abs=1e-5)
    np.testing.assert_allclose(answer.calibration.heat, known.heat, atol=1e-5)
    text = page.summary(answer)
    assert (
        f"Score {answer.result.values['score']:.3f}" in text and row["verdict"].capitalize() in text and "took" in text
    )
    assert page.numbers(answer)["threshold"] == answer.calibration.threshold


def test_one_reference_gives_no_threshold(page, service):
    answer = service.inspect("brick", HOLE, NORMAL[:1])
    assert answer.calibration is None and "map_max" in answer.result.values
    assert "two or more different normal images give a threshold" in page.summary(answer)


def test_references_of_several_users_do_not_mix(service, settings):
    """Whatever ran before or runs at the same time, and also when sets have been dropped and are encoded anew."""
    sets = [OTHERS[start : start + 2] for start in range(0, len(OTHERS), 3)][:6]
    alone = [InferenceService(settings).inspect("brick", HOLE, one).result.score for one in sets]
    assert len({round(score, 6) for score in alone}) == len(sets)
    order = [*range(len(sets))] * 3
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda number: service.inspect("brick", HOLE, sets[number]).result.score, order))
    np.testing.assert_allclose(scores, [alone[number] for number in order], atol=1e-6)
    assert len(service._encoded) == _KEPT


def test_references_are_known_by_what_they_hold(service, monkeypatch, tmp_path):
    first = service.inspect("brick", HOLE, NORMAL[:2]).result.score
    copies = [str(shutil.copy(path, tmp_path / f"{number}.png")) for number, path in enumerate(reversed(NORMAL[:2]))]
    monkeypatch.setattr(service._predictor, "encode_references", lambda *_: pytest.fail("these are encoded already"))
    assert service.inspect("brick", HOLE, copies).result.score == first


def test_a_broken_file_is_named_without_its_folder(service, tmp_path):
    half = tmp_path / "half.png"
    half.write_bytes(Path(HOLE).read_bytes()[:2000])
    for image, references in ((str(half), []), (HOLE, [str(half)])):
        with pytest.raises(ValueError, match=r"^half.png: unreadable image \(") as error:
            service.inspect("brick", image, references)
        assert str(tmp_path) not in str(error.value)


def test_photographs_are_shown_upright(service, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "turned.jpg", exif=exif)
    picture = service.inspect("brick", str(tmp_path / "turned.jpg")).view.picture
    assert picture.shape == (768, 384, 3)


def test_recolouring_needs_no_detector(page, service, uploads):
    view = service.inspect("brick", HOLE).view

    def overlay(*values: float) -> dict:
        return page.overlay_update(view, *values, uploads)

    def distance(update) -> float:
        return np.abs(np.asarray(Image.open(update["value"]), float) - view.picture).mean()

    plain, half = overlay(0.0, 0.0), overlay(0.5, 0.5)
    assert distance(plain) < 4 < distance(half)
    assert plain["label"] == "Where: 100.0% of the image lies above the threshold"
    assert "% of the image lies above" in half["label"]
    assert overlay(0.5, 0.5)["value"] != half["value"]  # nobody writes what another one reads
    assert page.overlay_update(None, 0.5, 0.5, uploads)["value"] is None


def test_examples_are_made_where_they_are_missing(app, tmp_path):
    shown = app.examples(tmp_path / "demo")
    assert len(shown) == 2 * len(app.EXAMPLES)
    for _, image, references in shown:
        assert Path(image).is_file() and len(references) == 4 and all(Path(path).is_file() for path in references)
    (tmp_path / "file").write_text("")
    assert app.examples(tmp_path / "file/demo") == []


def test_copies_of_a_normal_image_count_once(page, service, tmp_path):
    """By pixels, whatever the format: the same threshold and scale as without them, and a note that says so."""
    copies = []
    for number, path in enumerate(NORMAL[:2]):
        Image.open(path).save(tmp_path / f"{number}.bmp")
        copies.append(str(tmp_path / f"{number}.bmp"))
    without, answer = service.inspect("brick", HOLE, NORMAL[:2]), service.inspect("brick", HOLE, NORMAL[:2] + copies)
    assert answer.result.score == without.result.score and answer.calibration == without.calibration
    assert answer.calibration.normal_images == 2 and not without.notes
    assert answer.notes == ["2 of the 4 normal images are copies of others and left out."]
    assert answer.notes[0] in page.summary(answer)
    answer = service.inspect("brick", HOLE, [NORMAL[0], copies[0]])
    assert answer.calibration is None


def test_an_image_that_is_a_normal_one_is_said(service):
    answer = service.inspect("brick", NORMAL[0], NORMAL[:3])
    assert answer.notes == ["The image is one of the normal images, so that its score is too low."]


def test_few_bits_are_named_and_read(settings, service, tmp_path):
    values = np.array(Image.open(HOLE).convert("L"))
    values[0, 0] = 255
    Image.fromarray(values).save(tmp_path / "8.png")
    Image.fromarray(((values.astype(np.uint32) * 4095 + 127) // 255).astype(np.uint16)).save(tmp_path / "12.png")
    dark = service.inspect("brick", str(tmp_path / "12.png"))
    assert dark.notes == ["The images seem to hold 12 bits in files of 16: start app.py with --bits 12."]
    right = InferenceService(replace(settings, bits=12)).inspect("brick", str(tmp_path / "12.png"))
    assert not right.notes
    assert right.result.score == pytest.approx(service.inspect("brick", str(tmp_path / "8.png")).result.score, abs=1e-6)


def test_a_taken_port_names_the_flag(app, fails):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = fails(app.main, "--port", port)
    assert line.startswith(f"error: --port {port} is taken by another program; name another one, or leave --port out")
    assert "--host 192.0.2.1: cannot listen there" in fails(app.main, "--host", "192.0.2.1")
    assert "--host no.such.host.invalid: unknown address" in fails(app.main, "--host", "no.such.host.invalid")
    assert "--port 70000: must be at most 65535" in fails(app.main, "--port", 70000)


# --- over the network -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(app, page, service, settings, tmp_path_factory):
    """(address, folder of uploads) of a page that runs in this process."""
    with pytest.MonkeyPatch.context() as patch, UploadFolder(20 * 10**6, tmp_path_factory.mktemp("up")) as folder:
        demo = tmp_path_factory.mktemp("demo")
        patch.setattr(app, "DEMO", demo)
        patch.setenv("GRADIO_TEMP_DIR", str(folder.path))
        blocks = page.build_page(service, settings, app.examples(demo), folder, [demo])
        yield app.launch(blocks, settings, folder), folder
        blocks.close(verbose=False)


@pytest.fixture(scope="module")
def address(served):
    return served[0]


@pytest.fixture
def ask(address, tmp_path, monkeypatch):
    """Ask the page as a program would; returns the numbers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the client leaves a folder there for each picture
    client = pytest.importorskip("gradio_client", reason="comes with Gradio")
    session = client.Client(address, verbose=False, analytics_enabled=False, download_files=str(tmp_path))

    def asked(image, name="brick", references=()):
        files = [{"image": client.handle_file(path), "caption": None} for path in references]
        image = client.handle_file(image) if isinstance(image, str) else image
        return session.predict(image, name, files or None, 0.75, 0.5, api_name="/inspect")[2]

    return asked


def test_many_requests_at_once(ask, service, tmp_path):
    """8 clients with 10 requests each, a fifth of them bad: every good one is answered right, every bad one refused."""
    (tmp_path / "bad.png").write_text("no image")
    images = sorted(str(path) for path in (BRICK / "test").rglob("*.png"))
    sets = [[], NORMAL[:1], NORMAL[:3], OTHERS[-2:], NORMAL[4:8]]
    cases = [(images[number % len(images)], sets[number % len(sets)]) for number in range(80)]
    expected = [service.inspect("brick", *case).result.score for case in cases]

    def request(number: int) -> float | str:
        if number % 5 == 4:
            bad = [(str(tmp_path / "bad.png"), "brick", []), (cases[number][0], "", []), (images[0], "a", NORMAL[:5])]
            with pytest.raises(Exception) as error:
                ask(*bad[number % 3])
            return str(error.value)
        return ask(cases[number][0], "brick", cases[number][1])["score"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(request, range(80)))
    for number, answer in enumerate(answers):
        if number % 5 == 4:
            assert any(words in answer for words in ("bad.png is not an image", "Type what", "4 are allowed")), answer
        else:
            assert answer == pytest.approx(expected[number], abs=1e-5)


def test_only_uploads_are_read(ask, address):
    import httpx

    with pytest.raises(Exception, match="addresses are not fetched"):
        ask({"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}})
    with pytest.raises(Exception) as error:
        ask({"path": str(ROOT / "illustration/overlay.png"), "meta": {"_type": "gradio.FileData"}})
    assert "score" not in str(error.value)
    for path in (ROOT / "illustration/overlay.png", "/etc/passwd", "/nowhere"):  # a request need not say what it is
        with pytest.raises(Exception, match="only uploaded images are read"):
            ask({"path": str(path)})
    big = {"files": ("big.png", bytes(2_000_000))}
    assert httpx.post(f"{address}gradio_api/upload", files=big).status_code == 413


UPLOAD = "gradio_api/upload"
PNG = {"files": ("a.png", Path(HOLE).read_bytes(), "image/png")}


def wait_for(condition) -> bool:
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_requests_of_other_sites_and_unknown_hosts_are_refused(address):
    import httpx

    port = address.rstrip("/").rpartition(":")[2]
    for headers, refusal in (
        ({"Origin": "https://evil.example"}, "requests of other sites are refused"),
        ({"Origin": "null"}, "requests of other sites are refused"),
        ({"Origin": "http://127.0.0.1:1"}, "requests of other sites are refused"),
        ({"Host": f"evil.example:{port}"}, "unknown host name 'evil.example'; app.py --allow_host NAME allows it"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "requests of other sites are refused"),
    ):
        for answer in (httpx.post(address + UPLOAD, files=PNG, headers=headers), httpx.get(address, headers=headers)):
            assert answer.status_code == 403 and refusal in answer.json()["detail"], headers
    for headers in ({}, {"Origin": address.rstrip("/")}, {"Host": f"localhost:{port}"}, {"Host": f"192.0.2.7:{port}"}):
        assert httpx.post(address + UPLOAD, files=PNG, headers=headers).status_code == 200, headers


def test_parts_of_a_connection_that_breaks_off_are_removed(served):
    address, folder = served
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(200_000)
    head = f"POST /{UPLOAD} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 500000\r\n"
    before = set(folder._files())
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + body)
        assert wait_for(lambda: set(folder._files()) - before), "the part was never written"
    assert wait_for(lambda: not set(folder._files()) - before)


def test_a_total_quota_over_all_uploads(served, monkeypatch):
    import httpx

    address, folder = served
    monkeypatch.setattr(folder, "_most", folder._used() + 1_100_000)

    def answers() -> list[int]:
        noise = [np.random.default_rng(number).bytes(600_000) for number in range(3)]
        return [httpx.post(address + UPLOAD, files={"files": ("a.png", one)}).status_code for one in noise]

    assert answers() == [200, 507, 507]
    old = time.time() - 4000
    monkeypatch.setattr("inference.upload_folder.MAX_AGE", time.time() - old - 4000)  # all that is there is too old
    assert answers()[0] == 200
    assert wait_for(lambda: folder._reserved == 0)


def test_a_request_is_bounded(address):
    import httpx

    def endless():
        for _ in range(100):
            yield (
                b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
                + bytes(100_000)
                + b"\r\n"
            )

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert httpx.post(address + UPLOAD, content=bytes(6_000_000), headers=headers).status_code == 413
    assert httpx.post(f"{address}gradio_api/queue/join", content=bytes(2_000_000)).status_code == 413
    with contextlib.suppress(httpx.TransportError):  # the server hangs up
        assert httpx.post(address + UPLOAD, content=endless(), headers=headers).status_code == 413


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs Playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the browser test needs Debian's chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def web(address, browser):
    """A fresh page, which must ask nobody but its own server."""
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="Inspect").wait_for()
    page.locator("#image input[type=file]").wait_for(state="attached")
    yield page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    page.close()


def verdict_of(web) -> str:
    web.locator(".card b").wait_for()
    return web.locator(".card").inner_text()


def upload(web, place: str, *files: str) -> None:
    web.locator(f"{place} input[type=file]").set_input_files(list(files))
    web.locator(f"{place} img").first.wait_for(state="attached")


def test_upload_references_threshold(web, service, monkeypatch):
    upload(web, "#image", HOLE)
    web.get_by_label("What is it?").fill("brick")
    web.get_by_role("button", name="Inspect").click()
    expected = service.inspect("brick", HOLE).result.score
    assert f"Score {expected:.3f}" in verdict_of(web) and "No verdict" in verdict_of(web)

    upload(web, "#references", *NORMAL[:3])
    web.get_by_role("button", name="Inspect").click()
    web.get_by_text("threshold", exact=False).filter(has_text="3 normal images give").first.wait_for()
    answer = service.inspect("brick", HOLE, NORMAL[:3])
    assert answer.result.values["verdict"].capitalize() in verdict_of(web)
    assert f"Score {answer.result.values['score']:.3f}" in verdict_of(web)

    monkeypatch.setattr(service, "_predictor", None)  # from here on nothing may be scored
    picture = web.locator("#overlay img")
    before = picture.get_attribute("src")
    web.get_by_label("number input for Threshold").fill("0")
    web.get_by_text("Where: 100.0% of the image").wait_for()
    assert picture.get_attribute("src") != before and web.locator(".card b").is_visible()


def test_a_wrong_file_and_a_missing_name(web, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    upload(web, "#image", str(tmp_path / "notes.png"))
    web.get_by_role("button", name="Inspect").click()
    web.get_by_text("Type what the image shows").wait_for()
    web.get_by_label("What is it?").fill("brick")
    web.get_by_role("button", name="Inspect").click()
    web.get_by_text("notes.png is not an image that can be read here").wait_for()
    web.get_by_text("Not inspected").wait_for()
    assert "Traceback" not in web.content()


def test_an_example(web):
    web.locator("#examples .gallery-item").nth(2).click()
    assert "4 normal images give" in verdict_of(web)
    assert web.get_by_label("What is it?").input_value() == "wood"


def test_an_upload_that_is_too_large(web, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)).save(tmp_path / "big.png")
    web.locator("#image input[type=file]").set_input_files(str(tmp_path / "big.png"))
    web.get_by_text("exceed", exact=False).first.wait_for()
