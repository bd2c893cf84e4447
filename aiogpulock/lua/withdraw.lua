-- A waiter leaves the queue; what it was granted meanwhile is handed on. Final for its id, also when the
-- acquire that it follows is still under way and arrives later.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id   5 reason: timeout, cancelled, …
--       6 inbox: withdraw only what belongs to it, since a message that anybody may have sent named the id; or ''
-- Reply {'withdrawn', was granted (0/1), more (0/1)}   {'done', outcome}   {'other'}   {'newer', protocol}

local id, reason = ARGV[4], ARGV[5]

local outcome = outcome_of(id)
if outcome then return {'done', outcome} end

local granted = holder and not foreign and holder.id == id
if ARGV[6] ~= '' then
  local owner = granted and holder or read_seat(id)
  if not owner or owner.inbox ~= ARGV[6] then return {'other'} end
end

local seated = redis.call('ZREM', QUEUE, id) == 1
drop_seat(id)
finish(id, 'withdrawn')
-- An older program set its value over the grant: the record must not hold the lock when that value is gone.
if foreign and holder and holder.id == id then redis.call('DEL', HOLDER, BEAT) end
if reason == 'timeout' then count('timeouts') end

local more = false
if granted then
  local task = holder.task
  end_hold('withdrawn', reason)
  local _
  _, more = grant(nil)
  announce_release(task, reason)
elseif seated and holder and not foreign then
  tell_next({})   -- it may have been the one that watched
end
return {'withdrawn', granted and 1 or 0, more and 1 or 0}
