"""Runs the parts of the bench that were asked for, inside the namespace that scripts/bench has made, and prints the report."""

import argparse
import datetime
import sys
from pathlib import Path

import diff
import large
import nflog
import path
import peers
import revoke
import small
import violations
from report import Report
from stage import Stage, Trouble, interfering, machine

PARTS = ["apply", "refresh", "revoke", "explain", "delta", "large", "diff", "path", "nflog", "violations", "binary"]


def parts(text):
    """The parts that a list names."""
    chosen = text.split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part `{unknown[0]}`; there are {', '.join(PARTS)}")
    return chosen


def main():
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--delta", type=Path, required=True)
    parser.add_argument("--outside", required=True)
    parser.add_argument("--build-seconds", type=float)
    parser.add_argument("--unstripped", type=Path)
    parser.add_argument("--clean-build", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", type=parts, default=PARTS)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()

    report = Report()
    stage = Stage(chosen.tree, chosen.work, chosen.outside)
    report.say(f"Measured {datetime.date.today()}: {machine()}. {interfering().capitalize()}.")
    report.say("Times are of whole processes unless said; medians, quartiles in brackets; runs of all contestants interleaved.")
    try:
        peak = None
        stage.namespace(peers.OUTSIDE)
        if "apply" in chosen.only:
            peak = small.apply(stage, report, chosen.rounds)
        if "refresh" in chosen.only:
            small.refresh(stage, report, chosen.rounds)
        if "revoke" in chosen.only:
            revoke.revoke(stage, report, chosen.rounds)
        if "explain" in chosen.only:
            small.explain(stage, report, chosen.rounds)
        if "delta" in chosen.only:
            large.delta(stage, report, chosen.delta, chosen.rounds)
        if "large" in chosen.only:
            large.large(stage, report)
        if "diff" in chosen.only:
            diff.diff(stage, report)
        if "path" in chosen.only:
            path.path(stage, report, max(5, chosen.rounds // 2))
        if "nflog" in chosen.only:
            nflog.nflog(stage, report)
        if "violations" in chosen.only:
            violations.violations(stage, report)
        if "binary" in chosen.only:
            small.binary(stage, report, chosen, peak)
    finally:
        stage.close()
    report.verdicts()
    if chosen.output:
        report.write(chosen.output)


if __name__ == "__main__":
    try:
        main()
    except (Trouble, AssertionError) as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
