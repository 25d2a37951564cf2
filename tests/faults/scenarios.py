"""Seeded runs of faults, of any length: the tests' and the soak's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from threading import Timer

from tests.faults.corruption import Damaging
from tests.faults.objects import ObjectDamaging, ObjectRig
from tests.faults.powerloss import Disk, read_journal
from tests.faults.rig import Rig


def kill_repeatedly(directory: Path, seed: int, *, kills: int) -> Counter[str]:
    """Kills the agent at random changes of the medium, and at random instants."""
    return _kill(Rig(directory, seed), kills)


def kill_while_demoting(directory: Path, seed: int, *, kills: int) -> Counter[str]:
    """The same while pages go to an object store, come from it, and are swept out of it."""
    rig = ObjectRig(directory, seed)
    totals = _kill(rig, kills)
    totals["demoted_pages"] = rig.demoted_pages
    totals["lapsed_pages"] = rig.lapsed_pages
    totals["late_loads"] = rig.late_loads
    return totals


def _kill(rig: Rig, kills: int) -> Counter[str]:
    totals: Counter[str] = Counter()
    try:
        rig.start()
        for _ in range(kills):
            _work_until_death(rig)
            totals["kills"] += 1
            rig.start()
            rig.check()
            totals["durable_pages"] += len(rig.durable)
        rig.expect_destroyed()
    finally:
        rig.end()
    totals["loaded_pages"] = rig.loaded_pages
    return totals


def lose_power_repeatedly(directory: Path, seed: int, *, losses: int) -> Counter[str]:
    """Takes the power away at random changes of the medium."""
    rig = Rig(directory, seed, journal=True)
    totals: Counter[str] = Counter()
    try:
        for _ in range(losses):
            disk = Disk(rig.root)
            rig.medium.journal.unlink(missing_ok=True)
            rig.start()
            if totals["losses"]:
                rig.check()
            _work_until_death(rig)
            rig.forget_memory()
            changes = read_journal(rig.medium.journal)
            disk.apply(changes)
            disk.lose_power(rig.dice)
            totals["losses"] += 1
            totals["changes"] += len(changes)
        rig.start()
        rig.check()
        rig.expect_destroyed()
    finally:
        rig.end()
    totals["loaded_pages"] = rig.loaded_pages
    return totals


def _work_until_death(rig: Rig) -> None:
    """Works until the agent dies of a change of the medium, or at an instant of ours."""
    rig.work(rig.dice.randint(0, 4))
    if rig.dice.random() < 0.7:
        rig.medium.kill_after(rig.dice.randint(1, 60))
        rig.work(60, seconds=3.0)
    else:
        timer = Timer(rig.dice.uniform(0.0, 0.4), rig.agent.process.kill)  # type: ignore[union-attr]
        timer.start()
        rig.work(60, seconds=1.0)
        timer.join()
    rig.die()


def damage_repeatedly(directory: Path, seed: int, *, damages: int) -> Counter[str]:
    """Flips bits, swaps records and cuts files off, in packs, slabs and index."""
    return Damaging(directory, seed).run(damages)


def damage_objects_repeatedly(directory: Path, seed: int, *, damages: int) -> Counter[str]:
    """Flips bits in objects, cuts them off and removes them."""
    return ObjectDamaging(directory, seed).run(damages)
