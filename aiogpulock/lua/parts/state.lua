-- The lock as it is. Every script begins with this part; `LAST_PART` in scripts.py tells how many of the others follow.
--
-- KEYS  1 lock  2 holder  3 heartbeat  4 queue  5 waiters  6 done  7 fence  8 events  9 stats
-- ARGV  1 claim window, ms   2 restart grace, ms   3 run id of a server known to have started clean, or ''
--       4 … the script's own
--
-- Times are ms of the server's clock where a name does not say _us. A number becomes text by text() alone: `..`,
-- tostring and cjson keep 14 digits, and two tokens within 100 us would tie.
-- All writes come before any PUBLISH, and every PUBLISH goes through pcall: a write refused after a delivered
-- grant would be a grant that nobody holds. The first write of release, beat and claim is one that Redis
-- accepts when it is out of memory (DEL, PEXPIRE).

local LOCK, HOLDER, BEAT, QUEUE, WAITERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local DONE, FENCE, EVENTS, STATS = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local CLAIM_WINDOW, RESTART_GRACE, CLEAN_RUN = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local PROTOCOL = 1
local KEEP_UNUSED = 30 * 24 * 3600 * 1000   -- what an unused lock leaves behind
local KEEP_RECORD = 3600 * 1000             -- a holder record outlives its key, so that a crash is still seen
local OUTCOMES = {'released', 'withdrawn', 'reaped', 'forced', 'forced_by_monitor'}

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function value_of(record)
  return 'locked_by_' .. record.task .. ':' .. record.id
end

-- A number as our scripts write it. tonumber alone also takes inf, nan and 1e300: a script that counts with one of
-- those stops half-way.
local function whole(field, otherwise)
  local number = tonumber(field)
  return number and number >= 0 and number < 2 ^ 53 and number or otherwise
end

-- Through pcall: a counter that somebody wrote over (nil then) stops no script half-way. A server out of memory does,
-- at the first write: behind an expiry, which needs no memory, it would let the rest through.
local function add(key, counter, amount)
  local reply = redis.pcall('HINCRBY', key, counter, amount)
  if type(reply) == 'number' then return reply end
  if string.find(reply.err, '^OOM') then error(reply) end
end

local function read_holder()
  local f = redis.call('HMGET', HOLDER, 'id', 'v', 'token', 'deadline', 'phase', 'task', 'inbox', 'process',
    'arrival', 'since', 'dirty')
  if not f[1] then return nil end
  return {
    id = f[1], v = whole(f[2], 0), token = whole(f[3], 0), deadline = whole(f[4], 0),
    phase = f[5] or '', task = f[6] or '', inbox = f[7] or '', process = f[8] or '',
    arrival = whole(f[9], 0), since = whole(f[10], now), dirty = f[11] or '',
  }
end

local holder = read_holder()
local value = redis.call('GET', LOCK)
-- A value that matches no holder record was set by an older program; a record beside it is a leftover.
local foreign = value and not (holder and value == value_of(holder))

if holder and holder.v > PROTOCOL then
  return {'newer', holder.v}
end

local fence_read
local function fence()
  if not fence_read then
    local f = redis.call('HMGET', FENCE, 'token', 'arrival', 'run', 'since', 'dirty', 'cursor', 'quarantine', 'watcher')
    fence_read = {
      token = whole(f[1], 0), arrival = whole(f[2], 0), run = f[3], since = whole(f[4], 0),
      dirty = f[5] or '', cursor = whole(f[6], 0), quarantine = f[7] or '',
      watcher = f[8],
    }
  end
  return fence_read
end

-- Since when monitors have known this foreign value to stand without expiry: 0 if none has noted it, or none of late, or
-- if a lease of ours came between: then it may be, or is, another value of the same text.
local function foreign_since()
  if not foreign then return 0 end
  local f = redis.call('HMGET', FENCE, 'foreign', 'foreign_since', 'foreign_token', 'token', 'foreign_until')
  if f[1] ~= value or f[3] ~= (f[4] or '0') or whole(f[5], 0) < now then return 0 end
  return whole(f[2], 0)
end

-- Through pcall: whoever only looks may have no right to write, or the server takes no writes.
local function forget_foreign()
  redis.pcall('HDEL', FENCE, 'foreign', 'foreign_since', 'foreign_until', 'foreign_token')
end

-- A finished id stays finished, so no delayed or repeated call can bring a lock back.
local function outcome_of(id)
  local score = redis.call('ZSCORE', DONE, id)
  return score and OUTCOMES[tonumber(score) % 8]
end
