"""The one door to traffic control: `tc`, which pyroute2 covers only in parts."""

import json
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
    done = await run(["tc", *force, "-batch", "-"], input="".join(f"{line}\n" for line in lines).encode(), check=False)
    if done.code == 0 or forgiving:
        return
    said = " ".join(done.stderr.decode(errors="replace").split())[:300]
    if "Operation not permitted" in said:
        raise Lacking("limiting bandwidth needs CAP_NET_ADMIN", hint="run the daemon as root")
    if "not found" in said or "Unknown" in said or "Failed to load" in said:
        raise Lacking(
            f"this kernel cannot limit bandwidth so: {said}", hint="modprobe ifb sch_htb sch_ingress cls_u32 act_mirred"
        )
    raise Broken(f"the kernel refused to limit bandwidth: {said}")


async def has_class(link: str, name: str) -> bool:
    """Whether the link's queue has a class of that name ("1:5")."""
    done = await run(["tc", "-j", "class", "show", "dev", link], check=False)
    try:
        return any(each.get("handle") == name for each in json.loads(done.stdout or b"[]"))
    except ValueError:
        return False
