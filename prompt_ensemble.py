"""States and templates -> sentences; pure text, the methods' own or a user's file.

A class name is put into every state phrase of a state ("flawless {}"), and every phrase into every template
("a photo of a {}."). What a method does with the embeddings of the sentences is its own affair.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_LARGEST_FILE = 1 << 24  # bytes of a user's prompts


class Prompts(NamedTuple):
    """The phrases of the two states and the templates that they are put into; each holds one "{}"."""

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]


def sentences(name: str, prompts: Prompts) -> tuple[list[str], list[str]]:
    """All sentences of a class: (normal, abnormal), each of length phrases x templates.

    Args:
        name: the class name as the dataset gives it (`metal_nut` keeps its underscore).
        prompts: phrases and templates.
    """

    def fill(phrases: Sequence[str]) -> list[str]:
        return [template.format(phrase.format(name)) for phrase in phrases for template in prompts.templates]

    return fill(prompts.normal), fill(prompts.abnormal)


def up_to_state(name: str, prompts: Prompts) -> tuple[list[str], list[str]]:
    """The same sentences, each only as far as the words of its state reach: "this is a screw with flaw" of "this is a
    screw with flaw in the scene.", and "a photo of a flawless" of "a photo of a flawless screw."."""

    def fill(phrases: Sequence[str]) -> list[str]:
        return [
            template.partition("{}")[0] + phrase.removesuffix("{}").format(name)
            for phrase in phrases
            for template in prompts.templates
        ]

    return fill(prompts.normal), fill(prompts.abnormal)


def _a_and_the(*patterns: str) -> tuple[str, ...]:
    return tuple(pattern.format(article) for pattern in patterns for article in ("a {}", "the {}"))


# APRIL-GAN (Chen et al., arXiv 2305.17382): 7 + 5 phrases, 35 templates. The mean over sentences does not depend on
# their order, so the templates are written down by their pattern.
APRIL_GAN = Prompts(
    normal=(
        "{}",
        "flawless {}",
        "perfect {}",
        "unblemished {}",
        "{} without flaw",
        "{} without defect",
        "{} without damage",
    ),
    abnormal=("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
    templates=(
        *_a_and_the(
            "a bad photo of {}.",
            "a good photo of {}.",
            "a bright photo of {}.",
            "a dark photo of {}.",
            "a blurry photo of {}.",
            "a cropped photo of {}.",
            "a close-up photo of {}.",
            "a low resolution photo of {}.",
            "a black and white photo of {}.",
            "a jpeg corrupted photo of {}.",
            "a photo of {}.",
            "there is {} in the scene.",
            "this is {} in the scene.",
        ),
        "a photo of my {}.",
        "a photo of one {}.",
        "a photo of a cool {}.",
        "a photo of the cool {}.",
        "a photo of a small {}.",
        "a photo of the small {}.",
        "a photo of a large {}.",
        "a photo of the large {}.",
        "this is one {} in the scene.",
    ),
)

# WinCLIP (Jeong et al., arXiv 2303.14814): 7 + 4 phrases, 21 templates. The published re-implementation has one of them
# twice, and so have we: it counts double in the mean.
WINCLIP = Prompts(
    normal=APRIL_GAN.normal,
    abnormal=("damaged {}", "{} with flaw", "{} with defect", "{} with damage"),
    templates=(
        *_a_and_the(
            "a close-up photo of {}.",
            "a bright photo of {}.",
            "a dark photo of {}.",
            "a blurry photo of {}.",
            "a photo of {}.",
            "a photo of {} for visual inspection.",
            "a photo of {} for anomaly detection.",
        ),
        "a cropped photo of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a photo of a small {}.",
        "a photo of the small {}.",
        "a photo of a large {}.",
        "a photo of the large {}.",
    ),
)

# CLIP-AD (Chen et al., arXiv 2311.00453): 9 + 10 phrases, 22 templates.
CLIP_AD = Prompts(
    normal=(*APRIL_GAN.normal[1:], "{} without scratch", "{} without crack", "{} without contamination"),
    abnormal=(
        "damaged {}",
        "imperfect {}",
        "blemished {}",
        "broken {}",
        "{} with flaw",
        "{} with defect",
        "{} with damage",
        "{} with scratch",
        "{} with crack",
        "{} with contamination",
    ),
    templates=(
        *_a_and_the(
            "a cropped photo of {}.",
            "a close-up photo of {}.",
            "a bright photo of {}.",
            "a dark photo of {}.",
            "a jpeg corrupted photo of {}.",
            "a blurry photo of {}.",
            "a photo of {}.",
            "a photo of {} for visual inspection.",
            "a photo of {} for anomaly detection.",
        ),
        "a photo of a small {}.",
        "a photo of the small {}.",
        "a photo of a large {}.",
        "a photo of the large {}.",
    ),
)


# VCP-CLIP (Qu et al., arXiv 2407.12276): one sentence a state; the place of the name is taken by what the image says.
VCP_CLIP = Prompts(normal=("a photo of a good {}",), abnormal=("a photo of a damaged {}",), templates=("{}",))

# AnomalyCLIP (Zhou et al., arXiv 2310.18961): what follows the learned tokens of a state; the name is always "object".
ANOMALY_CLIP = Prompts(normal=("{}",), abnormal=("damaged {}",), templates=("{}.",))


def _findings(normal: tuple[str, ...], abnormal: tuple[str, ...], templates: tuple[str, ...]) -> Prompts:
    """Prompts for medical images: the general words for health and disease, and the names of the finding."""
    return Prompts(
        ("healthy {}", "normal {}", "unremarkable {}", "{} without abnormality", *normal),
        ("abnormal {}", "diseased {}", "{} with an abnormality", *abnormal),
        templates,
    )


_SCANS = (
    "a scan of a {}.",
    "a medical image of a {}.",
    "a {} image.",
    "a grayscale image of a {}.",
    "an axial slice of a {}.",
)
_VIEWS = ("a photo of the {}.", "a medical image of the {}.", "a close-up photo of the {}.", "a {} image.")

# Prompts that ship, by the name that --prompts takes. Ours are the medical ones, each under the name of its dataset,
# whose default they are: "damaged" and "broken" are no words for organs.
PROMPTS = {
    "april_gan": APRIL_GAN,
    "winclip": WINCLIP,
    "clip_ad": CLIP_AD,
    "vcp_clip": VCP_CLIP,
    "anomaly_clip": ANOMALY_CLIP,
    "headct": _findings(
        ("{} without hemorrhage", "{} without bleeding"),
        ("{} with a hemorrhage", "{} with bleeding", "{} with a hematoma"),
        _SCANS,
    ),
    "brainmri": _findings(
        ("{} without tumor", "{} without mass"),
        ("{} with a tumor", "{} with a mass", "{} with a lesion"),
        _SCANS,
    ),
    "isic": _findings(
        ("clear {}", "{} without lesion"),
        ("{} with a lesion", "{} with a melanoma", "{} with a mole", "{} with a dark spot"),
        (*_VIEWS, "a dermoscopic image of the {}."),
    ),
    "clinicdb": _findings(
        ("{} without polyp", "{} without lesion"),
        ("{} with a polyp", "{} with a lesion", "{} with a growth"),
        (*_VIEWS, "an endoscopic image of the {}."),
    ),
}


def load_prompts(name: str) -> Prompts:
    """Prompts that ship, or those of a JSON file: {"normal": [phrase...], "abnormal": [...], "templates": [...]}.

    Args:
        name: a key of PROMPTS, or a path.

    Raises:
        ValueError: neither; another form; a phrase or template without exactly one "{}". Names the file and the entry.
    """
    if name in PROMPTS:
        return PROMPTS[name]
    form = '{"normal": ["flawless {}", ...], "abnormal": [...], "templates": ["a photo of a {}.", ...]}'
    path = Path(name)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"--prompts {name}: is a device, a pipe or a socket, not a file")
    if path.is_file() and path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"--prompts {name}: is larger than {_LARGEST_FILE >> 20} MiB, which no prompts need")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"--prompts {name}: no such file, and not the name of prompts that ship ({', '.join(PROMPTS)})"
        ) from None
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"--prompts {name}: no readable JSON ({error}); expected {form}") from None
    if not isinstance(content, dict) or content.keys() != set(Prompts._fields):
        found = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"--prompts {name}: expected {form}, found {found or 'nothing'}")
    for key, entries in content.items():
        if not isinstance(entries, list) or not entries:
            raise ValueError(f'--prompts {name}: "{key}" must be a list of one or more texts')
        for entry in entries:
            if not isinstance(entry, str) or re.sub(r"[^{}]", "", entry) != "{}" or "{}" not in entry:
                raise ValueError(
                    f'--prompts {name}: "{key}" holds {json.dumps(entry, ensure_ascii=False)}: must be a text with one '
                    '"{}", the place of the class name'
                )
    return Prompts(*(tuple(content[key]) for key in Prompts._fields))
