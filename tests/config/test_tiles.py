"""The flags of tiles: defaults, and what tiles refuse by name."""

import pytest

from config.flags import export_parser, predict_parser
from config.flags import test_parser as parser_of_test
from config.resolve import resolve_export, resolve_onnx, resolve_predict
from config.resolve import resolve_test as resolve
from data.tiles import Tiling
from engine.resume import NEUTRAL_SETTINGS


def settings_of(words: str):
    return resolve(parser_of_test().parse_args(words.split()))


def test_one_tile_is_none():
    plain, _ = settings_of("--method winclip")
    assert settings_of("--method winclip --tiles 1")[0] == plain and plain.tiling == Tiling() and plain.tiles == 1
    assert settings_of("--method winclip --tiles 3")[0].tiling == Tiling(3, 0.25)
    assert not {"tiles", "tile_overlap"} & set(NEUTRAL_SETTINGS)  # so --resume takes no class of another tiling


def test_nothing_is_masked_in_tiles():
    settings, sources = settings_of("--method anomaly_dino --k_shot 1 --tiles 2")
    assert settings.options["masking"] == ["none"] and sources["masking"].startswith("--tiles")
    words = "--method anomaly_dino --k_shot 1 --preprocess agnostic_no_mask --tiles 2"
    assert settings_of(words)[0].options["masking"] is None


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("--tile_overlap 0.3", "--tile_overlap 0.3: requires --tiles of 2 or more"),
        ("--method musc --tiles 2", "--tiles 2: images that are scored together (musc) stay whole"),
        ("--method anomaly_dino --mode batched --tiles 2", "--tiles 2: images that are scored together (anomaly_dino)"),
        ("--method anomaly_dino --k_shot 1 --preprocess agnostic --tiles 2", "--tiles 2: --preprocess agnostic looks"),
        ("--method anomaly_dino --k_shot 1 --masking all --tiles 2", "--tiles 2: --masking all looks for an object"),
        ("--method subspace_ad --k_shot 1 --background pca_normality --tiles 2", "--tiles 2: --background pca_norm"),
        ("--method subspace_ad --k_shot 1 --center_crop True --tiles 2", "--tiles 2: --center_crop True would leave"),
    ],
)
def test_what_tiles_refuse(words, refused):
    with pytest.raises(ValueError) as error:
        settings_of(words)
    assert str(error.value).startswith(refused) and "\n" not in str(error.value)


def test_exported_detectors_and_sets_take_no_tiles(capsys):
    with pytest.raises(ValueError, match="--tiles 2: an exported detector takes whole pictures; drop --tiles, or"):
        resolve_export(export_parser().parse_args(["--class_name", "screw", "--tiles", "2"]))
    onnx = predict_parser().parse_intermixed_args(["photos", "--onnx", "screw", "--tiles", "2"])
    with pytest.raises(ValueError, match="^--tiles 2: screw is fixed to 1; drop --tiles$"):
        resolve_onnx(onnx, {"method": "winclip", "class_name": "screw", "image_size": 240})
    with pytest.raises(ValueError, match=r"^--tiles 2: images that are scored together \(musc\) stay whole"):
        resolve_predict(predict_parser().parse_intermixed_args(["photos", "--tiles", "2"]))
    for words in ("--tiles", "17"), ("--tiles", "0"), ("--tile_overlap", "0.6"):
        with pytest.raises(SystemExit):
            parser_of_test().parse_args(words)
        assert f"argument {words[0]}: {words[1]}: must be a" in capsys.readouterr().err
