"""Networks, security groups and NICs of one project."""

from atoll.client.transport import Transport, path_of
from atoll.client.wire import GroupBody, GroupChangeBody, GroupView, NetworkBody, NetworkView
from atoll.instance.model import NicSpec
from atoll.instance.verbs.args import NicChanges
from atoll.network.groups import GroupRule
from atoll.operation.model import Operation


class Networks:
    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, *rest: str) -> str:
        return path_of("projects", self._project, "networks", *rest)

    async def list(self) -> list[NetworkView]:
        return await self._transport.request("GET", self._path(), list[NetworkView])

    async def get(self, name: str) -> NetworkView:
        """With what of the host keeps it from working."""
        return await self._transport.request("GET", self._path(name), NetworkView)

    async def create(self, body: NetworkBody) -> Operation:
        return await self._transport.change("POST", self._path(), Operation, body=body)

    async def delete(self, name: str) -> Operation:
        return await self._transport.change("DELETE", self._path(name), Operation)


class Groups:
    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, *rest: str) -> str:
        return path_of("projects", self._project, "groups", *rest)

    async def list(self) -> list[GroupView]:
        return await self._transport.request("GET", self._path(), list[GroupView])

    async def get(self, name: str) -> GroupView:
        return await self._transport.request("GET", self._path(name), GroupView)

    async def create(
        self, name: str, *, rules: tuple[GroupRule, ...] | None = None, description: str = ""
    ) -> Operation:
        body = GroupBody(name=name, rules=rules, description=description)
        return await self._transport.change("POST", self._path(), Operation, body=body)

    async def change(
        self, name: str, *, add: tuple[GroupRule, ...] = (), remove: tuple[GroupRule, ...] = ()
    ) -> Operation:
        body = GroupChangeBody(add=add, remove=remove)
        return await self._transport.change("PATCH", self._path(name), Operation, body=body)

    async def delete(self, name: str) -> Operation:
        return await self._transport.change("DELETE", self._path(name), Operation)


class Nics:
    """NICs of instances, each known by its MAC."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, instance: str, *rest: str) -> str:
        return path_of("projects", self._project, "instances", instance, "nics", *rest)

    async def add(self, instance: str, nic: NicSpec) -> Operation:
        """The operation's result has its MAC and addresses."""
        return await self._transport.change("POST", self._path(instance), Operation, body=nic)

    async def change(self, instance: str, mac: str, changes: NicChanges) -> Operation:
        return await self._transport.change("PATCH", self._path(instance, _in_path(mac)), Operation, body=changes)

    async def remove(self, instance: str, mac: str) -> Operation:
        return await self._transport.change("DELETE", self._path(instance, _in_path(mac)), Operation)


def _in_path(mac: str) -> str:
    return mac.lower().replace(":", "-")
