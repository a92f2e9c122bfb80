"""Lua: `gateway.limits.window` once more, for Redis and Valkey, where a script is one step for all machines.

One script lets a request in by all of its counters or by none, one settles it, one renews its places, one
looks. The suite in `tests/limits` holds them to the answers of the Python that they repeat: change both.

    KEYS   the request's record, then one for each charge
    ARGV   now ("" for the server's own clock), lease, request id, then (unit, units, limit or used) for each
"""

from __future__ import annotations

from typing import Final

from gateway.limits.store import PLACE_WAIT_MS, RECORD_MS
from gateway.limits.window import NEVER, SLOT_MS, WINDOW_MS

SETTLED_MS: Final = 60_000
"""How long it is remembered that a request is over of which nothing was known: it may still be on its way."""

_WINDOW: Final = f"""
local WINDOW, SLOT = {WINDOW_MS}, {SLOT_MS}
local now = tonumber(ARGV[1])
if not now then
  local clock = redis.call('TIME')
  now = clock[1] * 1000 + math.floor(clock[2] / 1000)
end
local lease, request = tonumber(ARGV[2]), ARGV[3]

local function load(key)
  local packed = redis.call('GET', key)
  local entries = packed and cmsgpack.unpack(packed) or {{}}
  local n, at = #entries, now
  if n == 0 or entries[n - 1] - now >= WINDOW then return {{}}, 0, now end
  if entries[n - 1] > at then at = entries[n - 1] end
  local kept, used = {{}}, 0
  for i = 1, n, 2 do
    if entries[i] > at - WINDOW then
      kept[#kept + 1], kept[#kept + 2] = entries[i], entries[i + 1]
      used = used + entries[i + 1]
    end
  end
  return kept, used, at
end

local function save(key, entries)
  if #entries == 0 then redis.call('DEL', key)
  else redis.call('SET', key, cmsgpack.pack(entries), 'PX', WINDOW) end
end

local function add(entries, at, units)
  local n = #entries
  if units == 0 then return end
  if n > 0 and math.floor(entries[n - 1] / SLOT) == math.floor(at / SLOT) then
    entries[n - 1], entries[n] = at, entries[n] + units
  else
    entries[n + 1], entries[n + 2] = at, units
  end
end

local function full_again(entries, at)
  return #entries == 0 and 0 or entries[#entries - 1] + WINDOW - at
end

local function taken(key)
  return redis.call('ZCOUNT', key, '(' .. now, now + 2 * lease)
end

local function take(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - WINDOW)
  redis.call('ZADD', key, now + lease, request)
  redis.call('PEXPIRE', key, lease + WINDOW)
end
"""

ASK: Final = f"""{_WINDOW}
local record = redis.call('GET', KEYS[1])
if record then
  local known = cmsgpack.unpack(record)
  table.remove(known, 1)
  return known
end

local function wait(entries, used, at, limit, units)
  local too_many = used + units - limit
  if too_many <= 0 then return 0 end
  for i = 1, #entries, 2 do
    too_many = too_many - entries[i + 1]
    if too_many <= 0 then return entries[i] + WINDOW - at end
  end
  return {NEVER}
end

local found, admitted = {{}}, 1
for i = 2, #KEYS do
  local n = 3 * (i - 2) + 4
  local c = {{unit = ARGV[n], units = tonumber(ARGV[n + 1]), limit = tonumber(ARGV[n + 2])}}
  if c.unit == 'concurrent' then
    c.used = taken(KEYS[i])
    c.wait = c.used < c.limit and 0 or {PLACE_WAIT_MS}
  else
    c.entries, c.used, c.at = load(KEYS[i])
    c.wait = wait(c.entries, c.used, c.at, c.limit, c.units)
  end
  if c.wait ~= 0 then admitted = 0 end
  found[i] = c
end

local answer = {{admitted}}
for i = 2, #KEYS do
  local c, again = found[i], 0
  if c.unit == 'concurrent' then
    if admitted == 1 then
      take(KEYS[i])
      c.used = c.used + 1
    end
  else
    if admitted == 1 then
      add(c.entries, c.at, c.units)
      c.used = c.used + c.units
      save(KEYS[i], c.entries)
    end
    again = full_again(c.entries, c.at)
  end
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3] = c.used, c.wait, again
end
if admitted == 1 then
  redis.call('SET', KEYS[1], cmsgpack.pack({{now, unpack(answer)}}), 'PX', {RECORD_MS})
end
return answer
"""

SETTLE: Final = f"""{_WINDOW}
local record = redis.call('GET', KEYS[1])
local known = record and cmsgpack.unpack(record) or {{0}}
local since = known[1]
if since > 0 then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], cmsgpack.pack({{0, 0}}), 'PX', {SETTLED_MS}) end

local function give_back(entries, units)
  for i = 1, #entries, 2 do
    if math.floor(entries[i] / SLOT) == math.floor(since / SLOT) then
      entries[i + 1] = entries[i + 1] - math.min(entries[i + 1], units)
      if entries[i + 1] == 0 then
        table.remove(entries, i)
        table.remove(entries, i)
      end
      return
    end
  end
end

for i = 2, #KEYS do
  local n = 3 * (i - 2) + 4
  local unit, units, used = ARGV[n], tonumber(ARGV[n + 1]), tonumber(ARGV[n + 2])
  if unit == 'concurrent' then redis.call('ZREM', KEYS[i], request)
  elseif since > 0 and used ~= units then
    local entries, _, at = load(KEYS[i])
    if used > units then add(entries, at, used - units)
    else give_back(entries, units - used) end
    save(KEYS[i], entries)
  end
end
return 1
"""

BEAT: Final = f"""{_WINDOW}
for i = 2, #KEYS do take(KEYS[i]) end
return 1
"""

LOOK: Final = f"""{_WINDOW}
local answer = {{1}}
for i = 2, #KEYS do
  local n = #answer
  if ARGV[3 * (i - 2) + 4] == 'concurrent' then
    answer[n + 1], answer[n + 2], answer[n + 3] = taken(KEYS[i]), 0, 0
  else
    local entries, used, at = load(KEYS[i])
    answer[n + 1], answer[n + 2], answer[n + 3] = used, 0, full_again(entries, at)
  end
end
return answer
"""
