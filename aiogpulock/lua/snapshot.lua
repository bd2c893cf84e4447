-- The lock as it is, at one moment, for status and health. Writes nothing.
--
-- KEYS  see prelude.lua
-- ARGV  4 how many waiters to list
-- Reply {'snapshot', now_ms, value, pttl_ms, holder hash (flat), waiters in all, listed waiters, stats (flat)}
--       a listed waiter: {id, task, process (JSON), arrival_us, mode, deaf (0/1)}

local listed = {}
for _, id in ipairs(redis.call('ZRANGE', QUEUE, 0, tonumber(ARGV[4]) - 1)) do
  local seat = read_seat(id)
  local inbox = seat and read_inbox(seat.inbox)
  if inbox then
    listed[#listed + 1] = {id, seat.task, inbox.process, seat.arrival, inbox.mode, inbox.deaf and 1 or 0}
  end
end
return {'snapshot', now, value or '', redis.call('PTTL', LOCK), redis.call('HGETALL', HOLDER),
  redis.call('ZCARD', QUEUE), listed, redis.call('HGETALL', STATS)}
