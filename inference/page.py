"""The web page: drop an image, say what it shows, add a few normal ones; score, verdict and map come back.

Needs Gradio. Files come as they are: Gradio would decode them before they are checked.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio import processing_utils
from PIL import Image

from config import embedded
from config.settings import AppSettings
from inference.calibration import Calibration
from inference.service import Answer, InferenceService, View
from inference.upload_folder import MAX_AGE, UploadFolder
from inference.uploads import FORMATS, NAME_LENGTH, UploadLimits
from report.heatmap import blend_heatmap, css_gradient

# Of the events that use the detector.
DETECT = {"concurrency_limit": 1, "concurrency_id": "detector", "preprocess": False, "scroll_to_output": True}


class Example(NamedTuple):
    """An image to try, with normal ones of its kind."""

    name: str
    image: str
    references: list[str]


def build_page(
    service: InferenceService,
    settings: AppSettings,
    examples: Sequence[Example],
    uploads: UploadFolder,
    readable: Sequence[Path] = (),
) -> gr.Blocks:
    """The page.

    Args:
        uploads: where uploads come from and pictures go.
        readable: folders whose files requests may name beside uploads: those of the examples.
    """
    processing_utils.async_ssrf_protected_download = no_download

    def overlay(view: View | None, opacity: float = 1, threshold: float = 0) -> dict[str, Any]:
        return overlay_update(view, opacity, threshold, uploads)

    def inspect(image: Any, name: Any, references: Any, opacity: Any, threshold: Any) -> tuple[Any, ...]:
        """Score one image; references: normal images of the same kind."""
        try:
            folders = [uploads.path, *readable]
            others = [path_of(one.get("image") or one.get("video"), folders) or "" for one in references or ()]
            answer = service.inspect(str(name or ""), path_of(image, folders), others)
            picture = overlay(answer.view, float(opacity), float(threshold))
        except (ValueError, TypeError) as error:
            raise gr.Error(html.escape(str(error)), duration=20, print_exception=False) from None
        return summary(answer), picture, numbers(answer), answer.view

    def choose(index: int) -> tuple[Any, ...]:
        name, image, references = examples[index]
        return image, name, references[: service.limits.references] or None

    with gr.Blocks(title="VAND Kit", analytics_enabled=False) as blocks:
        gr.HTML(heading(settings, int(service.description["image_size"])))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs, button = _input_side(service.limits)
                thumbnails = gr.Dataset(
                    label="Examples, each with normal images", components=[gr.Image(visible=False)], type="index",
                    samples=[[one.image] for one in examples], visible=bool(examples), elem_id="examples",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=320):
                outputs, sliders = _result_side()

        triggers = [button.click, inputs[1].submit]
        asked = gr.on(triggers, inspect, inputs + sliders, outputs, api_name="inspect", **DETECT)
        chosen = thumbnails.click(choose, thumbnails, inputs, api_visibility="private")
        example = chosen.success(inspect, inputs + sliders, outputs, api_visibility="private", **DETECT)
        for event in (asked.failure, example.failure):
            event(lambda: _no_result(FAILED), None, outputs, api_visibility="private")
        for event in (inputs[0].upload, inputs[0].clear):  # the result of another image must not stay
            event(lambda: _no_result(EMPTY), None, outputs, api_visibility="private")
        gr.on(
            [slider.input for slider in sliders], overlay, [outputs[-1], *sliders], outputs[1], api_name="recolour",
            show_progress="hidden", trigger_mode="always_last", concurrency_limit=4,
        )  # fmt: skip
    return blocks


async def no_download(*_: Any, **__: Any) -> None:
    """In the place of what Gradio does with an address that a request gives instead of a file."""
    raise gr.Error("Upload the image itself; addresses are not fetched.", print_exception=False)


def path_of(file: dict[str, Any] | None, folders: Sequence[Path]) -> str | None:
    """Where an uploaded file lies. Raises ValueError for a file outside the folders: Gradio lets a request name what it
    likes."""
    if not file:
        return None
    path = Path(file["path"]).resolve()
    if not any(path.is_relative_to(folder.resolve()) for folder in folders):
        raise ValueError("only uploaded images are read; upload it again")
    return str(path)


def _input_side(limits: UploadLimits) -> tuple[list[Any], gr.Button]:
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


def _result_side() -> tuple[list[Any], list[Any]]:
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
        values = gr.JSON(show_label=False)
    return [verdict, picture, values, gr.State(time_to_live=MAX_AGE)], [opacity, threshold]


# --- results as the page shows them ---------------------------------------------------------------------------------

WHERE = "Where"
EMPTY = "Score, verdict and time appear here."
FAILED = "Not inspected: the message says why."
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


def heading(settings: AppSettings, image_size: int) -> str:
    """Title, and what is running."""
    alone = settings.without_references
    other = f" with normal images, {alone.method} without" if alone else ""
    running = f"{settings.method}{other}; {settings.model} at {image_size} pixels"
    sample = settings.pretrained == str(embedded.WEIGHTS)
    note = "; small sample weights, to try it out: README.md says how to run real ones" if sample else ""
    return f"<h1>What is unusual here?</h1><p class=hint>{html.escape(running + note)}</p>"


def card(text: str) -> str:
    """HTML in the place of a verdict."""
    return f"<div class=card><p class=hint>{text}</p></div>"


def _no_result(text: str) -> tuple[Any, ...]:
    """The right side without a result."""
    return card(text), gr.update(value=None, label=WHERE), None, None


def overlay_update(view: View | None, opacity: float, threshold: float, uploads: UploadFolder) -> dict[str, Any]:
    """The coloured picture, and above it how much of it is coloured; nothing, where there is no view."""
    if view is None:
        return gr.update(value=None, label=WHERE)
    share = float((view.heat >= threshold).mean())
    above = f"{100 * share:.1f}% of the image lies" if share else "nothing lies"
    # A file of its own: Gradio would write equal pictures of two users into one, even while it is read.
    path = uploads.new_picture()
    Image.fromarray(blend_heatmap(*view, opacity, threshold)).save(path, quality=85)
    return gr.update(value=str(path), label=f"{WHERE}: {above} above the threshold")


def summary(answer: Answer) -> str:
    """Score, verdict, time and notes, as HTML."""
    score, calibration = answer.result.score, answer.calibration
    took = f"{1000 * answer.seconds:.0f} ms" if answer.seconds < 1 else f"{answer.seconds:.1f} s"
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in answer.notes)
    if calibration is None:
        return (
            f"<div class=card><b>Score {score:.3f}</b><p>No verdict: two or more different normal images give a "
            f"threshold.</p>{notes}<p class=hint>It took {took}.</p></div>"
        )
    verdict = calibration.verdict(score)
    above = "above" if score > calibration.threshold else "not above"
    return (
        f"<div class=card><b class={verdict}>{verdict.capitalize()}</b> <p>Score {score:.3f} is {above} the threshold "
        f"{calibration.threshold:.3f} that the {calibration.normal_images} normal images give.</p>{notes}"
        f"<p class=hint>{_promise(calibration)} It took {took}.</p></div>"
    )


def _promise(calibration: Calibration) -> str:
    if calibration.rule is None and calibration.fpr is not None:
        return f"So few leave up to {100 * calibration.fpr:.0f}% of further normal images above it."
    return f"Rule of the threshold: {calibration.rule}; {calibration.promise()}."


def numbers(answer: Answer) -> dict[str, Any]:
    """The same as numbers."""
    one = answer.calibration
    threshold = {"threshold": one.threshold, "false_positive_rate": one.fpr} if one else {}
    threshold |= {"pixel_threshold": one.pixel_threshold} if one and one.pixel_threshold is not None else {}
    notes = {"notes": answer.notes} if answer.notes else {}
    return {**answer.result.values, **threshold, **notes, "seconds": round(answer.seconds, 4)}
