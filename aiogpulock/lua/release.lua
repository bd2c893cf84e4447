-- Release and hand-off in one round trip: compare, delete, record, bump the fence, grant, publish.
--
-- KEYS  see parts/state.lua
-- ARGV  4 id   5 token   6 reason   7 why the GPU is quarantined from now on (JSON), or ''   8 '1': nobody has looked
--       at the GPU since it may have been left in use, so the next holder does
-- Reply {'released', more (0/1)}   {'done', outcome}   {'other', value}   {'newer', protocol}

local id, token, reason = ARGV[4], tonumber(ARGV[5]), ARGV[6]

local outcome = outcome_of(id)
if outcome then return {'done', outcome} end

local ours = holder and not foreign and holder.id == id and holder.token == token
-- The server lost its data or came back with old data, and nobody was granted since: the hold ends here without
-- having been re-asserted.
local forgotten = not foreign and fence().token <= token and (not holder or holder.token < token)

if not ours and not forgotten then
  -- An older program set its value over ours: our record must not hold the lock when that value is gone.
  if foreign and holder and holder.id == id then redis.call('DEL', HOLDER, BEAT) end
  return {'other', value or (holder and value_of(holder)) or ''}
end

local task = ours and holder.task or ''
local displaced
if ours then
  end_hold('released', reason)
else
  if holder then displaced = displace() end
  finish(id, 'released')
  redis.call('HSET', FENCE, 'token', token + 1)
  redis.call('PEXPIRE', FENCE, KEEP_UNUSED)
  fence().token = token + 1
end
if (ARGV[7] or '') ~= '' then   -- one line for each device: hosts may share a lock by its index
  local device, lines = ARGV[7]:match('"uuid":"[^"]*"') or ARGV[7], {}
  for line in fence().quarantine:gmatch('[^\n]+') do
    if not line:find(device, 1, true) then lines[#lines + 1] = line end
  end
  lines[#lines + 1] = ARGV[7]
  fence().quarantine = table.concat(lines, '\n')
  redis.call('HSET', FENCE, 'quarantine', fence().quarantine)
  count('quarantines')
end
if ARGV[8] == '1' then   -- before the grant, which tells it on
  fence().dirty = '1'
  redis.call('HSET', FENCE, 'dirty', '1')
end
local _, more = grant(nil)
if displaced then tell_lost(displaced, 'displaced') end
announce_release(task, reason)
return {'released', more and 1 or 0}
