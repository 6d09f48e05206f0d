"""CLIPs whose image tower is a model of timm: their tokens are timm's, their embedding is open_clip's."""

import json

import pytest
import torch

from model import build
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}


def tower(folder, timm_model: str, size: int, **vision) -> str:
    """A CLIP registered under the name of its tower."""
    path = folder / f"clip-{timm_model}.json"
    vision = {"image_size": size, "timm_model_name": timm_model, **vision}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}))
    return register_architecture(str(path))


KINDS = [  # tower, its own size, pool, projection; grid, layers, default layers
    ("test_vit", 160, {"timm_pool": "token", "timm_proj": "linear"}, 10, 6, [2, 3, 4, 6]),
    ("vit_pe_core_tiny_patch16_384", 384, {"timm_pool": "map", "timm_proj": "linear"}, 24, 12, [3, 6, 9, 12]),
    ("test_vit4", 160, {"timm_pool": "map", "timm_proj": "none"}, 10, 9, [2, 4, 7, 9]),
    ("test_efficientnet", 160, {"timm_pool": "avgmax", "timm_proj": "linear"}, None, 4, [3, 4]),
    ("test_convnext", 160, {"timm_pool": "", "timm_proj": "linear"}, None, 4, [3, 4]),
]


@pytest.mark.parametrize(("timm_model", "size", "vision", "grid", "depth", "layers"), KINDS)
def test_tokens_and_embedding(timm_model, size, vision, grid, depth, layers, tmp_path):
    torch.manual_seed(0)
    own = Backbone(tower(tmp_path, timm_model, size, **vision))
    assert (own.grid, own.depth, own.default_layers()) == (grid, depth, layers)
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    tokens = own(images, layers)
    with torch.no_grad():
        torch.testing.assert_close(tokens.pooled, own.clip.encode_image(own.normalize(images)))
        last = own.clip.visual.trunk.forward_intermediates(own.normalize(images), indices=1, intermediates_only=True)[0]
    torch.testing.assert_close(tokens.patches[depth], last.flatten(2).mT)
    taller = torch.randint(256, (1, 3, size + 2 * own.patch, size), dtype=torch.uint8)
    high, wide = own(taller, [depth], pooled=False).grids[depth]
    assert (high, wide) == ((size + 2 * own.patch) // own.patch, size // own.patch)


def test_another_size_and_saved_weights(tmp_path):
    torch.manual_seed(0)
    name = tower(tmp_path, "test_vit", 160, timm_pool="token", timm_proj="linear")
    own = Backbone(name)
    torch.save(own.clip.state_dict(), tmp_path / "w.pt")
    smaller = Backbone(name, str(tmp_path / "w.pt"), image_size=96)
    assert smaller.grid == 6 and smaller.fingerprint == own.fingerprint
    images = torch.randint(256, (1, 3, 160, 160), dtype=torch.uint8)
    torch.testing.assert_close(smaller(images, [3]).patches[3], own(images, [3]).patches[3])
    assert smaller(images[..., :96, :96], [3]).patches[3].isfinite().all()


def test_methods_take_it_or_say_what_they_need(tmp_path):
    name = tower(tmp_path, "test_efficientnet", 64, timm_pool="avgmax", timm_proj="linear")
    assert build("april_gan", model=name).features_list == (3, 4)
    for method in ("winclip", "sdp", "anomaly_clip"):
        needs = f"{method} needs a ViT of open_clip's own, .* {name} is a CLIP whose image tower is timm's"
        with pytest.raises(ValueError, match=needs):
            build(method, model=name)
    with pytest.raises(ValueError, match="timm has no model 'no_such' for its image tower"):
        Backbone(tower(tmp_path, "no_such", 64))
