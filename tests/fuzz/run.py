"""Fuzzes a gateway on the fake engine from its own OpenAPI document: `python -m tests.fuzz.run`.

FUZZ_CASES is how many cases at least (20,000 by default), FUZZ_SEED the seed (else a new one, which
is printed). A round takes every operation of the document in turn; rounds go on, each with a seed
of its own, until there were enough cases.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.clients.programs import ROOT, program_environment, python_of
from tests.integration.clients.served import ServedGateway, served_gateway

CASES = 20_000
SECONDS_MAX = 1_500.0
_HOOKS = Path(__file__).parent
# A body may be right in every field and still not be runnable (a model that is not served, more
# tokens than the window has): that is a 400 which no schema can tell of. And what is made need not
# be found again: `store` decides.
_EXCLUDED_CHECKS = "positive_data_acceptance,ensure_resource_availability"
_ROUND_EXAMPLES_MAX = 150
_ROUND_SECONDS_MAX = 900.0
_OUTPUT_LINES = 150


@dataclass
class Outcome:
    """What the rounds found."""

    cases: int = 0
    operations: int = 0
    problems: list[str] = field(default_factory=list)


def fuzz(folder: Path, *, cases: int, seed: int, seconds_max: float = SECONDS_MAX) -> Outcome:
    """Runs rounds with a key, and a small one without, against a gateway below `folder`."""
    outcome = Outcome()
    started = time.monotonic()
    # Small limits: what a case can make the gateway do is over in milliseconds.
    small: dict[str, Any] = {
        "context_tokens": 2_048,
        "page_tokens": 16,
        "turn_tokens_default": 4,
        "hibernate_seconds_max": 2.0,
        "log_level": "info",
    }
    with served_gateway(folder, **small) as gateway:
        _round(gateway, folder, outcome, seed=seed, examples=10, key=False)
        rounds = 0
        while outcome.cases < cases and not outcome.problems:
            if time.monotonic() - started > seconds_max:
                outcome.problems.append(f"{outcome.cases} cases in {seconds_max:.0f} s: too slow")
                break
            wanted = (cases - outcome.cases) // (2 * max(1, outcome.operations)) + 1
            examples = min(_ROUND_EXAMPLES_MAX, wanted)
            _round(gateway, folder, outcome, seed=seed + rounds, examples=examples, key=True)
            rounds += 1
        outcome.problems += [f"in the gateway's log: {line}" for line in gateway.alarms()]
    return outcome


def _round(
    gateway: ServedGateway,
    folder: Path,
    outcome: Outcome,
    *,
    seed: int,
    examples: int,
    key: bool,
) -> None:
    report = folder / "schemathesis.json"
    report.unlink(missing_ok=True)
    command = [str(python_of("clients").with_name("schemathesis")), "run"]
    command += [f"{gateway.url}/openapi.json", "--no-color", "--continue-on-failure"]
    command += ["--workers=2", "--generation-database=none", "--warnings=off"]
    command += [f"--seed={seed}", f"--max-examples={examples}", "--request-timeout=20"]
    command += [f"--exclude-checks={_EXCLUDED_CHECKS}"]
    command += ["--report=json", f"--report-json-path={report}"]
    given = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(_HOOKS), "COLUMNS": "160"}
    if key:
        command += [f"--header=Authorization: Bearer {gateway.key}"]
    else:
        command += ["--phases=examples,coverage,fuzzing", "--mode=positive"]
        given["AGENTMEM_FUZZ_WITHOUT_KEY"] = "1"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=program_environment(given),
            capture_output=True,
            text=True,
            check=False,
            timeout=_ROUND_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"seed {seed}: not done in {_ROUND_SECONDS_MAX:.0f} s")
        return
    said = "\n".join(done.stdout.splitlines()[-_OUTPUT_LINES:]) + done.stderr[-2_000:]
    if not report.exists():
        outcome.problems.append(f"schemathesis did not run:\n{said}")
        return
    found = json.loads(report.read_text())
    outcome.cases += found["test_cases"]["generated"]
    outcome.operations = found["operations"]["tested"]
    bad = found["test_cases"]["with_failures"] or found["errors"] or done.returncode != 0
    if bad or not found["complete"]:
        outcome.problems.append(f"seed {seed}, {'with' if key else 'without'} a key:\n{said}")


def main() -> int:
    """Exit code 0: enough cases and no failure."""
    cases = int(os.environ.get("FUZZ_CASES", CASES))
    seed = int(os.environ.get("FUZZ_SEED", secrets.randbelow(1 << 31)))
    started = time.monotonic()
    print(f"fuzz: at least {cases:,} cases, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="agentmem-fuzz-") as directory:
        outcome = fuzz(Path(directory), cases=cases, seed=seed)
    for problem in outcome.problems:
        print(problem)
    print(
        f"fuzz: {outcome.cases:,} cases of {outcome.operations} operations, "
        f"{len(outcome.problems)} rounds failed, seed {seed}, {time.monotonic() - started:.0f} s"
    )
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
