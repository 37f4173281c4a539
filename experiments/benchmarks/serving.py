"""What the process of a subject does: it says in a line of JSON when the first call is done.

Then, for each line with a number of batches, it says how many images it did in how many seconds. So libraries, threads
and device memory of one subject are none of another's.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from resnet_jax.benchmark.subjects import Subject


def serve(subjects: Mapping[str, Callable[..., Subject]]) -> None:
    """Times the subject that the command line describes, a JSON of its `kind`, a key here, and its arguments."""
    spec = json.loads(sys.argv[1])
    # What libraries print must not come between the lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    subject = (subjects | {"surroundings": surroundings})[spec.pop("kind")](**spec)
    say(subject.said)
    for line in sys.stdin:
        begun = time.perf_counter()
        images = subject.run(int(line))
        say({"images": images, "seconds": time.perf_counter() - begun})


def surroundings() -> Subject:
    """What the numbers depend on besides the code."""
    from resnet_jax.environment import environment

    found = environment()
    try:
        import torch
    except ImportError:
        found["versions"] |= {"torch": None, "cuda_of_torch": None}
    else:
        found["versions"] |= {"torch": torch.__version__, "cuda_of_torch": torch.version.cuda}
    return Subject(found | {"xla_flags": os.environ.get("XLA_FLAGS", "")}, lambda batches: 0)
