"""How a CUDA graph is recorded, on a machine without one: by stand-ins for `torch.cuda`."""

from contextlib import nullcontext

import torch

from timm_ebl.kernels import recording


def test_a_cuda_graph_is_recorded_beside_the_present_stream_after_warming_up(monkeypatch):
    """The calls of `torch.cuda`, by stand-ins that write down their order."""
    calls, present = [], "present"

    class Stream:
        def __init__(self, device):
            self.name = "side"

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    class Switch:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            calls.append(f"on {self.stream.name}")

        def __exit__(self, *_):
            calls.append(f"off {self.stream.name}")

    class Graph:
        def pool(self):
            return "pool"

        def replay(self):
            calls.append("replay")

    class Capture(Switch):
        def __init__(self, graph, pool, stream, capture_error_mode):
            super().__init__(stream)
            calls.append(f"capture {pool} {capture_error_mode}")

    main = Stream(None)
    main.name = present
    for name, stand_in in {
        "Stream": Stream,
        "stream": Switch,
        "CUDAGraph": Graph,
        "graph": Capture,
        "current_stream": lambda device: main,
        "device": lambda device: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    recording._side_stream.cache_clear()

    def double(x):
        calls.append("call")
        return 2 * x

    recorder, x = recording.RECORDERS["cuda"], torch.ones(2)
    first = recorder(double, [x], None)
    warm = ["side waits for present", "on side", *["call"] * recording.WARM_UPS, "off side", "present waits for side"]
    record = ["on side", "call", "off side"]
    assert calls == ["on present", *warm, "capture None thread_local", *record, "off present"]
    calls.clear()
    second = recorder(double, [x], first)
    assert "capture pool thread_local" in calls
    found = second([x])
    assert calls[-1] == "replay"
    assert found is not second.results
    recording._side_stream.cache_clear()
