"""The reference's table: each pair's values at its position, and only for the very pairs that are trained on."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch

from jsfree import schemas
from jsfree.dpo.loss import PairLogps
from jsfree.dpo.reference_logps import TABLE, reference_logps
from jsfree.errors import StageError
from jsfree.run.folder import Folder

pytestmark = pytest.mark.usefixtures("one_worker")
ORIGIN = {"model": "m0", "pairs": "digest"}
PAIRS = [{"sample_id": f"p{number}"} for number in range(7)]
LENGTHS = np.array([3, 9, 9, 1, 4, 9, 2], np.int32)


@dataclass
class Asked:
    """A reference whose values are made of the positions; keeps which pairs shared a pass."""

    parts: list[list[int]]

    def load(self, positions):
        self.parts.append(list(positions))
        return torch.tensor(list(positions), dtype=torch.float32)

    def forward(self, positions) -> PairLogps:
        return PairLogps(-positions - 0.25, -positions - 0.5)


def test_values_stand_where_their_pairs_are_and_pairs_of_like_length_go_together(tmp_path):
    folder, asked = Folder(str(tmp_path)), Asked([])
    table = reference_logps(folder, PAIRS, LENGTHS, ORIGIN, asked.load, asked.forward, micro=3)
    assert asked.parts == [[1, 2, 5], [4, 0, 6], [3]]
    expected = [{"sample_id": f"p{at}", "chosen": -at - 0.25, "rejected": -at - 0.5} for at in range(7)]
    assert folder.read_table(TABLE, schemas.REFERENCE).to_pylist() == expected
    logps = table.of([5, 0], torch.device("cpu"))
    assert (logps.chosen.tolist(), logps.rejected.tolist()) == ([-5.25, -0.25], [-5.5, -0.5])
    assert logps.chosen.dtype == torch.float32
    again = reference_logps(folder, PAIRS, LENGTHS, ORIGIN, pytest.fail, pytest.fail, micro=3)
    assert np.array_equal(again.values, table.values)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ("p0 p1 p2 p3 p4 p5", r"holds no reference of 'p6'; --restart train"),
        ("p0 p1 p2 p4 p3 p5 p6", r"holds rows of other pairs, such as 'p4'; --restart train"),
        ("p0 p1 p2 p3 p4 p5 p6 p7", r"holds rows of other pairs, such as 'p7'; --restart train"),
    ],
)
def test_a_table_with_other_rows_is_refused(tmp_path, ids, told):
    folder = Folder(str(tmp_path))
    rows = [{"sample_id": each, "chosen": -1.0, "rejected": -1.0} for each in ids.split()]
    folder.write_table(TABLE, pa.Table.from_pylist(rows, schema=schemas.REFERENCE), {"origin": ORIGIN})
    with pytest.raises(StageError, match=told):
        reference_logps(folder, PAIRS, LENGTHS, ORIGIN, pytest.fail, pytest.fail, micro=3)
