"""Another family of networks takes its place beside the DCHN: it names its layers, and the base class does the rest."""

import json

import pytest
import timm
import torch
from oracles import images_for
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from timm_ebl import DCHN, ConvInteraction, Minimizer
from timm_ebl.errors import WeightsError
from timm_ebl.models.factory import build_network, family_of, register_family
from timm_ebl.models.hopfield import TimmHopfieldNetwork

default_cfgs = generate_default_cfgs(
    {
        "flat_tiny": {"input_size": (1, 12, 12), "num_classes": 4, "first_conv": "layers.0", "classifier": "head"},
        "fixed_tiny": {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "layers.0", "classifier": "head"},
    }
)


@register_family
class FlatHopfield(TimmHopfieldNetwork):
    """Two convolutions, of which the first alone is pooled, by 3."""

    def __init__(self, num_classes=4, in_chans=1, img_size=12, global_pool="flatten", drop_rate=0.0, device=None):
        settings = {"drop_rate": drop_rate, "bias_gain": 0.5, "minimizer": Minimizer(), "backward": "ep"}
        super().__init__(
            num_classes=num_classes, in_chans=in_chans, img_size=img_size, global_pool=global_pool, **settings
        )
        pools = zip((in_chans, 5), (5, 3), (3, 1), strict=True)
        self.layers = nn.ModuleList(ConvInteraction(*widths, 3, pool, device=device) for *widths, pool in pools)
        self.feature_info = [
            {"num_chs": width, "reduction": 3, "module": f"layers.{level}"} for level, width in enumerate((5, 3))
        ]
        self.num_features = 3
        self.add_head(0.7, device=device)

    def top_shape(self, img_size):
        if min(img_size) < 3:
            raise ValueError(f"An image of {img_size} pixels is too small.")
        return torch.Size([3, img_size[0] // 3, img_size[1] // 3])


@register_model
def flat_tiny(pretrained=False, **kwargs):
    return build_network(FlatHopfield, "flat_tiny", pretrained, 2, **kwargs)


@register_model
def fixed_tiny(pretrained=False, **kwargs):
    return build_model_with_cfg(DCHN, "fixed_tiny", pretrained, widths=(4, 4), sweeps=3, **kwargs)


@pytest.fixture
def flat():
    torch.manual_seed(0)
    return timm.create_model("flat_tiny")


def test_a_family_is_known_by_the_file_that_registers_its_models():
    assert family_of("flat_tiny") is FlatHopfield
    assert family_of("dchn_tiny_mnist").__name__ == "DCHN"
    assert family_of("resnet18") is None


def test_its_states_are_its_features_and_its_output_learns(flat):
    x = images_for(flat)
    states = flat.relax(x).state[:-1]
    torch.manual_seed(0)
    backbone = timm.create_model("flat_tiny", features_only=True)
    assert all(map(torch.equal, backbone(x), states))
    assert backbone.feature_info.channels() == [5, 3]
    assert all(map(torch.equal, flat.forward_intermediates(x, intermediates_only=True), states))
    torch.testing.assert_close(flat(x), flat.answer(x))
    flat(x).square().sum().backward()
    assert all(parameter.grad.norm() > 0 for parameter in flat.parameters())


def test_its_read_out_and_its_size_are_changed_as_timm_does(flat):
    flat.reset_classifier(7)
    flat.set_input_size((12, 18))
    assert flat.head.in_features == flat.head_hidden_size == 3 * 4 * 6
    assert flat(images_for(flat)).shape == (2, 7)
    with pytest.raises(ValueError, match="A FlatHopfield has no gradient checkpointing"):
        flat.set_grad_checkpointing()
    with pytest.raises(ValueError, match="A FlatHopfield has no dropout"):
        timm.create_model("flat_tiny", drop_rate=0.5)


def test_what_was_set_is_saved_as_far_as_it_is_an_argument(flat, tmp_path):
    flat.backward = "tbp"
    timm.models.save_for_hf(flat, tmp_path, safe_serialization=True)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).minimizer == flat.minimizer


def test_a_model_whose_name_fixes_its_minimiser_is_loaded_by_it(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("fixed_tiny")
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.minimizer == model.minimizer == Minimizer(sweeps=3)


def test_its_weights_are_saved_and_checked_before_they_are_loaded(flat, tmp_path):
    timm.models.save_for_hf(flat, tmp_path, safe_serialization=True)
    x = images_for(flat)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True)(x), flat(x))
    flat.minimizer = Minimizer(sweeps=3)
    with pytest.raises(ValueError, match="Model argument 'minimizer' is not serializable"):
        timm.models.save_for_hf(flat, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_args": {"wings": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"describes no flat_tiny: .*wings"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
