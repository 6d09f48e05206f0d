"""Draw the README's pictures of the report page and of the web page, with Playwright and Debian's chromium.

After a quickstart, in an environment with requirements-app.txt and Playwright:

    export METHOD=anomaly_dino DATASET=demo_textures DATA=data/demo/demo_textures K_SHOT="1 4" SEED="1 2 3"
    export CONFIG=exps/quickstart/quickstart-clip.json PRETRAINED=exps/quickstart/quickstart-clip.safetensors
    SAVE=results/page MODEL=quickstart-clip sh test_few_shot.sh
    python illustration/pages.py results/page/report.html     # -> illustration/report.png
    python app.py --port 7860                                 # in another shell, then
    python illustration/pages.py http://127.0.0.1:7860        # -> illustration/app.png

The test is run again with relative paths because the page shows them.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WIDTH = 1200  # of the window, in pixels
EXAMPLE = 0  # of the web page: which of its examples is inspected


def main(address: str) -> None:
    local = not address.startswith("http")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(Path(address).resolve().as_uri() if local else address)
        picture = report(page) if local else inspected(page)
        browser.close()
    target = Path(__file__).parent / ("report.png" if local else "app.png")
    Image.open(io.BytesIO(picture)).convert("RGB").save(target, optimize=True)


def report(page: Page) -> bytes:
    """Head, curves and first pictures of the page, in the last of its settings."""
    page.locator("input[name=setting]").last.check()
    figure = page.locator("figure:visible", has=page.locator("img")).first.bounding_box()
    return page.screenshot(
        full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": figure["y"] + figure["height"] + 2}
    )


def inspected(page: Page) -> bytes:
    """The web page after one of its examples has been inspected."""
    page.locator("#examples button").nth(EXAMPLE).click()
    page.locator("#overlay img").wait_for(timeout=120_000)
    page.wait_for_timeout(2000)  # the progress bar fades
    return page.screenshot(full_page=True, clip={"x": 90, "y": 0, "width": 1020, "height": 962})


if __name__ == "__main__":
    main(*sys.argv[1:])
