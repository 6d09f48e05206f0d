"""Training augmentation."""

import random

import cv2
import numpy as np
from PIL import Image
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation


def augment(image: Image.Image, mask: Image.Image, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """VCP-CLIP's training augmentation (arXiv 2407.12276; its program has it from albumentations, whose ranges these
    are), each part with probability 1/2: a turn by up to 30 degrees, quarter turns, brightness and contrast, noise, and
    one of two blurs or colour jitter.

    The mask turns with the image; what a turn brings in from outside is the reflected picture. Draws from `rng` alone.
    """
    pixels, marks = np.asarray(image.convert("RGB")), np.asarray(mask)  # (H, W, 3), (H, W)
    if rng.random() < 0.5:
        height, width = marks.shape
        turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), rng.uniform(-30, 30), 1)
        pixels, marks = (
            cv2.warpAffine(one, turn, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101)
            for one, how in ((pixels, cv2.INTER_LINEAR), (marks, cv2.INTER_NEAREST))
        )
    if rng.random() < 0.5:
        quarters = rng.randrange(4)
        pixels, marks = np.rot90(pixels, quarters), np.rot90(marks, quarters)
    if rng.random() < 0.5:
        pixels = _clipped(pixels * rng.uniform(0.8, 1.2) + 255 * rng.uniform(-0.2, 0.2))
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(63)).normal(size=pixels.shape)
        pixels = _clipped(pixels + rng.uniform(10, 50) ** 0.5 * noise)
    if rng.random() < 0.5:
        pixels = rng.choice((_blur, _gaussian_blur, _jitter))(np.ascontiguousarray(pixels), rng)
    return Image.fromarray(np.ascontiguousarray(pixels)), Image.fromarray(np.ascontiguousarray(marks))


def _blur(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    return cv2.blur(pixels, (3, 3))


def _gaussian_blur(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (rng.choice((3, 5, 7)),) * 2, 0)


def _jitter(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    image = Image.fromarray(pixels)
    for change in (adjust_brightness, adjust_contrast, adjust_saturation):
        image = change(image, rng.uniform(0.8, 1.2))
    return np.asarray(adjust_hue(image, rng.uniform(-0.2, 0.2)))


def _clipped(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).round().astype(np.uint8)
