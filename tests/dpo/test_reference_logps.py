"""The reference table: computed once, in the order of the pairs, and refused for other pairs."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch

from jsfree import schemas
from jsfree.dpo.loss import PairLogps
from jsfree.dpo.reference_logps import TABLE, load_or_compute
from jsfree.errors import StageError
from jsfree.run.folder import Folder

pytestmark = pytest.mark.usefixtures("one_worker")
ORIGIN = {"model": "m0", "pairs": "digest"}
PAIRS = [{"sample_id": f"p{number}"} for number in range(7)]
LENGTHS = np.array([3, 9, 9, 1, 4, 9, 2], np.int32)


@dataclass
class FakeReference:
    """A reference whose log-probabilities encode the pairs' positions; records the batches."""

    batches: list[list[int]]

    def load(self, positions):
        self.batches.append(list(positions))
        return torch.tensor(list(positions), dtype=torch.float32)

    def forward(self, positions) -> PairLogps:
        return PairLogps(-positions - 0.25, -positions - 0.5)


def test_values_are_in_the_order_of_the_pairs_and_batches_group_similar_lengths(tmp_path):
    folder, reference = Folder(str(tmp_path)), FakeReference([])
    table = load_or_compute(folder, PAIRS, LENGTHS, ORIGIN, reference.load, reference.forward, micro=3)
    assert reference.batches == [[1, 2, 5], [4, 0, 6], [3]]
    expected = [{"sample_id": f"p{at}", "chosen": -at - 0.25, "rejected": -at - 0.5} for at in range(7)]
    assert folder.read_table(TABLE, schemas.REFERENCE).to_pylist() == expected
    logps = table.select([5, 0], torch.device("cpu"))
    assert (logps.chosen.tolist(), logps.rejected.tolist()) == ([-5.25, -0.25], [-5.5, -0.5])
    assert logps.chosen.dtype == torch.float32
    again = load_or_compute(folder, PAIRS, LENGTHS, ORIGIN, pytest.fail, pytest.fail, micro=3)
    assert np.array_equal(again.chosen, table.chosen)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("p0 p1 p2 p3 p4 p5", r"has no row of pair 'p6'; compute them again with --restart train"),
        ("p0 p1 p2 p4 p3 p5 p6", r"has rows of other pairs, such as 'p4'; compute them again with --restart train"),
        ("p0 p1 p2 p3 p4 p5 p6 p7", r"has rows of other pairs, such as 'p7'; compute them again with --restart train"),
    ],
)
def test_a_table_with_other_rows_is_refused(tmp_path, ids, message):
    folder = Folder(str(tmp_path))
    rows = [{"sample_id": each, "chosen": -1.0, "rejected": -1.0} for each in ids.split()]
    folder.write_table(TABLE, pa.Table.from_pylist(rows, schema=schemas.REFERENCE), {"origin": ORIGIN})
    with pytest.raises(StageError, match=message):
        load_or_compute(folder, PAIRS, LENGTHS, ORIGIN, pytest.fail, pytest.fail, micro=3)
