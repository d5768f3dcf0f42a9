"""The typed client of Atoll's API, and the structs it takes and returns."""

from atoll.client.client import Client
from atoll.client.console import Console
from atoll.client.endpoint import Endpoint
from atoll.client.problems import NotRunning
from atoll.client.session import ExecSession
from atoll.client.wire import (
    GroupView,
    HostView,
    ImportBody,
    NetworkBody,
    NetworkView,
    NewToken,
    PoolView,
    Pushed,
    RecipeView,
    Token,
    VolumeView,
)
from atoll.image.model import Image, serves
from atoll.instance.book import InstanceView
from atoll.instance.cloudstate import CloudState
from atoll.instance.engine import Command, Ended, Outcome, Stats
from atoll.instance.model import CloudInit, Disk, DiskUse, InstanceSpec, MountSpec, NicSpec, State
from atoll.instance.verbs.args import Changes, Fitting, HostPort, NicChanges
from atoll.network.groups import GroupRule
from atoll.network.model import Bandwidth, Forward, Mode
from atoll.operation.model import News, Operation, OperationStatus, Progress
from atoll.storage.model import Volume

__all__ = [
    "Bandwidth",
    "Changes",
    "Client",
    "CloudInit",
    "CloudState",
    "Command",
    "Console",
    "Disk",
    "DiskUse",
    "Ended",
    "Endpoint",
    "ExecSession",
    "Fitting",
    "Forward",
    "GroupRule",
    "GroupView",
    "HostPort",
    "HostView",
    "Image",
    "ImportBody",
    "InstanceSpec",
    "InstanceView",
    "Mode",
    "MountSpec",
    "NetworkBody",
    "NetworkView",
    "NewToken",
    "News",
    "NicChanges",
    "NicSpec",
    "NotRunning",
    "Operation",
    "OperationStatus",
    "Outcome",
    "PoolView",
    "Progress",
    "Pushed",
    "RecipeView",
    "State",
    "Stats",
    "Token",
    "Volume",
    "VolumeView",
    "serves",
]
