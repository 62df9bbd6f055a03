"""A model card says what a stranger needs."""

import pytest

from timm_ebl.data.paper import TABLE_1, paper_error
from timm_ebl.hub.card import render_card
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.user_code import import_modules

SUMMARY = {
    "algo": "c-ep",
    "dataset": "cifar10",
    "epochs": 30,
    "training_images": 45_000,
    "best_epoch": 29,
    "seed": 4,
    "held_out_error": 24.0,
    "seconds": 7380.0,
    "versions": {"torch": "2"},
}
CONFIG = {
    "architecture": "dchn_small_cifar10",
    "num_classes": 10,
    "model_args": {"sweeps": 8, "order": "asynchronous", "omega": 1.5, "start": "feedforward"},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "evaluation": {"config": None, "revision": "abc", "images": 5000, "error": 25.0},
}


def test_a_card_says_what_a_stranger_needs():
    recipe = TrainConfig(dataset="cifar10", epochs=30, seed=4, free_sweeps=8, omega=(1.5,))
    summary = SUMMARY | {"note": "Its images were stored as JPEG."}
    card = render_card("dchn_small_cifar10.c_ep", "hf-hub:me/net", recipe, summary, CONFIG)
    for words in (
        "**25.00 %** (standard error 0.61 over 5,000 images)",
        "| held-out error | 24.00 % |",
        "| seeds | 4, the only one run |",
        "| trained for | 30 epochs of 45,000 images; epoch 29 ",
        "widths 32-64-128-128, 245,962 parameters",
        "10.4 % (widths 128-256-512-512, 100 epochs)",
        "`c-ep`, beta 0.25",
        "8 sweeps, asynchronous, omega 1.5",
        "2 h 3 min",
        'timm.create_model("hf-hub:me/net", pretrained=True)',
        'load_dataset("cifar10", "test")',
        "10% of the training split was held out",
        "the published one has 10,000",
        "Its images were stored as JPEG.",
        "Apache License 2.0",
        "@article{laborieux2021scaling",
        "type: uoft-cs/cifar10",
        "config: plain_text",
        "revision: abc",
        "license: apache-2.0",
        "library_name: timm",
    ):
        assert words in card, words


@pytest.mark.parametrize("sweeps", [7, 9])
def test_a_card_says_which_errors_are_of_the_trainings_own_free_phase(sweeps):
    config = CONFIG | {"model_args": {}}
    recipe = TrainConfig(dataset="cifar10", free_sweeps=sweeps)
    card = render_card("name", "name", recipe, SUMMARY, config)
    own = " (by the free phase of the training)" if sweeps == 9 else ""
    assert f"| held-out error | 24.00 %{own} |" in card
    assert f"| free phase | {sweeps} sweeps, asynchronous, omega 1.9-" in card
    assert "| inference | 7 sweeps, asynchronous, omega 1.9-1.7, start feedforward |" in card


def test_a_card_loads_the_images_that_were_measured():
    chosen = {"test_split": "hard", "label_column": "fine", "img_size": 64, "channels": "grey"}
    config = CONFIG | {"evaluation": CONFIG["evaluation"] | {"test_split": "hard"}}
    config["pretrained_cfg"] = {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.25]}
    recipe = TrainConfig(dataset="owner/set", **chosen)
    card = render_card("name", "name", recipe, SUMMARY, config)
    assert 'load_dataset("owner/set", "hard", label_column="fine", image_size=64, channels="grey")' in card
    assert "split: hard" in card


@pytest.mark.parametrize(("found", "loaded"), [("test", 'load_dataset("owner/set", "test")'), ("validation", None)])
def test_a_card_loads_and_names_the_split_that_was_found(found, loaded):
    config = CONFIG | {"evaluation": CONFIG["evaluation"] | {"split": found}}
    card = render_card("name", "name", TrainConfig(dataset="owner/set"), SUMMARY, config)
    call = loaded or 'load_test("owner/set", "train")'
    assert f"test = {call}\n" in card
    assert f"split: {found}\n" in card
    assert ("from timm_ebl.training.splits import load_test\n" in card) == (loaded is None)


def test_a_card_says_what_was_descended_by_which_batches():
    recipe = TrainConfig(dataset="cifar10", cost="cross-entropy", grad_accum_steps=8)
    card = render_card("name", "name", recipe, SUMMARY, CONFIG)
    assert ", cost cross-entropy |" in card
    assert "| batch | 32 images on each process, 8 batches a step |" in card


@pytest.mark.parametrize(("dataset", "given"), [("noise", " --dataset FOLDER"), ("owner/set", ""), ("cifar10", "")])
def test_a_card_says_that_a_folder_of_images_is_given_to_verify(dataset, given):
    recipe = TrainConfig(dataset=dataset)
    card = render_card("name", "hf-hub:me/net", recipe, SUMMARY | {"dataset": dataset}, CONFIG)
    assert f"`python -m timm_ebl.hub verify hf-hub:me/net{given}` measures" in card


def test_a_card_says_what_an_image_is_normalised_by_and_that_nothing_was_held_out():
    recipe = TrainConfig(dataset="cifar10", epochs=30, seed=4, holdout=0.0)
    summary = SUMMARY | {"held_out_error": None, "best_epoch": 30}
    card = render_card("name", "name", recipe, summary, CONFIG)
    for words in (
        "| normalisation | mean 0.5, 0.5, 0.5; deviation 0.25, 0.25, 0.25 (the paper's: 0.6069, 0.5982, 0.603) |",
        "| held-out error | nothing was held out |",
        "| trained for | 30 epochs of 45,000 images; the last one's weights |",
        "The whole training split was trained on, and the last epoch's weights were kept.",
    ):
        assert words in card, words


@pytest.mark.parametrize(
    ("dataset", "settings", "words"),
    [
        ("cifar10", {}, "shifts of up to 4 pixels, mirror images"),
        ("ylecun/mnist", {}, "shifts of up to 2 pixels"),
        ("noise", {"cutout": 8}, "shifts of up to 4 pixels, a square of 8 pixels set to the mean"),
        ("noise", {"randaugment": (3, 9)}, "shifts of up to 4 pixels, 3 operations of RandAugment with magnitude 9"),
        ("cifar10", {"aug": False}, "none"),
    ],
)
def test_a_card_says_how_training_images_were_augmented(dataset, settings, words):
    recipe = TrainConfig(dataset=dataset, **settings)
    card = render_card("name", "name", recipe, SUMMARY | {"dataset": dataset}, CONFIG)
    assert f"| augmentation | {words} |" in card


def test_the_papers_figures():
    assert paper_error("c-ep", "cifar10") == 10.40
    assert paper_error("c-ep", "svhn") == 3.51
    assert paper_error("n-ep", "cifar10") == 11.9
    assert paper_error("c-ep", "fashion-mnist-sample") is None
    assert all(len(row) == 5 for row in TABLE_1.values())
    assert set(TABLE_1) == {"tbp", "rbp", "cl", "p-ep", "n-ep", "c-ep", "p-cpl", "n-cpl", "c-cpl"}


def test_a_card_of_another_family_has_not_the_papers_figure_of_a_dchn():
    config = CONFIG | {"architecture": "hopfield_resnet13_tiny_cifar10", "model_args": {}}
    recipe = TrainConfig(dataset="cifar10", model="hopfield_resnet13_tiny_cifar10")
    card = render_card("a", "hf-hub:me/net", recipe, SUMMARY, config)
    assert "A Hopfield network of [timm_ebl]" in card
    assert "in the paper" not in card
    assert "The paper's" not in card


def test_the_card_of_a_network_of_ones_own_says_what_it_is_and_where_its_code_is(my_module):
    import_modules(["my_module"])
    recipe = TrainConfig(dataset="cifar10", model="my_model", imports=("json", "my_module"))
    config = CONFIG | {"architecture": "my_model", "model_args": {}}
    card = render_card("name", "hf-hub:me/net", recipe, SUMMARY, config)
    for words in (
        "A Hopfield network trained by [timm_ebl]",
        "import timm_ebl  # registers the models\nimport json  # of whoever trained it: registers the model\n",
        "The code of the model is not part of timm_ebl: it is in json and my_module.",
        "print(model.answer(normalise(test.images[:8])).argmax(1), test.labels[:8])",
        "`python -m timm_ebl.hub verify hf-hub:me/net --import json --import my_module` measures",
    ):
        assert words in card, words


def test_the_card_of_a_rule_of_ones_own_has_its_module_for_verify_alone():
    recipe = TrainConfig(dataset="cifar10", imports=("my_module",))
    card = render_card("name", "hf-hub:me/net", recipe, SUMMARY, CONFIG)
    assert "import my_module" not in card.replace("--import my_module", "")
    assert "verify hf-hub:me/net --import my_module` measures" in card


def test_the_card_of_a_predictive_coding_network_has_no_sweeps_of_a_free_phase():
    recipe = TrainConfig(dataset="cifar10", model="pcn_vgg5_tiny_cifar10")
    config = CONFIG | {"architecture": recipe.model, "model_args": {}}
    config["pretrained_cfg"] = CONFIG["pretrained_cfg"] | {"paper_ids": "arXiv:2606.03584"}
    card = render_card("name", "name", recipe, SUMMARY, config)
    for words in (
        "A predictive coding network of [timm_ebl](https://github.com/timm-ebl/timm_ebl): it predicts by one forward",
        "| free phase | a forward pass |",
        "| inference | a forward pass |",
        "deviation 0.25, 0.25, 0.25 |",
        "The network is that of arXiv:2606.03584.",
    ):
        assert words in card
    assert "minimum of its energy" not in card
