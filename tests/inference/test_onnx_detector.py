"""What is refused of an exported detector: damaged files, odd graphs, graphs that ask for any amount of memory."""

import hashlib
import json
import logging
import os

import numpy as np
import pytest

from inference.onnx_detector import CHECKSUMS, DATA_NAME, FORMAT, ID, OnnxDetector

onnx = pytest.importorskip("onnx", reason="onnx is missing: pip install -r requirements-export.txt")
pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install -r requirements-export.txt")

SIDE = 8


def hex_digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


HUGE = 30_000_000_000  # values of 4 bytes


def graph(big=(), sparse=(), map_type=None, outputs=("map", "score")):
    """A detector whose map is the mean colour; `big`: nodes whose output "big" has to be computed."""
    make, kinds = onnx.helper, onnx.TensorProto
    one = onnx.numpy_helper.from_array
    nodes = [*big, make.make_node("Cast", ["images"], ["pixels"], to=kinds.FLOAT)]
    pixels = "pixels"
    if big or sparse:
        nodes.append(make.make_node("ReduceMax", ["big"], ["largest"], keepdims=0))
        nodes.append(make.make_node("Mul", ["pixels", "largest"], ["brighter"]))
        pixels = "brighter"
    nodes.append(make.make_node("ReduceMean", [pixels, "channels"], ["float_map"], keepdims=0))
    nodes.append(make.make_node("Cast", ["float_map"], ["map"], to=map_type or kinds.FLOAT))
    nodes.append(make.make_node("ReduceMean", ["float_map", "sides"], ["score"], keepdims=0))
    constants = [one(np.array([1]), "channels"), one(np.array([1, 2]), "sides"), one(np.array([HUGE]), "huge"),
                 one(np.array([0.0], np.float32), "zero")]  # fmt: skip
    shapes = {"map": ["batch", SIDE, SIDE], "score": ["batch"], "float_map": ["batch", SIDE, SIDE]}
    types = {"map": map_type or kinds.FLOAT}
    built = make.make_graph(
        nodes, "detector", [make.make_tensor_value_info("images", kinds.UINT8, ["batch", 3, SIDE, SIDE])],
        [make.make_tensor_value_info(name, types.get(name, kinds.FLOAT), shapes[name]) for name in outputs],
        initializer=constants, sparse_initializer=sparse,
    )  # fmt: skip
    model = make.make_model(built, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key=ID, value="abc")
    return model


def save(folder, model, **changes):
    """An export with this graph; returns the ONNX file."""
    file = folder / "detector.onnx"
    file.write_bytes(model.SerializeToString())
    card = {
        "format": FORMAT, ID: "abc", CHECKSUMS: {file.name: hex_digest(file)}, "method": "winclip",
        "class_name": "brick", "image_size": SIDE, "outputs": {"map": "", "score": ""}, "calibration": None,
        "made_with": {},
    }  # fmt: skip
    (folder / "detector.json").write_text(json.dumps({**card, **changes}))
    return file


def refusal(path) -> str:
    with pytest.raises(ValueError) as error:
        OnnxDetector(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sound_file_by_its_name_or_its_folder(tmp_path):
    file = save(tmp_path, graph())
    for path in (file, tmp_path, str(tmp_path)):
        (result,) = OnnxDetector(path).predict(np.full((1, 3, SIDE, SIDE), 7, np.uint8))
        assert result.score == 7 and result.verdict is None and result.map.shape == (SIDE, SIDE)


def test_a_folder_without_one_says_what_to_name(tmp_path):
    assert refusal(tmp_path).endswith("there is no detector.onnx in this folder; export.py writes detector.onnx")
    save(tmp_path, graph()).rename(tmp_path / "screw.onnx")
    assert refusal(tmp_path).endswith(f"name the file itself, as in --onnx {tmp_path / 'screw.onnx'}")


def test_a_flipped_bit_in_the_graph_or_its_data_is_refused(tmp_path):
    file = save(tmp_path, graph())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file}: damaged or of another export (its SHA-256 is not the one in ")
    data = tmp_path / DATA_NAME
    data.write_bytes(b"weights")
    save(tmp_path, graph(), **{CHECKSUMS: {"detector.onnx": hex_digest(save(tmp_path, graph())), DATA_NAME: "0" * 64}})
    assert refusal(file).startswith(f"{data}: damaged or of another export")
    data.unlink()
    assert f"there is no {data}, which belongs to it" in refusal(file)


def test_checksums_name_no_other_files(tmp_path):
    file = save(tmp_path, graph(), **{CHECKSUMS: {"../secret": "0" * 64}})
    assert "not written by export.py" in refusal(file)
    file = save(tmp_path, graph(), **{CHECKSUMS: {DATA_NAME: "0" * 64}})
    assert "sha256 lacks detector.onnx" in refusal(file)


def test_an_export_of_an_earlier_version_loads_with_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vand"), "propagate", True)
    file = save(tmp_path, graph(), **{CHECKSUMS: {}})
    OnnxDetector(file)
    assert [record.message for record in caplog.records] == [
        f"--onnx {file}: detector.json holds no SHA-256, as exports of earlier versions; damage would not be noticed"
    ]


def test_a_byte_order_mark_in_the_json_is_accepted(tmp_path):
    file = save(tmp_path, graph())
    card = tmp_path / "detector.json"
    card.write_text(card.read_text(), encoding="utf-8-sig")
    assert OnnxDetector(file).class_name == "brick"


@pytest.mark.parametrize("kind", ["INT64", "STRING", "DOUBLE"])
def test_an_output_of_another_type_is_one_line(kind, tmp_path):
    file = save(tmp_path, graph(map_type=getattr(onnx.TensorProto, kind)))
    assert f"{file}: its output map is (1, {SIDE}, {SIDE}) " in refusal(file)


def test_an_output_of_another_shape_is_one_line(tmp_path):
    file = save(
        tmp_path, graph(outputs=("map", "score", "float_map")), outputs={"map": "", "score": "", "float_map": ""}
    )
    assert f"{file}: its output float_map is (1, {SIDE}, {SIDE}) float32; must be (1,) float32" in refusal(file)


def test_an_output_that_is_a_sequence_is_one_line(tmp_path):
    model = graph()
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["score"], ["list"]))
    kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    model.graph.output.append(onnx.helper.make_value_info("list", kind))
    file = save(tmp_path, model, outputs={"map": "", "score": "", "list": ""})
    assert f"{file}: its output list is a list; must be (1,) float32" in refusal(file)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is limited on Linux alone")
@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand"])
def test_a_small_file_that_asks_for_120_gb_is_one_line(operator, tmp_path):
    inputs = ["huge"] if operator == "ConstantOfShape" else ["zero", "huge"]
    file = save(tmp_path, graph(big=[onnx.helper.make_node(operator, inputs, ["big"])]))
    assert f"{file}: needs more than " in refusal(file) and "of memory" in refusal(file)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is limited on Linux alone")
def test_a_sparse_constant_of_120_gb_is_one_line(tmp_path):
    one = onnx.numpy_helper.from_array
    sparse = onnx.helper.make_sparse_tensor(one(np.array([1], np.float32), "big"), one(np.array([5]), "place"), [HUGE])
    assert str(save(tmp_path, graph(sparse=[sparse]))) in refusal(tmp_path / "detector.onnx")


def test_a_sparse_file_of_200_gb_is_refused_before_it_is_read(tmp_path):
    file = save(tmp_path, graph())
    with (tmp_path / DATA_NAME).open("wb") as data:
        data.truncate(200 * 10**9)
    assert f"--onnx {file}: at least 200.0 GB of memory" in refusal(file)


def test_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "detector.onnx")
    (tmp_path / "detector.json").write_text("{}")
    assert "is a FIFO" in refusal(tmp_path / "detector.onnx")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "7", '{"format": 1, "outputs": 3}', '{"format": 1}'])
def test_planted_json_is_one_line(content, tmp_path):
    save(tmp_path, graph())
    (tmp_path / "detector.json").write_text(content)
    assert f"{tmp_path / 'detector.json'}: not written by export.py" in refusal(tmp_path)
