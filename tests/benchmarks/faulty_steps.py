"""Steps that fail in different ways. Run as a script, it prints the runner's outcome of each step."""

import json
import os
import sys
import time
from dataclasses import replace

from gpu.running import Runner, Step
from gpu.scale import TINY


def fine(scale, report):
    report.check("small", 0.5, 1)
    report.figure("size", 2.0)
    report.predict("size", 3.0, 2.0, "metres")


def hangs(scale, report):
    report.figure("before", 1.0)
    time.sleep(600)


def crashes(scale, report):
    report.figure("before", 1.0)
    os.abort()


def raises(scale, report):
    raise ValueError("the step is broken")


def lacks(scale, report):
    import a_library_that_nobody_has  # noqa: F401


def in_parts(scale, report):
    with report.part("broken"):
        raise ValueError("this part is broken")
    with report.part("lacking"):
        import a_library_that_nobody_has  # noqa: F401
    report.figure("after", 1.0)


def unequal(scale, report):
    report.check("too large", 2, 1)
    report.check("not a number", float("nan"), 1)


def step_of(name):
    return Step(name, f"faulty_steps:{name}", 60)


def main():
    import torch  # imported once here, not again in every step

    runner = Runner(TINY)
    names = (fine, crashes, raises, lacks, in_parts, unequal)
    outcomes = {
        step.__name__: runner.run(Step(step.__name__, f"faulty_steps:{step.__name__}", 60), 60) for step in names
    }
    outcomes["hangs"] = runner.run(step_of("hangs"), 2)
    torch.cuda._is_in_bad_fork = lambda: True  # simulates an initialised CUDA; spawned processes do not inherit it
    outcomes["fine, spawned"] = Runner(replace(TINY, device="cuda")).run(step_of("fine"), 60)
    json.dump({name: outcome.as_json() for name, outcome in outcomes.items()}, sys.stdout)


if __name__ == "__main__":
    main()
