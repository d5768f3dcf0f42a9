"""Schemathesis against the app in this process: no 500, nothing that the description does not say."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from atoll.api.app import WEBSOCKETS, all_routes
from atoll.api.openapi import describe
from tests.kit.app import Kit, make_kit

DOCUMENT = describe(all_routes("0.1.0"), version="0.1.0", websockets=WEBSOCKETS)
del DOCUMENT["components"]["schemas"]["InstanceSpec"]["properties"]["nics"]["default"]  # it cannot hash it
schema = schemathesis.openapi.from_dict(DOCUMENT)


class Served:
    """The app on a loop and a port of its own, its streams of events cut short."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.token = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        kit: Kit = await make_kit()
        kit.app.closing.set()
        self.token = (await kit.services.tokens.create("fuzz")).secret
        config = uvicorn.Config(
            kit.app,
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self._ready.set()
        await self.server.serve(sockets=[self.listener])
        await kit.close()

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        self.listener.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


@schema.exclude(path_regex="/(console|shell|session)$").parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_it(case: Case[Any], served: Served) -> None:
    if (
        case.operation.definition.raw["operationId"] == "token_revoke"
        and case.path_parameters.get("name") == "fuzz"
    ):
        return
    answer = case.call(base_url=served.url, headers={"Authorization": f"Bearer {served.token}"}, timeout=10)
    excluded: list[Any] = [positive_data_acceptance]  # it holds 2.0 for an integer, and that a name must exist
    sent = parse_qsl(urlsplit(str(answer.request.url)).query, keep_blank_values=True)
    if set(case.query or ()) - set(dict(sent)):
        excluded.append(negative_data_rejection)  # what made it wrong has no form in a URL, and was not sent
    case.validate_response(answer, excluded_checks=excluded)
