"""Files of a model's folder whose content is not what their name says are faults; right ones are none."""

import json
import pickle
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flashvid_hf.publishing.folder_files import find_file_faults

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def weights(header: dict | bytes, data: bytes = b"") -> bytes:
    """A file in the form of safetensors: the length of the header as 8 bytes, the header, the data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def tensor(start: int, end: int, *, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def faults_of(folder: Path, name: str, content: bytes) -> list[str]:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return list(find_file_faults(folder))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n" * 9,
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + bytes(99),
        weights(b"{"),
        weights({"a": tensor(0, 4)}, b"123"),
        weights({"a": tensor(0, 4)}, b"1234hf_token"),
        weights({"a": tensor(4, 8)}, b"hf_t1234"),
        weights({"a": tensor(0, 4), "b": tensor(0, 4)}, b"1234"),
        weights({"a": tensor(0, 4, shape=(2,))}, b"1234"),
        weights({"a": tensor(0, 4, dtype="OBJ")}, b"1234"),
        struct.pack("<Q", 2**62) + b"{}",
    ],
    ids=[
        *("empty", "key", "pickle", "zip", "no JSON", "cut short", "more behind", "more before", "twice in one place"),
        *("another size", "objects", "long header"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "LICENSE.safetensors"])
def test_weights_that_are_none(name, content, tmp_path):
    (fault,) = faults_of(tmp_path, name, content)
    assert re.fullmatch(rf"{name}: is no file of safetensors \(.+\): save .* `save_pretrained`, or .* again", fault)


def test_weights_without_a_tensor(tmp_path):
    (fault,) = faults_of(tmp_path, "model.safetensors", weights({}))
    assert fault.startswith("model.safetensors: holds no weights: ")


def test_names_of_tensors_cannot_disturb_the_report(tmp_path):
    (fault,) = faults_of(tmp_path, "model.safetensors", weights({"\x1b[2J\n" + "a" * 10_000: tensor(4, 8)}, bytes(8)))
    assert r"\x1b[2J\n" in fault and fault.isprintable() and len(fault) < 500


def test_weights_are_not_read(tmp_path):
    size = 2**40  # a hole, which takes no space
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(weights({"a": tensor(0, size, shape=(size,), dtype="U8")}))
        file.truncate(file.tell() + size)
    assert list(find_file_faults(tmp_path)) == []


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "README.md",
        "assets/a.png",
        "assets/a.mp4",
    ],
)
def test_pointers_of_git_lfs(name, tmp_path):
    (fault,) = faults_of(tmp_path, name, POINTER)
    assert fault.startswith(f"{name}: is a pointer of Git LFS in place of the file: run `git lfs pull`")


NO_TEXT = r"is no text in UTF-8 \(byte [\d,]+ is 0x[0-9a-f]{2}\): save it in UTF-8"
WRONG_TEXTS = {
    "text as JSON": ("vocab.json", b"x", r"is no JSON \(Expecting value: line 1 .*\): correct it"),
    "nothing as JSON": ("tokenizer.json", b"", r"is no JSON \("),
    "JSON cut short": ("config.json", b'{"a": [1', r"is no JSON \("),
    "JSON and more": ("accuracy.json", b"{}\nhf_token", r"is no JSON \("),
    "index": ("model.safetensors.index.json", b"x", r"is no JSON \("),
    "JSON in UTF-16": ("vocab.json", '{"a": 1}'.encode("utf-16"), NO_TEXT),
    "JSON in UTF-16 without a mark": ("vocab.json", '{"a": 1}'.encode("utf-16-le"), r"is no text \(character 1 is NUL"),
    "JSON in Latin-1": ("added_tokens.json", '{"é": 1}'.encode("latin-1"), NO_TEXT),
    "JSON with a mark": ("vocab.json", b"\xef\xbb\xbf{}", r"is no JSON \(Unexpected UTF-8 BOM"),
    "NaN": ("generation_config.json", b'{"top_p": NaN}', r"is no JSON \(NaN is no number"),
    "infinity": ("config.json", b'{"a": [-Infinity]}', r"is no JSON \(-Infinity is no number"),
    "many brackets": ("vocab.json", b"[" * 10**6, r"is no JSON \(maximum recursion"),
    "card in Latin-1": ("README.md", "é".encode("latin-1"), NO_TEXT),
    "program": ("merges.txt", b"\x7fELF\x02\x01\x01\0", r"is no text \(character 7 is NUL\): write it as text"),
    "code": ("extra.py", b"x = 1\n\0", r"is no text \(character 6 is NUL\)"),
    "template": ("chat_template.jinja", "{{ x }}".encode("utf-16"), NO_TEXT),
    "licence": ("LICENSE.pkl", pickle.dumps([1.0]), NO_TEXT),
    "notice": ("NOTICE", b"\x89PNG\r\n\x1a\n", NO_TEXT),
    "attributes": (".gitattributes", b"\0", r"is no text \("),
    "results": (".eval_results/x.yaml", b"\0", r"is no text \("),
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_texts_that_are_none(case, tmp_path):
    name, content, said = WRONG_TEXTS[case]
    (fault,) = faults_of(tmp_path, name, content)
    assert re.match(rf"{re.escape(name)}: {said}", fault)


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "gif", "webp", "mp4"])
@pytest.mark.parametrize("content", [b"", b"hf_token", b"BM" + bytes(99), b"RIFF1234WAVE"])
def test_pictures_and_videos_that_are_none(kind, content, tmp_path):
    (fault,) = faults_of(tmp_path, f"assets/a.{kind}", content)
    assert fault.startswith(f"assets/a.{kind}: does not begin as `.{kind}` files do: ")


def test_right_contents(tmp_path):
    assets = tmp_path / "assets"
    assets.mkdir()
    for kind in ("png", "jpg", "jpeg", "gif", "webp"):
        Image.new("RGB", (8, 8)).save(assets / f"a.{kind}")
    with av.open(str(assets / "a.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        for frame in (av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8)), None):
            video.mux(stream.encode(frame))
    dtypes = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)
    save_file({str(dtype): torch.zeros(2, 3, dtype=dtype) for dtype in dtypes}, tmp_path / "model.safetensors")
    (tmp_path / "LICENSE").write_bytes("© é 漢字\r\n".encode())
    (tmp_path / "NOTICE.txt").touch()
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")  # of SentencePiece
    (tmp_path / "vocab.json").write_bytes(r'{"\u0000": 0, "\ud800": 1, "é": 1e400}'.encode())
    assert list(find_file_faults(tmp_path)) == []
