-- Sets the numbers of a day to what WeChat reported. WeChat's number includes all messages that had ended before the
-- query. It may also include some messages with open permits (see permit.lua) and some that were sent since, so all of
-- these are added. The sum may then be too large, but never too small. Repeating the call changes nothing.
--
-- KEYS  1 quota of the day  2 quota of the next day, which has the same limit until WeChat reports another
-- ARGV  1 limit  2 used  3 number of messages that had ended before the query  4 id of this answer
--       5 seconds the numbers are kept
--       e.g. EVALSHA sha 2 formid:{wx1}:quota:template:20412 formid:{wx1}:quota:template:20413 1000000 1234 1200 <id>
--       172800
-- Reply  how many were added to WeChat's number
assert(#KEYS == 2 and #ARGV == 5, 'quota: wrong number of arguments')

local used, open, answer = unpack(redis.call('HMGET', KEYS[1], 'used', 'open', 'answer'))
if answer == ARGV[4] then return 0 end
local more = math.max(tonumber(open or 0), tonumber(used or 0) - tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'limit', ARGV[1], 'used', ARGV[2] + more, 'unsure', more > 0 and 1 or 0, 'answer', ARGV[4])
redis.call('HSET', KEYS[2], 'limit', ARGV[1])
for i = 1, 2 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end
return more
