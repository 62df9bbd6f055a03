"""Classes of images by a trained model, and the energy of the state that each image relaxes to.

    python -m timm_ebl.tools.predict CHECKPOINT IMAGE [IMAGE ...]

CHECKPOINT is the name of a shipped model, the folder of a run, or OWNER/NAME on the Hub; IMAGE is a file, or a folder
whose images are taken, those of its own folders too. They are prepared as the checkpoint's data were. Outputs are
neither logits nor probabilities: by the squared error, networks learn to put out 1 for an image's class, else 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..arguments import Parser, positive_count
from ..data.catalogue import CHANNELS
from ..data.decode import decode_images
from ..data.folder import walk
from ..data.image_folder import is_image
from ..errors import DataError, one_sentence
from ..training.console import begin
from ..training.inference import prepare
from ..training.threads import add_threads_option
from ..training.trained import TrainedModel
from ..training.user_code import add_import_option

__all__ = ["Prediction", "build_parser", "classify", "find_images", "main"]


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image.

    Attributes:
        image: Path of the file.
        energy: Energy of the state that it relaxes to.
        classes: The names of the classes, that of the largest output first.
        outputs: The output for each of them, in the same order.
    """

    image: str
    energy: float
    classes: tuple[str, ...]
    outputs: tuple[float, ...]

    def to_dict(self, top_k: int) -> dict[str, Any]:
        """The prediction with its first classes alone, for JSON."""
        best = zip(self.classes[:top_k], self.outputs, strict=False)
        classes = [{"name": name, "output": output} for name, output in best]
        return {"image": self.image, "energy": self.energy, "classes": classes}


def find_images(paths: Iterable[str | Path]) -> list[str]:
    """The image files among some files and folders, those below a folder in the order of their names.

    Raises:
        DataError: There is no such file or folder, or a folder without images.
    """
    found = []
    for path in (Path(path).expanduser() for path in paths):
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"there is no file or folder {path}.")
            found.append(str(path))
            continue
        try:
            images = [str(file) for file in walk(path) if is_image(file)]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}.") from error
        if not images:
            raise DataError(f"{path} holds no images.")
        found += images
    return found


@torch.no_grad()
def classify(checkpoint: TrainedModel, images: Sequence[str], batch_size: int = 250) -> Iterator[Prediction]:
    """Relax a checkpoint's network for images, prepared as its data were.

    Args:
        checkpoint: The checkpoint.
        images: Paths of the files.
        batch_size: How many are relaxed at once.

    Raises:
        CheckpointError: The weights cannot be used, or are not for grey or colour images of that size.
        DataError: An image cannot be decoded.
    """
    channels, _, size = checkpoint.config["pretrained_cfg"]["input_size"]
    try:
        pixels = decode_images(images, len(images), size, CHANNELS[channels > 1])
    except ValueError as error:
        raise DataError(str(error)) from error
    model, normalise = prepare(checkpoint.weights, pixels)
    names = checkpoint.config.get("label_names", [])
    if len(names) != model.num_classes:
        names = [*map(str, range(model.num_classes))]
    paths = iter(images)
    for batch in pixels.split(batch_size):
        relaxation = model.relax(normalise(batch))
        values, order = relaxation.output.sort(dim=1, descending=True)
        for energy, outputs, places in zip(relaxation.energy.tolist(), values.tolist(), order.tolist(), strict=True):
            yield Prediction(next(paths), energy, tuple(names[place] for place in places), tuple(outputs))


def _table(predictions: Sequence[Prediction], top_k: int) -> str:
    """A line for each class that is shown; image and energy stand in the first of an image."""
    rows = [("image", "energy", "class", "output")]
    for prediction in predictions:
        best = zip(prediction.classes[:top_k], prediction.outputs, strict=False)
        for rank, (name, output) in enumerate(best):
            first = (prediction.image, f"{prediction.energy:.3f}") if not rank else ("", "")
            rows.append((*first, name, f"{output:.3f}"))
    image, energy, name, output = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{a:{image}}  {b:>{energy}}  {c:{name}}  {d:>{output}}" for a, b, c, d in rows)


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="python -m timm_ebl.tools.predict", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="shipped model, folder of a run, or OWNER/NAME")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file or folder")
    parser.add_argument("--top-k", type=positive_count, default=3, help="classes shown for an image (default: 3)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image, a line each")
    add_import_option(parser)
    add_threads_option(parser)
    return parser


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Predict from the command line."""
    options = begin(build_parser(), arguments)
    images = find_images(options.images)
    predictions = classify(TrainedModel.open(options.checkpoint), images)
    if options.json:
        for prediction in predictions:
            print(json.dumps(prediction.to_dict(options.top_k)))
    else:
        print(_table(list(predictions), options.top_k))


if __name__ == "__main__":
    main()
