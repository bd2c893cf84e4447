-- Ends a quarantine: exactly the one that the caller saw, whoever it is: a holder that looked again, or an operator.
--
-- KEYS  see prelude.lua
-- ARGV  4 the quarantine as seen (JSON)   5 why   6 actor
-- Reply {'lifted'}   {'changed', the quarantine now, or ''}   {'newer', protocol}

local current = fence().quarantine
if current == '' or current ~= ARGV[4] then return {'changed', current} end

redis.call('HDEL', FENCE, 'quarantine')
record('event', 'lifted', 'task', '', 'token', '0', 'holder', '', 'reason', ARGV[5], 'actor', ARGV[6],
  'wait_ms', '0', 'hold_ms', '0')
count('quarantines_lifted')
return {'lifted'}
