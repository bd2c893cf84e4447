-- Enqueue, poll and claim are one call: a waiter asks for the lock until it is told 'held'.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id                                5 token of the grant to claim, or 0 for whatever there is
--       6 inbox   7 mode: push or poll      8 ms until this inbox's next check   9 ms until its seats expire
--      10 lease, ms   11 ttl of the key, ms
--      12 original arrival, us (0: new)    13 priority, higher first            14 most waiters (-1: no bound)
--      15 1: may wait, 0: try once         16 task    17 process (JSON)
-- Reply {'held', token, dirty, wait_ms, what is quarantined (lines of JSON) or ''}
--       {'waiting', position (from 1), arrival_us, enqueued now (0/1), ms until a re-check pays (-1: unknown),
--                   value, holder id, holder phase, holder process, inbox has a receiver (0/1), more (0/1), waiters}
--       {'busy' | 'full', waiters (full: alive), value}   {'stale'}   {'done', outcome}   {'newer', protocol}

local PRIORITY_STEP_US = 60 * 1000000   -- a priority overtakes by a bounded time only
local LOOK_EVERY = 1000                 -- at who is absent from a full queue

local id, hint, may_wait = ARGV[4], tonumber(ARGV[5]), ARGV[15] == '1'
local me = {id = id, inbox = ARGV[6], lease = tonumber(ARGV[10]), ttl = tonumber(ARGV[11]),
  arrival = tonumber(ARGV[12]), task = ARGV[16], process = ARGV[17]}
local expires_in = tonumber(ARGV[9])

local outcome = outcome_of(id)
if outcome then return {'done', outcome} end

-- Its own lease is not reaped here: the reply that gave it was lost, so no body ran under it, and an ended id would
-- be given the lock again.
if not (holder and holder.id == id and holder.phase ~= 'granted') then reap_expired() end

local function held()
  return {'held', holder.token, holder.dirty, math.max(0, holder.since - math.floor(holder.arrival / 1000)),
    fence().quarantine}
end

-- The claim. A repeated one renews the deadline, since its sender counts its lease from this call.
if holder and holder.id == id and not foreign then
  -- The message that carried the hint may be forged, or older than this grant.
  if hint ~= 0 and hint ~= holder.token then return {'stale'} end
  if redis.call('PEXPIRE', LOCK, me.ttl) == 0 then redis.call('SET', LOCK, value_of(holder), 'PX', me.ttl) end
  if holder.phase == 'granted' then
    holder.phase, holder.since = 'held', now
    drop_seat(id)
    count('acquisitions')
  end
  redis.call('HSET', HOLDER, 'phase', holder.phase, 'since', holder.since, 'deadline', now + me.lease)
  redis.call('PEXPIRE', HOLDER, me.ttl + KEEP_RECORD)
  redis.call('SET', BEAT, now, 'PX', me.lease)
  return held()
end

local free = not value and not holder
local waiters = redis.call('ZCARD', QUEUE)

if free and waiters == 0 and restart_grace_left() == 0 then
  if me.arrival == 0 then
    me.arrival = now_us
    count('attempts')
  end
  take(me, 'held', now + me.lease)
  return held()
end

if not may_wait then
  count('attempts')
  local wait, more = free and restart_grace_left() or 0, false
  if free and wait == 0 then wait, more = grant(nil) end
  if holder or value or wait > 0 or more then
    return {'busy', waiters, value or (holder and value_of(holder)) or ''}
  end
  me.arrival = now_us
  take(me, 'held', now + me.lease)
  return held()
end

local function enqueue()
  local f = fence()
  if me.arrival == 0 then
    me.arrival = math.max(f.arrival + 1, now_us)
    count('attempts')
  end
  redis.call('HSET', WAITERS, id, table.concat({me.inbox, me.lease, me.ttl, text(me.arrival), me.task}, ' '))
  add(WAITERS, '#' .. me.inbox, 1)
  redis.call('ZADD', QUEUE, me.arrival - tonumber(ARGV[13]) * PRIORITY_STEP_US, id)
  if me.arrival > f.arrival then
    f.arrival = me.arrival
    redis.call('HSET', FENCE, 'arrival', me.arrival)
    redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
  end
end

-- Every call of a waiter shows that its inbox is alive.
local function refresh_inbox()
  write_inbox(me.inbox, {mode = ARGV[7], next_check = now + tonumber(ARGV[8]), expires = now + expires_in,
    deaf = false, process = me.process})
  local keep = math.max(KEEP_RECORD, 2 * expires_in)
  redis.call('PEXPIRE', QUEUE, keep)
  redis.call('PEXPIRE', WAITERS, keep)
end

local function waiting(enqueued, wait, more)
  local position = redis.call('ZRANK', QUEUE, id) + 1
  local recheck_in = wait > 0 and wait or -1
  if foreign then
    recheck_in = redis.call('PTTL', LOCK)
  elseif holder then
    recheck_in = math.max(0, holder.deadline - now)
    -- A release within the restart grace grants to nobody, and a deadline that comes within it ends nothing: those who
    -- would be next look when it is over.
    local grace = restart_grace_left()
    if grace > 0 and (recheck_in == 0 or recheck_in > grace) then recheck_in = grace end
  end
  local current = holder and not foreign and holder or {id = '', phase = '', process = ''}
  return {'waiting', position, me.arrival, enqueued, recheck_in,
    value or (holder and value_of(holder)) or '', current.id, current.phase, current.process,
    (ARGV[7] ~= 'push' or has_receiver(me.inbox)) and 1 or 0, more and 1 or 0, redis.call('ZCARD', QUEUE)}
end

-- Nobody looks at the seats while the lock is held, and those of a killed program stand for a while. They do not count
-- if nobody listens there, and go once they have expired. For a second most calls are refused by the last look's
-- figure; nobody is let in by it. Of a long queue each looks at another part.
local function full(most)
  if most < 0 or waiters < most then return false end
  local looked = redis.call('HMGET', FENCE, 'looked', 'absent')
  local absent = whole(looked[2], 0)
  if math.abs(now - whole(looked[1], 0)) >= LOOK_EVERY or waiters - absent < most then
    local parts, is_absent = math.max(1, math.ceil(waiters / WALK_BOUND)), {}
    absent = 0
    -- A grant that goes on from a rank must find it there.
    walk(now_us % parts * WALK_BOUND, fence().cursor == 0, function(seat, inbox)
      if is_absent[seat.inbox] == nil then
        is_absent[seat.inbox] = inbox.mode == 'poll' and inbox.next_check + POLL_SLACK <= now
          or inbox.mode == 'push' and not has_receiver(seat.inbox)
      end
      if is_absent[seat.inbox] then absent = absent + 1 end
      return false
    end)
    redis.call('HSET', FENCE, 'looked', now, 'absent', absent)
    redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
  end
  waiters = redis.call('ZCARD', QUEUE) - absent
  return waiters >= most
end

local enqueued = 0
local seat = read_seat(id)
-- In another inbox the walk takes it for dead, though its waiter calls.
local seated = seat and seat.inbox == me.inbox and redis.call('ZSCORE', QUEUE, id)
if not seated then
  if me.arrival == 0 and full(tonumber(ARGV[14])) then
    count('attempts')
    return {'full', waiters, value or ''}
  end
  if seat then drop_seat(id) end
  enqueue()
  enqueued = 1
elseif me.arrival == 0 then
  me.arrival = seat.arrival   -- the reply of the first call was lost
end
refresh_inbox()

local wait, more = 0, false
if free then wait, more = grant(id) end
if holder and holder.id == id and holder.phase == 'held' then return held() end
return waiting(enqueued, wait, more)
