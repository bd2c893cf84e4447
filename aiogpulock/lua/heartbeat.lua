-- A beat renews the lease of its holder. It never creates a lock.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id   5 token   6 lease, ms   7 ttl of the key, ms   8 the phase from now on: draining, or '' to leave it
-- Reply {'renewed'}   {'missing'}: re-assert   {'other', value}   {'done', outcome}   {'newer', protocol}

local id, token, lease, ttl = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local outcome = outcome_of(id)
if outcome then return {'done', outcome} end
if foreign then return {'other', value} end
if not holder or holder.token < token then return {'missing'} end
if holder.id ~= id or holder.token ~= token then return {'other', value_of(holder)} end
-- Granted: the server came back with data from before the claim; a re-assertion makes it a lease again.
if holder.phase == 'granted' or redis.call('PEXPIRE', LOCK, ttl) == 0 then return {'missing'} end

redis.call('HSET', HOLDER, 'deadline', now + lease)
if (ARGV[8] or '') ~= '' then redis.call('HSET', HOLDER, 'phase', ARGV[8]) end
redis.call('PEXPIRE', HOLDER, ttl + KEEP_RECORD)
redis.call('SET', BEAT, now, 'PX', lease)
return {'renewed'}
