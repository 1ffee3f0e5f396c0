-- Adds users of one bucket to the recipient list of a broadcast, and to its excluded users. Repeating the call changes
-- nothing. A repetition after sending has begun is rejected, because it would add users again whose message was sent
-- already.
--
-- KEYS  1 todo  2 tally  3 data  4 excluded
-- ARGV  1 seconds the keys are kept  2 number of excluded users, then these, then for each recipient: openid, data or
--       ''
-- Reply  number of users added to the audience (-1: too late, none was added), number of recipients that are excluded
assert(#KEYS == 4 and #ARGV >= 2, 'recipients: wrong number of arguments')

local todo, excluded, keep = KEYS[1], KEYS[4], ARGV[1]
if redis.call('HEXISTS', KEYS[2], 'begun') == 1 then return { -1, 0 } end
local last, change = 2 + tonumber(ARGV[2]), 0
for i = 3, last do
  redis.call('SADD', excluded, ARGV[i])
  change = change - redis.call('SREM', todo, ARGV[i])
end
local added, left_out = 0, 0
for i = last + 1, #ARGV, 2 do
  local openid, own = ARGV[i], ARGV[i + 1]
  if redis.call('SISMEMBER', excluded, openid) == 1 then
    left_out = left_out + 1
  else
    added = added + redis.call('SADD', todo, openid)
    if own ~= '' then redis.call('HSET', KEYS[3], openid, own) end
  end
end
redis.call('HINCRBY', KEYS[2], 'audience', added + change)
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], keep) end
return { added, left_out }
