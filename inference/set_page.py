"""The web page of a method that scores images together: drop five or more, the odd ones come first. Needs Gradio."""

import html
from typing import Any

import gradio as gr
from gradio import processing_utils
from PIL import Image

from config.settings import AppSettings
from inference.page import DETECT, card, heading, no_download, path_of
from inference.service import InferenceService, RankedSet
from inference.upload_folder import UploadFolder
from inference.uploads import FORMATS

_EMPTY = "The images appear here, the odd ones first."


def build_set_page(service: InferenceService, settings: AppSettings, uploads: UploadFolder) -> gr.Blocks:
    """The page. uploads: where uploads come from and pictures go."""
    processing_utils.async_ssrf_protected_download = no_download

    def rank(files: Any) -> tuple[Any, ...]:
        """Score images together."""
        try:
            ranked = service.rank([path_of(one, [uploads.path]) or "" for one in files or ()])
        except (ValueError, TypeError) as error:
            raise gr.Error(html.escape(str(error)), duration=20, print_exception=False) from None
        return _summary(ranked), [_picture(one.picture, one.score, uploads) for one in ranked.images], _numbers(ranked)

    with gr.Blocks(title="VAND Kit", analytics_enabled=False) as blocks:
        gr.HTML(heading(settings, int(service.description["image_size"])))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                files = gr.File(label="Images of one kind of object", file_count="multiple", file_types=["image"],
                                height=260, elem_id="set")  # fmt: skip
                button = gr.Button("Compare", variant="primary")
                limits = service.limits
                gr.HTML(
                    f"<p class=hint>{', '.join(FORMATS)}; up to {limits.megabytes} MB and {limits.pixels / 1e6:.3g} "
                    f"megapixels each, {service.least} to {service.most} images, most of them normal.</p>"
                )
            with gr.Column(scale=3, min_width=320):
                outputs = [
                    gr.HTML(card(_EMPTY)),
                    gr.Gallery(label="The odd ones first", columns=3, interactive=False, buttons=["fullscreen"],
                               object_fit="contain", height="auto", elem_id="ranked"),
                ]  # fmt: skip
                with gr.Accordion("Numbers", open=False):
                    outputs.append(gr.JSON(show_label=False))
        asked = button.click(rank, files, outputs, api_name="rank", **DETECT)
        asked.failure(lambda: (card("Not compared: the message says why."), None, None), None, outputs,
                      api_visibility="private")  # fmt: skip
        files.change(lambda: (card(_EMPTY), None, None), None, outputs, api_visibility="private")
    return blocks


def _picture(picture: Any, score: float, uploads: UploadFolder) -> tuple[str, str]:
    path = uploads.new_picture()
    Image.fromarray(picture).save(path, quality=85)
    return str(path), f"{score:.3f}"


def _summary(ranked: RankedSet) -> str:
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in ranked.notes)
    return (
        f"<div class=card><b>{len(ranked.images)} images</b><p>Scored together: a score belongs to this set, and there "
        f"is no threshold.</p>{notes}<p class=hint>It took {ranked.seconds:.1f} s.</p></div>"
    )


def _numbers(ranked: RankedSet) -> dict[str, Any]:
    scores = [{"image": one.path.rpartition("/")[2], "score": one.score} for one in ranked.images]
    return {"images": scores, "seconds": round(ranked.seconds, 4)}
