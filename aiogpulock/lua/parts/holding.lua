-- How a hold begins and ends: take(), end_hold(), the grace after a restart, reap_expired().

local RUN_ID_SIZE = 40

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
