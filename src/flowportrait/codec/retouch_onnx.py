"""The retouching network as ONNX Runtime runs it: the same weights, drawn in two thirds of the time.

    python -m flowportrait.codec.retouch_onnx        model.safetensors ─► model.onnx, both in weights/retouch

A window is so small that much of PyTorch's time goes between the convolutions; the runtime fuses
what lies there. What is trained and kept is ``model.safetensors``.
"""

from __future__ import annotations

import os
import warnings
from importlib.resources import files
from pathlib import Path

import onnxruntime
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowportrait.codec.mouth_window import HEIGHT, WIDTH
from flowportrait.codec.retouch_net import RetouchNet, Windows
from flowportrait.devices import Device, onnx_providers

FOLDER = Path(str(files("flowportrait") / "weights" / "retouch"))


class ExportedNet:
    """``RetouchNet`` from an ONNX file, for one window at a time; may be called from several threads at once."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # frames are drawn side by side; threads within one would only wait
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device))

    def __call__(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """Flow and residual; see ``RetouchNet``."""
        feed = {name: tensor.numpy() for name, tensor in windows._asdict().items()}
        flow, residual = self._session.run(None, feed)
        return torch.from_numpy(flow), torch.from_numpy(residual)


def blank_windows() -> Windows:
    """One window of nothing, as an example of the shapes."""
    picture, share = torch.rand(1, 3, HEIGHT, WIDTH), torch.rand(1, 1, HEIGHT, WIDTH)
    return Windows(picture, picture.clone(), torch.rand(1, 3), share, share.clone(), share.clone(), torch.rand(1, 2, 3),
                   torch.rand(1, 2))  # fmt: skip


def export(network: RetouchNet, path: Path) -> None:
    """Write ``network`` as ONNX, under a temporary name first."""
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Positional(network.eval()), tuple(blank_windows()), str(partial), input_names=list(Windows._fields),
            output_names=["flow", "residual"], opset_version=17, dynamo=False,
        )  # fmt: skip
    os.replace(partial, path)


class _Positional(nn.Module):
    """The exporter hands over tensors, not a named tuple of them."""

    def __init__(self, network: RetouchNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, *windows: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(Windows(*windows))


if __name__ == "__main__":
    trained = RetouchNet()
    trained.load_state_dict(load_file(str(FOLDER / "model.safetensors")))
    export(trained, FOLDER / "model.onnx")
