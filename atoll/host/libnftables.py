"""libnftables' JSON interface (libnftables-json(5)), called in place: the text of the `nft` program, without a
process each.

Callers that come while another is at it wait, and then go together: a transaction costs a grace period of the
kernel and a reading of what is there, however much is in it.
"""

import contextlib
import ctypes
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

from atoll.base.errors import Broken, Lacking

_LIBRARY = "libnftables.so.1"
_JSON_OUTPUT = 1 << 4  # NFT_CTX_OUTPUT_JSON: input is read as JSON too
_ONE_AT_A_TIME = threading.Lock()  # libnftables keeps some of its parser's state in globals

Answer = tuple[int, bytes, bytes]
"""Exit code, output and errors."""


class _Asked:
    def __init__(self, commands: Sequence[dict[str, Any]]) -> None:
        self.commands = commands
        self.space = os.stat("/proc/thread-self/ns/net").st_ino
        """A context belongs to its caller's network namespace."""
        self.lists = any("list" in command for command in commands)
        self.answer: Answer | None = None
        self.error: Exception | None = None


_asked: list[_Asked] = []


def run(commands: Sequence[dict[str, Any]]) -> Answer:
    """Carry out all of `commands` or none. It waits for its turn. Raises Lacking (no library), Broken."""
    mine = _Asked(commands)
    _asked.append(mine)
    with _ONE_AT_A_TIME:
        if mine in _asked:
            _serve(mine)
    if mine.error is not None:
        raise mine.error
    assert mine.answer is not None
    return mine.answer


def _serve(mine: _Asked) -> None:
    """Also those that wait beside it, all in one transaction; where that is refused each has its own."""
    together = [mine]
    if not mine.lists:
        together = [asked for asked in _asked[:] if asked.space == mine.space and not asked.lists]
    for asked in together:
        _asked.remove(asked)
    if len(together) > 1 and _all_at_once(together):
        return
    for asked in together:
        try:
            asked.answer = _run(asked.commands)
        except Exception as error:
            asked.error = error


def _all_at_once(together: Sequence[_Asked]) -> bool:
    with contextlib.suppress(Exception):  # told to each whose own turn meets it again
        answer = _run([command for asked in together for command in asked.commands])
        if answer[0] == 0:
            for asked in together:
                asked.answer = answer
            return True
    return False


def _run(commands: Sequence[dict[str, Any]]) -> Answer:
    text = json.dumps({"nftables": list(commands)}).encode()
    library = _load()
    context = library.nft_ctx_new(0)
    if not context:
        raise Broken("libnftables gave no context")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _JSON_OUTPUT)
        code = library.nft_run_cmd_from_buffer(context, text)
        output = library.nft_ctx_get_output_buffer(context)
        return code, output or b"", library.nft_ctx_get_error_buffer(context) or b""
    finally:
        library.nft_ctx_free(context)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Lacking(f"{_LIBRARY} is missing", hint="apt-get install nftables") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    return library
