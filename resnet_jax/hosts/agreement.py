"""Before the first step: all processes of a run are about to run the same thing, or none of them starts."""

import contextlib
import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jax._src.distributed import global_state  # the coordination service is public nowhere; Orbax takes it here, too

from resnet_jax.hosts.meeting import name_processes
from resnet_jax.hosts.peers import PeerLost

_POLL_SECONDS = 0.02
# A process that stops waits so long for the others to have read why: with process 0 goes the service that tells them.
_READING_SECONDS = 5.0
# And process 0 so much longer for them to have ended: jax aborts whoever is there when the service goes.
_ENDING_SECONDS = 2.0
_VALUE_CHARACTERS = 100

# Names the agreements of this process one after another; all processes reach the same ones in the same order.
_numbers = itertools.count()


def check_agreement(facts: Mapping[str, str], *, seconds: float = 60) -> None:
    """Compares facts between the run's processes; uses no device. With one process it does nothing.

    Args:
      facts: values by name, e.g. of the seed and of every config key; a name may be absent in some processes.
      seconds: how long to wait for the others.

    Raises:
      ValueError: in all processes, if there are differences; it names each fact, each value and who has it.
      PeerLost: in all processes that came, if one did not.
    """
    if global_state.client is None or global_state.num_processes == 1:
        return
    agreement = _Agreement(global_state, seconds)
    facts_text = json.dumps(dict(facts), sort_keys=True)
    digests = agreement.exchange(facts_text)
    first_with = {
        digest: min(index for index, other in digests.items() if other == digest) for digest in digests.values()
    }
    if len(first_with) == 1:
        return
    facts_of = {digest: agreement.facts_of(index) for digest, index in first_with.items()}
    problem = describe_differences({index: facts_of[digest] for index, digest in digests.items()})
    agreement.let_all_read(list(digests))
    raise ValueError(problem)


def describe_differences(facts_of: Mapping[int, Mapping[str, str]]) -> str:
    """What differs, e.g. "the processes disagree on seed: 1 on processes 0, 2; 2 on process 1".

    Args:
      facts_of: the facts by process index.
    """
    differences = []
    for name in sorted(set().union(*facts_of.values())):
        who: dict[str, list[int]] = defaultdict(list)
        for index, facts in sorted(facts_of.items()):
            who[_short(facts[name]) if name in facts else "nothing"].append(index)
        if len({facts.get(name) for facts in facts_of.values()}) > 1:
            values = "; ".join(f"{value} on {name_processes(indices)}" for value, indices in who.items())
            differences.append(f"{name}: {values}")
    return f"the processes disagree on {' | '.join(differences)}"


def _short(value: str) -> str:
    """The value, or of a long one the start and a digest that still tells it from another."""
    if len(value) <= _VALUE_CHARACTERS:
        return value
    return f"{value[:_VALUE_CHARACTERS]}... ({len(value)} characters, sha256 {_digest(value)[:12]})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Agreement:
    """One agreement in the coordination service's store: digest and facts of each process, and why it was given up."""

    def __init__(self, state: Any, seconds: float):
        self.client, self.count, self.index = state.client, state.num_processes, state.process_id
        self.seconds = seconds
        self.folder = f"resnet_jax/agreement/{next(_numbers)}"

    def exchange(self, facts_text: str) -> dict[int, str]:
        """Says this process's facts and waits for the others'; returns digests by process index."""
        self.client.key_value_set(f"{self.folder}/facts/{self.index}", facts_text)
        self.client.key_value_set(f"{self.folder}/digest/{self.index}", _digest(facts_text))
        deadline = time.monotonic() + self.seconds
        while True:
            digests = {int(key.rpartition("/")[2]): digest for key, digest in self.entries("digest")}
            given_up = self.entries("given_up")
            if len(digests) == self.count and not given_up:
                return digests
            if given_up or time.monotonic() > deadline:
                self.give_up(digests, given_up)
            time.sleep(_POLL_SECONDS)

    def give_up(self, digests: dict[int, str], given_up: list[tuple[str, str]]) -> None:
        """Stops with the first process's reason to give up, which is this one's if nobody had one yet."""
        if not given_up:
            absent = sorted(set(range(self.count)) - set(digests))
            came = f"{name_processes(absent, self.count)} did not come to the agreement within {self.seconds:g} s"
            with contextlib.suppress(Exception):  # another was quicker
                self.client.key_value_set(f"{self.folder}/given_up/reason", json.dumps([came, sorted(digests)]))
            given_up = self.entries("given_up")
        problem, present = json.loads(given_up[0][1])
        if self.index in present:
            self.let_all_read(present)
        raise PeerLost(problem)

    def facts_of(self, index: int) -> dict[str, str]:
        return json.loads(self.client.blocking_key_value_get(f"{self.folder}/facts/{index}", int(1000 * self.seconds)))

    def entries(self, name: str) -> list[tuple[str, str]]:
        return self.client.key_value_dir_get(f"{self.folder}/{name}/")

    def let_all_read(self, present: list[int]) -> None:
        with contextlib.suppress(Exception):  # one that has gone already holds up nobody
            self.client.wait_at_barrier(f"{self.folder}/read", int(1000 * _READING_SECONDS), present)
        if self.index == 0:
            time.sleep(_ENDING_SECONDS)
