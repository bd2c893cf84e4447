-- A live holder restores its lease after the server lost data. Refused if its id is finished, if anybody was
-- granted the lock since (its token is below the fence), or if a holder has a higher token. A holder with a
-- lower one came back with old data: it is displaced and told.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id   5 token   6 lease, ms   7 ttl of the key, ms   8 inbox   9 task   10 process (JSON)
--      11 arrival, us   12 held for, ms
-- Reply {'renewed'}   {'other', value}   {'done', outcome}   {'newer', protocol}

local token = tonumber(ARGV[5])
local me = {id = ARGV[4], inbox = ARGV[8], lease = tonumber(ARGV[6]), ttl = tonumber(ARGV[7]), task = ARGV[9],
  process = ARGV[10], arrival = tonumber(ARGV[11])}

local outcome = outcome_of(me.id)
if outcome then return {'done', outcome} end
if foreign then return {'other', value} end
if fence().token > token then return {'other', value or ''} end

local displaced
if holder and holder.id ~= me.id then
  if holder.token >= token then return {'other', value_of(holder)} end
  displaced = displace()
end

write_holder(me, 'held', token, now + me.lease, fence().dirty)
redis.call('HSET', HOLDER, 'since', now - tonumber(ARGV[12]))
redis.call('SET', BEAT, now, 'PX', me.lease)
redis.call('HSET', FENCE, 'token', token)
redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
if displaced then tell_lost(displaced, 'displaced') end
return {'renewed'}
