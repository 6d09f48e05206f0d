"""Pictures that are drawn from random numbers alone: surfaces and simple objects, each without and with a defect.

`picture(size, rng)` gives such a pair with the defect's mask and nouns for what it shows. No photograph goes in. What
the quickstart's CLIP is trained on; the sample data that it is tested on is made elsewhere, by other code, from
photographs.

Shapes: S image side in pixels; a field is (S, S) float32; an image is (S, S, 3) float32 in 0..1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

Rng = np.random.Generator
_FULL = 6.2832  # radians of a full turn


class Picture(NamedTuple):
    """A scene photographed twice, and what is known of it."""

    flawless: np.ndarray  # (S, S, 3) uint8 RGB
    image: np.ndarray  # (S, S, 3) uint8 RGB, the same with a defect; equal where there is none
    mask: np.ndarray  # (S, S) bool, the pixels that the defect changed; all False where there is none
    nouns: Sequence[str]  # what it shows, in several words
    defect: str | None  # kind of the defect
    scene: str  # "object", "crowd", or the surface


def picture(size: int, rng: Rng) -> Picture:
    """A scene without and with a defect, in the same light and with the same noise; no defect where none would show."""
    scene = list(_SCENES)[rng.choice(3, p=list(_SCENES.values()))](size, rng)
    image, mask, kind = with_defect(scene, rng)
    state = rng.bit_generator.state
    flawless = _photographed(scene.image, rng)
    rng.bit_generator.state = state
    both = [np.rint(255 * one).astype(np.uint8) for one in (flawless, _photographed(image, rng))]
    return Picture(*both, mask, scene.nouns, kind, scene.kind)


def telling(one: Picture) -> bool:
    """Whether its defect, if it has one, differs in colour or roughness from what is around it; no puzzles."""
    if one.defect is None:
        return True
    around = (cv2.dilate(one.mask.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0) & ~one.mask
    inside, outside = one.image[one.mask], one.image[around]  # each (n, 3)
    shift = np.abs(inside.mean(0) - outside.mean(0)).max() / 255
    roughness = np.log((inside.std(0).mean() + 3) / (outside.std(0).mean() + 3))
    return bool(shift >= 0.1 or np.abs(roughness) >= 0.7)


class Scene(NamedTuple):
    """A flawless picture before it is photographed."""

    image: np.ndarray  # (S, S, 3)
    body: np.ndarray  # (S, S) 0..1, where the objects are; 1 everywhere on a surface
    ordered: bool  # whether a piece in the wrong place shows
    nouns: Sequence[str]
    kind: str  # "object", "crowd", or the surface


# --- fields ---------------------------------------------------------------------------------------------------------


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (S, S) from the middle, in pixels."""
    axis = np.arange(size, dtype=np.float32) - (size - 1) / 2
    return np.meshgrid(axis, axis)


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _noise(size: int, rng: Rng, x_blur: float, y_blur: float | None = None) -> np.ndarray:
    """Smooth noise of unit deviation."""
    field = rng.standard_normal((size, size), dtype=np.float32)
    field = cv2.GaussianBlur(
        field, (0, 0), max(x_blur, 0.01), sigmaY=max(y_blur or x_blur, 0.01), borderType=cv2.BORDER_REFLECT
    )
    return field / (field.std() + 1e-6)


def _fractal(size: int, rng: Rng, power: float, stretch: float = 1.0) -> np.ndarray:
    """Noise whose amplitude falls with frequency ** power, of unit deviation; stretched along y."""
    fy, fx = np.fft.fftfreq(size)[:, None] * stretch, np.fft.rfftfreq(size)[None]
    amplitude = (fx**2 + fy**2 + 1.0 / size**2) ** (-power / 2)
    spectrum = amplitude * np.exp(1j * rng.uniform(0, _FULL, amplitude.shape))
    field = np.fft.irfft2(spectrum, (size, size)).astype(np.float32)
    return (field - field.mean()) / (field.std() + 1e-6)


def _unit(field: np.ndarray) -> np.ndarray:
    """Rescaled to 0..1, but for the outermost thousandths."""
    low, high = np.quantile(field[::2, ::2], (0.002, 0.998))
    return np.clip((field - low) / (high - low + 1e-6), 0, 1)


def _turned(field: np.ndarray, size: int, angle: float) -> np.ndarray:
    """The middle of a larger field, turned by radians."""
    middle = (field.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), np.degrees(angle), 1.0)
    matrix[:, 2] -= middle - (size - 1) / 2
    return cv2.warpAffine(field, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _some_angle(rng: Rng) -> float:
    """Along an axis, nearly so, or any."""
    kind = rng.random()
    if kind < 0.35:
        return float(rng.integers(4)) * _FULL / 4
    if kind < 0.6:
        return float(rng.integers(4)) * _FULL / 4 + rng.normal(0, 0.12)
    return rng.uniform(0, _FULL)


def _plane(size: int, rng: Rng, wobble: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in pixels of a turned, slightly tilted and warped plane: what regular patterns are drawn on."""
    x, y = _grid(size)
    angle = _some_angle(rng)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    tilt = rng.normal(0, 0.06, 2) / size
    depth = 1 + tilt[0] * u + tilt[1] * v
    amount = wobble * rng.choice((0, 0.5, 2.0)) * rng.random()
    bend = _noise(size, rng, size / 6) * amount
    start = rng.uniform(0, 500, 2)
    return u / depth + bend + start[0], v / depth + _noise(size, rng, size / 6) * amount + start[1]


def _hash(*cells: np.ndarray, rng: Rng) -> np.ndarray:
    """A random value 0..1 for every cell of whole-number coordinates."""
    keys = sum(c.astype(np.int64) * k for c, k in zip(cells, (73856093, 19349663, 83492791), strict=False))
    return rng.random(4096, dtype=np.float32)[np.abs(keys) % 4096]


def _lit(height: np.ndarray, rng: Rng, strength: float) -> np.ndarray:
    """The field as a relief under a slanted light, about 0.5 where it is flat."""
    angle = rng.uniform(0, _FULL)
    dx, dy = cv2.Sobel(height, -1, 1, 0, ksize=3) / 8, cv2.Sobel(height, -1, 0, 1, ksize=3) / 8
    slope = strength * (dx * np.cos(angle) + dy * np.sin(angle))
    return 0.5 + 0.5 * slope / np.sqrt(1 + slope**2)


# --- surfaces: (S, generator) -> field 0..1 ---------------------------------------------------------------------------


def _smooth(size: int, rng: Rng) -> np.ndarray:
    return np.clip(
        0.5 + 0.03 * _noise(size, rng, rng.uniform(0.3, 2)) + 0.1 * rng.random() * _noise(size, rng, 30), 0, 1
    )


def _cloudy(size: int, rng: Rng) -> np.ndarray:
    field = _fractal(size, rng, rng.uniform(0.4, 2.0), _log_uniform(rng, 1, 3))
    return _unit(_lit(field, rng, rng.uniform(1, 4)) if rng.random() < 0.4 else field)


def _brushed(size: int, rng: Rng) -> np.ndarray:
    large = int(1.5 * size)
    field = _noise(large, rng, rng.uniform(0.4, 1.2), _log_uniform(rng, 10, 80))
    field += rng.uniform(0, 1) * _noise(large, rng, rng.uniform(1.5, 5), _log_uniform(rng, 30, 120))
    return _unit(_turned(field, size, _some_angle(rng)))


def _turned_metal(size: int, rng: Rng) -> np.ndarray:
    x, y = _grid(size)
    radius = np.hypot(x - rng.normal(0, size / 4), y - rng.normal(0, size / 4))
    profile = np.convolve(rng.standard_normal(3 * size), np.ones(3) / 3, "same").astype(np.float32)
    return _unit(np.interp(radius, np.arange(3 * size) / rng.uniform(0.8, 1.6), profile).astype(np.float32))


def _streaked(size: int, rng: Rng) -> np.ndarray:
    """A cast or ground face: broad shades, streaks along one way that come and go, and grain."""
    large = int(1.5 * size)
    streaks = _noise(large, rng, rng.uniform(0.5, 1.5), _log_uniform(rng, 15, 100))
    envelope = np.clip(0.4 + 0.6 * _noise(large, rng, rng.uniform(8, 30), rng.uniform(15, 50)), 0, 2)
    shade = rng.uniform(0.5, 2.5) * _noise(large, rng, rng.uniform(12, 40), rng.uniform(25, 80))
    field = streaks * envelope * rng.uniform(0.2, 0.9) + shade + rng.uniform(0.1, 0.4) * _noise(large, rng, 0.6)
    quarter = rng.integers(4) * _FULL / 4
    return np.clip(0.5 + 0.13 * _turned(field, size, quarter + rng.normal(0, 0.03)), 0, 1)


def _wood(size: int, rng: Rng) -> np.ndarray:
    large = int(1.5 * size)
    x, y = _grid(large)
    swing = _noise(large, rng, rng.uniform(12, 40), rng.uniform(40, 90)) * rng.uniform(3, 12)
    rings = np.sin((np.hypot(x + swing, 0.08 * y) + swing) / _log_uniform(rng, 1.2, 7))
    fibres = _noise(large, rng, 0.6, _log_uniform(rng, 6, 30))
    tone = _noise(large, rng, 20, 60)
    field = rings * rng.uniform(0.2, 1) + fibres * rng.uniform(0.3, 1) + tone * rng.uniform(0.2, 0.9)
    return _unit(_turned(field, size, _some_angle(rng)))


def _bricks(size: int, rng: Rng) -> np.ndarray:
    u, v = _plane(size, rng)
    height = _log_uniform(rng, 9, 50)
    width = height * rng.choice((1, 1.5, 2, 3, 4)) * rng.uniform(0.9, 1.1)
    row = np.floor(v / height)
    shifted = u + rng.choice((0, 0.5, 0.5, 0.33)) * width * row
    column = np.floor(shifted / width)
    a, b = shifted - column * width, v - row * height
    depth = np.minimum(np.minimum(a, width - a), np.minimum(b, height - b))
    joint = np.clip(depth - height * rng.uniform(0.02, 0.1), 0, 1.5) / 1.5
    face = 0.5 + rng.uniform(0, 0.3) * (_hash(row, column, rng=rng) - 0.5)
    face = face + rng.uniform(0, 0.08) * _fractal(size, rng, rng.uniform(0.2, 1.2))
    mortar = rng.choice((0.05, 0.25, 0.75, 0.95)) + 0.04 * _noise(size, rng, 0.7)
    return np.clip(joint * face + (1 - joint) * mortar, 0, 1)


def _perforated(size: int, rng: Rng) -> np.ndarray:
    u, v = _plane(size, rng)
    pitch = _log_uniform(rng, 6, 34)
    row = np.floor(v / pitch)
    a = (u / pitch + rng.choice((0, 0.5)) * row) % 1 - 0.5
    b = v / pitch - row - 0.5
    distance = (np.abs(a) ** 2 + np.abs(b) ** 2) ** 0.5 if rng.random() < 0.7 else np.maximum(np.abs(a), np.abs(b))
    radius = rng.uniform(0.2, 0.42)
    dot = np.clip((radius - distance) * pitch / 1.2 + 0.5, 0, 1)
    base = 0.65 + 0.05 * _noise(size, rng, rng.uniform(0.5, 3))
    inner = base - rng.uniform(0.25, 0.6) if rng.random() < 0.7 else base - 0.45 * (1 - 2 * np.abs(distance / radius))
    return np.clip(base + dot * (inner - base), 0, 1)


def _woven(size: int, rng: Rng) -> np.ndarray:
    u, v = _plane(size, rng)
    pitch = _log_uniform(rng, 3, 20)
    i, j = np.floor(u / pitch), np.floor(v / pitch)
    a, b = np.abs(u / pitch - i - 0.5), np.abs(v / pitch - j - 0.5)
    step, length = rng.choice((1, 1, 2)), rng.choice((2, 2, 3, 4))
    over = (i + step * j) % length < length / 2
    tone = rng.uniform(0, 0.35)
    warp = (1 - 1.6 * a**2 * 2) * (1 - 0.5 * b) + 0.1 * _hash(i, rng=rng)
    weft = (1 - 1.6 * b**2 * 2) * (1 - 0.5 * a) - tone + 0.1 * _hash(j, rng=rng)
    return _unit(np.where(over, warp, weft) + rng.uniform(0.02, 0.2) * _noise(size, rng, 0.6))


def _striped(size: int, rng: Rng) -> np.ndarray:
    u, _ = _plane(size, rng)
    pitch = _log_uniform(rng, 4, 40)
    wave = np.sin(u * _FULL / pitch)
    if rng.random() < 0.5:
        wave = np.clip(wave * rng.uniform(1, 8), -1, 1)
    if rng.random() < 0.3:
        wave = wave + 0.7 * _hash(np.floor(u / pitch), rng=rng)
    return _unit(wave + rng.uniform(0.02, 0.3) * _noise(size, rng, rng.uniform(0.5, 1.5)))


def _rippled(size: int, rng: Rng) -> np.ndarray:
    field = 0
    for _ in range(rng.integers(2, 5)):
        u, _ = _plane(size, rng, wobble=6)
        field = field + rng.uniform(0.4, 1) * np.sin(u * _FULL / _log_uniform(rng, 4, 30))
    return _unit(field + 0.1 * _noise(size, rng, 0.7))


def _cells(size: int, rng: Rng) -> np.ndarray:
    """Cobbles, leather, scales: the nearest of scattered points, each cell with its own shade, darker at its border."""
    count = int(_log_uniform(rng, 40, 900))
    seeds = np.full((size, size), 255, np.uint8)
    seeds[rng.integers(0, size, count), rng.integers(0, size, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    shade = rng.random(labels.max() + 1, dtype=np.float32)[labels]
    edge = cv2.GaussianBlur(np.abs(cv2.Laplacian(shade, -1)), (0, 0), 0.6)
    dome = -distance / (size / np.sqrt(count))
    field = rng.uniform(0, 1) * shade + rng.uniform(0, 1.2) * dome - rng.uniform(0, 0.6) * np.clip(edge * 2, 0, 1)
    field = field + rng.uniform(0.02, 0.15) * _noise(size, rng, 0.7)
    return _unit(_lit(cv2.GaussianBlur(field, (0, 0), 0.7), rng, rng.uniform(3, 9)) if rng.random() < 0.4 else field)


def _grains(size: int, rng: Rng) -> np.ndarray:
    """Gravel, seeds, pills in a heap: facetted or round grains one on another, each lit from one side."""
    canvas = np.zeros((size, size), np.float32)
    radius = _log_uniform(rng, 2.5, 14)
    light, spread, corners = rng.uniform(0, _FULL), rng.uniform(0.05, 0.5), int(rng.integers(4, 9))
    round_grains, long = rng.random() < 0.4, rng.uniform(1, 2.2)
    for _ in range(int(min(900, 3.2 * (size / radius) ** 2 / 2))):
        centre, turn = rng.uniform(-4, size + 4, 2), rng.uniform(0, _FULL)
        reach = radius * rng.uniform(1 - spread, 1 + spread)
        angles = np.arange(12 if round_grains else corners) * _FULL / (12 if round_grains else corners)
        lengths = reach * (1 if round_grains else rng.uniform(0.65, 1.15, len(angles)))
        px, py = lengths * np.cos(angles) * long**0.5, lengths * np.sin(angles) / long**0.5
        outline = np.stack([px * np.cos(turn) - py * np.sin(turn), px * np.sin(turn) + py * np.cos(turn)], 1)
        tone = 0.5 + spread * rng.normal(0, 0.35)
        for scale, level in ((1.12, 0.25 * tone), (1.0, 0.75 * tone), (0.62, tone)):
            shift = centre + (1.12 - scale) * reach * np.array((np.cos(light), np.sin(light)))
            cv2.fillPoly(canvas, [np.rint(8 * (outline * scale + shift)).astype(np.int32)], float(level), cv2.LINE_8, 3)
    field = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9)) + 0.04 * _noise(size, rng, 0.6)
    return _unit(field)


def _fibres(size: int, rng: Rng) -> np.ndarray:
    """Grass, felt, hair, straw: strokes one on another, in all directions or mostly one."""
    canvas = np.full((size, size), 0.25, np.float32)
    heading, spread = rng.uniform(0, _FULL), rng.choice((0.08, 0.3, 0.8, 3.0))
    length, thick, count = _log_uniform(rng, 8, 70), int(rng.integers(1, 4)), int(_log_uniform(rng, 500, 1500))
    starts, angles = rng.uniform(-10, size + 10, (count, 2)), heading + spread * rng.standard_normal(count)
    lengths, tones = length * rng.uniform(0.4, 1.2, count), np.linspace(0.15, 0.75, count) + rng.normal(0, 0.18, count)
    ends = starts + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    for start, end, tone in zip(
        np.rint(8 * starts).astype(int).tolist(), np.rint(8 * ends).astype(int).tolist(), tones.tolist(), strict=True
    ):
        cv2.line(canvas, start, end, tone, thick, cv2.LINE_8, 3)
    return _unit(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1)))


def _clutter(size: int, rng: Rng) -> np.ndarray:
    """Shapes of all sizes one on another, as in a photograph of many things."""
    canvas = np.full((size, size), rng.random(), np.float32)
    largest = rng.uniform(0.15, 0.5) * size
    for _ in range(int(rng.integers(40, 260))):
        reach = largest / (1 + 25 * rng.random()) ** rng.uniform(0.3, 1)
        centre, tone = rng.uniform(0, size, 2), rng.random()
        if rng.random() < 0.5:
            cv2.ellipse(
                canvas,
                np.rint(centre).astype(int).tolist(),
                (int(reach) + 1, int(reach * rng.uniform(0.3, 1)) + 1),
                rng.uniform(0, 360),
                0,
                360,
                tone,
                -1,
            )
        else:
            angles = np.sort(rng.uniform(0, _FULL, int(rng.integers(3, 7))))
            outline = centre + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(canvas, [np.rint(outline).astype(np.int32)], tone)
    return np.clip(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.2)) + 0.03 * _noise(size, rng, 1), 0, 1)


def _speckled(size: int, rng: Rng) -> np.ndarray:
    """Terrazzo, granite, foam: spots of a few sizes."""
    field = np.full((size, size), 0.5, np.float32)
    for _ in range(rng.integers(1, 4)):
        spots = np.clip((_noise(size, rng, _log_uniform(rng, 0.5, 4)) - rng.uniform(0.6, 1.8)) * 3, 0, 1)
        field = field + spots * (rng.uniform(-0.5, 0.5))
    return np.clip(field + 0.03 * _noise(size, rng, 0.6), 0, 1)


def _marbled(size: int, rng: Rng) -> np.ndarray:
    turbulence = _fractal(size, rng, rng.uniform(1.2, 1.9))
    x, y = _grid(size)
    angle, pitch = rng.uniform(0, _FULL), _log_uniform(rng, 8, 40)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / pitch * 2 + rng.uniform(0.6, 2.5) * turbulence)
    return _unit(np.abs(wave) ** rng.uniform(0.4, 1.5) + rng.uniform(0, 0.3) * turbulence)


def _veined(size: int, rng: Rng) -> np.ndarray:
    """Vessels or leaf veins: trees of curves that branch and thin out, on a smooth ground."""
    canvas = np.zeros((size, size), np.float32)
    stems = []
    root = rng.uniform(0, size, 2)
    for _ in range(rng.integers(6, 14)):
        stems.append(
            (root if rng.random() < 0.6 else rng.uniform(0, size, 2), rng.uniform(0, _FULL), rng.uniform(1.2, 3.2))
        )
    turn, drawn = rng.uniform(0.05, 0.3), 0
    while stems and drawn < 700:
        point, heading, width = stems.pop()
        while width > 0.45 and drawn < 700:
            end = point + 5 * np.array((np.cos(heading), np.sin(heading)))
            ends = [np.rint(16 * p).astype(int).tolist() for p in (point, end)]
            cv2.line(canvas, *ends, min(1.0, 0.35 + width / 3), max(1, round(width)), cv2.LINE_AA, 4)
            point, heading, width, drawn = end, heading + turn * rng.standard_normal(), width * 0.975, drawn + 1
            if rng.random() < 0.17:
                stems.append(
                    (point, heading + rng.choice((-1, 1)) * rng.uniform(0.4, 1), width * rng.uniform(0.5, 0.8))
                )
    ground = 0.6 + 0.08 * _noise(size, rng, rng.uniform(10, 30)) + 0.02 * _noise(size, rng, 0.8)
    return np.clip(ground + rng.choice((-0.3, -0.2, 0.25)) * cv2.GaussianBlur(canvas, (0, 0), 0.6), 0, 1)


_LETTERS = "etaoinshrdlucmfwypvbgkjqxzETAOINSHR0123456789.,:-"
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX,
          cv2.FONT_HERSHEY_COMPLEX_SMALL)  # fmt: skip


def _word(rng: Rng) -> str:
    return "".join(rng.choice(list(_LETTERS[:26] if rng.random() < 0.8 else _LETTERS), rng.integers(1, 10)))


def _printed(size: int, rng: Rng) -> np.ndarray:
    """Lines of print on paper, upright or a little askew, some with a heading."""
    large = int(1.3 * size)
    fine = 2
    canvas = np.zeros((fine * large, fine * large), np.uint8)
    font, scale = int(rng.choice(_FONTS)), _log_uniform(rng, 0.45, 1.2)
    thick = int(rng.integers(1, 4))
    y, gap = 0.0, rng.uniform(1.3, 2.2)
    left = int(rng.uniform(-40, 60)) * fine
    while y < fine * large:
        grown = scale * (1 if rng.random() < 0.85 else rng.uniform(1.3, 1.8))
        y += 22 * grown * gap
        line = " ".join(_word(rng) for _ in range(int(rng.integers(1, 16))))
        if rng.random() < 0.92:
            cv2.putText(canvas, line, (left, int(y)), font, grown, 255, thick + (grown > scale), cv2.LINE_AA)
    ink = cv2.resize(canvas, (large, large), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    ink = _turned(ink, size, rng.choice((0, 0, 0.5, 0.25)) * _FULL * (rng.random() < 0.3) + rng.normal(0, 0.05))
    paper = 0.85 + 0.04 * _noise(size, rng, 30) + 0.012 * _noise(size, rng, 0.7)
    field = np.clip(paper - rng.uniform(0.5, 0.85) * np.clip(ink * 1.3, 0, 1), 0, 1)
    return field if rng.random() < 0.85 else 1 - field


def _circuit(size: int, rng: Rng) -> np.ndarray:
    """Traces, pads and parts of a circuit board."""
    canvas = np.full((size, size), 0.35, np.float32)
    pitch = int(rng.integers(6, 16))
    for _ in range(int(rng.integers(10, 40))):
        point, width = rng.integers(0, size // pitch + 1, 2) * pitch, int(rng.integers(1, 4))
        for _ in range(int(rng.integers(1, 5))):
            end = point + rng.integers(-4, 5, 2) * pitch * ((1, 0), (0, 1), (1, 1))[rng.integers(3)]
            cv2.line(canvas, point.tolist(), end.tolist(), 0.6, width, cv2.LINE_AA)
            point = end
        cv2.circle(canvas, point.tolist(), int(rng.integers(2, 5)), 0.9, -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 8))):
        corner = rng.integers(0, size // pitch, 2) * pitch
        cv2.rectangle(
            canvas,
            corner.tolist(),
            (corner + rng.integers(1, 5, 2) * pitch).tolist(),
            float(rng.choice((0.05, 0.15, 0.8))),
            -1,
        )
    return np.clip(canvas + 0.02 * _noise(size, rng, 0.7), 0, 1)


class _Kind(NamedTuple):
    draw: Callable[[int, Rng], np.ndarray]
    weight: float
    ordered: bool
    nouns: str  # separated by commas


_SURFACES = (
    _Kind(_smooth, 1.0, False, "plastic,paint,painted sheet,glass,ceramic,enamel,lacquer,panel,cover,screen,wafer"),
    _Kind(_cloudy, 1.0, False, "concrete,stone,plaster,skin,paper,cardboard,asphalt,rust,foam,sand,clay,slate"),
    _Kind(_brushed, 0.9, False, "metal,brushed metal,steel,aluminium,sheet metal,rail,copper,blade,foil,zinc"),
    _Kind(_turned_metal, 0.4, True, "turned metal,disc,bearing,washer,lens,cd,brake disc,lid,record"),
    _Kind(_streaked, 1.6, False,
          "tile,magnet,cast part,rolled steel,ground metal,ceramic tile,slab,casting,ferrite,ingot"),
    _Kind(_wood, 1.0, False, "wood,timber,board,plank,table,parquet,veneer,furniture,oak,floor"),
    _Kind(_bricks, 1.2, True, "brick,brick wall,wall,tiles,pavement,roof,mosaic,bathroom tile,masonry,facade"),
    _Kind(_perforated, 0.8, True, "grid,mesh,perforated sheet,grille,filter,net,speaker,button sheet,screen,rack"),
    _Kind(_woven, 1.0, True, "fabric,cloth,carpet,textile,canvas,linen,basket,denim,towel,carbon fibre,bag"),
    _Kind(_striped, 0.6, True, "stripes,corrugated sheet,blinds,fence,ribbed plastic,bar code,wallpaper,radiator"),
    _Kind(_rippled, 0.4, True, "pattern,water,wave,wallpaper,curtain,sheet,relief"),
    _Kind(_cells, 1.0, False, "leather,cobblestone,scales,cracked soil,mosaic,cork,sponge,hide,rubber,tissue"),
    _Kind(_grains, 1.2, False, "gravel,pebbles,rice,seeds,beans,coffee beans,pills,granulate,coal,stones,nuts,sweets"),
    _Kind(_fibres, 1.2, False, "grass,lawn,felt,wool,hair,straw,fur,hay,fibre,paper,insulation,moss"),
    _Kind(_clutter, 1.2, False, "scene,shelf,collage,street,leaves,workbench,room,stack,kitchen,desk"),
    _Kind(_speckled, 0.6, False, "terrazzo,granite,floor,linoleum,foam,stone,worktop,bread,cheese"),
    _Kind(_marbled, 0.5, False, "marble,onyx,agate,stone,slab,soap,resin"),
    _Kind(_veined, 0.8, False, "leaf,vessels,eye,organ,root,river,tissue slide,marble,wing,map"),
    _Kind(_printed, 1.3, True, "page,label,print,text,document,book,newspaper,letter,sign,packaging,form"),
    _Kind(_circuit, 0.7, True, "circuit board,pcb,chip,electronics,panel,board,plan"),
)  # fmt: skip
_SHARES = np.array([kind.weight for kind in _SURFACES]) / sum(kind.weight for kind in _SURFACES)
_OBJECTS = (
    "object", "part", "product", "component", "item", "workpiece", "screw", "nut", "bolt", "bottle", "cap", "coin",
    "button", "pill", "capsule", "cup", "plate", "saucer", "toy", "tool", "gear", "wheel", "ring", "candle", "cookie",
    "fruit", "apple", "egg", "shell", "fuse", "plug", "connector", "switch", "key", "bead", "lens", "lamp", "cable",
    "toothbrush", "zipper", "transistor", "bowl", "mug", "dish", "can", "box", "macaroni", "cashew", "gum", "badge",
    "clock", "eye", "pipe", "medal", "stamp", "spoon",
)  # fmt: skip
GENERIC = ("object", "surface", "material", "part", "texture", "product", "item", "sample", "piece", "thing")


def _coloured(field: np.ndarray, rng: Rng) -> np.ndarray:
    """Through a palette of two or three colours: grey, of one hue, or of several; strong or weak contrast."""
    base, count = rng.random(3), int(rng.integers(2, 4))
    faint = rng.random() < 0.25
    level = rng.uniform(0.12, 0.9) if faint else rng.uniform(0.3, 0.75)
    contrast = _log_uniform(rng, 0.2, 0.5) if faint else rng.uniform(0.45, 1.1)
    tones = np.clip(level + contrast * (np.linspace(0, 1, count) - 0.5), 0.01, 0.99)
    if rng.random() < 0.25:
        tones = tones[::-1]
    hue = base / base.max()
    saturation = rng.choice((0, 0.25, 0.6, 1.0))
    colours = tones[:, None] * (1 - saturation + saturation * hue) + rng.normal(
        0, 0.12 * (rng.random() < 0.4), (count, 3)
    )
    stops = np.linspace(0, 1, count)
    table = np.stack([np.interp(np.linspace(0, 1, 256), stops, colours[:, c]) for c in range(3)], 1).astype(np.float32)
    fine = field * 255
    low = np.clip(fine, 0, 254).astype(np.int32)
    part = (fine - low)[..., None]
    return np.clip(table[low] * (1 - part) + table[low + 1] * part, 0, 1)


def _surface(size: int, rng: Rng) -> tuple[np.ndarray, _Kind]:
    kind = _SURFACES[rng.choice(len(_SURFACES), p=_SHARES)]
    field = kind.draw(size, rng).astype(np.float32)
    if rng.random() < 0.1:  # two surfaces in one
        other = _SURFACES[rng.choice(len(_SURFACES), p=_SHARES)].draw(size, rng)
        share = rng.uniform(0.15, 0.5)
        field = (1 - share) * field + share * other
    return _coloured(np.clip(field, 0, 1), rng), kind


def _surface_scene(size: int, rng: Rng) -> Scene:
    image, kind = _surface(size, rng)
    return Scene(image, np.ones((size, size), np.float32), kind.ordered, kind.nouns.split(","), kind.draw.__name__[1:])


# --- objects --------------------------------------------------------------------------------------------------------


def _crowded_scene(size: int, rng: Rng) -> Scene:
    """Things of all sizes, one in front of another, each with a surface and shade of its own: dead leaves, whose
    statistics are near those of photographs (Lee, Mumford & Huang 2001)."""
    surfaces = [_surface(size, rng)[0] for _ in range(3)]
    image = surfaces[0]
    largest, smallest, power = size * rng.uniform(0.25, 0.7), size * _log_uniform(rng, 0.02, 0.08), rng.uniform(0.5, 2)
    vivid, relief, soft = rng.uniform(0.05, 0.45), rng.uniform(0, 0.5), rng.uniform(0.3, 1)
    count = int(_log_uniform(rng, 6, 90))
    for reach in sorted(smallest + (largest - smallest) * rng.random(count) ** (1 + power), reverse=rng.random() < 0.7):
        cover = np.zeros((size, size), np.uint8)
        centre, turn, aspect = rng.uniform(0, size, 2), rng.uniform(0, _FULL), _log_uniform(rng, 1, 2.5)
        corners = int(rng.choice((3, 4, 4, 5, 6, 24, 24, 24)))
        angles = np.arange(corners) * _FULL / corners + rng.uniform(-0.3, 0.3, corners) * (corners < 9)
        waves = 1 + sum(rng.uniform(0, 0.3) / k * np.cos(k * angles + rng.uniform(0, _FULL)) for k in (2, 3, 4))
        x, y = reach * waves * np.cos(angles) * aspect**0.5, reach * waves * np.sin(angles) / aspect**0.5
        outline = centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
        cv2.fillPoly(cover, [np.rint(16 * outline).astype(np.int32)], 255, cv2.LINE_AA, 4)
        face = np.roll(surfaces[rng.integers(3)], tuple(rng.integers(0, size, 2)), (0, 1))
        face = face * rng.uniform(0.4, 1.3) + vivid * rng.uniform(-1, 1, 3).astype(np.float32)
        across = np.clip(_grid(size)[int(rng.integers(2))] / reach - centre.mean() / size + 0.5, -1, 1)
        face = face * (1 + relief * rng.uniform(-1, 1) * across)[..., None]
        alpha = cv2.GaussianBlur(cover.astype(np.float32) / 255, (0, 0), soft)
        if rng.random() < 0.3:
            image = image * (1 - 0.4 * cv2.GaussianBlur(np.roll(alpha, (2, 2), (0, 1)), (0, 0), 2))[..., None]
        image = image + alpha[..., None] * (np.clip(face, 0, 1) - image)
    nouns = [str(noun) for noun in rng.choice(_OBJECTS, 4, replace=False)]
    return Scene(np.clip(image, 0, 1).astype(np.float32), np.ones((size, size), np.float32), False, nouns, "crowd")


def _silhouette(size: int, rng: Rng, centre: np.ndarray, radius: float, shape: dict) -> np.ndarray:
    """Depth in pixels inside an outline, negative outside."""
    x, y = _grid(size)
    x, y = x - centre[0], y - centre[1]
    turn = shape["turn"] + rng.uniform(0, _FULL) * shape["loose"]
    u, v = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) * shape["aspect"]
    if shape["kind"] == "box":
        corner = shape["corner"] * radius
        a, b = np.abs(u) - radius + corner, np.abs(v) - radius + corner
        return corner - np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - np.minimum(np.maximum(a, b), 0)
    angle, distance = np.arctan2(v, u), np.hypot(u, v)
    if shape["kind"] == "polygon":
        sector = _FULL / shape["corners"]
        return radius - distance * np.cos((angle % sector) - sector / 2)
    wave = sum(a * np.cos(k * angle + p) for k, a, p in shape["waves"])
    return radius * (1 + wave) - distance


def _shape(rng: Rng) -> dict:
    kind = str(rng.choice(("round", "round", "box", "polygon", "wavy", "gear")))
    waves = []
    if kind == "wavy":
        waves = [(k, rng.uniform(0, 0.35) / k, rng.uniform(0, _FULL)) for k in range(2, 7)]
    if kind == "gear":
        waves = [(int(rng.integers(5, 20)), rng.uniform(0.03, 0.1), 0.0)]
    return {
        "kind": kind,
        "turn": _some_angle(rng),
        "loose": float(rng.random() < 0.3),
        "aspect": _log_uniform(rng, 1, 2.5) if rng.random() < 0.5 else 1.0,
        "corner": rng.uniform(0.05, 0.9),
        "corners": int(rng.integers(3, 9)),
        "waves": waves,
    }


def _object_scene(size: int, rng: Rng) -> Scene:
    """One object, a grid of like ones, like ones scattered, or a few different ones, on a ground, with shadows."""
    if rng.random() < 0.55:
        ground = (
            np.ones((size, size, 3), np.float32) * rng.choice((0.03, 0.1, 0.9, rng.random())) * rng.uniform(0.7, 1.1, 3)
        )
        ground = ground.astype(np.float32) + 0.015 * _noise(size, rng, rng.uniform(0.5, 3))[..., None]
    else:
        ground, _ = _surface(size, rng)
    image, body = np.clip(ground, 0, 1), np.zeros((size, size), np.float32)
    layout = rng.choice(("one", "grid", "scattered", "few"), p=(0.45, 0.25, 0.22, 0.08))
    shape, predict = _shape(rng), int(rng.integers(1 << 30))
    if layout == "one":
        places = [(rng.normal(0, 0.05 * size, 2), size * rng.uniform(0.25, 0.62))]
    elif layout == "grid":
        count = int(rng.integers(2, 6))
        pitch = size * rng.uniform(0.8, 1.25) / count
        start = rng.uniform(-0.1, 0.1, 2) * size - pitch * (count - 1) / 2
        places = [(start + pitch * np.array((i, j)) + rng.normal(0, 0.02 * pitch, 2), pitch * rng.uniform(0.36, 0.4))
                  for i in range(count) for j in range(count)]  # fmt: skip
    elif layout == "scattered":
        places = _apart(size, rng, size * rng.uniform(0.09, 0.24))
    else:
        places = [(rng.uniform(-0.4, 0.4, 2) * size, size * rng.uniform(0.08, 0.3)) for _ in range(rng.integers(2, 5))]
    for centre, radius in places:
        if layout == "few":
            shape, predict = _shape(rng), int(rng.integers(1 << 30))
        one = np.random.default_rng(predict)  # like objects look alike
        depth = _silhouette(size, rng, centre, radius, shape)
        image = _placed(image, depth, centre, radius, one)
        body = np.maximum(body, np.clip(depth, 0, 1))
    nouns = [str(noun) for noun in rng.choice(_OBJECTS, 4, replace=False)]
    return Scene(image, body, True, nouns, "object")


def _apart(size: int, rng: Rng, radius: float) -> list[tuple[np.ndarray, float]]:
    """Places anywhere, some cut off by the border, that do not touch: coins on a table."""
    places: list[tuple[np.ndarray, float]] = []
    for centre in rng.uniform(-0.55, 0.55, (40, 2)) * size:
        reach = radius * rng.uniform(0.85, 1.1)
        if all(np.hypot(*(centre - other)) > 1.1 * (reach + taken) for other, taken in places):
            places.append((centre, reach))
    return places


def _placed(image: np.ndarray, depth: np.ndarray, centre: np.ndarray, radius: float, predict: Rng) -> np.ndarray:
    """An object on the image: shadow, face, bevel or dome, and what is on its face."""
    size = len(image)
    cover = np.clip(depth + 0.5, 0, 1)
    if predict.random() < 0.6:
        shift = predict.uniform(-0.12, 0.12, 2) * radius
        shadow = cv2.warpAffine(cover, np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), (size, size))
        image = (
            image * (1 - predict.uniform(0.2, 0.6) * cv2.GaussianBlur(shadow, (0, 0), predict.uniform(1, 5)))[..., None]
        )
    if predict.random() < 0.5:
        face = np.ones((size, size, 3), np.float32) * _coloured(np.full((1, 1), 0.5, np.float32), predict)
        face = face + 0.02 * _noise(size, predict, predict.uniform(0.5, 6))[..., None]
    else:
        face, _ = _surface(size, predict)
    for _ in range(predict.integers(0, 4)):  # rims, insets, holes, labels
        inset = predict.uniform(0.1, 0.9) * radius
        ring = np.clip(depth - inset + 0.5, 0, 1)
        if predict.random() < 0.4:
            ring = ring * np.clip(inset + predict.uniform(0.05, 0.2) * radius - depth + 0.5, 0, 1)
        tone = _coloured(np.full((1, 1), predict.random(), np.float32), predict)
        face = face + ring[..., None] * predict.uniform(0.4, 1) * (tone - face)
    if predict.random() < 0.3:
        mark = np.zeros((size, size), np.uint8)
        at = np.rint(centre + size / 2 + predict.uniform(-0.6, 0.2, 2) * radius).astype(int).tolist()
        cv2.putText(
            mark, _word(predict), at, int(predict.choice(_FONTS)), predict.uniform(0.3, 0.9), 255, 1, cv2.LINE_AA
        )
        face = face + (mark / 255 * predict.uniform(-0.6, 0.6))[..., None]
    height = (
        np.sqrt(np.clip(depth, 0, None)) * 2 if predict.random() < 0.5 else np.clip(depth, 0, predict.uniform(1, 5))
    )
    if predict.random() < 0.3:
        height = height + predict.uniform(0.3, 1.5) * _noise(size, predict, predict.uniform(1, 6))
    light = _lit(cv2.GaussianBlur(height.astype(np.float32), (0, 0), 0.8), predict, predict.uniform(0, 2.5))
    face = np.clip(face * (0.4 + 1.2 * light)[..., None], 0, 1)
    return image + cover[..., None] * (face - image)


_SCENES = {_surface_scene: 0.45, _object_scene: 0.33, _crowded_scene: 0.22}  # and how often each is drawn

# --- defects --------------------------------------------------------------------------------------------------------
# Each: (scene, generator) -> image with the defect, and where it may differ (S, S) 0..1.

Change = tuple[np.ndarray, np.ndarray]


def _somewhere(scene: Scene, rng: Rng) -> np.ndarray:
    """x, y of a pixel of the surface or of an object."""
    size = len(scene.body)
    spots = rng.integers(0, size, (12, 2))
    return next((spot for spot in spots if scene.body[spot[1], spot[0]] > 0.5), spots[0]).astype(np.float32)


def _region(scene: Scene, rng: Rng, low: float = 0.03, high: float = 0.42) -> np.ndarray:
    """Depth in pixels (S, S) inside a region: uneven, round, boxed or torn, of log-uniform radius (shares of S)."""
    size = len(scene.body)
    radius = size * _log_uniform(rng, low, high)
    x, y = _grid(size)
    at = _somewhere(scene, rng) - (size - 1) / 2
    x, y = x - at[0], y - at[1]
    turn, aspect = rng.uniform(0, _FULL), _log_uniform(rng, 0.5, 2)
    u, v = (x * np.cos(turn) + y * np.sin(turn)) * aspect**0.5, (y * np.cos(turn) - x * np.sin(turn)) / aspect**0.5
    form = rng.choice(("round", "uneven", "uneven", "torn", "box"))
    if form == "box":
        if rng.random() < 0.6:
            u, v = x * aspect**0.5, y / aspect**0.5
        return (0.85 * radius - np.maximum(np.abs(u), np.abs(v))).astype(np.float32)
    depth = radius - np.hypot(u, v)
    if form == "uneven":
        depth = depth + 0.25 * radius * _noise(size, rng, max(1.5, radius * rng.uniform(0.25, 0.6)))
    if form == "torn":
        depth = depth + 0.18 * radius * _fractal(size, rng, 1.3)
    return depth.astype(np.float32)


def _faded(depth: np.ndarray, rng: Rng, softest: float = 12) -> np.ndarray:
    return np.clip(depth / _log_uniform(rng, 0.8, softest), 0, 1)


def _mixed(image: np.ndarray, other: np.ndarray | float, cover: np.ndarray) -> np.ndarray:
    return image + cover[..., None] * (other - image)


def _tint(rng: Rng) -> np.ndarray:
    """A factor per channel: grey, or of a colour."""
    grey = rng.uniform(0.0, 0.85)
    return np.clip(grey + rng.choice((0.0, 0.15, 0.4)) * rng.uniform(-1, 1, 3), 0, 1).astype(np.float32)


def _stain(scene: Scene, rng: Rng) -> Change:
    """Something soaked in: darker or coloured, the surface shows through; even or cloudy, with or without a rim."""
    depth = _region(scene, rng)
    density = _faded(depth, rng) * np.clip(
        1 + rng.uniform(0, 0.3) * _noise(len(depth), rng, rng.uniform(2, 12)), 0.3, 1.4
    )
    if rng.random() < 0.3:
        density = density * (rng.uniform(0.2, 0.7) + np.exp(-(((depth - 2) / rng.uniform(1, 3)) ** 2)))
    factor = 1 - np.clip(density, 0, 1.2)[..., None] * (1 - _tint(rng)) * rng.uniform(0.35, 1)
    return scene.image * factor, depth > 0


def _bleached(scene: Scene, rng: Rng) -> Change:
    """Paler and flatter: worn, dusty, faded, overexposed."""
    depth = _region(scene, rng)
    soft = cv2.GaussianBlur(scene.image, (0, 0), rng.uniform(1, 6))
    share = rng.uniform(0.2, 1)
    pale = (1 - share) * scene.image + share * soft + rng.uniform(0.08, 0.4) * np.clip(1 - _tint(rng) * 0.5, 0, 1)
    return _mixed(scene.image, pale, _faded(depth, rng)), depth > 0


def _deposit(scene: Scene, rng: Rng) -> Change:
    """A layer on top that hides the surface: paint, glue, rust, mould, paper."""
    depth = _region(scene, rng, 0.02, 0.35)
    colour = rng.random(3) if rng.random() < 0.6 else np.full(3, rng.random())
    layer = colour + rng.uniform(0, 0.08) * _noise(len(depth), rng, rng.uniform(0.6, 5))[..., None]
    cover = _faded(depth, rng, 5) * rng.uniform(0.5, 1)
    return _mixed(scene.image, layer.astype(np.float32), cover), depth > 0


def _pit(scene: Scene, rng: Rng) -> Change:
    """One hole or bump or a handful, dark, with a lit or shaded flank."""
    size = len(scene.body)
    depth = np.full((size, size), -99, np.float32)
    for _ in range(int(rng.choice((1, 1, 1, 2, 4)))):
        depth = np.maximum(depth, _region(scene, rng, 0.012, 0.11))
    shade = _lit(np.clip(depth, 0, rng.uniform(2, 6)), rng, rng.uniform(1, 4)) - 0.5
    dark = rng.uniform(0.0, 0.8) if rng.random() < 0.8 else rng.uniform(1.2, 1.6)
    image = _mixed(scene.image, scene.image * dark, _faded(depth, rng, 4)) + rng.uniform(0.1, 0.8) * shade[..., None]
    return image, cv2.dilate((depth > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _line(scene: Scene, rng: Rng, jitter: float, width: float, branches: int) -> np.ndarray:
    """Cover 0..1 of a line that wanders, with branches."""
    size, fine = len(scene.body), 4
    canvas = np.zeros((size * fine, size * fine), np.uint8)
    lines = [(_somewhere(scene, rng), rng.uniform(0, _FULL), size * _log_uniform(rng, 0.12, 0.9), width)]
    while lines:
        point, heading, left, thick = lines.pop()
        bend = rng.normal(0, 0.06) * (rng.random() < 0.6)
        step = rng.uniform(2.5, 6)
        while left > 0:
            heading += bend
            end = point + step * np.array((np.cos(t := heading + jitter * rng.standard_normal()), np.sin(t)))
            ends = [np.rint(fine * p).astype(int).tolist() for p in (point, end)]
            cv2.line(canvas, *ends, 255, max(1, round(fine * thick * rng.uniform(0.6, 1.1))), cv2.LINE_AA)
            point, left = end, left - step
            if branches and rng.random() < 0.08:
                lines.append((point, heading + rng.choice((-1, 1)) * rng.uniform(0.4, 1.1), 0.6 * left, 0.8 * thick))
                branches -= 1
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _scratch(scene: Scene, rng: Rng) -> Change:
    """One or several grooves, bright or dark, hairline to broad, some with a shadow beside."""
    cover = np.zeros_like(scene.body)
    width = _log_uniform(rng, 0.4, 2.5)
    for _ in range(int(rng.choice((1, 1, 2, 4)))):
        cover = np.maximum(cover, _line(scene, rng, rng.choice((0, 0.05, 0.15)), width, 0))
    shadow = np.roll(cover, tuple(rng.integers(-1, 2, 2)), (0, 1)) * (1 - cover) * (rng.random() < 0.5)
    light = rng.choice((-1, 1)) * rng.uniform(0.15, 0.6) * (1 + 0.2 * _noise(len(cover), rng, 3))
    return scene.image + (cover * light - np.sign(light) * 0.2 * shadow)[..., None], cover + shadow > 0.08


def _crack(scene: Scene, rng: Rng) -> Change:
    """A dark jagged line that branches."""
    cover = _line(scene, rng, rng.uniform(0.25, 0.8), _log_uniform(rng, 0.5, 3), int(rng.integers(0, 5)))
    return scene.image * (1 - rng.uniform(0.4, 0.95) * cover)[..., None], cover > 0.08


def _thread(scene: Scene, rng: Rng) -> Change:
    """A hair, fibre or trickle of some colour lying on it."""
    cover = _line(scene, rng, 0.15, _log_uniform(rng, 0.5, 3.5), 0)
    shadow = cv2.GaussianBlur(np.roll(cover, (1, 1), (0, 1)), (0, 0), 1) * (1 - cover) * rng.uniform(0, 0.4)
    return _mixed(
        scene.image * (1 - shadow)[..., None], rng.random(3), cover * rng.uniform(0.6, 1)
    ), cover + shadow > 0.1


def _smeared(scene: Scene, rng: Rng) -> Change:
    """Wiped along one way, or out of focus."""
    depth = _region(scene, rng, 0.05, 0.4)
    if rng.random() < 0.5:
        length = int(rng.integers(7, 25))
        kernel = cv2.warpAffine(
            np.pad(np.ones((1, length), np.float32), ((length // 2, length - length // 2 - 1), (0, 0))),
            cv2.getRotationMatrix2D(((length - 1) / 2, length // 2), rng.choice((0, 90, rng.uniform(0, 180))), 1),
            (length, length),
        )
        wiped = cv2.filter2D(scene.image, -1, kernel / max(kernel.sum(), 1e-3))
    else:
        wiped = cv2.GaussianBlur(scene.image, (0, 0), rng.uniform(2, 8))
    return _mixed(scene.image, wiped * rng.uniform(0.75, 1.15), _faded(depth, rng, 6)), depth > 0


def _roughened(scene: Scene, rng: Rng) -> Change:
    """Grain where there is none: abrasion, pores, dust, scratches by the hundred."""
    depth = _region(scene, rng, 0.05, 0.42)
    grain = _noise(len(depth), rng, *rng.choice((0.4, 0.7, 1.5, 4), 2))
    if rng.random() < 0.4:
        grain = np.clip(grain - rng.uniform(0.5, 1.5), 0, None) * rng.choice((-2, 2))
    return scene.image + (rng.uniform(0.06, 0.25) * grain * _faded(depth, rng))[..., None], depth > 0


def _displaced(scene: Scene, rng: Rng) -> Change:
    """A piece turned, mirrored or from elsewhere in the picture."""
    depth = _region(scene, rng, 0.06, 0.3)
    size = len(depth)
    how = rng.random()
    if how < 0.4:
        other = np.rot90(scene.image, rng.choice((1, 3)))
    elif how < 0.6:
        other = scene.image[::-1] if rng.random() < 0.5 else scene.image[:, ::-1]
    else:
        shift = (
            rng.integers(size // 12, size // 2, 2) * rng.choice((-1, 1), 2) * ((1, 0), (0, 1), (1, 1))[rng.integers(3)]
        )
        other = np.roll(scene.image, tuple(shift), (0, 1))
    return _mixed(scene.image, other, _faded(depth, rng, 3)), depth > 0


def _deformed(scene: Scene, rng: Rng) -> Change:
    """Dragged around a point, pinched, bulged or sheared: bent parts, dents, pulled threads."""
    size = len(scene.body)
    x, y = _grid(size)
    radius = size * rng.uniform(0.1, 0.36)
    at = _somewhere(scene, rng) - (size - 1) / 2
    dx, dy = x - at[0], y - at[1]
    inside = np.clip(1 - np.hypot(dx, dy) / radius, 0, 1)
    weight = np.clip(inside * rng.uniform(1, 3), 0, 1)
    how = rng.random()
    if how < 0.4:
        turn = rng.choice((-1, 1)) * rng.uniform(0.5, 2) * weight
        mx, my = at[0] + dx * np.cos(turn) - dy * np.sin(turn), at[1] + dx * np.sin(turn) + dy * np.cos(turn)
    elif how < 0.7:
        zoom = 1 + weight * (rng.uniform(-0.6, -0.3) if rng.random() < 0.5 else rng.uniform(0.4, 1.5))
        mx, my = at[0] + dx * zoom, at[1] + dy * zoom
    else:
        drag = rng.uniform(0.3, 0.8) * radius
        angle = rng.uniform(0, _FULL)
        mx, my = x + weight * drag * np.cos(angle), y + weight * drag * np.sin(angle)
    middle = (size - 1) / 2
    moved = cv2.remap(scene.image, (mx + middle).astype(np.float32), (my + middle).astype(np.float32), cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    return moved, inside > 0


def _missing(scene: Scene, rng: Rng) -> Change:
    """A part is gone: ground where the object was, or an empty patch."""
    depth = _region(scene, rng, 0.05, 0.3)
    outside = scene.body < 0.5
    if outside.mean() > 0.05 and rng.random() < 0.7:
        fill = scene.image[outside].mean(0) + 0.02 * _noise(len(depth), rng, 1)[..., None]
    else:
        level = rng.choice((0.08, 0.5, 0.92))
        fill = np.quantile(scene.image[::4, ::4].reshape(-1, 3), level, axis=0)
        fill = fill + 0.02 * _noise(len(depth), rng, rng.uniform(0.6, 10))[..., None]
    return _mixed(scene.image, fill.astype(np.float32), _faded(depth, rng, 2)), depth > 0


def _foreign(scene: Scene, rng: Rng) -> Change:
    """A thing or a piece of another surface where none belongs."""
    size = len(scene.body)
    radius = size * _log_uniform(rng, 0.04, 0.24)
    at = _somewhere(scene, rng) - (size - 1) / 2
    depth = _silhouette(size, rng, at, radius, _shape(rng))
    image = _placed(scene.image, depth, at, radius, rng)
    changed = np.abs(image - scene.image).max(-1) > 0.03
    return image, changed & (depth > -0.3 * radius - 2)


def _patched(scene: Scene, rng: Rng) -> Change:
    """The surface turns into another one."""
    depth = _region(scene, rng, 0.05, 0.42)
    other, _ = _surface(len(depth), rng)
    if rng.random() < 0.5:  # of like brightness
        other = other - other.mean((0, 1)) + scene.image.mean((0, 1))
    return _mixed(scene.image, other, _faded(depth, rng, 4) * rng.uniform(0.6, 1)), depth > 0


def _banded(scene: Scene, rng: Rng) -> Change:
    """A band, a side or a corner of another shade or grain: uneven grinding, overlap, wear, a broken edge."""
    size = len(scene.body)
    x, y = _grid(size)
    angle = _some_angle(rng)
    along = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 4) * _noise(size, rng, rng.uniform(3, 25))
    if rng.random() < 0.5:
        depth = size * rng.uniform(0.02, 0.16) - np.abs(along - rng.uniform(-0.4, 0.4) * size)
    else:
        depth = along - rng.uniform(0.12, 0.45) * size
    if rng.random() < 0.5:
        across = y * np.cos(angle) - x * np.sin(angle)
        depth = np.minimum(depth, size * rng.uniform(0.15, 0.4) - np.abs(across - rng.uniform(-0.3, 0.3) * size))
    cover = _faded(depth.astype(np.float32), rng, 8)
    grain = rng.uniform(0, 0.15) * _noise(size, rng, *rng.choice((0.5, 1, 30), 2))
    change = scene.image * rng.choice((rng.uniform(0.25, 0.8), rng.uniform(1.2, 1.9))) + grain[..., None]
    return _mixed(scene.image, change, cover), depth > 0


def _spotted(scene: Scene, rng: Rng) -> Change:
    """Spatter: many small spots within a region."""
    size = len(scene.body)
    depth = _region(scene, rng, 0.08, 0.35)
    spots = np.clip((_noise(size, rng, rng.uniform(0.8, 3)) - rng.uniform(0.8, 1.6)) * 4, 0, 1) * _faded(depth, rng)
    image = _mixed(
        scene.image,
        rng.random(3) if rng.random() < 0.5 else np.full(3, rng.choice((0.03, 0.95))),
        spots * rng.uniform(0.4, 1),
    )
    return image, cv2.dilate((spots > 0.1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


# kind of defect -> (how it is drawn, weight, weight on surfaces without order)
_DEFECTS: dict[str, tuple[Callable[[Scene, Rng], Change], float, float]] = {
    "stain": (_stain, 2.6, 2.6),
    "bleached": (_bleached, 1.6, 1.6),
    "deposit": (_deposit, 1.2, 1.2),
    "pit": (_pit, 1.6, 1.6),
    "scratch": (_scratch, 1.5, 1.5),
    "crack": (_crack, 1.3, 1.3),
    "thread": (_thread, 0.6, 0.6),
    "smear": (_smeared, 1.4, 1.4),
    "rough": (_roughened, 0.7, 0.7),
    "displaced": (_displaced, 1.4, 0.15),
    "deformed": (_deformed, 1.2, 0.15),
    "missing": (_missing, 1.3, 0.9),
    "foreign": (_foreign, 0.7, 1.2),
    "patched": (_patched, 0.8, 0.9),
    "band": (_banded, 0.9, 1.2),
    "spots": (_spotted, 0.5, 0.5),
}
_ORDERED = np.array([ordered for _, ordered, _ in _DEFECTS.values()])
_UNORDERED = np.array([unordered for _, _, unordered in _DEFECTS.values()])

_LIKE_A_THING = ("deposit", "displaced", "deformed", "missing", "foreign", "patched", "band")  # no defect in a crowd


def with_defect(scene: Scene, rng: Rng) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Image, mask and kind; the flawless scene where three tries gave nothing that can be seen."""
    weights = _ORDERED if scene.ordered else _UNORDERED
    if scene.kind == "crowd":
        weights = _UNORDERED * [kind not in _LIKE_A_THING for kind in _DEFECTS]
    for _ in range(3):
        kind = str(rng.choice(list(_DEFECTS), p=weights / weights.sum()))
        after, support = _DEFECTS[kind][0](scene, rng)
        after = np.clip(after, 0, 1).astype(np.float32)
        mask = _visible(scene.image, after, support)
        if mask is not None:
            return np.where(mask[..., None], after, scene.image), mask, kind
    return scene.image, np.zeros(scene.body.shape, bool), None


def _visible(before: np.ndarray, after: np.ndarray, support: np.ndarray) -> np.ndarray | None:
    """The changed pixels, small gaps closed; None where they are too few, too many, or too faint for the surface."""
    difference = np.abs(after - before).max(-1)
    changed = (difference > 0.025).astype(np.uint8)
    mask = (cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0) & support
    area = mask.sum()
    if area < 8 or area > 0.5 * mask.size:
        return None
    shift = np.abs((after - before)[mask].mean(0)).max()  # what does not average out shows most
    roughness = before[mask].std(0).max()
    strength = difference[mask].mean()
    seen = strength > 0.08 and (shift > 0.06 + 0.3 * roughness or strength > 0.7 * roughness)
    return mask if seen else None


# --- photography ----------------------------------------------------------------------------------------------------


def _photographed(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Light, exposure, colour, focus, sensor noise and compression; 0..1."""
    size = len(image)
    if rng.random() < 0.4:
        image = (image @ np.array((0.3, 0.59, 0.11), np.float32))[..., None] * np.ones(3, np.float32)
    x, y = _grid(size)
    angle, slope = rng.uniform(0, _FULL), rng.uniform(0, 0.35) * (rng.random() < 0.6)
    light = 1 + slope * (x * np.cos(angle) + y * np.sin(angle)) / size
    if rng.random() < 0.25:
        light = light * (1 - rng.uniform(0.1, 0.6) * ((x**2 + y**2) / (size**2 / 2)) ** rng.uniform(0.7, 2))
    if rng.random() < 0.2:
        light = light * (1 + 0.12 * _noise(size, rng, rng.uniform(15, 40)))
    image = np.clip(image * light[..., None], 0, 1) ** rng.uniform(0.7, 1.4)
    image = image * _log_uniform(rng, 0.6 if rng.random() < 0.2 else 0.85, 1.15)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    image = image + rng.uniform(0, 0.02) * rng.standard_normal((size, size, 1), dtype=np.float32)
    if rng.random() < 0.25:
        code = cv2.imencode(
            ".jpg", np.clip(255 * image, 0, 255).astype(np.uint8), (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96)))
        )[1]
        image = cv2.imdecode(code, cv2.IMREAD_COLOR).astype(np.float32) / 255
    return np.clip(image, 0, 1)
