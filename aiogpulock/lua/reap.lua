-- Ends exactly the holder that the caller saw: a dead one (reap) or a live one (force). The grant follows in the
-- same script, from the head: whoever reaps does not jump the queue.
--
-- KEYS  see parts/state.lua
-- ARGV  4 the value as seen   5 outcome: reaped or forced   6 reason   7 actor
--       8 id of this call, or '': the same call again, after a lost reply, answers as the first
-- Reply {'ended', more (0/1)}   {'changed', value}   {'newer', protocol}

local seen, outcome, reason, actor, call = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
if call ~= '' and outcome_of(call) then return {'ended', 1} end
local current = value or (holder and value_of(holder))
if not current or current ~= seen then return {'changed', current or ''} end

local ended = not foreign and holder or nil
local unclaimed = ended and ended.phase == 'granted'
local expired = reason == 'lease_expired'
-- It beat since it was seen, or the server restarted with old data and its holder has the grace to renew it.
if expired and (not ended or ended.deadline > now or (not unclaimed and restart_grace_left() > 0)) then
  return {'changed', current}
end

local function record_end(task, token, id)
  record('event', outcome, 'task', task, 'token', token, 'holder', id, 'reason', reason, 'actor', actor,
    'wait_ms', '0', 'hold_ms', '0')
end

if not ended then
  redis.call('DEL', LOCK)
  value, foreign = nil, false
  count('ended_' .. reason)
  record_end(seen, '0', '')
elseif unclaimed then
  -- Who let its claim window pass may be frozen and keeps its seat; who is dead or was taken out loses it.
  if expired then
    end_unclaimed()
    count('ended_' .. reason)
  else
    end_hold(outcome, reason, actor)
    drop_seat(ended.id)
  end
  record_end(ended.task, text(ended.token), ended.id)
else
  end_hold(outcome, reason, actor)
end
if call ~= '' then finish(call, outcome) end
local _, more = grant(nil)
-- An expired holder may be alive: the server's clock jumped, or its beats did not arrive.
if ended and (outcome == 'forced' or (expired and not unclaimed)) then tell_lost(ended, reason) end
announce_release(ended and ended.task or seen, reason)
return {'ended', more and 1 or 0}
