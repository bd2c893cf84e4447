-- Goes on with a grant whose walk hit its bound, after a release that has nobody else to do it.
--
-- KEYS  see parts/state.lua
-- ARGV  none of its own
-- Reply {'resumed', more (0/1)}   {'newer', protocol}

reap_expired()
local more = false
if not value and not holder then
  local _
  _, more = grant(nil)
end
return {'resumed', more and 1 or 0}
