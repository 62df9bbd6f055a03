"""Figures show what they say, with labels and units, and can be told apart without colour."""

import math
import re

import pytest
import timm
import torch
from PIL import Image
from runs import SMALL, arguments, train, write_images

from timm_ebl.energy.graph import Layer
from timm_ebl.relaxation.minimizer import Minimizer
from timm_ebl.tools import plots
from timm_ebl.tools.plots import main, plot_comparison, plot_curves, plot_filters, plot_states, trace_relaxation


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, by name."""
    found, original = {}, plots.save_figure

    def save(figure, path):
        found[path.name] = figure
        original(figure, path)

    monkeypatch.setattr(plots, "save_figure", save)
    return found


def epochs(*errors):
    keys = ("train_error", "held_out_error", "energy", "residual", "seconds")
    return [{"epoch": number} | dict.fromkeys(keys, error) for number, error in enumerate(errors, 1)]


def test_a_trace_is_the_relaxation_itself(make_dchn, batch):
    model, (x, _) = make_dchn(omega=(1.8, 1.5, 1.3)), batch
    trace = trace_relaxation(model, x, 7)
    for sweeps in (1, 4, 7):
        relaxation = model.relax(x, minimizer=Minimizer(sweeps=sweeps, omega=(1.8, 1.5, 1.3)))
        torch.testing.assert_close(trace.energy[sweeps - 1], relaxation.energy)
        torch.testing.assert_close(trace.residual[sweeps - 1], relaxation.residual)


def test_the_command_draws_every_figure_of_real_runs(tmp_path, figures, capsys):
    folder = write_images(tmp_path / "images")
    for algo in ("c-ep", "n-ep"):
        train(*arguments(folder, tmp_path / "runs" / algo, "--algo", algo))
    capsys.readouterr()
    main([str(tmp_path / "runs" / algo) for algo in ("c-ep", "n-ep")])
    written = capsys.readouterr().out.split()
    names = ["curves.png", "relaxation.png", "filters.png", "states.png"]
    assert written == [
        *(str(tmp_path / "runs" / algo / name) for algo in ("c-ep", "n-ep") for name in names),
        str(tmp_path / "runs" / "comparison.png"),
    ]
    assert all(min(Image.open(path).size) > 400 for path in written)
    for figure in figures.values():
        for axes in figure.axes:
            assert axes.get_title() if not axes.axison else axes.get_xlabel() or axes.get_ylabel()
    weight = timm.create_model(f"local-dir:{tmp_path / 'runs' / 'n-ep'}", pretrained=True).layers[0].weight
    drawn = figures["filters.png"].axes[0].images[0].get_array()
    assert drawn[:3, :3].tolist() == weight[0, 0].tolist()
    images = figures["states.png"].axes[1].images[0].get_array()
    assert 0 <= images.min() <= images.max() <= 1


def test_a_network_without_kernels_and_maps_or_without_sweeps_has_the_other_figures(tmp_path, my_module, capsys):
    runs = [tmp_path / name for name in ("dense", "other", "forward")]
    folder = write_images(tmp_path / "images")
    train(*arguments(folder, runs[0], "--import", "my_module", "--model", "my_model")[: -len(SMALL)], "--threads", 1)
    train(*arguments(folder, runs[1]))
    train(*arguments(folder, runs[2], "--model", "pcn_vgg5_tiny_cifar10")[: -len(SMALL)], "--threads", 1)
    capsys.readouterr()
    main(list(map(str, runs)))
    names = ["curves.png", "relaxation.png", "filters.png", "states.png"]
    written = [
        *(runs[0] / name for name in names[:2]),
        *(runs[1] / name for name in names),
        *(runs[2] / name for name in names if name != "relaxation.png"),
        tmp_path / "comparison.png",
    ]
    assert capsys.readouterr().out.split() == list(map(str, written))


@pytest.mark.parametrize(
    ("bounds", "ends"),
    [
        ([(0.0, 1.0)] * 2, (0, 1)),
        ([(0.0, 6.0)] * 2, (0, 6)),
        ([(-1.0, 1.0), (0.0, 6.0)], (-1, 6)),
        ([None] * 2, (-7, 8)),
        ([(0.0, math.inf)] * 2, (0, 8)),
    ],
)
def test_states_are_drawn_between_the_bounds_of_their_layers_and_where_they_have_maps(tmp_path, figures, bounds, ends):
    maps, flat, output = torch.full((1, 2, 3, 3), 8.0), torch.zeros(1, 5), torch.zeros(1, 2)
    maps[0, 0] = -7.0
    layers = [Layer(bounds[0]), Layer((0.0, 9.0)), Layer(bounds[1]), Layer(None)]
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    plot_states(tmp_path / "states.png", image, (maps, flat, maps, output), layers, ("a", "b"), 0)
    _, *middle, _, scale = figures["states.png"].axes
    assert [axes.get_title() for axes in middle] == ["layer 1: 2 channels", "layer 3: 2 channels"]
    assert [axes.images[0].get_clim() for axes in middle] == [ends] * 2
    assert scale.get_xlabel() == f"unit, from {ends[0]} to {ends[1]}"


def test_a_run_is_read_without_a_summary_and_refused_without_an_epoch(tmp_path, figures, capsys):
    out = tmp_path / "run"
    train(*arguments(write_images(tmp_path / "images"), out))
    (out / "summary.json").unlink()
    main([str(out)])
    assert "test" not in " ".join(text.get_text() for text in figures["curves.png"].axes[0].get_legend().texts)
    (out / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match="1"):
        main([str(out)])
    assert re.search(r"error: .*run is not the folder of a run", capsys.readouterr().err)


def test_the_curves_carry_the_metrics(tmp_path, figures):
    summary = {"model": "m", "algo": "a", "dataset": "d", "seed": 0, "test_error": 3.25, "best_epoch": 2}
    plot_curves(tmp_path / "curves.png", epochs(9.0, 4.0, 5.0), summary)
    _, held_out, test = figures["curves.png"].axes[0].lines
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([1, 2, 3], [9.0, 4.0, 5.0])
    assert (list(test.get_xdata()), list(test.get_ydata())) == ([2], [3.25])


def test_runs_differ_in_more_than_colour(tmp_path, figures):
    runs = {f"run {index}": epochs(9.0, 4.0 + index) for index in range(6)}
    plot_comparison(tmp_path / "comparison.png", runs, {"run 1": 2.5})
    lines = figures["comparison.png"].axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 6
    assert lines[1].get_label() == "run 1: test 2.50 %"
    assert list(figures["comparison.png"].axes[1].lines[0].get_xdata()) == pytest.approx([9 / 60, 13 / 60])


def test_colour_filters_are_drawn_around_grey(tmp_path, figures):
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    plot_filters(tmp_path / "filters.png", weight)
    drawn = torch.tensor(figures["filters.png"].axes[0].images[0].get_array())
    torch.testing.assert_close(drawn[:3, :3], weight[0].permute(1, 2, 0) / (2 * weight.abs().max()) + 0.5)
