-- Puts an alert of some process into the lock's history: a monitor finds it there and tells people. Idempotent by its id.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id of the note   5 type   6 level   7 task   8 holder id   9 actor   10 message   11 record (JSON) or ''
-- Reply {'noted'}   {'newer', protocol}

if not outcome_of(ARGV[4]) then
  finish(ARGV[4], 'released')
  record('event', 'alert', 'task', ARGV[7], 'token', '0', 'holder', ARGV[8], 'reason', ARGV[5], 'actor', ARGV[9],
    'wait_ms', '0', 'hold_ms', '0', 'level', ARGV[6], 'message', ARGV[10], 'record', ARGV[11])
  count('alerts')
end
return {'noted'}
