"""Captions of generated pictures: words for what is whole and what is broken, as tokens."""

import random
from collections.abc import Sequence

from torch import Tensor

from prompt_ensemble import APRIL_GAN, WINCLIP
from tools.quickstart_clip import scenes

TEMPLATES = tuple(dict.fromkeys((
    *APRIL_GAN.templates, *WINCLIP.templates, "{}", "{}.", "a picture of {}.", "an image of a {}.",
    "a {} seen from above.", "inspection photo of a {}.", "the surface of the {}.", "close-up of {}.", "here is a {}.",
)))  # fmt: skip
NORMAL = (*APRIL_GAN.normal, "intact {}", "undamaged {}", "clean {}", "good {}", "normal {}", "{} in good condition",
           "defect-free {}", "spotless {}", "{} without anomaly", "faultless {}", "regular {}")  # fmt: skip
ABNORMAL = (
    *APRIL_GAN.abnormal, "defective {}", "faulty {}", "anomalous {}", "bad {}", "{} with an anomaly", "abnormal {}",
    "{} in bad condition", "flawed {}", "imperfect {}", "spoiled {}", "{} with a blemish",
)  # fmt: skip
KINDS = {
    "stain": ("stained {}", "{} with a stain", "dirty {}", "{} with oil"),
    "bleached": ("discoloured {}", "faded {}", "{} with a pale patch"),
    "deposit": ("contaminated {}", "{} with a spot", "{} with paint on it"),
    "pit": ("{} with a hole", "pitted {}", "{} with a dent"),
    "scratch": ("scratched {}", "{} with a scratch"),
    "crack": ("cracked {}", "{} with a crack"),
    "thread": ("{} with a hair", "{} with a thread"),
    "smear": ("smeared {}", "{} with a smear", "blurred {}"),
    "rough": ("worn {}", "rough {}", "{} with abrasion"),
    "displaced": ("misplaced {}", "{} with a misplaced piece"),
    "deformed": ("bent {}", "deformed {}", "warped {}"),
    "missing": ("{} with a missing part", "incomplete {}", "chipped {}"),
    "foreign": ("{} with a foreign object", "contaminated {}"),
    "patched": ("{} with a patch", "{} with a foreign material"),
    "band": ("uneven {}", "{} with a streak", "frayed {}"),
    "spots": ("spotted {}", "{} with spots"),
}


class Captions:
    """Captions of both states for a picture: the same template and noun, some real, some any word."""

    def __init__(self, tokenizer, rng: random.Random):
        self._tokenizer, self._dice = tokenizer, rng
        words = (key.removesuffix("</w>") for key in tokenizer.encoder if key.endswith("</w>"))
        self._words = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)

    def _noun(self, nouns: Sequence[str]) -> str:
        kind = self._dice.random()
        if kind < 0.45:
            noun = self._dice.choice(nouns)
        elif kind < 0.6:
            noun = self._dice.choice(scenes.GENERIC)
        else:
            noun = " ".join(self._dice.choices(self._words, k=self._dice.choice((1, 1, 2))))
        return noun.replace(" ", "_") if self._dice.random() < 0.3 else noun

    def ids(self, nouns: Sequence[Sequence[str]], kinds: Sequence[str]) -> Tensor:
        """Token ids of both states, (2 B, length), the normal ones first."""
        normal, abnormal = [], []
        for names, kind in zip(nouns, kinds, strict=True):
            template, noun = self._dice.choice(TEMPLATES), self._noun(names)
            special = self._dice.random() < 0.25
            normal.append(template.format(self._dice.choice(NORMAL).format(noun)))
            abnormal.append(template.format(self._dice.choice(KINDS[kind] if special else ABNORMAL).format(noun)))
        ids = self._tokenizer(normal + abnormal)
        return ids[:, : int(ids.argmax(-1).max()) + 1]
