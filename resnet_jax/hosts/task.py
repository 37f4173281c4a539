"""A task that all processes of a run have a part in: one that cannot do its part says so, and no other waits for it."""

import contextlib
import itertools

from jax._src.distributed import global_state  # the coordination service is public nowhere; Orbax takes it here, too

# Names the tasks of this process one after another; all processes begin the same ones in the same order.
_numbers = itertools.count()
_REASON_CHARACTERS = 1000


class GivenUp(RuntimeError):
    """Another process could not do its part; the message has its number and reason."""


class SharedTask:
    """One task, which all processes begin. Uses no device; with one process it does nothing."""

    def __init__(self) -> None:
        self._folder = f"resnet_jax/task/{next(_numbers)}"
        shared = global_state.client is not None and global_state.num_processes > 1
        self._client = global_state.client if shared else None

    def give_up(self, reason: Exception) -> None:
        """Tells the others, if none has told this process before."""
        if self._client is None:
            return
        # Who cannot be told any more will miss this process sooner or later; the reason is the error to report here.
        with contextlib.suppress(Exception):
            if not self._given_up():
                self._client.key_value_set(
                    f"{self._folder}/{global_state.process_id}", f"{reason}"[:_REASON_CHARACTERS]
                )

    def check(self) -> None:
        """Raises GivenUp if another process has given up."""
        for process, reason in self._given_up().items():
            if process != global_state.process_id:
                raise GivenUp(f"process {process} could not do its part: {reason}")

    def _given_up(self) -> dict[int, str]:
        if self._client is None:
            return {}
        entries = self._client.key_value_dir_get(f"{self._folder}/")
        return {int(key.rpartition("/")[2]): reason for key, reason in entries}
