-- Messages: hints, never orders.

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
