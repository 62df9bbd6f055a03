"""The embedded sample, and the real data sets where there are copies of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from timm_ebl.data import dataset as data
from timm_ebl.data.catalogue import DATASETS
from timm_ebl.data.dataset import load_dataset

SHARED = Path(__file__).parents[2] / "shared" / "data"


class TestEmbeddedSample:
    @pytest.mark.parametrize(("split", "per_class"), [("train", 500), ("test", 100)])
    def test_size_and_classes(self, split: str, per_class: int) -> None:
        dataset = load_dataset(None, split)
        assert dataset.images.shape == (10 * per_class, 1, 32, 32)
        assert dataset.labels.bincount().tolist() == [per_class] * 10
        assert dataset.name == "fashion-mnist-sample"
        assert "Ankle boot" in dataset.classes
        assert dataset.spec.mean == DATASETS["fashion-mnist"].mean

    def test_notice_is_included(self) -> None:
        notice = (Path(data.__file__).parents[1] / "embedded" / "README.md").read_text(encoding="utf-8")
        assert "Copyright © 2017 Zalando SE, https://tech.zalando.com" in notice
        assert "Permission is hereby granted, free of charge" in notice

    @pytest.mark.skipif(not (SHARED / "zalando-datasets").is_dir(), reason="needs the full Fashion-MNIST")
    @pytest.mark.parametrize(("split", "per_class"), [("train", 500), ("test", 100)])
    def test_sample_follows_its_rule(self, split: str, per_class: int) -> None:
        folder = SHARED / "zalando-datasets/fashion_mnist/fashion_mnist"
        source = read_table(folder / f"{split}-00000-of-00001.parquet")
        taken, rows = Counter(), []
        for row, label in enumerate(source["label"].to_pylist()):
            if taken[label] < per_class:
                taken[label] += 1
                rows.append(row)
        sample = read_table(Path(data.__file__).parents[1] / "embedded" / f"{split}.parquet")
        assert sample.equals(source.take(rows), check_metadata=True)


@pytest.mark.skipif(not (SHARED / "uoft-cs/cifar10").is_dir(), reason="needs a copy of CIFAR-10")
def test_cifar10_loads() -> None:
    dataset = load_dataset("cifar10", "test", root=SHARED)
    assert dataset.images.shape[1:] == (3, 32, 32)
    assert len(set(dataset.labels.bincount().tolist())) == 1
    assert dataset.classes[0] == "airplane"
    mean, _ = dataset.statistics()
    assert mean == pytest.approx(DATASETS["cifar10"].mean, abs=0.01)
