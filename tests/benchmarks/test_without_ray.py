"""Generation, scoring and DPO work without Ray and DeepSpeed, as on a bare GPU machine."""

import subprocess
import sys

import pytest

ABSENT = ("ray", "deepspeed", "fastapi", "openai", "tensorboardX")
PROGRAM = f"""
import sys

ABSENT = {ABSENT}
sys.modules.update(dict.fromkeys(ABSENT))  # an import of them fails, and they are found nowhere

import torch
from jsfree import config
from jsfree.stages.captioning import PairGenerator
from jsfree.stages.scoring import ClipScorer
from jsfree.dpo import loop
from jsfree.dpo.batching import collate
from jsfree.dpo.engine import adamw, prepare_policy
from jsfree.dpo.loss import Lengths, PairLogps, initial_loss, preference_loss
from jsfree.images.sources import training_samples
from jsfree.models.loading import load_captioner

torch.set_num_threads(1)
settings = config.build({{"source": {{"count": 1}}}}, where="test")
pairs = PairGenerator(settings, "miniworld:captioner", 1)(training_samples(settings, 1)).rows
assert pairs[0]["low"]["text"] and pairs[0]["high"]["text"]
scored = ClipScorer(settings)(pairs).rows
assert all(-1 <= sentence["score"] <= 1 for sentence in scored[0]["low"]["sentences"])

captioner = load_captioner("miniworld:captioner")
selected = [{{**row, "chosen": row["low"], "rejected": row["high"]}} for row in scored]
batch = collate(selected, captioner, settings.source)
model = prepare_policy(captioner, settings)
optimizer = adamw(model, settings, fused=False)
logps = PairLogps.of(model(batch))
with torch.no_grad():
    reference = PairLogps.of(model(batch))
lengths = Lengths.of(batch.lengths)
loss = preference_loss(logps, reference, lengths, beta=settings.train.beta).loss.mean()
loss.backward()
optimizer.step()
assert abs(float(loss) - initial_loss(settings.train.beta)) < 1e-4
print([name for name in ABSENT if sys.modules[name] is not None])
"""


@pytest.mark.slow
def test_generation_scoring_and_a_training_step_need_neither_ray_nor_deepspeed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
