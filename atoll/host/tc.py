"""The one door to traffic control: `tc`, which pyroute2 covers only in parts."""

from collections.abc import Sequence

from atoll.base.errors import Broken, Lacking
from atoll.host.run import run


async def batch(lines: Sequence[str], *, forgiving: bool = False) -> None:
    """Carry out `lines` of tc, one after the other. `forgiving`: for taking away what may be absent.

    Raises Lacking (no tc, no kernel part, no right), Broken.
    """
    if not lines:
        return
    force = ["-force"] if forgiving else []
    done = await run(
        ["tc", *force, "-batch", "-"], input="".join(f"{line}\n" for line in lines).encode(), check=False
    )
    if done.code == 0 or forgiving:
        return
    said = " ".join(done.stderr.decode(errors="replace").split())[:300]
    if "Operation not permitted" in said:
        raise Lacking("limiting bandwidth needs CAP_NET_ADMIN", hint="run the daemon as root")
    if "not found" in said or "Unknown" in said or "Failed to load" in said:
        raise Lacking(
            f"this kernel cannot limit bandwidth so: {said}",
            hint="modprobe ifb sch_htb sch_ingress cls_u32 act_mirred",
        )
    raise Broken(f"the kernel refused to limit bandwidth: {said}")


async def leads(link: str, side: str, to: str) -> bool:
    """Whether what passes the link's `side` (ingress, egress) is led to the link `to`."""
    done = await run(["tc", "-j", "filter", "show", "dev", link, side], check=False)
    return f'"to_dev":"{to}"' in done.text
