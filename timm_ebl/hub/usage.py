"""The part of a model card that says how a checkpoint is loaded, used and measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ..data.catalogue import DATASETS, IMG_SIZE
from ..models.factory import family_of

if TYPE_CHECKING:
    from ..relaxation.model import EnergyModel
    from ..training.config import TrainConfig

__all__ = ["render_usage"]


def render_usage(model: str, network: EnergyModel, recipe: TrainConfig, config: Mapping[str, Any], data: str) -> str:
    """The section "Use" of a card.

    Args:
        model: What ``timm.create_model`` loads it by.
        network: The network.
        recipe: Resolved settings of the run; for a model from outside the package, its ``imports`` are imported.
        config: timm's ``config.json`` with its ``evaluation``.
        data: The data set in words.
    """
    size = config["pretrained_cfg"]["input_size"][1]
    modules = recipe.imports or ()
    own = () if family_of(config["architecture"]) else modules
    imported = "".join(f"\nimport {name}  # of whoever trained it: registers the model" for name in own)
    needs = f"\n\nThe code of the model is not part of timm_ebl: it is in {' and '.join(own)}." if own else ""
    call = "model.answer" if type(network).forward is nn.Module.forward else "model"
    options = {
        "config": recipe.dataset_config,
        "image_column": recipe.image_column,
        "label_column": recipe.label_column,
        "revision": recipe.dataset_revision,
        "image_size": None if size == IMG_SIZE else size,
        "channels": recipe.channels,
    }
    given = [f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None]
    dataset = f'"{recipe.dataset}"' if recipe.dataset else "None"
    found = config["evaluation"].get("split") or "test"
    of_the_set = recipe.test_split or found == "test"
    loader, place = ("load_dataset", "data.dataset") if of_the_set else ("load_test", "training.splits")
    split = recipe.test_split or found if of_the_set else recipe.train_split or "train"
    loaded = ", ".join([dataset, f'"{split}"', *given])
    imports = sorted([f"from timm_ebl.{place} import {loader}", "from timm_ebl.data.transforms import BatchTransform"])
    lines = "\n".join(imports)
    again = "the test error" + " and the distance from equilibrium" * bool(config["evaluation"].get("equilibrium"))
    where = "" if data in DATASETS or "/" in data else " --dataset FOLDER"
    where += "".join(f" --import {name}" for name in modules)
    return f"""## Use

```python
import timm
import timm_ebl  # registers the models{imported}

model = timm.create_model("{model}", pretrained=True).eval()
```{needs}

Images are {size} pixels wide and high, smaller ones centred on black:

```python
{lines}

test = {loader}({loaded})
normalise = BatchTransform(tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])).eval
print({call}(normalise(test.images[:8])).argmax(1), test.labels[:8])
```

`python -m timm_ebl.hub verify {model}{where}` measures {again} again."""
