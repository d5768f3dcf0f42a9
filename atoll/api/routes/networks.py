"""Networks, security groups, and the NICs that instances have on them."""

import msgspec

from atoll.api.route import Call, Reply, Routes, answer
from atoll.base.names import check_label
from atoll.client.wire import GroupBody, GroupChangeBody, GroupView, NetworkBody, NetworkView
from atoll.instance.model import NicSpec
from atoll.instance.verbs.args import AddNicArgs, NicChanges, RemoveNicArgs, SetNicArgs
from atoll.network.args import (
    ChangeGroupArgs,
    CreateGroupArgs,
    CreateNetworkArgs,
    GroupArgs,
    NetworkArgs,
    NetworkSpec,
)
from atoll.network.groups import Group
from atoll.network.model import Network
from atoll.operation.model import Operation

routes = Routes()
NETWORKS = "/projects/{project}/networks"
GROUPS = "/projects/{project}/groups"
NICS = "/projects/{project}/instances/{name}/nics"


@routes.add("GET", NETWORKS, action="network.list", answer=list[NetworkView])
async def list_networks(call: Call) -> Reply:
    """Networks of a project with their ports."""
    return answer([await _network(call, each) for each in await call.services.networks.list(call.project)])


@routes.add("GET", NETWORKS + "/{name}", action="network.read", answer=NetworkView)
async def get_network(call: Call) -> Reply:
    """One network with its ports, and what of the host keeps it from working."""
    network = await call.services.networks.get(call.project, call.name)
    view = await _network(call, network)
    return answer(msgspec.structs.replace(view, warnings=tuple(await call.services.networks.warnings(network))))


async def _network(call: Call, network: Network) -> NetworkView:
    return NetworkView(network=network, ports=tuple(await call.services.networks.ports(network.id)))


@routes.add("POST", NETWORKS, action="network.create", answer=Operation, status=202)
async def create_network(call: Call, body: NetworkBody) -> Reply:
    """Make a network. It takes nothing of the host while no guest is on it."""
    name = check_label(body.name)
    spec = NetworkSpec(**{field: getattr(body, field) for field in NetworkSpec.__struct_fields__})
    return await call.submit("network.create", CreateNetworkArgs(project=call.project, name=name, spec=spec), name)


@routes.add("DELETE", NETWORKS + "/{name}", action="network.delete", answer=Operation, status=202)
async def delete_network(call: Call) -> Reply:
    """Remove a network that no instance is on."""
    return await call.submit("network.delete", NetworkArgs(project=call.project, name=call.name))


@routes.add("GET", GROUPS, action="group.list", answer=list[GroupView])
async def list_groups(call: Call) -> Reply:
    """Security groups of a project, by name."""
    return answer([await _group(call, each) for each in await call.services.groups.list(call.project)])


@routes.add("GET", GROUPS + "/{name}", action="group.read", answer=GroupView)
async def get_group(call: Call) -> Reply:
    """One security group with the instances in it."""
    return answer(await _group(call, await call.services.groups.get(call.project, call.name)))


async def _group(call: Call, group: Group) -> GroupView:
    return GroupView(group=group, users=tuple(await call.services.groups.users(group)))


@routes.add("POST", GROUPS, action="group.create", answer=Operation, status=202)
async def create_group(call: Call, body: GroupBody) -> Reply:
    """Make a security group."""
    name = check_label(body.name)
    args = CreateGroupArgs(project=call.project, name=name, rules=body.rules, description=body.description)
    return await call.submit("group.create", args, name)


@routes.add("PATCH", GROUPS + "/{name}", action="group.change", answer=Operation, status=202)
async def change_group(call: Call, body: GroupChangeBody) -> Reply:
    """Add and remove rules: in force on every port in it once the operation has ended."""
    args = ChangeGroupArgs(project=call.project, name=call.name, add=body.add, remove=body.remove)
    return await call.submit("group.change", args)


@routes.add("DELETE", GROUPS + "/{name}", action="group.delete", answer=Operation, status=202)
async def delete_group(call: Call) -> Reply:
    """Remove a security group that no instance is in."""
    return await call.submit("group.delete", GroupArgs(project=call.project, name=call.name))


@routes.add("POST", NICS, action="instance.nic-add", answer=Operation, status=202)
async def add_nic(call: Call, body: NicSpec) -> Reply:
    """Give an instance one more NIC, also while it runs. The operation's result has its MAC and addresses."""
    return await call.submit("instance.nic-add", AddNicArgs(project=call.project, name=call.name, nic=body))


@routes.add("PATCH", NICS + "/{mac}", action="instance.nic-set", answer=Operation, status=202)
async def set_nic(call: Call, body: NicChanges) -> Reply:
    """Change the NIC with this MAC: what is not given stays."""
    args = SetNicArgs(project=call.project, name=call.name, mac=_mac(call), changes=body)
    return await call.submit("instance.nic-set", args)


@routes.add("DELETE", NICS + "/{mac}", action="instance.nic-remove", answer=Operation, status=202)
async def remove_nic(call: Call) -> Reply:
    """Take the NIC with this MAC away, also while the instance runs."""
    args = RemoveNicArgs(project=call.project, name=call.name, mac=_mac(call))
    return await call.submit("instance.nic-remove", args)


def _mac(call: Call) -> str:
    """In a path it is written with hyphens."""
    return call.names["mac"].replace("-", ":")
