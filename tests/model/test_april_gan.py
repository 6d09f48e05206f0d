"""APRIL-GAN against the published program's outputs, part by part."""

import numpy as np
import pytest
import torch

from conftest import REFERENCE, assert_maps, load_case
from dataset import AnomalyDataset, Sample
from engine import checkpoint
from engine.epoch import train_epoch
from engine.loss_log import Step
from model import build
from model.losses import dice, focal

SIZE = 96


@pytest.fixture(scope="module")
def detector(tiny_a):
    return build(
        "april_gan", model=tiny_a.model, pretrained=tiny_a.pretrained, config_path=tiny_a.config_path, image_size=SIZE
    )


@pytest.fixture(scope="module")
def visa_tokens(detector):
    """Tokens of all images of the zero-shot case, and their classes; with the published training's adapters."""
    detector.load_trainable_state(checkpoint.load(REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth").state)
    facts = load_case("aprilgan_visa_zero_shot").facts
    return detector.encode(images("mini_visa", facts["images"])), facts["image_class"]


def images(dataset: str, paths: list[str], masks: list[str] | None = None, what: str = "image") -> torch.Tensor:
    masks = masks or [""] * len(paths)
    samples = [Sample(path, mask, "", "", int(bool(mask))) for path, mask in zip(paths, masks, strict=True)]
    return torch.stack([item[what] for item in AnomalyDataset(REFERENCE / "data" / dataset, samples, SIZE)])


def test_text_features(detector):
    case = load_case("aprilgan_visa_zero_shot")
    detector.encode_names(case.facts["classes"])
    features = torch.stack([detector.texts([name])[0] for name in case.facts["classes"]])
    np.testing.assert_allclose(features, case.arrays["text_features"], atol=case.facts["tolerance"]["text_abs"])


def test_zero_shot(detector, visa_tokens):
    case = load_case("aprilgan_visa_zero_shot")
    tolerance = case.facts["tolerance"]
    with torch.no_grad():
        prediction = detector.zero_shot(*visa_tokens)
    assert_maps(prediction.maps, case)
    np.testing.assert_allclose(
        prediction.score_components["text"], case.arrays["text_prob"], atol=tolerance["scores_abs"]
    )
    np.testing.assert_allclose(
        detector.image_scores(prediction.score_components), case.arrays["image_scores"], atol=tolerance["scores_abs"]
    )


def test_few_shot(detector, visa_tokens):
    case = load_case("aprilgan_visa_k4_seed42")
    tolerance, names = case.facts["tolerance"], case.facts["image_class"]
    memories = {
        name: detector.build_memory([detector.encode(images("mini_visa", paths))])
        for name, paths in case.facts["reference_images"].items()
    }
    with torch.no_grad():
        prediction = detector.few_shot(detector.zero_shot(*visa_tokens), *visa_tokens, memories)
    assert_maps(prediction.maps, case)
    for name in case.facts["classes"]:
        rows = [row for row, other in enumerate(names) if other == name]
        scores = detector.image_scores({key: term[rows] for key, term in prediction.score_components.items()})
        np.testing.assert_allclose(scores, case.arrays["image_scores"][rows], atol=tolerance["scores_abs"])


def test_masks():
    case = load_case("aprilgan_visa_zero_shot")
    labels = case.arrays["labels"]
    paths = case.facts["images"]
    mask_paths = [
        path.replace("/Images/", "/Masks/").replace(".JPG", ".png") if label else ""
        for path, label in zip(paths, labels, strict=True)
    ]
    np.testing.assert_array_equal(images("mini_visa", paths, mask_paths, "mask"), case.arrays["masks"])


def test_mixed_classes_in_a_batch_do_not_change_an_image(detector, visa_tokens):
    tokens, names = visa_tokens
    one = type(tokens)(tokens.pooled[:1], {k: v[:1] for k, v in tokens.patches.items()}, tokens.grids)
    with torch.no_grad():
        whole, alone = detector.zero_shot(tokens, names), detector.zero_shot(one, names[:1])
    torch.testing.assert_close(whole.maps[:1], alone.maps, atol=1e-5, rtol=0)


def test_a_reference_scores_zero_against_itself(detector, visa_tokens):
    tokens, names = visa_tokens
    with torch.no_grad():
        zero_shot = detector.zero_shot(tokens, names)
        few_shot = detector.few_shot(
            zero_shot, tokens, names, {name: detector.build_memory([tokens]) for name in set(names)}
        )
    torch.testing.assert_close(few_shot.maps, zero_shot.maps, atol=1e-5, rtol=0)


def start(detector, arrays, prefix: str) -> torch.optim.Optimizer:
    detector.load_trainable_state({"trainable_linearlayer": weights(arrays, prefix)})
    return torch.optim.Adam(detector.adapters.parameters(), lr=1e-3, betas=(0.5, 0.999))


def weights(arrays, prefix: str) -> dict[str, torch.Tensor]:
    keys = [key for key in arrays if key.startswith(prefix + "/")]
    return {key.removeprefix(prefix + "/"): torch.from_numpy(arrays[key]) for key in keys}


def assert_weights(detector, arrays, prefix: str, tolerance: float):
    state = detector.trainable_state()["trainable_linearlayer"]
    for key, value in weights(arrays, prefix).items():
        torch.testing.assert_close(state[key], value, atol=tolerance, rtol=0, msg=lambda m, k=key: f"{k}: {m}")


def test_six_training_steps(detector):
    """Losses part by part, the first gradient, and the weights after one and six steps."""
    case = load_case("aprilgan_six_steps_mvtec")
    tolerance = case.facts["tolerance"]
    optimizer = start(detector, case.arrays, "init")
    for number, step in enumerate(case.facts["steps"], start=1):
        masks = images("mini_mvtec", step["images"], step["masks"], "mask")
        assert int(masks.sum()) == step["mask_pixels"]
        maps = detector(images("mini_mvtec", step["images"]), step["classes"])
        focals = torch.stack([focal(p, masks) for p in maps])
        dices = torch.stack([dice(p[:, 1], masks) for p in maps])
        np.testing.assert_allclose(focals.tolist(), step["focal"], rtol=tolerance["loss_rel"])
        np.testing.assert_allclose(dices.tolist(), step["dice"], rtol=tolerance["loss_rel"])
        loss = (focals + dices).sum()
        np.testing.assert_allclose(loss.item(), step["loss"], rtol=tolerance["loss_rel"])
        optimizer.zero_grad()
        loss.backward()
        if number == 1:
            for key, gradient in weights(case.arrays, "grad0").items():
                own = dict(detector.adapters.named_parameters())[key].grad
                torch.testing.assert_close(own, gradient, atol=tolerance["grad_abs"], rtol=0)
        optimizer.step()
        if number == 1:
            assert_weights(detector, case.arrays, "after1", tolerance["after1_abs"])
    assert_weights(detector, case.arrays, "after6", tolerance["after6_abs"])


def test_two_epochs_of_training(detector):
    """The engine's epoch on the published program's batches: every loss, and the weights after each epoch."""
    from accelerate import Accelerator

    case = load_case("aprilgan_train_mvtec")
    optimizer, accelerator = start(detector, case.arrays, "init"), Accelerator()
    steps: list[Step] = []
    for epoch in (1, 2):
        batches = [batch_of(paths) for paths in case.facts["batches"][6 * epoch - 6 : 6 * epoch]]
        steps += train_epoch(detector, batches, optimizer, accelerator, epoch)[0]
        assert_weights(detector, case.arrays, f"epoch{epoch}", case.facts["tolerance"]["weights_abs"])
    losses = [step.loss for step in steps]
    np.testing.assert_allclose(losses, case.arrays["loss"], rtol=case.facts["tolerance"]["loss_rel"])


def batch_of(paths: list[str]) -> dict:
    masks = ["" if "/good/" in p else p.replace("/test/", "/ground_truth/").replace(".png", "_mask.png") for p in paths]
    return {
        "image": images("mini_mvtec", paths),
        "mask": images("mini_mvtec", paths, masks, "mask"),
        "label": torch.tensor([int(bool(mask)) for mask in masks]),
        "cls_name": [path.split("/")[0] for path in paths],
    }


def test_backbone_stays_frozen(detector):
    detector.train()
    assert not detector.backbone.training
    assert [name for name, p in detector.named_parameters() if p.requires_grad] == [
        f"adapters.fc.{layer}.{kind}" for layer in range(4) for kind in ("weight", "bias")
    ]


def test_refuses_another_methods_checkpoint(detector):
    with pytest.raises(ValueError, match="no 'trainable_linearlayer' in it"):
        detector.load_trainable_state({"linear_layers": {}})


def test_refuses_other_shapes(detector):
    state = detector.trainable_state()["trainable_linearlayer"]
    with pytest.raises(ValueError, match=r"'fc.0.weight' is \(32, 63\) in the file but \(32, 64\) in this model"):
        detector.load_trainable_state({"trainable_linearlayer": {**state, "fc.0.weight": torch.zeros(32, 63)}})
