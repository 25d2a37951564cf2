"""`agentmem audit …`."""

from __future__ import annotations

from cyclopts import App

from agentmem.commands.options import DataDir, administer, print_table, shown_time

audit = App(name="audit", help="The log of every administrative act.")


@audit.command(name="list")
def audit_list(
    *,
    limit: int = 100,
    before: int | None = None,
    action: str | None = None,
    target: str | None = None,
    data_dir: DataDir = None,
) -> None:
    """List acts, newest first; --before continues from a sequence on."""
    found = administer(
        data_dir,
        lambda all_: all_.audit.list(before=before, limit=limit, action=action, target=target),
    )
    rows = [
        (str(one.sequence), shown_time(one.at), one.actor, one.action, one.target, one.details)
        for one in found
    ]
    print_table(("sequence", "time", "actor", "action", "target", "details"), rows)


@audit.command(name="verify")
def audit_verify(*, expect: str | None = None, data_dir: DataDir = None) -> int:
    """Check the chain: exit code 0 when it is whole, 1 when an entry was changed or is missing.

    Prints the last entry's hash. Keep it elsewhere and give it to --expect the next time: whoever
    can rewrite the whole table can make the chain whole again, but not with that hash in it.
    """
    done = administer(data_dir, lambda all_: all_.audit.verify(expected_head=expect))
    for finding in done.findings:
        print(finding)
    print(f"{done.entries} entries, {'whole' if done.whole else 'NOT whole'}; head {done.head}")
    return 0 if done.whole else 1
