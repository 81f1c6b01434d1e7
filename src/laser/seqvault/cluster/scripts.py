"""What nodes do by themselves, atomically, in Lua. A user is one hash, and so always in one place, also on the move.

| field of the hash | content |
|---|---|
| ``t`` | recent events as rows, in order of arrival |
| ``d`` | directory: per chunk, oldest first, first and last timestamp as doubles, events, number |
| ``c<number>`` | a packed chunk, as in a segment |
| ``g`` | how often recent events have been moved to chunks |
| ``a`` | tokens of the last ``REMEMBERED`` appends, so that a repeated one is known |

Lua's numbers are doubles. Rounding keeps order, so a chunk is passed over only if no event of it can be wanted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

REMEMBERED, TOKEN_BYTES = 8, 8
ENTRY_BYTES = 24


@dataclass(frozen=True)
class Script:
    """A script, called by the hash of its text."""

    text: str

    @cached_property
    def sha(self) -> str:
        """SHA-1 of the text."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


APPEND = Script(f"""
local known = redis.call('HGET', KEYS[1], 'a') or ''
for i = 1, #known, {TOKEN_BYTES} do
  if string.sub(known, i, i + {TOKEN_BYTES - 1}) == ARGV[1] then return redis.call('HSTRLEN', KEYS[1], 't') end
end
local rows = (redis.call('HGET', KEYS[1], 't') or '') .. ARGV[2]
known = string.sub(known .. ARGV[1], -{REMEMBERED * TOKEN_BYTES})
redis.call('HSET', KEYS[1], 't', rows, 'a', known)
return #rows
""")
"""ARGV: token, rows. Returns the bytes of recent events."""

READ = Script(f"""
local found = redis.call('HMGET', KEYS[1], 't', 'd')
local directory, missing, cut = found[2] or '', tonumber(ARGV[1]), tonumber(ARGV[2])
local answer = {{found[1] or ''}}
for i = #directory - {ENTRY_BYTES - 1}, 1, -{ENTRY_BYTES} do
  if missing <= 0 then break end
  local first, last, count, number = struct.unpack('<ddI4I4', directory, i)
  if not cut or first <= cut then
    answer[#answer + 1] = redis.call('HGET', KEYS[1], 'c' .. number) or ''
    if not cut or last < cut then missing = missing - count end
  end
end
return answer
""")
"""ARGV: events wanted, cut in time or nothing. Returns recent events, then chunks, the newest first."""

ROLL = Script(f"""
local generation = tonumber(redis.call('HGET', KEYS[1], 'g') or '0')
if generation ~= tonumber(ARGV[1]) then return 0 end
local found = redis.call('HMGET', KEYS[1], 't', 'd')
local rows, directory, keep = found[1] or '', found[2] or '', tonumber(ARGV[3]) * {ENTRY_BYTES}
for i = keep + 1, #directory, {ENTRY_BYTES} do
  redis.call('HDEL', KEYS[1], 'c' .. struct.unpack('<I4', directory, i + 20))
end
redis.call('HSET', KEYS[1], 'g', generation + 1, 't', string.sub(rows, tonumber(ARGV[2]) + 1),
           'd', string.sub(directory, 1, keep) .. ARGV[4])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], 'c' .. ARGV[i], ARGV[i + 1]) end
return 1
""")
"""ARGV: generation, bytes of rows that move, chunks that stay, directory of new ones, then number and content of each.

Returns 1, or 0 when somebody else has moved events meanwhile.
"""
