-- The lock as it is, at one moment, for status, health and the monitor. Changes nothing of it.
--
-- KEYS  see parts/state.lua
-- ARGV  4 how many waiters to list
-- Reply {'snapshot', now_ms, value, pttl_ms, holder hash (flat), seats in all, listed waiters, stats (flat),
--        dead seats among those looked at, waiters without a queue (0/1),
--        since when a monitor knows this foreign value without expiry, ms (0: not yet),
--        what is quarantined (lines of JSON) or ''}
--       a listed waiter: {id, task, process (JSON), arrival_us, mode, deaf (0/1): nobody would receive its grant now}

local unheard = {}
local function is_deaf(name, inbox)
  if inbox.mode ~= 'push' or inbox.deaf then return inbox.deaf end
  if unheard[name] == nil then unheard[name] = not has_receiver(name) end
  return unheard[name]
end

local listed, dead = {}, 0
for _, id in ipairs(redis.call('ZRANGE', QUEUE, 0, tonumber(ARGV[4]) - 1)) do
  local seat = read_seat(id)
  local inbox = seat and read_inbox(seat.inbox)
  if inbox then
    listed[#listed + 1] = {id, seat.task, inbox.process, seat.arrival, inbox.mode,
      is_deaf(seat.inbox, inbox) and 1 or 0}
  else
    dead = dead + 1
  end
end
local seats, ttl = redis.call('ZCARD', QUEUE), redis.call('PTTL', LOCK)
-- Whoever sees a foreign value gone, or with an expiry, has seen a sign of life: the next one of the same text stands anew.
if not foreign or ttl ~= -1 then forget_foreign() end
return {'snapshot', now, value or '', ttl, redis.call('HGETALL', HOLDER), seats, listed,
  redis.call('HGETALL', STATS), dead, seats == 0 and redis.call('EXISTS', WAITERS) or 0, foreign_since(), fence().quarantine}
