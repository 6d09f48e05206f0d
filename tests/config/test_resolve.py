"""Where settings come from, as far as no script's test shows it."""

import pytest

from config.flags import test_parser as parser_of_test
from config.resolve import resolve_test as resolve


@pytest.mark.parametrize(
    ("words", "model", "pretrained"),
    [
        (["--model", "vit_small_patch14_dinov2.lvd142m"], "vit_small_patch14_dinov2", "lvd142m"),
        (["--model", "resnet18.a1_in1k", "--pretrained", "w.pt"], "resnet18.a1_in1k", "w.pt"),
        (["--model", "ViT-B-32", "--pretrained", "openai"], "ViT-B-32", "openai"),
        (["--config_path", "a.b.json", "--pretrained", "w.pt"], "a.b", "w.pt"),
    ],
)
def test_a_tag_of_timm_may_stand_in_the_name(words, model, pretrained):
    settings, _ = resolve(parser_of_test().parse_args(words))
    assert (settings.model, settings.pretrained, settings.position_rule) == (model, pretrained, "auto")


def test_a_model_without_weights():
    with pytest.raises(
        ValueError, match=r"^--model resnet18 requires --pretrained: a tag \(of open_clip or timm\) or a"
    ):
        resolve(parser_of_test().parse_args(["--model", "resnet18"]))
