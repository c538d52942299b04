"""Every byte of model files that are not ours: .pt, .onnx and .safetensors, by tensor and by what else is in them."""

from lowbit_k2.audit.checkpoint import audit_checkpoint
from lowbit_k2.audit.onnx_file import audit_onnx
from lowbit_k2.audit.safetensors_file import audit_safetensors
from lowbit_k2.audit.stored import FileAudit, StoredTensor

__all__ = ["FileAudit", "StoredTensor", "audit_checkpoint", "audit_onnx", "audit_safetensors"]
