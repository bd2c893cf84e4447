-- Ends exactly the holder that the caller saw: a dead one (reap) or a live one (force). The grant follows in the
-- same script, from the head: whoever reaps does not jump the queue.
--
-- KEYS  see prelude.lua
-- ARGV  4 the value as seen   5 outcome: reaped or forced   6 reason   7 actor
--       8 id of this call, or '': the same call again, after a lost reply, answers as the first
-- Reply {'ended', more (0/1)}   {'changed', value}   {'newer', protocol}

local seen, outcome, reason, actor, call = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
if call ~= '' and outcome_of(call) then return {'ended', 1} end
local current = value or (holder and value_of(holder))
if not current or current ~= seen then return {'changed', current or ''} end

local ended = not foreign and holder or nil
if not ended then
  redis.call('DEL', LOCK)
  value, foreign = nil, false
  record('event', outcome, 'task', seen, 'token', '0', 'holder', '', 'reason', reason, 'actor', actor, 'wait_ms', '0', 'hold_ms', '0')
else
  local unclaimed = ended.phase == 'granted'
  end_hold(outcome, reason, actor)
  if unclaimed then
    drop_seat(ended.id)
    record('event', outcome, 'task', ended.task, 'token', text(ended.token), 'holder', ended.id, 'reason', reason, 'actor', actor, 'wait_ms', '0', 'hold_ms', '0')
  end
end
if call ~= '' then finish(call, outcome) end
count('ended_' .. reason)
local _, more = grant(nil)
if ended and outcome == 'forced' then tell_lost(ended, reason) end
announce_release(ended and ended.task or seen, reason)
return {'ended', more and 1 or 0}
