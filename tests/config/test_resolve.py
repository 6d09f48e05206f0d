"""Where settings come from, as far as no script's test shows it."""

import pytest

from config.flags import predict_parser
from config.flags import test_parser as parser_of_test
from config.resolve import resolve_predict
from config.resolve import resolve_test as resolve
from metrics.thresholds import ThresholdRule


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


@pytest.mark.parametrize(
    ("script", "words", "refused"),
    [
        ("test", "--fpr 0.1", "--fpr 0.1: requires --threshold"),
        ("test", "--method musc --threshold mean_std", "--threshold mean_std: images that are scored together have no"),
        (
            "test",
            "--threshold mean_std --fpr 0.1",
            "--fpr 0.1: --threshold mean_std is 3 standard deviations above the",
        ),
        ("test", "--threshold conformal --fpr 1", "--fpr 1: must be a rate between 0 and 1"),
        ("predict", "--threshold_factor 2", "--threshold_factor 2: only --threshold quantile takes a factor"),
        (
            "predict",
            "--threshold mean_std --calibration a.json",
            "--threshold mean_std: the threshold of --calibration a",
        ),
        ("predict", "--method musc --threshold quantile", "--threshold quantile: images that are scored together take"),
    ],
)
def test_flags_of_thresholds_that_contradict_each_other(script, words, refused):
    own = parser_of_test() if script == "test" else predict_parser()
    given = [*words.split(), *([] if script == "test" else ["--class_name", "screw", "photos"])]
    with pytest.raises(ValueError) as error:
        (resolve if script == "test" else resolve_predict)(own.parse_intermixed_args(given))
    assert str(error.value).startswith(refused) and "\n" not in str(error.value)


def test_rules_of_thresholds():
    rules = {
        "": ThresholdRule(),
        "--threshold conformal --fpr 0.1": ThresholdRule("conformal", 0.1, pixels=True),
        "--threshold mean_std": ThresholdRule("mean_std", pixels=True),
        "--threshold quantile --threshold_factor 1.5": ThresholdRule("quantile", 0.05, 1.5, pixels=True),
    }
    for words, rule in rules.items():
        args = predict_parser().parse_intermixed_args([*words.split(), "--class_name", "screw", "photos"])
        assert resolve_predict(args)[0].rule == rule
