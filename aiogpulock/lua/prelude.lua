-- The state of one lock, and grant(): the one place that gives the lock away. Put in front of every script.
--
-- KEYS  1 lock  2 holder  3 heartbeat  4 queue  5 waiters  6 done  7 fence  8 events  9 stats
-- ARGV  1 claim window, ms   2 restart grace, ms   3 run id of a server known to have started clean, or ''
--       4 … the script's own
--
-- Times are ms of the server's clock where a name does not say _us. A number becomes text by text() alone: `..`,
-- tostring and cjson keep 14 digits, and two tokens within 100 us would tie.
-- All writes come before any PUBLISH, and every PUBLISH goes through pcall: a write refused after a delivered
-- grant would be a grant that nobody holds. The first write of release, beat and claim is one that Redis
-- accepts when it is out of memory (DEL, PEXPIRE).

local LOCK, HOLDER, BEAT, QUEUE, WAITERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local DONE, FENCE, EVENTS, STATS = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local CLAIM_WINDOW, RESTART_GRACE, CLEAN_RUN = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local PROTOCOL = 1
local KEEP_UNUSED = 30 * 24 * 3600 * 1000   -- what an unused lock leaves behind
local KEEP_RECORD = 3600 * 1000             -- a holder record outlives its key, so that a crash is still seen
local KEEP_DONE, DONE_ENTRIES = 120 * 1000, 20000
local EVENT_ENTRIES = 1000
local POLL_SLACK = 2000                     -- how late a polling waiter may be for its own check
local RUN_ID_SIZE = 40
local WALK_BOUND, CHUNK = 500, 16           -- seats looked at per call, and per read
local OUTCOMES = {'released', 'withdrawn', 'reaped', 'forced', 'forced_by_monitor'}
local OUTCOME_CODE = {released = 1, withdrawn = 2, reaped = 3, forced = 4, forced_by_monitor = 5}

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function value_of(record)
  return 'locked_by_' .. record.task .. ':' .. record.id
end

-- the lock as it is ------------------------------------------------------------------------------------------

-- A number as our scripts write it. tonumber alone also takes inf, nan and 1e300: a script that counts with one of
-- those stops half-way.
local function whole(field, otherwise)
  local number = tonumber(field)
  return number and number >= 0 and number < 2 ^ 53 and number or otherwise
end

-- Through pcall: a counter that somebody wrote over (nil then) stops no script half-way. A server out of memory does,
-- at the first write: behind an expiry, which needs no memory, it would let the rest through.
local function add(key, counter, amount)
  local reply = redis.pcall('HINCRBY', key, counter, amount)
  if type(reply) == 'number' then return reply end
  if string.find(reply.err, '^OOM') then error(reply) end
end

local function read_holder()
  local f = redis.call('HMGET', HOLDER, 'id', 'v', 'token', 'deadline', 'phase', 'task', 'inbox', 'process',
    'arrival', 'since', 'dirty')
  if not f[1] then return nil end
  return {
    id = f[1], v = whole(f[2], 0), token = whole(f[3], 0), deadline = whole(f[4], 0),
    phase = f[5] or '', task = f[6] or '', inbox = f[7] or '', process = f[8] or '',
    arrival = whole(f[9], 0), since = whole(f[10], now), dirty = f[11] or '',
  }
end

local holder = read_holder()
local value = redis.call('GET', LOCK)
-- A value that matches no holder record was set by an older program; a record beside it is a leftover.
local foreign = value and not (holder and value == value_of(holder))

if holder and holder.v > PROTOCOL then
  return {'newer', holder.v}
end

local fence_read
local function fence()
  if not fence_read then
    local f = redis.call('HMGET', FENCE, 'token', 'arrival', 'run', 'since', 'dirty', 'cursor', 'quarantine', 'watcher')
    fence_read = {
      token = whole(f[1], 0), arrival = whole(f[2], 0), run = f[3], since = whole(f[4], 0),
      dirty = f[5] or '', cursor = whole(f[6], 0), quarantine = f[7] or '',
      watcher = f[8],
    }
  end
  return fence_read
end

-- Since when monitors have known this foreign value to stand without expiry: 0 if none has noted it, or none of late, or
-- if a lease of ours came between: then it may be, or is, another value of the same text.
local function foreign_since()
  if not foreign then return 0 end
  local f = redis.call('HMGET', FENCE, 'foreign', 'foreign_since', 'foreign_token', 'token', 'foreign_until')
  if f[1] ~= value or f[3] ~= (f[4] or '0') or whole(f[5], 0) < now then return 0 end
  return whole(f[2], 0)
end

-- Through pcall: whoever only looks may have no right to write, or the server takes no writes.
local function forget_foreign()
  redis.pcall('HDEL', FENCE, 'foreign', 'foreign_since', 'foreign_until', 'foreign_token')
end

-- seats: the queue's entries ----------------------------------------------------------------------------------
-- waiters: id -> 'inbox lease ttl arrival task';  '@' .. inbox -> 'mode next_check expires deaf process', and
-- '#' .. inbox -> its seats, of which the last takes both with it

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

-- outcomes: a finished id stays finished, so no delayed or repeated call can bring a lock back ----------------

local function outcome_of(id)
  local score = redis.call('ZSCORE', DONE, id)
  return score and OUTCOMES[tonumber(score) % 8]
end

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

-- holding and ending -------------------------------------------------------------------------------------------

local function write_holder(w, phase, token, deadline, dirty)
  local ttl = math.max(w.ttl, deadline - now)
  value = value_of(w)
  redis.call('SET', LOCK, value, 'PX', ttl)
  redis.call('HSET', HOLDER, 'id', w.id, 'v', PROTOCOL, 'token', token, 'deadline', deadline, 'lease', w.lease,
    'phase', phase, 'task', w.task, 'inbox', w.inbox, 'process', w.process, 'arrival', w.arrival, 'since', now,
    'dirty', dirty)
  redis.call('PEXPIRE', HOLDER, ttl + KEEP_RECORD)
  w.v, w.token, w.deadline, w.phase, w.since, w.dirty = PROTOCOL, token, deadline, phase, now, dirty
  holder, foreign = w, false
end

-- `phase` held: the lease; granted: a claim window only.
local function take(w, phase, deadline)
  local f = fence()
  f.token = math.max(f.token + 1, now_us)
  write_holder(w, phase, f.token, deadline, f.dirty)
  redis.call('HSET', FENCE, 'token', f.token)
  redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
  -- A walk that nobody went on with, since its caller died, is over: it would hide those who came later.
  if f.cursor > 0 then redis.call('HSET', FENCE, 'cursor', 0) end
  if phase == 'held' then
    redis.call('SET', BEAT, now, 'PX', w.lease)
    count('acquisitions')
  end
end

local function clear_lock()
  if foreign then
    redis.call('DEL', HOLDER, BEAT)
  else
    redis.call('DEL', LOCK, HOLDER, BEAT)
    value = nil
  end
  holder = nil
end

-- The holder's id is finished. The fence moves past its token, so that it can never be re-asserted.
local function end_hold(outcome, reason, actor)
  local h, f = holder, fence()
  clear_lock()
  finish(h.id, reason == 'forced_by_monitor' and reason or outcome)   -- the holder may learn it from here alone
  f.token = math.max(f.token, h.token + 1)
  if outcome == 'released' then
    f.dirty = ''
  elseif h.phase ~= 'granted' and outcome ~= 'withdrawn' then
    f.dirty = '1'   -- its programs may still compute: the next holder checks the GPU before it starts
  end
  redis.call('HSET', FENCE, 'token', f.token, 'dirty', f.dirty)
  redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
  if outcome == 'reaped' or outcome == 'forced' then count('ended_' .. reason) end
  if h.phase ~= 'granted' then
    local wait, hold = text(math.max(0, h.since - math.floor(h.arrival / 1000))), text(math.max(0, now - h.since))
    add(STATS, 'wait_ms', wait)
    add(STATS, 'hold_ms', hold)
    count('holds')
    record('event', outcome, 'task', h.task, 'token', text(h.token), 'holder', h.id, 'reason', reason,
      'actor', actor or '', 'wait_ms', wait, 'hold_ms', hold)
  end
end

-- The waiter keeps its seat: it may be frozen, not dead. Its inbox is deaf until one of its waiters calls.
local function end_unclaimed()
  local h = holder
  clear_lock()
  local inbox = read_inbox(h.inbox)
  if inbox then
    inbox.deaf = true
    write_inbox(h.inbox, inbox)
  end
end

-- The server came back with old data: whoever stands there ended before the caller was granted the lock. A waiter that
-- had a grant then waits on. Answers whom to tell.
local function displace()
  local old = holder
  if old.phase == 'granted' then
    end_unclaimed()
    return nil
  end
  end_hold('forced', 'displaced')
  return old
end

-- ms until new grants are allowed. After a restart or failover that lost data the holders must have had the
-- time to re-assert; a client that started later knows nothing of it, so only the script can enforce this.
local grace_left
local function restart_grace_left()
  if grace_left then return grace_left end
  local info = redis.pcall('INFO', 'server')
  local _, at = string.find(type(info) == 'string' and info or '', 'run_id:', 1, true)
  if not at then return 0 end
  local run = info:sub(at + 1, at + RUN_ID_SIZE)
  local f = fence()
  if f.run ~= run then
    -- The difference of two clocks cut to seconds: up to 1 s more than the server has been up.
    local up = math.max(0, (tonumber(info:match('uptime_in_seconds:(%d+)')) or 0) - 1) * 1000
    f.run, f.since = run, run == CLEAN_RUN and 0 or f.run and now or now - up
    redis.call('HSET', FENCE, 'run', run, 'since', f.since)
    redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
  end
  grace_left = math.max(0, f.since + RESTART_GRACE - now)
  return grace_left
end

-- Only the stored deadline counts, never the settings of whoever looks. After a restart that of a lease may be an old
-- one: its holder has the grace to renew it. A grant has none: somebody else may have had the lock since.
local function reap_expired()
  if not holder or foreign or holder.deadline > now then return end
  if holder.phase == 'granted' then
    end_unclaimed()
  elseif restart_grace_left() == 0 then
    end_hold('reaped', 'lease_expired')
  end
end

-- messages: hints, never orders --------------------------------------------------------------------------------

-- Answers how many received it; 0 also when this user may not publish.
local function tell(inbox, message)
  local receivers = redis.pcall('PUBLISH', inbox, message)
  return type(receivers) == 'number' and receivers or 0
end

-- A user without this permission learns it by its own ping.
local function has_receiver(inbox)
  return redis.pcall('PUBSUB', 'NUMSUB', inbox)[2] ~= 0
end

local function tell_lost(h, reason)
  return tell(h.inbox, string.format('{"type":"lost","lock":"%s","id":"%s","token":%.0f,"reason":"%s"}', LOCK, h.id, h.token, reason))
end

-- The public channel of each lock, for programs that know nothing of queues.
local function announce_release(task, reason)
  tell(LOCK:match('^([^:]+):') .. ':' .. LOCK, string.format(
    '{"event_type":"lock_released","lock_key":"%s","task_name":%s,"release_reason":"%s","timestamp":%.3f}',
    LOCK, cjson.encode(task), reason, now_us / 1000000))
end

-- grant --------------------------------------------------------------------------------------------------------

-- Where one sees the other end: in another namespace of the same host pids mean nothing.
local function host_of(process)
  return process:match('"boot":"[^"]+","pidns":%d+,"timens":%d+')
end

-- A waiter beside the holder is told until when to watch: an expiry or a crash announces itself to nobody. The holder's own
-- program would die with it, and another host cannot see it die: so the first of another program is told, and if that one
-- is elsewhere the first on the holder's host too, among the first CHUNK. Who was found there behind many is asked before
-- all those are searched again.
local function tell_next(unreachable)
  local function watches(name, inbox)
    if not inbox or inbox.mode ~= 'push' or inbox.deaf or unreachable[name] then return false end
    unreachable[name] = tell(name, string.format(
      '{"type":"watch","lock":"%s","holder":"%s","deadline_in":%.0f,"process":%s}', LOCK, holder.id,
      math.max(0, holder.deadline - now), holder.process ~= '' and holder.process or 'null')) == 0
    return not unreachable[name]
  end
  local host = host_of(holder.process)
  local function of_another(name, inbox)   -- a program may have two inboxes
    return name ~= holder.inbox and not (host and inbox and inbox.process == holder.process)
  end
  local own, known = whole(redis.call('HGET', WAITERS, '#' .. holder.inbox), 0), fence().watcher
  local passed, told, mate = 0, false, nil
  if redis.call('ZCARD', QUEUE) ~= own then   -- more; fewer where somebody wrote over the count
    walk(0, false, function(seat, inbox)
      passed = passed + 1
      if passed == CHUNK + 1 and not told and known then
        local record = read_inbox(known)
        told = of_another(known, record) and watches(known, record)
      end
      if passed > CHUNK and told then return true end
      if not of_another(seat.inbox, inbox) then
        if seat.inbox ~= holder.inbox then mate = mate or seat.inbox end
        return false
      end
      local here = host_of(inbox.process) == host
      if told and not here or not watches(seat.inbox, inbox) then return false end
      if here and passed > CHUNK then redis.pcall('HSET', FENCE, 'watcher', seat.inbox) end
      told = true
      return here
    end)
    told = told or mate and watches(mate, read_inbox(mate))
  end
  local seated = holder.phase == 'granted' and 1 or 0   -- by the holder itself, until its claim
  if not told and own > seated then watches(holder.inbox, read_inbox(holder.inbox)) end
end

-- Gives the free lock to the first waiter that can take it: `caller` (an acquire's id) in the reply, a polling
-- waiter by a reservation until its next check, another by a message. Answers the ms until grants are allowed
-- (0: now), and whether the walk hit its bound: then the caller calls again.
local function grant(caller)
  if redis.call('EXISTS', QUEUE) == 0 then return 0, false end   -- whoever comes next asks for the grace itself
  local wait = restart_grace_left()
  if wait > 0 then return wait, false end
  local start, unreachable, undelivered = fence().cursor, {}, false

  local function offer(seat, inbox)
    seat.process = inbox.process
    if seat.id == caller then
      drop_seat(seat.id)
      take(seat, 'held', now + seat.lease)
      return true
    end
    if inbox.mode == 'poll' then
      if inbox.next_check + POLL_SLACK <= now then return false end
      take(seat, 'granted', inbox.next_check + POLL_SLACK)
      return true
    end
    if inbox.deaf or unreachable[seat.inbox] then return false end
    take(seat, 'granted', now + CLAIM_WINDOW)
    undelivered = tell(seat.inbox, string.format('{"type":"grant","lock":"%s","id":"%s","token":%.0f}', LOCK, seat.id,
      holder.token)) == 0
    unreachable[seat.inbox] = undelivered   -- not reachable now: its seat stays
    return not undelivered
  end

  if start > 0 then
    redis.call('HSET', FENCE, 'cursor', 0)
    -- Everybody before the cursor was found unable to take the lock; the caller has just shown that it can.
    local rank = caller and redis.call('ZRANK', QUEUE, caller)
    if rank then start = math.min(start, rank) end
  end
  local granted, cursor = walk(start, true, offer)
  if granted then
    tell_next(unreachable)
  else
    if undelivered then clear_lock() end
    if cursor > 0 then redis.call('HSET', FENCE, 'cursor', cursor) end
  end
  return 0, cursor > 0
end
