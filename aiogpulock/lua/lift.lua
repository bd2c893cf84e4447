-- Ends a quarantine: exactly the one that the caller saw, whoever it is: a holder that looked again, or an operator.
--
-- KEYS  see parts/state.lua
-- ARGV  4 the quarantine as seen (JSON, one line)   5 why   6 actor
-- Reply {'lifted'}   {'changed', what is quarantined now (lines of JSON), or ''}   {'newer', protocol}

local seen, rest = false, {}
for line in fence().quarantine:gmatch('[^\n]+') do
  if line == ARGV[4] then seen = true else rest[#rest + 1] = line end
end
if not seen then return {'changed', fence().quarantine} end

if rest[1] then
  redis.call('HSET', FENCE, 'quarantine', table.concat(rest, '\n'))
else
  redis.call('HDEL', FENCE, 'quarantine')
end
record('event', 'lifted', 'task', '', 'token', '0', 'holder', '', 'reason', ARGV[5], 'actor', ARGV[6],
  'wait_ms', '0', 'hold_ms', '0')
count('quarantines_lifted')
return {'lifted'}
