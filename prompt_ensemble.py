"""States and templates -> sentences; pure text.

A class name is put into every state phrase of a state ("flawless {}"), and every phrase into every template
("a photo of a {}."). What a method does with the embeddings of the sentences is its own affair.
"""

from typing import NamedTuple


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

    def fill(phrases):
        return [template.format(phrase.format(name)) for phrase in phrases for template in prompts.templates]

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
