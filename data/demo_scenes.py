"""The pictures of the sample data: views of photographs that come with scikit-image, and defects drawn into them."""

import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
from PIL import Image, ImageDraw
from scipy import ndimage

VISIBLE = 10  # grey levels out of 255 by which a defect must change a pixel
PHOTOS = Path(skimage.__file__).parent / "data"
COINS = ((347, 187, 33), (214, 193, 25), (102, 196, 23), (156, 51, 25), (216, 51, 25))  # x, y, reach in coins.png

Point = tuple[float, float]  # x, y in pixels
Change = tuple[np.ndarray, np.ndarray]  # image (H, W, C) with the defect, where it may differ (H, W)


# --- defects: (image (H, W, C) in 0..255, centre, radius in pixels, generator) -> Change ---


def hole(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A dark pit with a soft wall and a lit lower edge."""
    depth = blob(image, centre, 0.8 * radius, rng)
    pit = soft(depth, 4)[..., None]
    lit = soft(depth, 2) * np.clip(1 - depth / 4, 0, 1) * (offsets(image, centre)[1] > 0)
    return image * (1 - rng.uniform(0.6, 0.75) * pit) + 40 * lit[..., None] + rough(image, rng, 5) * pit, depth > 0


def stain(
    image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator, tint: tuple = (0.66, 0.56, 0.45)
) -> Change:
    """A dried-up liquid: the surface shows through, tinted unevenly and darker along the border."""
    depth = blob(image, centre, radius, rng)
    density = soft(depth, 3) * (1 + 0.2 * cloud(image, rng, 9) + 0.25 * np.exp(-(((depth - 3) / 2) ** 2)))
    colour = np.array(tint) if image.shape[2] == 3 else np.mean(tint, keepdims=True)
    return image * (1 - np.clip(density, 0, 1.2)[..., None] * (1 - colour)), depth > 0


def oil(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A dark wet stain."""
    return stain(image, centre, radius, rng, (0.46, 0.42, 0.4))


def blot(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """Spilt ink."""
    return stain(image, centre, 0.7 * radius, rng, (0.3, 0.32, 0.42))


def bleeding(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A dark red spot."""
    return stain(image, centre, 0.6 * radius, rng, (0.55, 0.3, 0.4))


def deposit(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A pale yellow spot."""
    depth = blob(image, centre, 0.45 * radius, rng)
    pale = np.array([245, 215, 130]) + rough(image, rng, 5)
    return mix(image, pale, 0.75 * soft(depth, 4)), depth > 0


def bleach(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A patch that turned pale and lost contrast."""
    depth = blob(image, centre, radius, rng)
    pale = 0.4 * image + 0.6 * ndimage.gaussian_filter(image, (4, 4, 0)) + rng.uniform(50, 75)
    return mix(image, pale, soft(depth, 6)), depth > 0


def smear(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A patch wiped along one direction."""
    depth = blob(image, centre, 1.2 * radius, rng)
    wiped = ndimage.uniform_filter1d(image, max(int(radius), 11), axis=int(rng.integers(2)))
    return mix(image, 0.85 * wiped + rough(image, rng, 3), soft(depth, 5)), depth > 0


def scratch(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A thin bright groove and its shadow."""
    groove = stroke(image, centre, 2.5 * radius, rng, width=1.8, bend=0.1)
    shadow = np.roll(groove, (1, 1), (0, 1)) * (1 - groove)
    light = rng.uniform(65, 95) * (1 + 0.2 * cloud(image, rng, 3))
    return image + (groove * light - shadow * 35)[..., None], groove + shadow > 0


def crack(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A dark jagged line with a branch."""
    gap = stroke(image, centre, 3.5 * radius, rng, width=2.6, bend=0.55)
    gap = np.maximum(gap, stroke(image, centre, 1.5 * radius, rng, width=1.6, bend=0.55))[..., None]
    return image * (1 - 0.72 * gap) + rough(image, rng, 4) * gap, gap[..., 0] > 0


def misplaced(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A piece of the same surface, turned by a quarter; the image must be square."""
    depth = block(image, centre, 1.1 * radius, rng)
    return mix(image, np.rot90(image, rng.choice((1, 3))), soft(depth, 2)), depth > 0


def erased(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """Print that is gone; the paper is left."""
    depth = block(image, centre, 1.2 * radius, rng)
    paper = ndimage.gaussian_filter(ndimage.percentile_filter(image, 85, size=(21, 21, 1)), (4, 4, 0))
    return mix(image, paper + rough(image, rng, 2), soft(depth, 3)), depth > 0


def bent(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A whirl: the surface is dragged around the centre."""
    x, y = offsets(image, centre)
    inside = 1 - np.hypot(x, y) / (1.2 * radius)
    turn = rng.choice((-1, 1)) * rng.uniform(1.2, 1.7) * np.clip(2 * inside, 0, 1)
    rows, columns = centre[1] + y * np.cos(turn) - x * np.sin(turn), centre[0] + x * np.cos(turn) + y * np.sin(turn)
    planes = [
        ndimage.map_coordinates(plane, (rows, columns), order=1, mode="reflect") for plane in np.moveaxis(image, 2, 0)
    ]
    return np.stack(planes, -1), inside > 0


def coin(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> Change:
    """A coin where none belongs, with its shadow."""
    column, row, reach = COINS[rng.integers(len(COINS))]
    radius = max(int(radius), 14)
    box = (column - reach, row - reach, column + reach, row + reach)
    photo = Image.open(PHOTOS / "coins.png").crop(box).rotate(rng.uniform(0, 360))
    canvas = Image.new("L", image.shape[1::-1])
    canvas.paste(photo.resize((2 * radius, 2 * radius)), (int(centre[0]) - radius, int(centre[1]) - radius))
    x, y = offsets(image, (int(centre[0]), int(centre[1])))
    face, shadow = 0.9 * radius - np.hypot(x, y), 0.95 * radius - np.hypot(x - 2, y - 3)
    shaded = image * (1 - 0.5 * soft(shadow, 4))[..., None]
    return mix(shaded, np.asarray(canvas, float)[..., None], soft(face, 1.5)), np.maximum(face, shadow) > 0


# --- shapes and grain ---


def offsets(image: np.ndarray, centre: Point) -> tuple[np.ndarray, np.ndarray]:
    """x and y (H, W) of every pixel, from the centre."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return x - centre[0], y - centre[1]


def blob(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Depth in pixels (H, W) inside an uneven roundish outline, negative outside."""
    x, y = offsets(image, centre)
    angle = np.arctan2(y, x)
    outline = sum(rng.uniform(0, 0.35) / k * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5, 7))
    return radius * (1 + outline) - np.hypot(x, y)


def block(image: np.ndarray, centre: Point, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Depth in pixels (H, W) inside an upright rectangle, negative outside."""
    x, y = offsets(image, centre)
    aspect = rng.uniform(0.75, 1.3)
    return np.minimum(radius * aspect - np.abs(x), radius / aspect - np.abs(y))


def stroke(
    image: np.ndarray, centre: Point, length: float, rng: np.random.Generator, width: float, bend: float
) -> np.ndarray:
    """Cover 0..1 (H, W) of a line through the centre that thins out at its ends; bend is its jitter in radians."""
    size, fine = image.shape[1::-1], 4
    canvas = Image.new("L", (size[0] * fine, size[1] * fine))
    pen, heading = ImageDraw.Draw(canvas), rng.uniform(0, 2 * np.pi)
    steps = max(int(length / 8), 4)
    for way in (0, np.pi):
        course, (x, y) = heading + way, centre
        for step in range(steps):
            course += rng.normal(0, 0.08)
            angle = course + rng.normal(0, bend)
            end = x + 4 * np.cos(angle), y + 4 * np.sin(angle)
            thick = fine * width * (1 - 0.6 * step / steps) * rng.uniform(0.8, 1.2)
            pen.line([x * fine, y * fine, end[0] * fine, end[1] * fine], 255, round(thick), joint="curve")
            x, y = end
    return np.asarray(canvas.resize(size, Image.Resampling.BOX), float) / 255


def soft(depth: np.ndarray, edge: float) -> np.ndarray:
    """Cover 0..1 that grows over the first edge pixels of depth."""
    return np.clip(depth / edge, 0, 1)


def mix(image: np.ndarray, other: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return image + cover[..., None] * (other - image)


def rough(image: np.ndarray, rng: np.random.Generator, grey_levels: float) -> np.ndarray:
    """Grain (H, W, 1) as a surface has it."""
    return grey_levels * cloud(image, rng, 0.8)[..., None]


def cloud(image: np.ndarray, rng: np.random.Generator, blur: float) -> np.ndarray:
    """Smooth noise (H, W) of unit deviation."""
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape[:2]), blur)
    return noise / noise.std()


# --- images ---


class Recipe(NamedTuple):
    """One class: which part of which photograph its views show, and its defects."""

    photo: str
    box: tuple[int, int, int, int]  # left, top, right, bottom in the photograph
    view: tuple[int, int]  # width and height of the largest view in the photograph
    size: tuple[int, int]  # width and height of the images
    angle: float  # degrees, either way
    mirror: bool
    defects: tuple[Callable[..., Change], ...]
    seek: Callable[[np.ndarray], float] = lambda patch: 0.0  # a defect goes where this is largest


TEXTURES = {
    "brick": Recipe("brick.png", (0, 0, 512, 512), (240, 240), (208, 208), 2, True, (crack, hole, misplaced)),
    "grass": Recipe("grass.png", (0, 0, 512, 512), (240, 192), (240, 192), 15, True, (coin, bleach, smear)),
    "gravel": Recipe("gravel.png", (0, 0, 512, 512), (200, 200), (200, 200), 15, True, (coin, oil, hole)),
    "wood": Recipe("coffee.png", (485, 120, 600, 400), (106, 106), (176, 176), 2, False, (scratch, oil, hole)),
}
OBJECTS = {
    "coffee_cup": Recipe(
        "coffee.png", (50, 0, 530, 400), (430, 370), (256, 220), 3, False, (crack, stain, hole), np.mean
    ),
    "coins": Recipe("coins.png", (4, 16, 376, 300), (150, 150), (208, 208), 5, False, (scratch, oil, bent), np.mean),
    "printed_page": Recipe(
        "page.png", (0, 0, 384, 168), (230, 150), (240, 156), 2, False, (blot, erased, smear), np.std
    ),
    "retina": Recipe(
        "retina.jpg", (0, 0, 1411, 1411), (1350, 1350), (216, 216), 6, False, (bleeding, deposit, bleach), np.mean
    ),
}


def generator(*key: object) -> np.random.Generator:
    """The random numbers of one image, the same in every run."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


def normal_image(recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """A view of the photograph as uint8 (H, W, C): place, scale, angle, side and light are random."""
    photo, step = source(recipe)
    step *= rng.uniform(0.88, 1)
    angle = np.radians(rng.uniform(-recipe.angle, recipe.angle))
    cos, sin = step * np.cos(angle), step * np.sin(angle)
    half = np.array(recipe.size) / 2
    reach = np.abs([[cos, sin], [sin, cos]]) @ half
    free = np.maximum(np.array(photo.size) / 2 - reach, 0)
    x, y = np.array(photo.size) / 2 + rng.uniform(-1, 1, 2) * free
    affine = (cos, -sin, x - cos * half[0] + sin * half[1], sin, cos, y - sin * half[0] - cos * half[1])
    view = photo.transform(recipe.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    pixels = np.asarray(view, float).reshape(*view.size[::-1], -1)  # (H, W, C)
    return quantised(lit(pixels[:, ::-1] if recipe.mirror and rng.random() < 0.5 else pixels, rng))


@functools.cache
def source(recipe: Recipe) -> tuple[Image.Image, float]:
    """The recipe's part of its photograph, reduced if larger than the images need, and its pixels per image pixel."""
    photo = Image.open(PHOTOS / recipe.photo).crop(recipe.box)
    step = recipe.view[0] / recipe.size[0]
    size = round(photo.width / max(step, 1)), round(photo.height / max(step, 1))
    return photo.resize(size, Image.Resampling.LANCZOS), min(step, 1)


def lit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image under another light and exposure, with a little sensor noise."""
    x, y = offsets(image, (image.shape[1] / 2, image.shape[0] / 2))
    turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.08)
    slant = 1 + slope * (x * np.cos(turn) + y * np.sin(turn)) / (max(image.shape) / 2)
    image = 255 * (image / 255) ** rng.uniform(0.88, 1.14) * rng.uniform(0.9, 1.06) * slant[..., None]
    return image + rng.normal(0, 1.2, image.shape[:2])[..., None]


def defect_image(recipe: Recipe, defect: Callable[..., Change], count: int, rng: np.random.Generator) -> Change:
    """A view with count defects: uint8 (H, W, C), and the mask (H, W) with values 1..count."""
    image = normal_image(recipe, rng)
    mask = np.zeros(image.shape[:2], np.uint8)
    for value in range(1, count + 1):
        image, part = add_defect(image, mask > 0, recipe, defect, rng)
        mask[part] = value
    return image, mask


def add_defect(
    image: np.ndarray, taken: np.ndarray, recipe: Recipe, defect: Callable[..., Change], rng: np.random.Generator
) -> Change:
    """Draw until the change is one piece that can be seen, apart from those there; returns image and its mask."""
    apart = ndimage.binary_dilation(taken, iterations=4) if taken.any() else taken
    for _ in range(60):
        radius = min(image.shape[:2]) * np.exp(rng.uniform(np.log(0.06), np.log(0.19)))
        centre = place(image, radius, recipe.seek, rng)
        after, support = defect(image.astype(float), centre, radius, rng)
        mask = changed(image, quantised(after), support)
        if mask is not None and not (mask & apart).any():
            return np.where(mask[..., None], quantised(after), image), mask
    raise ValueError(f"no visible {defect.__name__} could be drawn on {recipe.photo}")


def place(image: np.ndarray, radius: float, seek: Callable, rng: np.random.Generator) -> Point:
    """The best of a few random centres that keep the defect inside the image."""
    height, width, _ = image.shape
    margin, reach = radius + 10, int(radius)
    spots = [(rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)) for _ in range(5)]
    return max(
        spots, key=lambda s: seek(image[int(s[1]) - reach : int(s[1]) + reach, int(s[0]) - reach : int(s[0]) + reach])
    )


def changed(before: np.ndarray, after: np.ndarray, support: np.ndarray) -> np.ndarray | None:
    """The mask (H, W) of visible change, small gaps closed; None where it is faint, tiny or in pieces."""
    difference = np.abs(after.astype(int) - before).max(-1)
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(difference > VISIBLE, iterations=6)) & support
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return None
    piece = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    whole = piece.sum() > 0.9 * mask.sum() and piece.sum() > 0.55 * support.sum()
    seen = piece.sum() > 0.002 * mask.size and np.mean(difference[piece]) > 2.5 * VISIBLE
    return piece if whole and seen else None


def quantised(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
