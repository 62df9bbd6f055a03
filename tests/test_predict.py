"""Images to classes: prepared as in training, by the same network, named, and told in a table or in JSON."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import DataError
from timm_ebl.hub.publish import publish
from timm_ebl.tools.predict import classify, find_images, main
from timm_ebl.training.inference import load_model, predict, prepare
from timm_ebl.training.trained import TrainedModel

SAMPLE = "dchn_tiny_fashion_mnist.c_ep_sample"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The first seven test images of the sample in files of 28 pixels, as they were before they were padded."""
    folder = tmp_path_factory.mktemp("pictures")
    for row, image in enumerate(load_dataset(None, "test", image_size=28).images[:7]):
        Image.fromarray(image[0].numpy()).save(folder / f"{row}.png")
    return folder


def test_files_are_prepared_as_the_data_that_the_error_was_measured_on(pictures):
    checkpoint, test = TrainedModel.open(SAMPLE), load_dataset(None, "test").subset(range(7))
    outputs = predict(checkpoint.weights, test)
    for batch_size in (250, 3):
        found = list(classify(checkpoint, find_images([pictures]), batch_size))
        assert [Path(prediction.image).name for prediction in found] == [f"{row}.png" for row in range(7)]
        assert [prediction.classes[0] for prediction in found] == [test.classes[c] for c in outputs.argmax(1)]
        named = torch.tensor([[dict(zip(p.classes, p.outputs, strict=True))[c] for c in test.classes] for p in found])
        torch.testing.assert_close(named, outputs, atol=1e-5, rtol=1e-5)


def test_the_energy_is_that_of_the_relaxed_state(pictures):
    checkpoint, images = TrainedModel.open(SAMPLE), load_dataset(None, "test").images[:7]
    model, normalise = prepare(checkpoint.weights, images)
    x = normalise(images)
    expected = model.energy(x, model.relax(x).state)
    found = torch.tensor([prediction.energy for prediction in classify(checkpoint, find_images([pictures]))])
    torch.testing.assert_close(found, expected.detach().cpu(), rtol=1e-5, atol=1e-3)


def test_json_has_a_line_for_each_image_with_the_best_classes(pictures, capsys):
    main([SAMPLE, str(pictures / "2.png"), str(pictures / "0.png"), "--json", "--top-k", "2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(pictures / "2.png"), str(pictures / "0.png")]
    expected = list(classify(TrainedModel.open(SAMPLE), [line["image"] for line in lines]))
    for line, prediction in zip(lines, expected, strict=True):
        best = zip(prediction.classes[:2], prediction.outputs[:2], strict=True)
        assert line["classes"] == [{"name": name, "output": output} for name, output in best]
        assert line["energy"] == prediction.energy
        assert prediction.outputs[0] >= prediction.outputs[1] == max(prediction.outputs[1:])


def test_the_table_shows_the_image_its_energy_and_the_best_classes(pictures, capsys):
    main([SAMPLE, str(pictures / "2.png")])
    head, first, *others = capsys.readouterr().out.splitlines()
    (prediction,) = classify(TrainedModel.open(SAMPLE), [str(pictures / "2.png")])
    assert head.split() == ["image", "energy", "class", "output"]
    image, energy, name, output = re.split(r" {2,}", first)
    assert (image, name) == (prediction.image, prediction.classes[0])
    assert (energy, output) == (f"{prediction.energy:.3f}", f"{prediction.outputs[0]:.3f}")
    assert [re.split(r" {2,}", line.strip())[0] for line in others] == list(prediction.classes[1:3])
    assert len({len(line) for line in (head, first, *others)}) == 1


def test_a_published_model_predicts_as_the_run_does(hub, run, images, capsys):
    publish(run, "me/net", test=load_dataset(str(images), "test"))
    capsys.readouterr()
    main([str(run), str(images / "test"), "--json"])
    expected = capsys.readouterr().out
    assert len(expected.splitlines()) == 12
    for name in (f"local-dir:{run}", "me/net", "hf-hub:me/net"):
        main([name, str(images / "test"), "--json"])
        assert capsys.readouterr().out == expected


def test_more_classes_than_there_are_show_all(run, images, capsys):
    main([str(run), str(images / "test" / "a" / "0.png"), "--top-k", "9"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3


@pytest.mark.parametrize("names", [None, ["x"]])
def test_classes_without_names_have_numbers(run, images, names):
    config = json.loads((run / "config.json").read_text()) | {"label_names": names}
    if names is None:
        del config["label_names"]
    (run / "config.json").write_text(json.dumps(config))
    (prediction,) = classify(TrainedModel.open(run), [str(images / "test" / "a" / "0.png")])
    assert sorted(prediction.classes) == ["0", "1", "2"]


def test_a_folder_gives_the_images_below_it_in_order(pictures, tmp_path):
    for name in ("b/1.png", "b/a/0.jpg", "2.png", ".hidden/3.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "0.png", tmp_path / name)
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert found == ["2.png", "b/1.png", "b/a/0.jpg"]
    assert find_images([tmp_path / "notes.txt", tmp_path / "b"])[0] == str(tmp_path / "notes.txt")


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(DataError, match=r"there is no file or folder .*absent.png"):
        find_images([tmp_path / "absent.png"])


@pytest.mark.parametrize(
    ("checkpoint", "image", "words"),
    [
        ("dchn_none", "0.png", "dchn_none is neither a folder"),
        (SAMPLE, "absent.png", "no file or folder"),
        (SAMPLE, "text.png", "text.png) cannot be decoded"),
    ],
)
def test_what_cannot_be_predicted_ends_in_one_sentence(pictures, tmp_path, capsys, checkpoint, image, words):
    for path in pictures.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SystemExit, match="1"):
        main([checkpoint, str(tmp_path / image)])
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_network_that_is_not_for_square_images_is_refused(run, images, capsys):
    config = json.loads((run / "config.json").read_text())
    config["model_args"]["img_size"] = config["pretrained_cfg"]["input_size"][1:] = [16, 64]
    (run / "config.json").write_text(json.dumps(config))
    assert load_model(run).img_size == (16, 64)
    with pytest.raises(SystemExit, match="1"):
        main([str(run), str(images / "test" / "a" / "0.png")])
    assert re.fullmatch(r"error: The images do not fit .*\n", capsys.readouterr().err)
