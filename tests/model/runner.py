"""Runs the shipped scripts, all parts of them, in Lua 5.1 on the model's store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lupa.lua51 as lupa

from aiogpulock.keys import LockKeys, lock_keys
from aiogpulock.scripts import load_script
from tests.model.store import Message, Session, Status, Store, StoreError, encode_json, texts

SCRIPTS = (
    "acquire", "heartbeat", "reap", "reassert", "release", "resume", "withdraw", "count", "snapshot", "sweep",
    "end_foreign", "note", "verdict", "lift",
)  # fmt: skip

# redis.call runs behind this: an error is data in Python and an error value in Lua, never an exception across the two.
_HARNESS = """
function(python_call, encode)
  redis = {}
  local function convert(kind, value)
    if kind == 'status' then return {ok = value} end
    if kind == 'error' then return {err = value} end
    return value
  end
  function redis.pcall(...) return convert(python_call(...)) end
  function redis.call(...)
    local kind, value = python_call(...)
    if kind == 'error' then error(value, 0) end
    return convert(kind, value)
  end
  cjson = {encode = encode}
  return function(source, name) return assert(loadstring(source, name)) end,
    function(chunk, keys, argv)
      KEYS, ARGV = keys, argv
      return pcall(chunk)
    end
end
"""


class ScriptFailed(Exception):
    """A script ended by an error. That is no promise that a planted bug breaks: most likely it was badly planted."""


class Outcome(NamedTuple):
    """What one run of a script did. `error`: the script was refused part way; what it wrote before stays."""

    reply: list[Any]
    session: Session
    error: str = ""

    @property
    def messages(self) -> list[Message]:
        return self.session.messages

    @property
    def store(self) -> Store:
        return self.session.freeze()


class ScriptRunner:
    """One Lua state with the scripts compiled. `edit` gets each script's name and text: for planted bugs."""

    def __init__(self, gpu_id: str = "0", edit: Callable[[str, str], str] | None = None) -> None:
        self.keys: LockKeys = lock_keys(gpu_id, "gpu_lock")
        self._lua = lupa.LuaRuntime(encoding="latin-1", unpack_returned_tuples=True, register_eval=False)
        self._session: Session | None = None
        compile_chunk, self._run = self._lua.eval(_HARNESS)(self._call, encode_json)
        self.sources = {name: load_script(name).source.decode("latin-1") for name in SCRIPTS}
        if edit:
            self.sources = {name: edit(name, source) for name, source in self.sources.items()}
        self._chunks = {name: compile_chunk(source, "@" + name) for name, source in self.sources.items()}
        self._key_names = [key.decode() for key in self.keys.script_keys]
        self._keys_table = self._lua.table_from(self._key_names)
        self._argv: dict[tuple[Any, ...], Any] = {}

    def run(self, name: str, arguments: Sequence[Any], session: Session, more_keys: Sequence[str] = ()) -> Outcome:
        """Run a script with ARGV `arguments` on `session`. `more_keys` follow the lock's own, for edited scripts."""
        key = tuple(arguments)
        argv = self._argv.get(key)
        if argv is None:
            argv = self._argv[key] = self._lua.table_from(texts(key))
        keys = self._lua.table_from([*self._key_names, *more_keys]) if more_keys else self._keys_table
        self._session = session
        ok, reply = self._run(self._chunks[name], keys, argv)
        self._session = None
        if not ok:
            return Outcome([], session, str(reply))
        return Outcome(_from_lua(reply), session)

    def _call(self, name: str, *arguments: Any) -> tuple[str, Any]:
        assert self._session is not None
        try:
            reply = self._session.call(name, *texts(arguments))
        except StoreError as error:
            return "error", str(error)
        if isinstance(reply, list):
            return "value", self._lua.table_from(reply)
        if isinstance(reply, Status):
            return "status", str(reply)
        return "value", reply


def _from_lua(value: Any) -> Any:
    """A script's reply as the client gets it: numbers are cut to integers, a table ends at its first nil."""
    if lupa.lua_type(value) == "table":
        items = []
        for index in range(1, len(value) + 1):
            if value[index] is None:
                break
            items.append(_from_lua(value[index]))
        return items
    if isinstance(value, bool):
        return 1 if value else None
    return int(value) if isinstance(value, float) else value
