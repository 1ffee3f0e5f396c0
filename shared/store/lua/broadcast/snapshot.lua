-- Adds the next reachable users of a bucket to the audience, continuing where the last call stopped. It may return to a
-- user that it has seen, so no user is taken out of the audience before the snapshot is complete. A repetition
-- continues with further users.
--
-- KEYS  1 users  2 todo  3 tally  4 excluded
-- ARGV  1 approximate number of users to process  2 margin before expiry in s  3 allowed kinds
--       4 the template whose grants may be leased, or ''  5 seconds the keys are kept
-- Reply  1 when the whole bucket was read
--- @include head/reach head/table
assert(#KEYS == 4 and #ARGV == 5, 'snapshot: wrong number of arguments')

local tally_key, keep = KEYS[3], ARGV[5]
local seen, cursor = unpack(redis.call('HMGET', tally_key, 'seen', 'cursor'))
if seen then return 1 end
if not cursor then make_table(KEYS[1]) end
-- A cursor is valid only in the Redis that issued it: another one, or the same after a restart, may have its users in
-- another order. If the Redis cannot be identified (INFO may be forbidden), it is assumed to be the same.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or 'unknown'
if cursor then cursor = string.match(cursor, '^' .. run .. ' (%d+)$') end
local page = redis.call('HSCAN', KEYS[1], cursor or '0', 'COUNT', ARGV[1])
local entries, found = page[2], {}
local margin, kinds = tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 1, #entries, 2 do
  if can_take(entries[i + 1], kinds, margin, ARGV[4]) then found[#found + 1] = entries[i] end
end
local wanted = found
if #found > 0 and redis.call('EXISTS', KEYS[4]) == 1 then
  wanted = {}
  for i, out in ipairs(redis.call('SMISMEMBER', KEYS[4], unpack(found))) do
    if out == 0 then wanted[#wanted + 1] = found[i] end
  end
end
-- During a rehash, a scan may return a user twice. The set stores each user once.
local added = #wanted > 0 and redis.call('SADD', KEYS[2], unpack(wanted)) or 0
redis.call('HINCRBY', tally_key, 'audience', added)
if page[1] == '0' then
  redis.call('HSET', tally_key, 'seen', '1')
  redis.call('HDEL', tally_key, 'cursor')
else
  redis.call('HSET', tally_key, 'cursor', run .. ' ' .. page[1])
end
redis.call('EXPIRE', tally_key, keep)
redis.call('EXPIRE', KEYS[2], keep)
return page[1] == '0' and 1 or 0
