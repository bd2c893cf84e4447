-- What is kept of what happened: outcomes, counters, history.

local KEEP_DONE, DONE_ENTRIES = 120 * 1000, 20000
local EVENT_ENTRIES = 1000
-- The places in OUTCOMES; a score in DONE is ms * 8 + code.
local OUTCOME_CODE = {released = 1, withdrawn = 2, reaped = 3, forced = 4, forced_by_monitor = 5}

-- A delayed acquire may have queued a holder whose data was lost: an ended id must not be offered the lock.
local function finish(id, outcome)
  if redis.call('ZREM', QUEUE, id) == 1 then drop_seat(id) end
  redis.call('ZADD', DONE, now * 8 + OUTCOME_CODE[outcome], id)
  redis.call('ZREMRANGEBYSCORE', DONE, '-inf', (now - KEEP_DONE) * 8)
  redis.call('ZREMRANGEBYRANK', DONE, 0, -1 - DONE_ENTRIES)
  redis.call('PEXPIRE', DONE, KEEP_DONE)
end

local function count(counter)
  add(STATS, counter, 1)
  redis.call('PEXPIRE', STATS, KEEP_UNUSED)
end

local function record(...)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', EVENT_ENTRIES, '*', ...)
  redis.call('PEXPIRE', EVENTS, KEEP_UNUSED)
end
