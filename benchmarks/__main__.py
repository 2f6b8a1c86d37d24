"""``python -m benchmarks``: run the rows, print the table, write the results."""

from __future__ import annotations

import argparse
import os
import sys
import time

from benchmarks import report, results
from benchmarks.contest import hold


def numbered(key: str) -> tuple[str, int]:
    """Sort P2 before P10."""
    return key.rstrip("0123456789"), int(key.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))


def main() -> int:
    """Run what the command line asks for; gives 0, or 1 if a contestant of ours failed or gave a
    wrong answer."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="ROW", help="rows to run, such as P1 P3 (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each contestant, half in either order (5)")
    parser.add_argument("--cpus", type=int, default=2, help="how many CPUs everybody gets (2); 0: all there are")
    parser.add_argument("--ours", action="store_true", help="run only our side: quick, and nothing is written")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave a contestant out")
    parser.add_argument("--again", type=int, default=0, metavar="N", help="hold a visit again, N times at most, when others used the CPUs")
    parser.add_argument("--write", action="store_true", help="write results also when only some rows were run")
    parser.add_argument("--redraw", action="store_true", help="only print, write and draw again what results.json has")
    options = parser.parse_args()

    if options.cpus:
        # Before the rows are imported: their targets depend on the number of CPUs. Children inherit
        # it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus])
    from benchmarks import rows as _registered  # noqa: F401
    from benchmarks.row import ROWS

    order = sorted(ROWS, key=numbered)
    if options.redraw:
        show(results.read(), write=True)
        return 0
    unknown = [key for key in options.keys if key not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(order)}")
    chosen = [ROWS[key] for key in order if not options.keys or key in options.keys]

    began = time.monotonic()
    tallies = hold(
        chosen,
        options.rounds,
        lambda line: print(line, file=sys.stderr, flush=True),
        only_ours=options.ours,
        skip=options.skip,
        again=options.again,
    )
    session = results.gather(chosen, tallies, options.rounds)
    whole = len(chosen) == len(ROWS) and not options.skip
    write = (whole or options.write) and not options.ours
    if write:
        shown = results.write(session, order)
        show(shown, write=True)
    else:
        show(session, write=False)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    ours_failed = any(tallies[row.key][name].error for row in chosen for name in row.ours if name in tallies[row.key])
    return 1 if ours_failed else 0


def show(session: results.Json, *, write: bool) -> None:
    """Print the table; if `write`, also write and draw the session."""
    report.terminal(session)
    if not write:
        return
    for path in report.publish(session):
        print(f"{path.name} has no markers for the table", file=sys.stderr)
    try:
        from benchmarks import picture

        picture.draw(session)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
