"""Strike daemons with seeded faults: `python -m faults --count 200 --seed 1`."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

from faults import table
from faults.driver import Struck, choose, strike_all
from faults.fault import Fault
from faults.world import World, world


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--lanes", type=int, default=2, help="daemons that are struck at the same time")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--quick", action="store_true", help="leave out those that take minutes")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        worlds = [stack.enter_context(world(arguments.seed + lane)) for lane in range(arguments.lanes)]
        kinds = _kinds(arguments, disks_of_their_own=worlds[0].mounted)
        struck = _strike_lanes(worlds, kinds)
    minutes = (time.monotonic() - began) / 60
    page = table.page(struck, arguments.seed, minutes)
    print(page)
    if arguments.write:
        table.PAGE.write_text(page)
    bad = [one for one in struck if one.problem or one.is_late]
    for one in bad:
        print(f"{one.fault.name}: {one.problem or f'late, {one.seconds:.1f} s'}", file=sys.stderr)
    return 1 if bad else 0


def _kinds(arguments: argparse.Namespace, *, disks_of_their_own: bool) -> list[type[Fault]]:
    draw = random.Random(arguments.seed)
    count = 10_000 if arguments.only else arguments.count
    kinds = choose(count, draw, quick=arguments.quick, disks_of_their_own=disks_of_their_own)
    return [kind for kind in kinds if arguments.only.lower() in kind.name.lower()][: arguments.count]


def _strike_lanes(worlds: list[World], kinds: list[type[Fault]]) -> list[Struck]:
    """Every lane takes its share; what threads wait for are other processes. Ctrl-C lets each end its fault."""
    lanes, stopped = len(worlds), Event()
    with ThreadPoolExecutor(lanes) as pool:
        done = [
            pool.submit(strike_all, world, kinds[lane::lanes], partial(print, lane, flush=True), stopped)
            for lane, world in enumerate(worlds)
        ]
        try:
            return [struck for lane in done for struck in lane.result()]
        except KeyboardInterrupt:
            stopped.set()
            raise


if __name__ == "__main__":
    sys.exit(main())
