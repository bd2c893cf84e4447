-- Seats: the queue's entries.
-- waiters: id -> 'inbox lease ttl arrival task';  '@' .. inbox -> 'mode next_check expires deaf process', and
-- '#' .. inbox -> its seats, of which the last takes both with it

local POLL_SLACK = 2000             -- how late a polling waiter may be for its own check
local WALK_BOUND, CHUNK = 500, 16   -- seats looked at per call, and per read

-- nil: none that is alive
local function read_inbox(inbox)
  local entry = redis.call('HGET', WAITERS, '@' .. inbox) or ''
  local mode, next_check, expires, deaf, process = entry:match('^(%a+) (%d+) (%d+) (%d) (.*)$')
  if not mode or tonumber(expires) <= now then return nil end
  return {mode = mode, next_check = tonumber(next_check), expires = tonumber(expires), deaf = deaf == '1',
    process = process}
end

local function write_inbox(inbox, r)
  redis.call('HSET', WAITERS, '@' .. inbox,
    table.concat({r.mode, text(r.next_check), text(r.expires), r.deaf and '1' or '0', r.process}, ' '))
end

local function read_seat(id)
  local entry = redis.call('HGET', WAITERS, id) or ''
  local inbox, lease, ttl, arrival, task = entry:match('^(%S+) (%d+) (%d+) (%d+) (.*)$')
  if not inbox then return nil end
  return {id = id, inbox = inbox, lease = tonumber(lease), ttl = tonumber(ttl), arrival = tonumber(arrival), task = task}
end

local function drop_seat(id)
  redis.call('ZREM', QUEUE, id)
  if redis.call('EXISTS', QUEUE) == 0 then return redis.call('DEL', WAITERS) end
  local seat = read_seat(id)
  redis.call('HDEL', WAITERS, id)
  -- A count that somebody wrote over is below 0 then, or none: the record stays rather than a live waiter goes.
  if seat and add(WAITERS, '#' .. seat.inbox, -1) == 0 then
    redis.call('HDEL', WAITERS, '#' .. seat.inbox, '@' .. seat.inbox)
  end
end

-- Calls `visit(seat, inbox)` for each live seat from a rank on until it returns true. Seats whose inbox has expired
-- are passed over, and removed if `sweep`. Answers whether it was stopped, and the rank to go on from if the
-- bound was hit (0: the end was reached).
local function walk(rank, sweep, visit)
  local inboxes, looked = {}, 0
  while looked < WALK_BOUND do
    local ids = redis.call('ZRANGE', QUEUE, rank, rank + CHUNK - 1)
    if #ids == 0 then return false, 0 end
    for _, id in ipairs(ids) do
      looked = looked + 1
      local seat = read_seat(id)
      if seat and inboxes[seat.inbox] == nil then inboxes[seat.inbox] = read_inbox(seat.inbox) or false end
      local inbox = seat and inboxes[seat.inbox]
      if inbox and visit(seat, inbox) then return true, 0 end
      if sweep and not inbox then drop_seat(id) else rank = rank + 1 end
    end
  end
  return false, rank
end
