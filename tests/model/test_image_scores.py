"""Image scores against NumPy and the published program's."""

import numpy as np
import pytest
import torch

from conftest import load_case
from model.image_scores import IMAGE_SCORES


@pytest.mark.parametrize("side", [3, 17, 98])
def test_scores_by_name(side):
    maps = torch.rand(4, side, side, generator=torch.Generator().manual_seed(side))
    ordered = np.sort(maps.flatten(1).numpy(), axis=1)
    wanted = {
        "mtop1p": ordered[:, -max(1, side * side // 100) :].mean(1),
        "max": ordered[:, -1],
        "mean": ordered.mean(1),
        "p99": np.percentile(ordered, 99, axis=1),
        "mtop5": ordered[:, -5:].mean(1),
    }
    assert wanted.keys() == IMAGE_SCORES.keys()
    for name, score in IMAGE_SCORES.items():
        np.testing.assert_allclose(score(maps), wanted[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["mvtec_k1", "mvtec_k2_saliency", "visa_k4", "visa_batched"])
def test_published_scores(name):
    case = load_case(f"subspacead_{name}")
    scores = IMAGE_SCORES["mtop1p"](torch.from_numpy(case.arrays["maps_full"]))
    stored = case.arrays["image_scores"][case.arrays["maps_full_index"]]
    np.testing.assert_allclose(scores, stored, atol=case.facts["tolerance"]["scores_abs"], rtol=0)
