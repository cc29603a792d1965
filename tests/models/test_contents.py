import numpy as np
import pytest
from safetensors.numpy import save_file

from jsfree.errors import ModelError
from jsfree.models.contents import tensor_shapes


def test_tensor_shapes_are_read_from_the_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int64)}, path, {"format": "pt"})
    assert tensor_shapes(path) == {"a": (2, 3), "b": (5,)}


@pytest.mark.parametrize("size", [0, 5, -4])
def test_an_incomplete_file_is_refused(tmp_path, size):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a complete safetensors file .*; fetch or copy"):
        tensor_shapes(path)
