-- Takes the seats of the dead out of the queue, and gives a free lock to the first that lives.
--
-- KEYS  see parts/state.lua
-- ARGV  4 actor   5 … ids of waiters whose program has ended
-- Reply {'swept', seats removed, more seats to look at (0/1)}   {'newer', protocol}

local actor, seats = ARGV[4], redis.call('ZCARD', QUEUE)
for i = 5, #ARGV do
  local id = ARGV[i]
  -- Who has the grant is a holder: its end is the reaper's business.
  if not (holder and holder.id == id) and redis.call('ZSCORE', QUEUE, id) then finish(id, 'withdrawn') end
end
local _, rank = walk(0, true, function() return false end)
local removed = seats - redis.call('ZCARD', QUEUE)
if redis.call('EXISTS', QUEUE) == 0 and redis.call('DEL', WAITERS) == 1 and removed == 0 then removed = -1 end

if removed ~= 0 then
  record('event', 'swept', 'task', '', 'token', '0', 'holder', '', 'reason', 'dead_waiters', 'actor', actor,
    'wait_ms', '0', 'hold_ms', '0', 'seats', text(math.max(0, removed)))
  count('sweeps')
end
local more = false
if not value and not holder then
  local _
  _, more = grant(nil)
elseif removed ~= 0 and holder and not foreign then
  tell_next({})   -- one of the dead may have been the one that watched
end
return {'swept', removed, (more or (removed > 0 and rank > 0)) and 1 or 0}
