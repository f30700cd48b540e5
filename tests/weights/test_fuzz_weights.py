"""Damaged and hostile weights files: one sentence each, soon, in little memory."""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import save

from gaitjax.engine.guards import Damaged
from gaitjax.weights import encoders, files
from tests.mutants import mutants, read_all

TREE = {
    "encoder/layer/0/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "encoder/layer/0/bias": np.ones(3, np.float16),
    "scale": np.float32(2.5) * np.ones(1, np.float32),
}
NESTED = {"encoder": {"layer": {"0": {"kernel": TREE["scale"]}}}, "x": np.ones(3)}


def packed(kind: str) -> bytes:
    if kind == "safetensors":
        return save(TREE)
    if kind == "msgpack":
        return serialization.msgpack_serialize(NESTED)
    stream = io.BytesIO()
    np.savez(stream, **{name.replace("/", "."): value for name, value in TREE.items()})
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "msgpack", "npz"])
def test_mutants_end_in_a_documented_error(kind, tmp_path):
    file = tmp_path / f"weights.{kind}"
    file.write_bytes(packed(kind))
    assert files.read(file)
    found = [*mutants(packed(kind), 300)]
    if kind == "npz":
        found += resealed(packed(kind), "scale.npy", 300)
    messages = read_all(found, file, files.read, ValueError)
    assert len(messages) > 150  # the others changed values, or nothing that counts


def test_mutants_of_an_encoder_end_in_a_documented_error(tmp_path):
    file, expected = tmp_path / "x.safetensors", traverse_util.unflatten_dict(TREE, "/")
    file.write_bytes(packed("safetensors"))
    assert encoders.load(file, expected)
    content = mutants(packed("safetensors"), 300, seed=2)
    messages = read_all(content, file, lambda x: encoders.load(x, expected), ValueError)
    assert len(messages) > 150


def header(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def with_header(text: bytes, rest: bytes = b"\0" * 64) -> bytes:
    return struct.pack("<Q", len(text)) + text + rest


ODD = (None, True, "0", -1, 2**63, 10**30, 1.5, [], {}, "x" * 10**5, [[0]], "\ud800")


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets", "name"])
def test_safetensors_headers_with_odd_values(field, tmp_path):
    def changed():
        for odd in ODD:
            for value in (odd, [odd], [0, odd], [odd, odd, odd]):
                entries = header(save(TREE))
                if field == "name":
                    entries[str(odd)] = value
                else:
                    entries["scale"][field] = value
                yield with_header(json.dumps(entries).encode())

    file = tmp_path / "x.safetensors"
    messages = read_all(changed(), file, files.read, ValueError)
    assert len(messages) == 4 * len(ODD)


@pytest.mark.parametrize("text", [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % b",".join([b"9"] * 99),
    b'{"a":{"dtype":"F32","shape":[0,%d],"data_offsets":[0,0]}}' % 2**62,
    b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}' % (b"[" * 90_000),
    b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 5000),
    b"\xff\xfe" * 99,
    b"",
], ids=range(8))  # fmt: skip
def test_header_bombs(text, tmp_path):
    file = tmp_path / "x.safetensors"
    (message,) = read_all([with_header(text)], file, files.read, Damaged)
    assert message.startswith(f"{file} is damaged: ")


@pytest.mark.parametrize("content", [
    b"[" * 200_000,
    b'{"weight_map": {"a": ' + b"[" * 200_000,
    json.dumps({"weight_map": {"a": "../a.safetensors"}}).encode(),
    json.dumps({"weight_map": {"a" * 10**5: 3}}).encode(),
    json.dumps({"weight_map": {"a": "x" * 10**5 + ".bin"}}).encode(),
    json.dumps({"weight_map": {"a": "x\0.bin"}}).encode(),
    json.dumps({"weight_map": {"a": "folder.bin"}}).encode(),
    json.dumps({"weight_map": [1]}).encode(),
], ids=range(8))  # fmt: skip
def test_hostile_indices_of_shards(content, tmp_path):
    (tmp_path / "folder.bin").mkdir()
    file = tmp_path / "model.safetensors.index.json"
    assert read_all([content], file, files.read, (Damaged, FileNotFoundError))


def nested(levels: int) -> bytes:
    return b"\x81\xa1a" * levels


@pytest.mark.parametrize("content", [
    nested(300),
    nested(900),
    nested(100_000),
    nested(300) + b"\xc0",
    b"\xdf\xff\xff\xff\xff",  # a map of 2**32 - 1 entries
    b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list of as many
    b"\x81\xa1a\xc6\xff\xff\xff\xff",  # as many bytes
    b"\xdd\x00\x01\x86\xa0" * 20_000,
], ids=range(8))  # fmt: skip
def test_msgpack_bombs(content, tmp_path):
    file = tmp_path / "x.msgpack"
    assert read_all([content], file, files.read, ValueError)


@pytest.mark.parametrize("dtype", ["U4", "S4", "M8[s]", "O", "c8", "V3", "nothing"])
def test_arrays_of_other_types_are_no_tensors(dtype, tmp_path):
    array = msgpack.packb([[1], dtype, b"\0" * 16])
    tree = {"a": msgpack.ExtType(1, array), "b": TREE["scale"].item()}
    file = tmp_path / "x.msgpack"
    assert read_all([msgpack.packb(tree)], file, files.read, ValueError)


def npy(shape, dtype="<f4", data=b"") -> bytes:
    head = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + data


def archive(entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("content", [
    b"",
    b"PK",
    archive({}),
    archive({"a": b"no array"}),
    archive({"a.npy": npy((2**40,))}),
    archive({"a.npy": npy((2**30,))}),
    archive({"a.npy": npy((-1,))}),
    archive({"a.npy": npy((1,), "|O", pickle.dumps([1]))}),
    archive({"a.npy": npy("(" * 3000)}),
    archive({"a.npy": npy((2,), "<U2", b"\0" * 16)}),
    archive({"a.npy": npy((2**20,)) + bytes(2**27)}, zipfile.ZIP_DEFLATED),
    pickle.dumps([1]),
], ids=range(12))  # fmt: skip
def test_hostile_npz(content, tmp_path):
    file = tmp_path / "x.npz"
    assert read_all([content], file, files.read_published, ValueError)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch /nowhere/at/all",)


@pytest.fixture
def torch_that_must_not_load(monkeypatch):
    """Stands for any version of torch, installed or not."""

    def load(*_, **__):
        raise AssertionError("torch was asked to load it")

    module = SimpleNamespace(load=load, jit=SimpleNamespace(load=load))
    monkeypatch.setitem(sys.modules, "torch", module)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_never_reaches_torch(
    protocol, zipped, tmp_path, torch_that_must_not_load
):
    file = tmp_path / "x.pth"
    content = pickle.dumps({"w": [1.0], "x": Harmful()}, protocol)
    if zipped:
        content = archive({"a/data.pkl": content, "a/version": b"3"})
    for scripts in (True, False):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match="system besides tensors.*refused"
        ) as found:
            files.read(file, scripts)
        assert "weights_only" not in str(found.value)
        assert "torch.save(model.state_dict(), FILE)" in str(found.value)


@pytest.mark.parametrize("name", ["torch.hub.load", "torch." + "x" * 10**6, "numpy.x"])
def test_names_other_than_tensors_are_refused(name, tmp_path, torch_that_must_not_load):
    module, _, attribute = name.rpartition(".")
    content = f"c{module}\n{attribute}\n.".encode()
    (message,) = read_all([content], tmp_path / "x.pth", files.read, ValueError)
    assert f"holds {name[:90]}" in message and "refused" in message


TORCH_BOMBS = {
    "deflated": archive({"a/data.pkl": bytes(10**8)}, zipfile.ZIP_DEFLATED),
    "no directory": b"PK\3\4" + bytes(100),
    "operations": b"N0" * 600_000 + b".",
    "cut": b"\x80\2}q\0X\5\0\0\0ab",
    "program": archive({"a/data.pkl": b"N.", "a/constants.pkl": b"N."}),
}


@pytest.mark.parametrize("name", TORCH_BOMBS)
def test_hostile_archives_never_reach_torch(name, tmp_path, torch_that_must_not_load):
    content, file = [TORCH_BOMBS[name]], tmp_path / "x.pt"
    (message,) = read_all(content, file, files.read_published, ValueError)
    refused = "a TorchScript program besides tensors, which is refused"
    assert (refused if name == "program" else "is damaged") in message


def resealed(content: bytes, end: str, count: int):
    """The archive `content` with mutants of the entry that ends so, checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    (name,) = [name for name in entries if name.endswith(end)]
    for mutant in mutants(entries[name], count, seed=1):
        yield archive(entries | {name: mutant})


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_mutants(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    state = {name: torch.tensor(value) for name, value in TREE.items()}
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    file, content = tmp_path / "x.pt", stream.getvalue()
    found = [*mutants(content, 300)]
    if zipped:
        found += resealed(content, "data.pkl", 300)
    messages = read_all(found, file, files.read_published, ValueError)
    assert len(messages) > 200
    assert not any("weights_only" in message for message in messages)


def test_torch_views_that_claim_more_than_the_file(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "x.pt"
    torch.save({"x": torch.ones(1).half().expand(10**5, 10**5)}, file)
    with pytest.raises(Damaged, match="its tensors would take 20,000,000,000 bytes"):
        files.read(file)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "resblocks.0.attn."])
def test_weights_of_odd_shapes_are_listed(name):
    for shape in ((), (0,), (1,), (3, 0, 2), (1,) * 9):
        for end in ("in_proj_weight", "weight", ""):
            with pytest.raises(ValueError, match="does not hold the weights"):
                encoders.to_parameters({name + end: np.zeros(shape)}, TREE)


def test_places_that_are_no_files(tmp_path):
    for name in ("model.safetensors", "x.msgpack", "x.pt"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="it holds none of them"):
        encoders.locate(tmp_path)
    for source in ("x" * 10**5, "~nobody-of-this-name/x/y", "a\0b", "/" + "a/" * 5000):
        with pytest.raises(FileNotFoundError):
            encoders.locate(source)
