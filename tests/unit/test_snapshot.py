"""What is written beside training is the state of its moment, whatever training does meanwhile."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from qlora_engine.training import snapshot as module
from qlora_engine.training.dropout import step_key
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.siblings import bring_together
from qlora_engine.training.snapshot import Snapshot
from support.small import assert_same, llama_model, lora_model, state, targets, training_step, with_adapters

KEY = step_key(7, 7)


@pytest.mark.parametrize("copied", [False, True], ids=["copied by the host", "copied by the GPU"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_snapshot_stays_as_it_was_while_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, optimizer: str, copied: bool
) -> None:
    """A checkpoint that mixed two moments would be whole by its hashes, and no state that ever was."""
    monkeypatch.setattr(module, "on_cuda", lambda: copied)
    step = training_step(lora_model(), optimizer=optimizer)
    step.micro_batch(targets(3, 12), KEY)
    step.update()
    before = state(step)
    taken = step.snapshot()
    taken.copy_if_moved()
    assert taken.copied is copied
    assert taken.size >= sum(array.nbytes for array in before.values())
    found = taken.on_host()
    for seed in range(3):
        step.micro_batch(targets(3, 12, seed), KEY)
        step.update()
    assert_same(found, before)
    with pytest.raises(AssertionError):
        assert_same(state(step), before)


def test_matrices_that_lie_turned_in_a_vector_come_back_upright() -> None:
    """Siblings are computed with as they lie there; a checkpoint holds them as mlx_lm does."""
    model = with_adapters(llama_model())
    replace_lora(model)
    assert bring_together(model)
    step = training_step(model, optimizer="adamw")
    assert any(leaf.turned for group in step._grouping.groups.values() for leaf in group.leaves)
    step.micro_batch(targets(3, 12), KEY)
    step.update()
    assert_same(step.snapshot().on_host(), state(step))


def test_a_copy_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: resuming is."""
    monkeypatch.setattr(module, "on_cuda", lambda: True)
    numbers = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, -3.4e38, 0.1], np.float32)
    count = np.array(2**63 + 12_345, np.uint64)
    taken = Snapshot({"numbers": mx.array(numbers), "count": mx.array(count)}, dict)
    taken.copy_if_moved()
    found = taken.on_host()
    assert found["numbers"].tobytes() == numbers.tobytes()
    assert found["count"].tobytes() == count.tobytes()


def test_what_the_host_has_copied_is_let_go_of() -> None:
    """Held while a slow disk takes the copy, the state of the moment adds to the memory of many windows."""
    before = mx.get_active_memory()
    taken = Snapshot({"numbers": mx.arange(2**18, dtype=mx.float32)}, dict)
    found = taken.on_host()
    assert found["numbers"][-1] == 2**18 - 1
    assert mx.get_active_memory() - before < found["numbers"].nbytes / 2
