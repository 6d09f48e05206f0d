"""PCA that adds up over images, and the distance to the subspace, against NumPy and the published program's arrays."""

import numpy as np
import pytest
import torch

from conftest import load_case
from model import subspace
from model.subspace import Subspace

CASES = ("mvtec_k1", "mvtec_k2_saliency", "visa_k4", "visa_batched")


def case_of(name: str):
    return load_case(f"subspacead_{name}")


def random_tokens(seed: int, images: int, *, shift: float = 0.0) -> torch.Tensor:
    """Correlated tokens with a mean far from 0, (images, 20, 6)."""
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(images, 20, 6, generator=stream) @ torch.randn(6, 6, generator=stream) + 30 + shift


def published_pca(first: np.ndarray, second: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """The formulas of the paper, as they stand: first, second: tokens fed in each pass, (n, W)."""
    mean = first.astype(np.float64).sum(0) / total
    centred = second.astype(np.float64) - mean
    return mean, centred.T @ centred / (total - 1)


def everything(tokens: torch.Tensor) -> torch.Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


def project(components) -> np.ndarray:
    return np.asarray(components).T.astype(np.float64) @ np.asarray(components)


@pytest.mark.parametrize("masked", [False, True])
def test_images_are_collected_one_by_one_and_added(masked):
    images = [(random_tokens(seed, 3), random_tokens(seed + 10, 3, shift=0.5)) for seed in range(4)]
    foreground = [[torch.rand(3, 20) < 0.6 if masked else everything(one) for one in pair] for pair in images]
    collected = [
        subspace.collect(list(zip(pair, masks, strict=True))) for pair, masks in zip(images, foreground, strict=True)
    ]
    fitted = subspace.fit(subspace.merge(collected), 1.0, components=4)

    fed = [
        torch.cat([pair[turn][masks[turn]] for pair, masks in zip(images, foreground, strict=True)]) for turn in (0, 1)
    ]
    mean, covariance = published_pca(fed[0].numpy(), fed[1].numpy(), total=4 * 3 * 20)
    np.testing.assert_allclose(fitted.mean[0], mean, rtol=1e-6)
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :4]
    np.testing.assert_allclose(project(fitted.components), directions @ directions.T, atol=1e-6)


def test_one_pass_serves_for_both():
    tokens = random_tokens(3, 5)
    once = subspace.fit(subspace.collect([(tokens, everything(tokens))]), 0.9)
    twice = subspace.fit(subspace.collect([(tokens, everything(tokens))] * 2), 0.9)
    torch.testing.assert_close(once, twice)


def test_all_tokens_of_an_image_without_foreground_are_fed():
    tokens = random_tokens(4, 2)
    foreground = everything(tokens)
    foreground[1] = False
    statistics = subspace.collect([(tokens, foreground)])
    assert statistics.fed == statistics.total == 40


def test_a_large_mean_costs_no_digits():
    """Raw second moments in float64 would lose the variance here."""
    tokens = random_tokens(5, 2).double() + 1e9
    statistics = subspace.collect([(tokens, everything(tokens))])
    np.testing.assert_allclose(statistics.scatter / 39, np.cov(tokens.flatten(0, 1).T.numpy()), rtol=1e-6)


def test_tokens_that_are_no_numbers_are_refused():
    tokens = random_tokens(6, 1)
    tokens[0, 3, 2] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinity; take --precision"):
        subspace.fit(subspace.collect([(tokens, everything(tokens))]), 0.99)


def test_equal_tokens_have_a_subspace_of_one_direction():
    tokens = torch.ones(1, 4, 3)
    fitted = subspace.fit(subspace.collect([(tokens, everything(tokens))]), 0.99)
    assert fitted.components.shape == (1, 3)
    torch.testing.assert_close(subspace.residual(tokens, fitted), torch.zeros(1, 4))


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.96, 4), (1.0, 4)])
def test_number_of_directions(share, wanted):
    assert subspace.components_for(torch.tensor([5.0, 3.0, 1.5, 0.5], dtype=torch.float64), share) == wanted


@pytest.mark.parametrize("name", CASES)
def test_published_number_of_directions(name):
    case = case_of(name)
    settings = case.facts["hyper_parameters"]
    for cls_name, kept in settings["pca_k_per_class"].items():
        eigenvalues = torch.from_numpy(case.arrays[f"pca_eigenvalues/{cls_name}"])
        assert subspace.components_for(eigenvalues, settings["pca_ev"]) == kept


@pytest.mark.parametrize("name", CASES)
def test_published_scores_of_patches(name):
    case = case_of(name)
    for cls_name, image in case.facts["features_first_image"].items():
        fitted = Subspace(
            torch.from_numpy(case.arrays[f"pca_mean/{cls_name}"])[None].float(),
            torch.from_numpy(case.arrays[f"pca_components/{cls_name}"]).T,
        )
        scores = subspace.residual(torch.from_numpy(case.arrays[f"features_first/{cls_name}"])[None], fitted)
        stored = case.arrays["patch_scores"][case.facts["images"].index(image)]
        tolerance = case.facts["tolerance"]["patch_scores_abs"]
        np.testing.assert_allclose(scores[0].unflatten(0, stored.shape), stored, atol=tolerance, rtol=0)
