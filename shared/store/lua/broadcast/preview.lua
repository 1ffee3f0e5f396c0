-- Counts which users of a bucket a broadcast would reach. Changes nothing.
--
-- KEYS  1 users  2 leases
-- ARGV  1 margin before expiry in s  2 allowed kinds  3 the template whose grants may be leased, or ''
--       4 minimum seconds since a user's last message, or the user is skipped (0: no user is), as in page.lua
--       then either 'all', cursor ('0' to begin), approximate number of users to process; or 'list', openids
-- Reply  the next cursor ('0' at the end, and for a list), numbers of users: reached, without a credential, messaged
--        recently
--- @include head/reach head/recent
assert(#KEYS == 2 and #ARGV >= 6, 'preview: wrong number of arguments')

local margin, kinds, is_recent = tonumber(ARGV[1]), tonumber(ARGV[2]), recently_messaged(KEYS[2], tonumber(ARGV[4]))
local cursor, reached, without, recent = '0', 0, 0, 0
local function look_at(openid, field)
  if not can_take(field, kinds, margin, ARGV[3]) then
    without = without + 1
  elseif is_recent(openid, field) then
    recent = recent + 1
  else
    reached = reached + 1
  end
end
if ARGV[5] == 'all' then
  local page = redis.call('HSCAN', KEYS[1], ARGV[6], 'COUNT', ARGV[7])
  cursor = page[1]
  for i = 1, #page[2], 2 do look_at(page[2][i], page[2][i + 1]) end
else
  for i, field in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, 6))) do look_at(ARGV[i + 5], field or '') end
end
return { cursor, reached, without, recent }
