"""A recogniser as ONNX files, for sherpa-onnx and onnxruntime.

Reading order: networks (what is traced, and what sherpa-onnx reads about it), write (files), nbits (codes of few bits).
The packages `onnx` and `onnxruntime` are optional, and imported when something is written.
"""

from lowbit_k2.export.onnx.networks import check_model, feature_notes, networks_of
from lowbit_k2.export.onnx.write import ONNX_TYPES, check_onnx, export_onnx
from lowbit_k2.onnx_packages import INSTALL

__all__ = ["INSTALL", "ONNX_TYPES", "check_model", "check_onnx", "export_onnx", "feature_notes", "networks_of"]
