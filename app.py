"""Find anomalies in a web page: drop an image, say what it shows, add a few normal ones.

    python app.py                                                # the small weights that ship; http://127.0.0.1:7860
    python app.py --method musc                                  # drop five or more images: the odd ones come first
    python app.py --method april_gan --checkpoint_path ./exps/april_gan/mvtec --device cuda

Works without a network. Uploads lie in a temporary folder for about an hour, and are gone when the program ends.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import app_parser

if __name__ == "__main__":
    app_parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

# isort: split
import errno
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from config.resolve import resolve_app
from config.settings import AppSettings, log_settings
from inference.request_guard import RequestGuard
from inference.service import InferenceService
from inference.upload_folder import UploadFolder
from model import capabilities
from utils.errors import run_script
from utils.logs import LOG, log_to

if find_spec("gradio") is None:
    sys.exit("error: the web page needs Gradio: pip install -r requirements-app.txt")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from inference.page import STYLE, Example, build_page  # noqa: E402
from inference.set_page import build_set_page  # noqa: E402

ROOT = Path(__file__).resolve().parent
DEMO = ROOT / "data/demo"
EXAMPLES = (  # name, folder, normal images in it, and two to inspect: one with a defect, one without
    ("brick wall", "demo_textures/brick", "train/good", ("test/hole/002.png", "test/good/000.png")),
    ("wood", "demo_textures/wood", "train/good", ("test/hole/001.png", "test/good/002.png")),
    ("gravel", "demo_textures/gravel", "train/good", ("test/oil/001.png", "test/good/002.png")),
    ("coffee cup", "demo_objects/coffee_cup/Data/Images", "Normal", ("Anomaly/002.JPG", "Normal/0012.JPG")),
    ("coins", "demo_objects/coins/Data/Images", "Normal", ("Anomaly/003.JPG", "Normal/0012.JPG")),
    ("retina", "demo_objects/retina/Data/Images", "Normal", ("Anomaly/003.JPG", "Normal/0012.JPG")),
)
_SHOTS = 4  # normal images of an example
_SESSIONS, _WAITING = 100, 64  # pages that can be recoloured, requests that may wait
_FIRST_PORT, _PORTS = 7860, 100  # those that Gradio tries


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_app(app_parser().parse_args(argv))
    check_address(settings.host, settings.port)
    log_to(None)
    log_settings(settings.as_dict(), sources)
    service = InferenceService(settings)
    with UploadFolder(settings.max_total_megabytes * 10**6) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads.path)
        if takes_sets(settings.method):
            blocks = build_set_page(service, settings, uploads)
        else:
            blocks = build_page(service, settings, examples(DEMO), uploads, [DEMO])
        LOG.info("open %s (Ctrl+C ends)", launch(blocks, settings, uploads))
        blocks.block_thread()


def takes_sets(method: str) -> bool:
    """Whether a method scores images together, and none by itself."""
    can = capabilities(method)
    return not (can.zero_shot or can.few_shot)


def examples(root: Path) -> list[Example]:
    """Those of the sample data, which is made where it is missing; none where that fails."""
    if not (root / "demo_objects/meta.json").is_file() or not (root / "demo_textures/meta.json").is_file():
        LOG.info("making the sample data, once (python data/demo.py)")
        done = subprocess.run([sys.executable, ROOT / "data/demo.py", "--root", root], capture_output=True, text=True)
        if done.returncode:
            LOG.warning("no examples: %s", (done.stderr.strip().splitlines() or ["data/demo.py failed"])[-1])
            return []
    found = []
    for name, folder, normal, images in EXAMPLES:
        references = sorted(map(str, (root / folder / normal).iterdir()))[:_SHOTS]
        found += [Example(name, str(root / folder / image), references) for image in images]
    return found


def check_address(host: str, port: int | None) -> None:
    """Raises ValueError where nothing can listen there; names the flag to change."""
    if port is not None and port > 65535:
        raise ValueError(f"--port {port}: must be at most 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
    except socket.gaierror:
        raise ValueError(f"--host {host}: unknown address; 0.0.0.0 listens on all of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = f"name another one, or leave --port out, which takes the first free one from {_FIRST_PORT}"
            raise ValueError(f"--port {port} is taken by another program; {advice}") from None
        flag = f"--port {port}" if error.errno == errno.EACCES else f"--host {host}"
        raise ValueError(f"{flag}: cannot listen there ({error.strerror}); name another one") from None


def launch(blocks: gr.Blocks, settings: AppSettings, uploads: UploadFolder) -> str:
    """Serve the page in the background; returns its address."""
    files = settings.max_set if takes_sets(settings.method) else max(1, settings.max_references)
    guard = Middleware(
        RequestGuard, host=settings.host, allowed=settings.allow_host, folder=uploads,
        upload_bytes=files * settings.max_megabytes * 10**6 + 10**6,
    )  # fmt: skip
    try:
        _, address, _ = blocks.queue(max_size=_WAITING, api_open=False).launch(
            server_name=settings.host, server_port=settings.port, max_file_size=f"{settings.max_megabytes}mb",
            allowed_paths=[str(DEMO)], state_session_capacity=_SESSIONS, share=False, ssr_mode=False, pwa=False,
            mcp_server=False, enable_monitoring=False, run_history=False, footer_links=["settings"], css=STYLE,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            prevent_thread_lock=True, quiet=True, app_kwargs={"middleware": [guard]},
        )  # fmt: skip
    except OSError:
        ports = f"{_FIRST_PORT} to {_FIRST_PORT + _PORTS - 1}" if settings.port is None else str(settings.port)
        raise ValueError(f"port {ports}: taken by other programs; name a free one with --port") from None
    uploads.keep_present()
    return str(address)


if __name__ == "__main__":
    run_script(main)
