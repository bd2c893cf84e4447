-- Adds a process's counters to the lock's shared ones. Idempotent by the batch's id: a lost reply is repeated.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id of the batch   5 … counter, amount, counter, amount, …
-- Reply {'counted'}   {'newer', protocol}

if not outcome_of(ARGV[4]) then
  finish(ARGV[4], 'released')
  for i = 5, #ARGV, 2 do
    add(STATS, ARGV[i], ARGV[i + 1])
  end
  redis.call('PEXPIRE', STATS, KEEP_UNUSED)
end
return {'counted'}
