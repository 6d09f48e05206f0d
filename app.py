"""Find anomalies in a web page: drop an image, say what it shows, add a few normal ones.

    python app.py                                                # the small weights that ship; http://127.0.0.1:7860
    python app.py --method april_gan --checkpoint_path ./exps/april_gan/mvtec --device cuda

Works without a network. Uploads lie in a temporary folder for about an hour, and are gone when the program ends.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import html
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from config.flags import app_parser
from config.settings import QUICKSTART, log_settings, resolve_app
from inference.service import InferenceService, Result, View
from inference.uploads import FORMATS, NAME_LENGTH, UploadLimits
from model import METHODS
from report.heatmap import blend_heatmap, css_gradient
from utils.errors import run_script
from utils.logs import LOG, log_to

if find_spec("gradio") is None:
    sys.exit("error: the web page needs Gradio: pip install -r requirements-app.txt")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr  # noqa: E402
from gradio import processing_utils  # noqa: E402

ROOT = Path(__file__).resolve().parent
DEMO = ROOT / "data/demo"
_SESSIONS, _WAITING = 100, 64  # pages that can be recoloured, requests that may wait
# Of the events that use the detector. Files come as they are: Gradio would decode them before they are checked.
_DETECT = {"concurrency_limit": 1, "concurrency_id": "detector", "preprocess": False, "scroll_to_output": True}
_HOUR = 3600  # seconds
EXAMPLES = (  # name, image, folder of normal images
    ("brick wall", "demo_textures/brick/test/hole/002.png", "demo_textures/brick/train/good"),
    ("brick wall", "demo_textures/brick/test/good/000.png", "demo_textures/brick/train/good"),
    ("wood", "demo_textures/wood/test/hole/001.png", "demo_textures/wood/train/good"),
    ("gravel", "demo_textures/gravel/test/oil/001.png", "demo_textures/gravel/train/good"),
    ("coffee cup", "demo_objects/coffee_cup/Data/Images/Anomaly/002.JPG", "demo_objects/coffee_cup/Data/Images/Normal"),
    ("retina", "demo_objects/retina/Data/Images/Anomaly/003.JPG", "demo_objects/retina/Data/Images/Normal"),
)
_SHOTS = 4  # normal images of an example


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_app(app_parser(list(METHODS)).parse_args(argv))
    log_to(None)
    log_settings(settings, sources)
    desk = InferenceService(settings)
    with tempfile.TemporaryDirectory(prefix="vand-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page(desk, settings, examples(DEMO))
        LOG.info("open %s (Ctrl+C ends)", launch(blocks, settings))
        blocks.block_thread()


def examples(root: Path) -> list[tuple[str, str, list[str]]]:
    """(name, image, normal images) of the sample data, which is made where it is missing; none where that fails."""
    if not (root / "demo_objects/meta.json").is_file() or not (root / "demo_textures/meta.json").is_file():
        LOG.info("making the sample data, once (python data/demo.py)")
        done = subprocess.run([sys.executable, ROOT / "data/demo.py", "--root", root], capture_output=True, text=True)
        if done.returncode:
            LOG.warning("no examples: %s", done.stderr.strip().splitlines()[-1:] or "data/demo.py failed")
            return []
    normal = {folder: sorted(str(path) for path in (root / folder).iterdir())[:_SHOTS] for _, _, folder in EXAMPLES}
    return [(name, str(root / image), normal[folder]) for name, image, folder in EXAMPLES]


# --- the page -------------------------------------------------------------------------------------------------------


async def no_download(*_: Any, **__: Any) -> None:
    """In the place of what Gradio does with an address that a request gives instead of a file."""
    raise gr.Error("Upload the image itself; addresses are not fetched.", print_exception=False)


processing_utils.async_ssrf_protected_download = no_download


def page(desk: InferenceService, settings, shown: Sequence[tuple[str, str, list[str]]]) -> gr.Blocks:
    """The page; shown: see `examples`."""
    with gr.Blocks(title="VAND Kit", analytics_enabled=False, delete_cache=(_HOUR // 6, _HOUR)) as blocks:
        gr.HTML(heading(settings, desk.inspector.description))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs, button = input_side(desk.limits)
                thumbnails = gr.Dataset(
                    label="Examples, each with normal images", components=[gr.Image(visible=False)], type="index",
                    samples=[[image] for _, image, _ in shown], visible=bool(shown), elem_id="examples",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=320):
                outputs, sliders = result_side()

        def inspect(image, name, references, opacity, threshold):
            """Score one image; references: normal images of the same kind."""
            try:
                others = [path_of(one.get("image") or one.get("video")) for one in references or ()]
                result = desk.inspect(str(name or ""), path_of(image), others)
                picture = overlay(result.view, float(opacity), float(threshold))
            except (ValueError, TypeError) as error:
                raise gr.Error(html.escape(str(error)), duration=20, print_exception=False) from None
            return summary(result), picture, figures(result), result.view

        def choose(index):
            name, image, references = shown[index]
            return image, name, references[: desk.limits.references] or None

        triggers = [button.click, inputs[1].submit]
        asked = gr.on(triggers, inspect, inputs + sliders, outputs, api_name="inspect", **_DETECT)
        chosen = thumbnails.click(choose, thumbnails, inputs, api_visibility="private")
        example = chosen.success(inspect, inputs + sliders, outputs, api_visibility="private", **_DETECT)
        for event in (asked.failure, example.failure):
            event(lambda: nothing("Not inspected: the message says why."), None, outputs, api_visibility="private")
        for event in (inputs[0].upload, inputs[0].clear):  # the result of another image must not stay
            event(lambda: nothing(EMPTY), None, outputs, api_visibility="private")
        gr.on(
            [slider.input for slider in sliders], overlay, [outputs[-1], *sliders], outputs[1], api_name="recolour",
            show_progress="hidden", trigger_mode="always_last", concurrency_limit=4,
        )  # fmt: skip
    return blocks


def transferred() -> Path:
    """The folder of files that come and go; Gradio removes them in time."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio"))


def path_of(file: dict[str, Any] | None) -> str | None:
    """Where an uploaded file lies. Raises ValueError for any other file: Gradio lets a request name what it likes."""
    if not file:
        return None
    path = Path(file["path"]).resolve()
    if not any(path.is_relative_to(folder.resolve()) for folder in (transferred(), DEMO)):
        raise ValueError("only uploaded images are looked at; upload it again")
    return str(path)


def input_side(limits: UploadLimits) -> tuple[list, gr.Button]:
    """([image, name, normal images], the button)."""
    picture = gr.Image(label="Image", sources=["upload", "clipboard"], height=260, buttons=[], elem_id="image")
    name = gr.Textbox(label="What is it?", placeholder="screw, leather, circuit board ...", max_length=NAME_LENGTH)
    references = gr.Gallery(
        label=f"Normal images (optional, up to {limits.references})", file_types=["image"],
        sources=["upload"], columns=4, height=170, type="filepath", buttons=[], interactive=True,
        visible=limits.references > 0, elem_id="references",
    )  # fmt: skip
    button = gr.Button("Inspect", variant="primary")
    allowed = f"up to {limits.megabytes} MB and {limits.pixels / 1e6:.3g} megapixels each"
    note = "Browsers do not show a TIFF before it is inspected."
    gr.HTML(f"<p class=hint>{', '.join(FORMATS)}; {allowed}. {note}</p>")
    return [picture, name, references], button


def result_side() -> tuple[list, list]:
    """([verdict, overlay, numbers, view], [opacity, threshold])."""
    verdict = gr.HTML(card(EMPTY))
    picture = gr.Image(
        label=WHERE, interactive=False, height="min(460px, 92vw)", buttons=["fullscreen", "download"],
        elem_id="overlay",
    )  # fmt: skip
    gr.HTML(LEGEND)
    with gr.Row():
        opacity = gr.Slider(0, 1, 0.75, step=0.05, label="Opacity", buttons=[])
        threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold", buttons=[])
    with gr.Accordion("Numbers", open=False):
        numbers = gr.JSON(show_label=False)
    return [verdict, picture, numbers, gr.State(time_to_live=_HOUR)], [opacity, threshold]


def launch(blocks: gr.Blocks, settings) -> str:
    """Serve the page in the background; returns its address."""
    _, address, _ = blocks.queue(max_size=_WAITING, api_open=False).launch(
        server_name=settings.host, server_port=settings.port, max_file_size=f"{settings.max_megabytes}mb",
        allowed_paths=[str(DEMO)], state_session_capacity=_SESSIONS, share=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, run_history=False, footer_links=["settings"], css=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        prevent_thread_lock=True, quiet=True,
    )  # fmt: skip
    return address


# --- what it says ---------------------------------------------------------------------------------------------------

WHERE = "Where"
EMPTY = "Score, verdict and time appear here."
LEGEND = (
    f'<div class=legend><span>as usual</span><i style="background: {css_gradient()}"></i><span>unusual</span></div>'
    "<p class=hint>What lies below the threshold is left uncoloured. With two or more normal images, 0.5 is the most "
    "unusual spot of theirs, unless the image leaves that scale; then, and without normal images, the scale is the "
    "image's own, and its most unusual spot is red.</p>"
)
STYLE = """
.html-container { padding: 0 !important; }
.card { padding: 12px 16px; border: 1px solid var(--border-color-primary); border-radius: 6px; min-height: 96px; }
.card b { font-size: 1.5em; } .card p { margin: 0; }
.card .anomalous { color: #c2410c; } .card .normal { color: #15803d; }
.dark .card .anomalous { color: #fb923c; } .dark .card .normal { color: #4ade80; }
.hint { color: #57606a; font-size: 0.9em; margin: 4px 0; } .dark .hint { color: #9ca3af; }
.legend { display: flex; align-items: center; gap: 8px; font-size: 0.9em; }
.legend i { flex: 1; height: 10px; border-radius: 5px; }
#references .grid-wrap { padding-top: 28px; }
#examples .gallery { gap: 6px; } #examples .gallery-item * { width: 60px; height: 60px; }
"""


def heading(settings, description) -> str:
    """Title, and what is running."""
    running = f"{settings.method}, {settings.model} at {description['image_size']} pixels"
    sample = settings.pretrained == str(QUICKSTART)
    note = "; small sample weights, to try it out: README.md says how to run real ones" if sample else ""
    return f"<h1>What is unusual here?</h1><p class=hint>{html.escape(running + note)}</p>"


def card(text: str) -> str:
    """HTML in the place of a verdict."""
    return f"<div class=card><p class=hint>{text}</p></div>"


def nothing(text: str) -> tuple:
    """What the right side shows when there is no result."""
    return card(text), overlay(None), None, None


def overlay(view: View | None, opacity: float = 1, threshold: float = 0) -> dict[str, Any]:
    """The coloured picture, and above it how much of it is coloured; nothing, where there is no view."""
    if view is None:
        return gr.update(value=None, label=WHERE)
    share = float((view.heat >= threshold).mean())
    above = f"{100 * share:.1f}% of the image lies" if share else "nothing lies"
    return gr.update(
        value=written(blend_heatmap(*view, opacity, threshold)), label=f"{WHERE}: {above} above the threshold"
    )


def written(picture: np.ndarray) -> str:
    """Path of a JPEG of its own: Gradio would write equal pictures of two users into one, even while it is read."""
    folder = transferred()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="overlay-", suffix=".jpg", delete=False) as file:
        Image.fromarray(picture).save(file, quality=85)
    return file.name


def summary(result: Result) -> str:
    """Score, verdict and time, as HTML."""
    score, calibration = result.values["score"], result.calibration
    took = f"{1000 * result.seconds:.0f} ms" if result.seconds < 1 else f"{result.seconds:.1f} s"
    if calibration is None:
        return (
            f"<div class=card><b>Score {score:.3f}</b><p>No verdict: two or more normal images give a threshold.</p>"
            f"<p class=hint>It took {took}.</p></div>"
        )
    verdict, above = result.values["verdict"], score > calibration.threshold
    return (
        f"<div class=card><b class={verdict}>{verdict.capitalize()}</b> <p>Score {score:.3f} is "
        f"{'above' if above else 'not above'} the threshold {calibration.threshold:.3f} that the "
        f"{calibration.normal_images} normal images give.</p><p class=hint>So few leave up to "
        f"{100 * calibration.fpr:.0f}% of further normal images above it. It took {took}.</p></div>"
    )


def figures(result: Result) -> dict[str, Any]:
    """The same as numbers."""
    one = result.calibration
    threshold = {"threshold": one.threshold, "false_positive_rate": one.fpr} if one else {}
    return {**result.values, **threshold, "seconds": round(result.seconds, 4)}


if __name__ == "__main__":
    run_script(main)
