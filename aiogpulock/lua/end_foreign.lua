-- Ends a foreign value that never expires, once it has stood for long enough without a sign of life. Since when it
-- stands is noted in Redis, so that all monitors share the note. It lapses unless each look renews it: whoever did not
-- see the value for some rounds knows nothing of the time between, and the same text may be a live program's by now.
--
-- KEYS  see parts/state.lua
-- ARGV  4 the value as seen   5 ms that it must have stood, or -1: only note it   6 1: its program shows signs of life
--       7 ms until the note lapses   8 reason   9 actor
--       10 id of this call: the same call again, after a lost reply, answers as the first
-- Reply {'noted', ms that it has stood}   {'ended', more (0/1)}   {'changed', value}   {'newer', protocol}

local seen, limit, reason, actor, call = ARGV[4], tonumber(ARGV[5]), ARGV[8], ARGV[9], ARGV[10]
if outcome_of(call) then return {'ended', 1} end
if not foreign or value ~= seen or redis.call('PTTL', LOCK) ~= -1 then return {'changed', value or ''} end

local since = foreign_since()
if since == 0 or ARGV[6] == '1' then since = now end
redis.call('HSET', FENCE, 'foreign', value, 'foreign_since', text(since), 'foreign_until', text(now + ARGV[7]),
  'foreign_token', redis.call('HGET', FENCE, 'token') or '0')
redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
if limit < 0 or now - since < limit then return {'noted', now - since} end

redis.call('DEL', LOCK)
value, foreign = nil, false
forget_foreign()
record('event', 'forced', 'task', seen, 'token', '0', 'holder', '', 'reason', reason, 'actor', actor, 'wait_ms', '0',
  'hold_ms', text(now - since))
finish(call, 'forced')
count('ended_' .. reason)
local _, more = grant(nil)
announce_release(seen, reason)
return {'ended', more and 1 or 0}
