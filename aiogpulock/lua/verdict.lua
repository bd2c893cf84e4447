-- Notes what became of a holder's memory after its release, in the lock's history and counters. Once per holder.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id of the verdict   5 holder id   6 token   7 task   8 status   9 reason
--      10 … further fields of the event: name, value, name, value, …
-- Reply {'noted'}   {'newer', protocol}

if not outcome_of(ARGV[4]) then
  finish(ARGV[4], 'released')
  count('memory_' .. ARGV[8])
  record('event', 'memory', 'task', ARGV[7], 'token', ARGV[6], 'holder', ARGV[5], 'reason', ARGV[9],
    'actor', '', 'wait_ms', '0', 'hold_ms', '0', 'status', ARGV[8], unpack(ARGV, 10))
end
return {'noted'}
