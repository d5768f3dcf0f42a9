"""The typed client of Atoll's API."""

from atoll.client.client import Client
from atoll.client.console import Console
from atoll.client.endpoint import Endpoint
from atoll.client.problems import NotRunning

__all__ = ["Client", "Console", "Endpoint", "NotRunning"]
