-- grant(): the one place that gives the lock away.

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
