"""Tensors to and from the bytes of one safetensors file.

Reading is the `safetensors` library's. Writing is ours, because the stream of bytes is needed: it
is hashed while it is written, holds one tensor at a time, and fails with the system's own error
when the disk is full. Format: 8 bytes of header length, a JSON header, the data; all little-endian
(github.com/huggingface/safetensors, "Format").
"""

import json
import struct
from collections.abc import Iterator, Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the earlier name of the very same tensor, as with a tied embedding and head."""
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, t in tensors.items():
        place = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        if t.numel() and first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied


def encode(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file of these tensors, piece by piece."""
    # Wide types first keep every tensor aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def decode(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: these bytes are no safetensors file.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
