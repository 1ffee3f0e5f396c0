-- Counts messages that were sent without a permit. Broadcasts may send that many fewer. Resending the call after a lost
-- reply counts them again.
--
-- KEYS  1 pace of the app  2 quota of the day
-- ARGV  1 number of messages  2 seconds the day's numbers are kept
-- Reply  number of messages sent on the day
assert(#KEYS == 2 and #ARGV == 2, 'count: wrong number of arguments')

-- Only if a broadcast has created the token bucket; without one there is nothing to slow down.
if redis.call('HEXISTS', KEYS[1], 'all') == 1 then redis.call('HINCRBYFLOAT', KEYS[1], 'all', '-' .. ARGV[1]) end
local used = redis.call('HINCRBY', KEYS[2], 'used', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return used
