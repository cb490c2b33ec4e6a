"""Safetensors in numpy: read any float file as float32, write f32, bf16, i32, u8 byte-reproducibly."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def bf16_from_f32(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits (uint16), round to nearest, ties to even. Finite input only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def f32_from_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) -> float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read(path: Path) -> Arrays:
    """All tensors of one file; BF16, F16 and F32 arrive as float32, integers as they are."""
    blob = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + n])
    out: Arrays = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        lo, hi = t["data_offsets"]
        raw = blob[8 + n + lo : 8 + n + hi]
        if t["dtype"] == "BF16":
            x = f32_from_bf16(np.frombuffer(raw, "<u2"))
        elif t["dtype"] in ("F16", "F32", "F64"):
            x = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[t["dtype"]]).astype(np.float32)
        else:
            x = np.frombuffer(raw, {"I32": "<i4", "I64": "<i8", "U8": "u1"}[t["dtype"]]).copy()
        out[name] = x.reshape(t["shape"])
    return out


def write(path: Path, arrays: Arrays, floats: str = "F32", metadata: dict[str, str] | None = None) -> None:
    """Write `arrays`, names sorted; float arrays become `floats` ("F32" or "BF16"), int32 and uint8 stay."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    blobs: list[bytes] = []
    end = 0
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        if x.dtype == np.int32:
            dtype, raw = "I32", x.tobytes()
        elif x.dtype == np.uint8:
            dtype, raw = "U8", x.tobytes()
        elif floats == "BF16":
            dtype, raw = "BF16", bf16_from_f32(x).tobytes()
        else:
            dtype, raw = "F32", x.astype("<f4").tobytes()
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [end, end + len(raw)]}
        blobs.append(raw)
        end += len(raw)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blobs))
