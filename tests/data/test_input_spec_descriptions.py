"""Input specifications as plain values, and the one shape that an exported graph takes."""

import json

import pytest
import torch
from PIL import Image

from data.input_spec import FixedShapeInput, ShorterEdgeInput, SquareInput, describe, from_description


@pytest.mark.parametrize(
    "spec", [SquareInput(96), SquareInput(70, "torchvision", center_crop=True), ShorterEdgeInput(98, 14)]
)
def test_a_specification_survives_json(spec):
    assert from_description(json.loads(json.dumps(describe(spec)))) == spec


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "round", "side": 96},
        {"kind": "square"},
        {"kind": "square", "side": "96"},
        {"kind": "square", "side": 0},
        {"kind": "square", "side": 96, "resizer": "nearest"},
        {"kind": "square", "side": 96, "multiple": 14},
        {"kind": "shorter edge", "side": True, "multiple": 14},
        {"kind": "shorter edge", "side": -98, "multiple": 14},
        {"kind": "square", "side": False},
        {"kind": ["square"], "side": 96},
    ],
)
def test_anything_else_is_refused(values):
    with pytest.raises(ValueError, match="no input specification"):
        from_description(values)


def test_pictures_of_one_shape():
    spec = FixedShapeInput(ShorterEdgeInput(98, 14), (98, 112), (128, 160))
    picture = Image.new("RGB", (160, 128), (1, 2, 3))
    assert torch.equal(spec.image(picture), ShorterEdgeInput(98, 14).image(picture))
    assert spec.image(picture.resize((320, 256))).shape == spec.blank().shape == (3, 98, 112)
    assert spec.map_size((320, 256)) == (128, 160) and spec.keeps_shape and spec.side == 98
    with pytest.raises(ValueError, match="96 x 96 pixels become 98 x 98, and the exported detector takes 112 x 98"):
        spec.image(Image.new("L", (96, 96)))
