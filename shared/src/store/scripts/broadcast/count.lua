-- Counts messages that were sent without a permit: those of a broadcast are fewer by them. Sent again after a lost reply it
-- counts them again.
--
-- KEYS  1 pace of the app  2 quota of the day
-- ARGV  1 how many  2 seconds the day is kept
-- Reply  how many were sent on the day
assert(#KEYS == 2 and #ARGV == 2, 'count: wrong number of arguments')

-- Only where a broadcast has made the bucket: without one there is nothing to make room in.
if redis.call('HEXISTS', KEYS[1], 'all') == 1 then redis.call('HINCRBYFLOAT', KEYS[1], 'all', '-' .. ARGV[1]) end
local used = redis.call('HINCRBY', KEYS[2], 'used', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return used
