"""Draw the README's picture from the overlays of a quickstart.

    python illustration/overlays.py results/quickstart \\
        demo_textures/bank_shot/imgs/k4_seed3/brick/test/hole/001.png \\
        demo_objects/bank_shot/imgs/k4_seed3/coffee_cup/Data/Images/Anomaly/006.png

Writes illustration/overlay.png: the given overlays, one below the other.
"""

import sys
from pathlib import Path

from PIL import Image

WIDTH = 774  # pixels


def main(folder: str, *names: str) -> None:
    pictures = [Image.open(Path(folder, name)).convert("RGB") for name in names]
    pictures = [picture.resize((WIDTH, round(picture.height * WIDTH / picture.width))) for picture in pictures]
    whole = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    whole.save(Path(__file__).parent / "overlay.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
