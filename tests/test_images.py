"""Images in memory: decoding, batches, parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import images, pixels, toy
from PIL import Image

from timm_ebl.data import ImageDataset, collate, load_dataset
from timm_ebl.errors import DataError
from timm_ebl.spec import DatasetSpec
from timm_ebl.transforms import decode_images, fit_image


class TestDecoding:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "LA", "CMYK"])
    def test_modes(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(pixels(0, 8, 3)).convert(mode)
        file = tmp_path / "image.tiff"
        image.save(file)
        decoded = decode_images([str(file)], 1, 8)
        expected = np.array(image.convert("L" if mode in ("L", "1") else "RGB")).reshape(8, 8, -1)
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

    @pytest.mark.parametrize(
        ("size", "resized", "corner"), [((64, 64), (32, 32), (0, 0)), ((48, 96), (32, 64), (0, 16))]
    )
    def test_larger_images_are_resized_and_cut(
        self, size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
    ) -> None:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        whole = image.resize(resized, Image.Resampling.BILINEAR)
        expected = whole.crop((*corner, corner[0] + 32, corner[1] + 32))
        assert np.array_equal(np.asarray(fit_image(image, 32)), np.asarray(expected))

    @pytest.mark.parametrize("size", [(33, 1), (1, 100), (20, 40)])
    def test_every_result_has_the_size(self, size: tuple[int, int]) -> None:
        assert fit_image(Image.new("RGB", size), 32).size == (32, 32)

    def test_a_truncated_file_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "cut.png"
        file.write_bytes(images(1)[0]["bytes"][:200])
        with pytest.raises(ValueError, match=rf"the image in row 0 \({file}\) cannot be decoded"):
            decode_images([str(file)], 1, 32)

    def test_other_image_size(self) -> None:
        assert load_dataset(None, "test", image_size=28).images.shape == (1000, 1, 28, 28)


class TestImageDataset:
    def test_batch_equals_items(self) -> None:
        dataset = toy()
        rows = [7, 0, 7, 29]
        batch, labels = dataset.__getitems__(rows)
        for position, row in enumerate(rows):
            image, label = dataset[row]
            assert torch.equal(batch[position], image)
            assert labels[position] == label

    def test_loader_fetches_whole_batches(self) -> None:
        dataset = toy()
        loader = torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=collate)
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
        assert torch.equal(torch.cat([batch for batch, _ in batches]), dataset.images)
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)

    def test_subset_keeps_the_order_asked_for(self) -> None:
        part = toy().subset([5, 2])
        assert part.images[:, 0, 0, 0].tolist() == [5, 2]
        assert part.labels.tolist() == [2, 2]
        assert part.classes == ("a", "b", "c")

    def test_split_is_stratified_disjoint_and_exhaustive(self) -> None:
        rest, held_out = toy().split(0.2, seed=0)
        assert rest.labels.bincount().tolist() == [8, 8, 8]
        assert held_out.labels.bincount().tolist() == [2, 2, 2]
        rows = [part.images[:, 0, 0, 0].tolist() for part in (rest, held_out)]
        assert sorted(rows[0] + rows[1]) == list(range(30))
        assert rows == [sorted(part) for part in rows]

    def test_split_depends_on_the_seed_alone(self) -> None:
        first, again, other = (toy().split(0.2, seed)[1].images for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5])
    def test_fraction_out_of_range(self, fraction: float) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            toy().split(fraction, seed=0)

    @pytest.mark.parametrize("fraction", [0.01, 0.99])
    def test_split_without_images_on_one_side(self, fraction: float) -> None:
        with pytest.raises(DataError, match="empty"):
            toy().split(fraction, seed=0)

    def test_statistics(self) -> None:
        content = torch.randint(256, (20, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        content[:, 1] = 77
        dataset = ImageDataset(content, torch.zeros(20, dtype=torch.int64), ("a",), "noise", DatasetSpec())
        mean, std = dataset.statistics()
        scaled = content.double() / 255
        assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
        assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
