"""The command line's verbs for networks. They hold no logic; see `network` and `isolation`."""

from __future__ import annotations

from typing import Annotated

import typer

from sandkeep.sandboxes import isolation, render, service
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.network_policy import show
from sandkeep.sandboxes.options import HERE, Allow, AsJson, KeepPath, Private, Services, TaskId, Token

app = typer.Typer()


@app.command("network-policy")
def network_policy(
    task: TaskId,
    mode: Annotated[str | None, typer.Argument(metavar="[none|services|allow|open]", help="What it may reach.")] = None,
    allow: Allow = None,
    private: Private = None,
    services: Services = None,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show what a task's sandbox may reach and how much it has, or set it; that holds at once."""
    with Keep.open(keep) as opened:
        found = opened.network(task, token)
        if mode is not None or allow or private or services:
            wanted = mode or ("allow" if allow or private else "services")
            found.set(wanted, allow=allow or (), private=private or (), services=services or ())
        policy, offers, traffic = found.policy(), found.offers(), found.traffic()
    listed = [show(each) for each in policy.allow if not each.private]
    beyond = [show(each) for each in policy.allow if each.private]
    named = [service.show(each) for each in policy.services]
    counts = {
        "allowed": traffic.allowed,
        "denied": traffic.denied,
        "sent_bytes": traffic.sent,
        "received_bytes": traffic.received,
    }
    if json:
        lists = {"allow": listed, "private": beyond, "services": named, "offers": list(offers)}
        render.print_json({"network": policy.mode, **lists, **counts})
        return
    print(policy.mode)
    for each in listed:
        print(f"  {each}")
    for each in beyond:
        print(f"  {each}  private")
    for each in named:
        print(f"  {each}")
    if offers:
        print(f"offers {', '.join(map(str, offers))}")
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))


@app.command("offer-ports")
def offer_ports(
    task: TaskId,
    ports: Annotated[
        list[int] | None, typer.Argument(metavar="[PORT]...", help="The ports; none withdraws what was offered.")
    ] = None,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Offer ports of a task's sandbox to other tasks, whose policies may then name them as services; no others."""
    with Keep.open(keep) as opened:
        found = opened.network(task, token)
        found.offer(ports or ())
        offers = found.offers()
    if json:
        render.print_json({"offers": list(offers)})
    else:
        print(f"offers {', '.join(map(str, offers))}" if offers else "offers nothing")


@app.command("isolation-check")
def isolation_check(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="A task's id; by default one is made for this.")
    ] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Try every way out of a sandbox, from inside it. Exit status 1 if any is open."""
    with Keep.open(keep) as opened, render.progress() as progress:
        progress("trying every way out of a sandbox")
        found = isolation.check(opened, None if task is None else opened.task(task))
    if json:
        render.print_json(found)
    else:
        rows = [(each.way, each.what, "OPEN" if each.open else "closed", each.seen) for each in found.attempts]
        render.print_rows(("way", "tried", "is", "seen"), [tuple(map(render.plain, row)) for row in rows])
        opened_ways = [each for each in found.attempts if each.open]
        print("every way out is closed" if found.closed else f"{len(opened_ways)} WAYS OUT ARE OPEN")
    raise typer.Exit(0 if found.closed else 1)
