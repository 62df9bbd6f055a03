"""Images in memory: decoding, batches, parts."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pictures import encode, images, pixels, toy
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Subset, random_split

from timm_ebl.data.catalogue import DatasetSpec
from timm_ebl.data.dataset import ImageDataset, load_dataset
from timm_ebl.data.decode import decode_images, fit_image
from timm_ebl.data.loader import build_eval_loader
from timm_ebl.errors import DataError


class TestDecoding:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "LA", "CMYK"])
    def test_modes(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(pixels(0, 8, 3)).convert(mode)
        file = tmp_path / "image.tiff"
        image.save(file)
        decoded = decode_images([str(file)], 1, 8)
        expected = np.array(image.convert("L" if mode in ("L", "1", "LA") else "RGB")).reshape(8, 8, -1)
        assert torch.equal(decoded[0].permute(1, 2, 0), torch.from_numpy(expected))

    def test_grey_images_before_and_after_a_colour_image_become_rgb(self) -> None:
        contents = [images(1, 8, channels, row)[0]["bytes"] for row, channels in enumerate((1, 3, 1))]
        decoded = decode_images(contents, 3, 8)
        assert decoded.shape == (3, 3, 8, 8)
        for row in (0, 2):
            assert torch.equal(decoded[row], torch.from_numpy(pixels(row, 8, 1)).expand(3, -1, -1))
        assert torch.equal(decoded[1].permute(1, 2, 0), torch.from_numpy(pixels(1, 8, 3)))

    @pytest.mark.parametrize(("width", "height", "left", "top"), [(28, 28, 2, 2), (32, 5, 0, 13), (29, 31, 1, 0)])
    def test_smaller_images_are_centred(self, width: int, height: int, left: int, top: int) -> None:
        fitted = np.asarray(fit_image(Image.new("L", (width, height), 255), 32))
        rows, columns = fitted.nonzero()
        assert (columns.min(), columns.max() + 1) == (left, left + width)
        assert (rows.min(), rows.max() + 1) == (top, top + height)
        assert len(rows) == width * height

    @pytest.mark.parametrize(("size", "corner"), [((64, 64), (0, 0)), ((48, 96), (0, 24)), ((97, 48), (24.5, 0))])
    def test_of_larger_images_the_square_in_the_centre_is_resized(
        self, size: tuple[int, int], corner: tuple[float, float]
    ) -> None:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        box = (*corner, corner[0] + min(size), corner[1] + min(size))
        expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
        assert np.array_equal(np.asarray(fit_image(image, 32)), np.asarray(expected))

    def test_a_very_long_image_takes_no_memory(self) -> None:
        assert fit_image(Image.new("L", (1, 4_000_000), 7), 32).getextrema() == (7, 7)

    @pytest.mark.parametrize("size", [(33, 1), (1, 100), (20, 40)])
    def test_every_result_has_the_size(self, size: tuple[int, int]) -> None:
        assert fit_image(Image.new("RGB", size), 32).size == (32, 32)

    def test_a_truncated_file_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "cut.png"
        file.write_bytes(images(1)[0]["bytes"][:200])
        with pytest.raises(ValueError, match=rf"the image in row 0 \({file}\) cannot be decoded"):
            decode_images([str(file)], 1, 32)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_images_are_turned_as_datasets_turns_them(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        buffer = io.BytesIO()
        Image.fromarray(pixels(0, 32, 3)).save(buffer, "PNG", exif=exif)
        upright = datasets.Image().decode_example({"bytes": buffer.getvalue(), "path": None})
        decoded = decode_images([buffer.getvalue()], 1, 32)[0]
        assert np.array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(upright.convert("RGB")))

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
    @pytest.mark.parametrize(("ink", "ground"), [(0, 255), (100, 255), (160, 0), (255, 0)])
    def test_transparent_pixels_are_white_behind_dark_ink_and_black_behind_light(
        self, mode: str, ink: int, ground: int
    ) -> None:
        """What is drawn is the left half; what the transparent right half stores is of no account."""
        image = Image.new("LA", (32, 32), (128, 0))
        image.paste((ink, 255), (0, 0, 16, 32))
        options = {}
        if mode in ("P", "L"):  # one of the values stands for transparent
            image, options = image.convert("L").convert(mode), {"transparency": 128}
        buffer = io.BytesIO()
        (image if options else image.convert(mode)).save(buffer, "PNG", **options)
        decoded = decode_images([buffer.getvalue()], 1, 32)[0]
        assert decoded.shape[0] == (1 if mode in ("LA", "L") else 3)
        assert decoded[:, :, :16].unique().tolist() == [ink]
        assert decoded[:, :, 16:].unique().tolist() == [ground]

    def test_half_transparent_pixels_are_mixed_with_the_ground(self) -> None:
        content = encode(Image.new("RGBA", (32, 32), (0, 0, 0, 51)))["bytes"]
        assert decode_images([content], 1, 32).unique().tolist() == [204]

    def test_an_image_without_a_visible_pixel_is_refused(self) -> None:
        content = encode(Image.new("RGBA", (32, 32), (200, 100, 50, 0)))["bytes"]
        with pytest.raises(ValueError, match="the image in row 0 is wholly transparent"):
            decode_images([content], 1, 32)

    @pytest.mark.parametrize(("channels", "expected"), [("grey", 1), ("colour", 3)])
    def test_channels_can_be_chosen(self, channels: str, expected: int) -> None:
        contents = [images(1, 8, count)[0]["bytes"] for count in (1, 3)]
        decoded = decode_images(contents, 2, 8, channels)
        mode = {1: "L", 3: "RGB"}[expected]
        for image, content in zip(decoded, contents, strict=True):
            twin = np.asarray(Image.open(io.BytesIO(content)).convert(mode)).reshape(8, 8, -1)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), twin)

    def test_other_image_size(self) -> None:
        assert load_dataset(None, "test", image_size=28).images.shape == (1000, 1, 28, 28)


class TestImageDataset:
    def test_batch_equals_items(self) -> None:
        dataset = toy()
        rows = [7, 0, 7, 29]
        batch, labels = dataset.batch(rows)
        for position, row in enumerate(rows):
            image, label = dataset[row]
            assert torch.equal(batch[position], image)
            assert labels[position] == label

    def test_loader_fetches_whole_batches(self) -> None:
        dataset = toy()
        batches = list(build_eval_loader(dataset, 8, Accelerator(cpu=True)))
        assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
        assert torch.equal(torch.cat([batch for batch, _ in batches]), dataset.images)
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)

    def test_subset_keeps_the_order_asked_for(self) -> None:
        part = toy().subset([5, 2])
        assert part.images[:, 0, 0, 0].tolist() == [5, 2]
        assert part.labels.tolist() == [2, 2]
        assert part.classes == ("a", "b", "c")

    def test_labels_count_other_classes_by_name_if_those_have_all_of_its_own(self) -> None:
        part = toy().subset([0, 1, 2])
        assert part.relabelled("cdba").labels.tolist() == [3, 2, 0]
        assert part.relabelled("cba").classes == ("c", "b", "a")
        assert part.relabelled("ab") is part

    def test_split_is_stratified_disjoint_and_exhaustive(self) -> None:
        rest, held_out = toy().hold_out(0.2, seed=0)
        assert rest.labels.bincount().tolist() == [8, 8, 8]
        assert held_out.labels.bincount().tolist() == [2, 2, 2]
        rows = [part.images[:, 0, 0, 0].tolist() for part in (rest, held_out)]
        assert sorted(rows[0] + rows[1]) == list(range(30))
        assert rows == [sorted(part) for part in rows]

    def test_split_depends_on_the_seed_alone(self) -> None:
        first, again, other = (toy().hold_out(0.2, seed)[1].images for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5])
    def test_fraction_out_of_range(self, fraction: float) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            toy().hold_out(fraction, seed=0)

    @pytest.mark.parametrize("fraction", [0.01, 0.99])
    def test_split_without_images_on_one_side(self, fraction: float) -> None:
        with pytest.raises(DataError, match="empty"):
            toy().hold_out(fraction, seed=0)

    def test_statistics(self) -> None:
        content = torch.randint(256, (20, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        dataset = ImageDataset(content, torch.zeros(20, dtype=torch.int64), ("a",), "noise", DatasetSpec())
        mean, std = dataset.statistics()
        scaled = content.double() / 255
        assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
        assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)

    def test_a_channel_without_variance_has_no_statistics(self) -> None:
        content = torch.randint(256, (20, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        content[:, 1] = 77
        dataset = ImageDataset(content, torch.zeros(20, dtype=torch.int64), ("a",), "noise", DatasetSpec())
        with pytest.raises(DataError, match="channel 1 of all images in the train split of noise is 77 everywhere"):
            dataset.statistics()


class TestPyTorch:
    """Items are what PyTorch's own loaders, parts and collation expect."""

    @pytest.mark.parametrize("part", [None, "random_split", "Subset"])
    def test_default_collation(self, part: str | None) -> None:
        dataset = toy()
        parts = {
            None: dataset,
            "random_split": random_split(dataset, [20, 10])[0],
            "Subset": Subset(dataset, range(5, 25)),
        }
        pictures, labels = next(iter(DataLoader(parts[part], 16, shuffle=True)))
        assert pictures.shape == (16, 3, 2, 2)
        assert (pictures.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(labels, pictures[:, 0, 0, 0] % 3)
